"""What W&B gets of a run, read back from the file that an offline run keeps."""

from __future__ import annotations

import csv
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small
from omegaconf import OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from rnnzoo import UserError
from rnnzoo.hydra.report import collect
from rnnzoo.lightning.preempt import Preempted
from rnnzoo.lightning.wandb_run import WandbRun, finishing

SINE = (*small.SINE, "trainer.max_epochs=1", "trainer.limit_train_batches=2")
TEXT = (*small.TEXT, "trainer.limit_train_batches=3", "trainer.log_every_n_steps=1")


@pytest.fixture(autouse=True)
def wandb_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B without an account, with caches of its own, and whose service ends with the test."""
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    yield
    if sys.modules.get("wandb") is not None:
        sys.modules["wandb"].teardown()


class Kept:
    """The only offline run below a folder.

    Its file is a log as LevelDB writes it: seven bytes of header, then blocks of 32 KiB that hold pieces, each after
    seven bytes of checksum (4), length (2) and kind (1: whole, 2: first, 3: middle, 4: last).
    """

    def __init__(self, folder: Path) -> None:
        import wandb
        from wandb.proto.wandb_internal_pb2 import Record

        wandb.teardown()  # waits until the file is written to its end
        [self.folder] = folder.glob("wandb/offline-run-*")
        [path] = self.folder.glob("run-*.wandb")
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.steps: dict[int, dict[str, Any]] = defaultdict(dict)
        data, at, record = path.read_bytes(), 7, b""
        while at < len(data):
            if 2**15 - at % 2**15 < 7:
                at += 2**15 - at % 2**15
                continue
            size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
            record += data[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):
                self._read(Record.FromString(record))
                record = b""

    def _read(self, record: Any) -> None:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            self.name, self.group, self.project = record.run.display_name, record.run.run_group, record.run.project
        elif kind == "exit":
            self.exit_code = record.exit.exit_code
        elif kind in ("config", "summary"):
            for item in getattr(record, kind).update:
                if item.key:
                    getattr(self, kind)[item.key] = json.loads(item.value_json)
        elif kind == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                *above, last = item.nested_key
                place = row
                for key in above:
                    place = place.setdefault(key, {})
                place[last] = json.loads(item.value_json)
            self.steps[row["trainer/global_step"]] |= {k: v for k, v in row.items() if not k.startswith("_")}

    def media(self) -> dict[str, list[Path]]:
        """The files that were logged, by key, in order."""
        files: dict[str, list[Path]] = defaultdict(list)
        for step in sorted(self.steps):
            for key, value in self.steps[step].items():
                if isinstance(value, dict):
                    files[key] += [self.folder / "files" / name for name in value.get("filenames", [value.get("path")])]
        return files


def metrics(folder: Path) -> dict[int, dict[str, float]]:
    """The rows of metrics.csv by step."""
    with (folder / "metrics.csv").open(newline="") as file:
        return {int(row.pop("step")): {k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)}


def test_a_resumed_run_goes_on_in_its_wandb_run(train: Callable[..., Path]) -> None:
    import wandb

    folder = train(*SINE, "logger=wandb")
    wandb.teardown()
    [first] = folder.glob("wandb/offline-run-*")
    first.rename(f"{first}-1")  # as W&B calls the second of two that start in the same second
    train(f"resume={folder}", "trainer.max_epochs=2")
    wandb.teardown()
    files = list(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert [file.name for file in files] == [f"run-{first.name.split('-')[3]}.wandb"] * 2


def test_a_run_is_kept_whole(train: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    folder = train(*TEXT, "logger=wandb", "logger.project=zoo", "pictures=true")
    output = capfd.readouterr()
    kept = Kept(folder)
    assert (kept.name, kept.project, kept.group) == (f"char_lm gru seed 1 {folder.name}", "zoo", "")
    assert kept.exit_code == 0
    resolved = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "config.yaml"))
    assert {key: value for key, value in kept.config.items() if key != "_wandb"} == resolved

    media = kept.media()
    logged = {
        step: {key: value for key, value in row.items() if key not in media and key != "trainer/global_step"}
        for step, row in kept.steps.items()
    }
    assert logged == metrics(folder) and len(logged) > 2

    summary = json.loads((folder / "summary.json").read_text())
    expected = {**summary, **summary["metrics"]}
    del expected["metrics"]
    assert {key: kept.summary.get(key, "missing") for key in expected} == expected

    [texts_file] = media.pop("samples")
    plots = sorted(path.read_bytes() for path in folder.glob("plots/*.png"))
    assert sorted(path.read_bytes() for paths in media.values() for path in paths) == plots and len(plots) == 4
    table = json.loads(texts_file.read_text())
    texts = sorted((path.stem, path.read_text()) for path in (folder / "samples").iterdir())
    assert [tuple(row) for row in table["data"]] == texts and len(texts) == 1

    assert not output.err
    [line] = [line for line in output.out.splitlines() if "W&B" in line or "wandb" in line]
    assert line.endswith(f"wandb sync {kept.folder}") and "offline" in line


def test_a_multirun_is_one_group_of_runs(tmp_path: Path, train: Callable[..., Path]) -> None:
    sweep = tmp_path / "comparison"
    train("-m", "seed=1,2", *SINE, "logger=wandb", f"hydra.sweep.dir={sweep}")
    for number, seed in (("0", 1), ("1", 2)):
        kept = Kept(sweep / number)
        assert (kept.name, kept.group) == (f"sine gru seed {seed} {number}", "comparison")
        assert kept.config["seed"] == kept.summary["seed"] == seed
        losses = [row["train/loss"] for row in metrics(sweep / number).values() if "train/loss" in row]
        assert [row["train/loss"] for row in kept.steps.values() if "train/loss" in row] == losses


def test_a_job_that_fails_does_not_go_on_in_the_next(tmp_path: Path, train: Callable[..., Path]) -> None:
    rates = ("optimizer.lr=1e30,1e-3", "optimizer.schedule=constant")
    with pytest.raises(SystemExit):
        train("-m", *SINE, *rates, "logger=wandb", "logger.group=mine", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    runs = [Kept(tmp_path / "sweep" / number) for number in ("0", "1")]
    assert [run.exit_code for run in runs] == [1, 0]
    assert [run.group for run in runs] == ["mine", "mine"]


@pytest.mark.parametrize("end", [UserError("wrong"), Preempted()], ids=["refused", "preempted"])
def test_a_run_is_finished_however_it_ends(end: BaseException, tmp_path: Path) -> None:
    import wandb

    with pytest.raises(type(end)), finishing():
        wandb.init(mode="offline", dir=tmp_path, settings={"silent": True})
        raise end
    assert wandb.run is None
    assert Kept(tmp_path).exit_code == 1


def test_disabled(train: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    folder = train(*SINE, "logger=wandb", "logger.mode=disabled", "pictures=true")
    assert not (folder / "wandb").exists() and (folder / "summary.json").is_file()
    output = capfd.readouterr()
    assert not output.err and "W&B" not in output.out


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [
        ("logger.mode=on", "logger.mode=on: should be 'offline', 'online' or 'disabled'"),
        ("logger.project=a/b", "logger.project=a/b: "),
        ("logger.group=7", "logger.group=7: should be a valid string"),
        ("logger.mode=online", "logger=wandb: No API key configured"),
    ],
)
def test_refused_in_one_line(
    choice: str, complaint: str, train: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train(*SINE, "logger=wandb", choice)
    error = capfd.readouterr().err
    assert error.startswith(f"error: {complaint}") and error.count("\n") == 1


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    monkeypatch.setitem(sys.modules, "wandb", None)
    settings = {"task": {"name": "sine"}, "model": {"cell": "gru"}, "seed": 1}
    logger = WandbRun("zoo", "offline", None, settings, tmp_path)
    logger.log_hyperparams({})
    logger.log_metrics({"train/loss": 1.0}, 1)
    assert not list(tmp_path.iterdir())


def test_nothing_else_needs_wandb(train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails
    folder = train(*SINE)
    assert len(collect([folder]).tables) == 1
