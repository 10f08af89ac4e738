"""The built wheel, started from an empty folder with no clone in sight: what a person has after `pip install`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

TOY = (
    "task=sine", "task.samples=64", "task.batch_size=32", "model.hidden_size=4", "hardware=cpu", "trainer.max_epochs=1",
)  # fmt: skip

OWN_TASK = '''
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnzoo.lightning import SequenceData, SequenceModule, verb


class Signs(SequenceData):
    def __init__(self, samples: int = 60, batch_size: int = 20, seed: int = 1) -> None:
        super().__init__()
        self.samples, self.batch_size, self.seed = samples, batch_size, seed

    def read(self) -> None:
        x = torch.randn(3 * self.samples, 5, 1, generator=torch.Generator().manual_seed(self.seed))
        self.train, self.val, self.test = x.split(self.samples)


class FirstSign(SequenceModule):
    def __init__(self, **base: Any) -> None:
        super().__init__(**base)
        self.start()

    def build(self) -> None:
        self.layer = self.recurrent(1)
        self.head = nn.Linear(self.layer.output_size, 1)
        self.add_metrics()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][-1]).squeeze(-1)

    def score(self, batch: Tensor) -> tuple[Any, ...]:
        logit, positive = self(batch.transpose(0, 1)), (batch[:, 0, 0] > 0).float()
        return F.binary_cross_entropy_with_logits(logit, positive), len(positive)

    @verb
    def ask(self, value: float, loud: bool = False) -> None:
        """Whether a sequence of five equal values is positive.

        Args:
            value: all of them.
            loud: with an exclamation mark.
        """
        answer = f"{float(self(torch.full((5, 1, 1), value))):.3f}"
        print(answer + "!" * loud)
'''

OWN_YAML = """
name: signs
datamodule: my_tasks.Signs
module: my_tasks.FirstSign
samples: 60
batch_size: 20
preset: {hidden_size: 4, num_layers: 1, bidirectional: false, dropout: 0.0, lr: 1e-2, schedule: linear, max_epochs: 1}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The wheel, unpacked as pip does it, beside the packages of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    # built from a copy, because two processes of pytest may build at once
    ignore = shutil.ignore_patterns(".git", ".venv", "outputs", "multirun", "dist", "__pycache__", ".*_cache")
    clone = shutil.copytree(ROOT, folder / "clone", ignore=ignore)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(clone)]
    subprocess.run(build, check=True, capture_output=True)
    shutil.rmtree(clone)
    [wheel] = folder.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([*pip, str(folder / "site"), str(wheel)], check=True, capture_output=True)
    return folder / "site"


@pytest.fixture
def rnnzoo(
    installed: Path, tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> Callable[..., str]:
    """`rnnzoo("train", ...)` runs the installed command in an empty folder and returns what it printed."""

    def run(*arguments: str, code: int = 0) -> str:
        done = command("-m", "rnnzoo", *arguments, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)})
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    return run


def test_the_wheel_holds_tasks_and_choices_inside_the_package(installed: Path) -> None:
    top = [path.name for path in installed.iterdir() if path.suffix != ".dist-info"]
    assert sorted(top) in (["rnnzoo"], ["bin", "rnnzoo"])
    for folder in ("tasks", "conf"):
        mine = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml")}
        its = {path.relative_to(installed / "rnnzoo") for path in (installed / "rnnzoo" / folder).rglob("*.[py][ya]*")}
        assert mine and mine <= its


def test_a_run_made_in_one_place_opens_in_the_other(
    rnnzoo: Callable[..., str], tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    rnnzoo("train", *TOY, "hydra.run.dir=run")
    assert "equal to the recorded ones" in rnnzoo("eval", "run")
    here = command("-m", "rnnzoo", "eval", str(tmp_path / "run"))
    assert "equal to the recorded ones" in here.stdout, here.stderr
    command("train.py", *TOY, f"hydra.run.dir={tmp_path / 'clone'}")
    assert "equal to the recorded ones" in rnnzoo("eval", "clone")


def test_many_runs_and_their_table(rnnzoo: Callable[..., str], tmp_path: Path) -> None:
    said = rnnzoo("train", "-m", *TOY, "model=rnn,gru", "hydra.sweep.dir=many")
    assert "repeat it: rnnzoo train" in said
    assert (tmp_path / "many" / "results.csv").is_file()
    rnnzoo("report", "many", "--out", "table")
    assert (tmp_path / "table" / "results.md").is_file()


def test_a_task_of_ones_own_gets_all_commands(rnnzoo: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "my_tasks.py").write_text(OWN_TASK)
    (tmp_path / "choices" / "task").mkdir(parents=True)
    (tmp_path / "choices" / "task" / "signs.yaml").write_text(OWN_YAML)
    said = rnnzoo("train", "--config-dir", "choices", "task=signs", "hardware=cpu", "hydra.run.dir=run")
    assert f"rnnzoo ask run VALUE --cells {tmp_path / 'my_tasks.py'}" in said
    # nobody's code is run because a run names it
    assert "--cells" in rnnzoo("eval", "run", code=1)
    mine = ("--cells", "my_tasks.py")
    assert "equal to the recorded ones" in rnnzoo(*mine, "eval", "run")
    assert "written: run/signs_gru.pt2" in rnnzoo(*mine, "export", "run", "--pt2")
    assert "--cells" in rnnzoo("play", "run", "--save", "run.html", code=1)
    assert "written: run.html" in rnnzoo(*mine, "play", "run", "--save", "run.html")
    assert float(rnnzoo(*mine, "ask", "run", "0.7")) == float(rnnzoo(*mine, "ask", "run", "0.7", "--loud").strip()[:-1])
    assert "all of them" in rnnzoo(*mine, "ask", "--help")
