"""Run folders that are damaged, or a stranger's: one line, nothing written, and nothing of theirs executed."""

from __future__ import annotations

import json
import random
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from omegaconf import OmegaConf

from rnnzoo import UserError, registry
from rnnzoo.cli import main
from rnnzoo.hydra.evaluate import recorded_metrics
from rnnzoo.hydra.recorded import recorded_settings
from rnnzoo.hydra.report import collect
from rnnzoo.hydra.settings import resolve
from rnnzoo.lightning.checkpoints import AtomicCheckpointIO, read_checkpoint
from rnnzoo.lightning.records import read_metrics

SINE = (
    *small.SINE, "task.batch_size=20", "model.hidden_size=2", "trainer.max_epochs=1", "engine=reference", "model=rnn",
)  # fmt: skip

CELL = """
from pathlib import Path
from torch import tanh
from rnnzoo import Cell, gate, register

Path({mark!r}).touch()

@register("pwned{suffix}")
class Pwned(Cell):
    W, U, b = gate()

    def step(self, x, h):
        return tanh(x @ self.W + h @ self.U + self.b)
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def run(kept: Path, tmp_path: Path, train: Callable[..., Path]) -> Path:
    """A copy of a run that was made once."""
    if not (kept / "run").exists():
        train(*SINE, f"hydra.run.dir={kept / 'run'}")
    return Path(shutil.copytree(kept / "run", tmp_path / "copy"))


@pytest.fixture
def refused(train: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """`refused("resume=...")` and `refused("export", ...)` must end in one line, and leave all files as they were."""

    def call(*arguments: str) -> str:
        before = files(tmp_path)
        capsys.readouterr()
        if "=" in arguments[0]:
            with pytest.raises(SystemExit) as end:
                train(*arguments)
            code = end.value.code
        else:
            code = main(list(arguments))
        error = capsys.readouterr().err
        error = "".join(line for line in error.splitlines(keepends=True) if not line.startswith("exporting "))
        assert code == 1 and error.startswith("error: ") and error.count("\n") == 1, error
        assert files(tmp_path) == before
        return error.removeprefix("error: ").strip()

    return call


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Damaged


def test_a_flipped_bit_of_a_checkpoint_is_seen(run: Path, refused: Callable[..., str]) -> None:
    for name in ("best", "last"):
        path = run / "checkpoints" / f"{name}.ckpt"
        whole = path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            weights = [info for info in archive.infolist() if "/data/" in info.filename and info.file_size]
        for info in (weights[0], weights[-1]):
            at = whole.index(zipfile.ZipFile(path).read(info), info.header_offset)
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            with pytest.raises(UserError, match=rf"{name}.ckpt: damaged .*checksum"):
                read_checkpoint(path)
            with pytest.raises(UserError, match=rf"{name}.ckpt: damaged .*checksum"):
                AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
        argument = ("export", str(run), "--pt2") if name == "best" else (f"resume={run}", "trainer.max_epochs=2")
        assert f"{name}.ckpt: damaged" in refused(*argument)
        path.write_bytes(whole)


def test_a_checkpoint_without_optimizer(run: Path, refused: Callable[..., str]) -> None:
    last = run / "checkpoints" / "last.ckpt"
    contents = torch.load(last, weights_only=True)
    contents["optimizer_states"] = []
    torch.save(contents, last)
    assert "last.ckpt: damaged" in refused(f"resume={run}")


SECTIONS = ("state_dict", "hyper_parameters", "global_step", "epoch", "loops", "callbacks", "optimizer_states",
            "lr_schedulers", "pytorch-lightning_version")  # fmt: skip


@pytest.mark.parametrize("name", SECTIONS)
def test_a_checkpoint_without_a_section(name: str, run: Path, refused: Callable[..., str]) -> None:
    last = run / "checkpoints" / "last.ckpt"
    contents = torch.load(last, weights_only=True)
    del contents[name]
    torch.save(contents, last)
    assert f"{last}: damaged or not a checkpoint ({name} is missing)" == refused(f"resume={run}")
    contents[name] = "nonsense" if name != "pytorch-lightning_version" else 3
    torch.save(contents, last)
    assert f"({name} is no " in refused(f"resume={run}")


@pytest.mark.parametrize(
    ("name", "value"),
    [("optimizer_states", [{"state": 3, "param_groups": []}]), ("lr_schedulers", [3]), ("loops", {"fit_loop": 3}),
     ("callbacks", {"Clock": {"steps": 1}}), ("lr_schedulers", [{"last_epoch": "x"}])],
)  # fmt: skip
def test_what_lightning_cannot_restore(name: str, value: Any, run: Path, refused: Callable[..., str]) -> None:
    last = run / "checkpoints" / "last.ckpt"
    contents = torch.load(last, weights_only=True)
    contents[name] = value
    torch.save(contents, last)
    assert refused(f"resume={run}", "trainer.max_epochs=2").startswith(f"{last}: damaged")


@pytest.mark.parametrize("value", [3, None, [1], {"cell": 3}, {"cell": "rnn", "hidden_size": "x"}, torch.ones(3)])
def test_hyperparameters_of_another_type(value: Any, run: Path, refused: Callable[..., str]) -> None:
    for path in (run / "checkpoints" / "best.ckpt", run / "checkpoints" / "last.ckpt"):
        contents = torch.load(path, weights_only=True)
        contents["hyper_parameters"]["model"] = value
        torch.save(contents, path)
    assert "best.ckpt: " in refused("eval", str(run))
    assert "last.ckpt was trained with model" in refused(f"resume={run}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"\xff\xfe\x00", "line 1: 'utf-8' codec"),
        (b"a,b\n1,2\n", "line 1: its first two columns are not step and epoch"),
        (b"step,epoch,val/loss\n0,0,1\n1,0,2,3\n", "line 3: 4 values in 3 columns"),
        (b"step,epoch,val/loss\n0,0", "line 2: 2 values in 3 columns"),
        (b"step,epoch,val/loss\nx,0,1\n", "line 2: invalid literal"),
        (b"step,epoch,epoch\n", "line 1: "),
        (b"", "line 1: "),
    ],
)
def test_damaged_metrics(text: bytes, problem: str, run: Path, refused: Callable[..., str]) -> None:
    (run / "metrics.csv").write_bytes(text)
    error = refused(f"resume={run}", "trainer.max_epochs=2")
    assert error.startswith(f"{run / 'metrics.csv'}: damaged, {problem}") and "move it away" in error


CONFIGS: dict[str, Callable[[str], bytes]] = {
    "binary": lambda text: b"\x00\xff\xfe" + text.encode(),
    "cut": lambda text: text[: text.index("datamodule") + 5].encode(),
    "a key twice": lambda text: (text + "seed: 3\n").encode(),
    "a foreign tag": lambda text: text.replace("seed: 1", "seed: !!python/object/apply:os.getcwd []").encode(),
    "empty": lambda text: b"",
    "a list": lambda text: b"- 1\n",
    "no cell": lambda text: text.replace("cell: rnn", "cel: rnn").encode(),
    "a task that is no group": lambda text: OmegaConf.to_yaml({"task": 3, "model": {}, "cells": None}).encode(),
    "a hydra section": lambda text: (text + "hydra:\n  callbacks: {a: {_target_: os.getcwd}}\n").encode(),
    "defaults": lambda text: ("defaults: [{override hydra/launcher: joblib}]\n" + text).encode(),
    "what Hydra fills in": lambda text: text.replace("seed: 1", "seed: ${oc.env:HOME}").encode(),
    "a package": lambda text: ("# @package hydra\n" + text).encode(),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_that_no_run_records(name: str, run: Path, refused: Callable[..., str]) -> None:
    path = run / ".hydra" / "config.yaml"
    path.write_bytes(CONFIGS[name](path.read_text()))
    for arguments in ((f"resume={run}",), ("eval", str(run)), ("export", str(run), "--pt2")):
        assert refused(*arguments).startswith(f"{path}: ")


@pytest.mark.parametrize("text", [b"\xa1", b"- a\n- [b", b"a: 1\n", b"- !!python/name:os.system\n"])
def test_damaged_overrides(text: bytes, run: Path, refused: Callable[..., str]) -> None:
    path = run / ".hydra" / "overrides.yaml"
    path.write_bytes(text)
    assert refused(f"resume={run}", "trainer.max_epochs=2").startswith(f"{path}: damaged (")


def mutations(data: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Bytes changed, cut, doubled, overwritten or taken out somewhere."""
    draw = random.Random(seed)
    for number in range(count):
        at, size = draw.randrange(len(data)), draw.choice([1, 3, 40])
        other = bytes(draw.randrange(256) for _ in range(size))
        yield [
            data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :],
            data[:at],
            data[:at] + data[at + size :],
            data[:at] + other + data[at + size :],
            data[:at] + data[at : at + 40] + data[at:],
        ][number % 5]


def unharmed(call: Callable[[], object]) -> bool:
    """Whether a call works; what refuses bad input is the only kind of error that it may raise."""
    try:
        call()
    except UserError as error:
        assert str(error) and "\n" not in str(error)
        return False
    return True


def test_a_hundred_mutations_of_each_recorded_file(
    run: Path, train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback and nothing written, whatever is wrong; most are seen, of a checkpoint all that change a weight."""
    weights = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]

    def resolved() -> object:
        return resolve(OmegaConf.create({**recorded_settings(run), "resume": str(run)}), run)

    resumed = ("checkpoints/last.ckpt", ".hydra/config.yaml", "metrics.csv")
    readers: dict[str, Callable[[Path], object]] = {
        "checkpoints/last.ckpt": read_checkpoint,
        ".hydra/config.yaml": lambda path: resolved(),
        "metrics.csv": lambda path: read_metrics(path, 10),
        "summary.json": lambda path: recorded_metrics(path),
        ".hydra/overrides.yaml": lambda path: collect([run]),
    }
    for name, read in readers.items():
        path = run / name
        whole = path.read_bytes()
        seen = 0
        for number, data in enumerate(mutations(whole, seed=1, count=100)):
            path.write_bytes(data)
            before = files(run)
            found = unharmed(lambda path=path, read=read: read(path))
            if name.endswith("ckpt") and found:
                again = read_checkpoint(path)["state_dict"]
                assert all(torch.equal(weights[key], again[key]) for key in weights)
            seen += not found
            if number % 20 == 0 and not found and name in resumed:
                with pytest.raises(SystemExit):
                    train(f"resume={run}", "trainer.max_epochs=2")
                error = capsys.readouterr().err
                assert error.startswith("error: ") and error.count("\n") == 1, error
            assert files(run) == before
        path.write_bytes(whole)
        assert unharmed(lambda path=path, read=read: read(path))
        assert seen >= {"checkpoints/last.ckpt": 60, "metrics.csv": 30}.get(name, 10), (name, seen)


# A stranger's


def test_code_that_a_run_names_is_loaded_only_when_it_is_named_again(
    tmp_path: Path, train: Callable[..., Path], refused: Callable[..., str]
) -> None:
    mark, cells = tmp_path / "mark", tmp_path / "own.py"
    cells.write_text(CELL.format(mark=str(mark), suffix=""))
    own = [argument for argument in SINE if argument != "model=rnn"]
    folder = train(*own, f"cells={cells}", "model=pwned")
    assert mark.is_file()
    mark.unlink()
    sys.modules.pop(registry._loaded.pop(str(cells)).__name__)
    del registry._entries["pwned"]
    assert f"say cells={cells} as well" in refused(f"resume={folder}", "trainer.max_epochs=2")
    assert "say --cells with it" in refused("eval", str(folder))
    assert not mark.exists()
    train(f"resume={folder}", f"cells={cells}", "trainer.max_epochs=2")
    assert mark.is_file() and main(["eval", str(folder), "--cells", str(cells)]) == 0

    cells.write_text(cells.read_text() + "\n# once more\n")
    assert f"{cells}: has changed since" in refused(f"resume={folder}", f"cells={cells}", "trainer.max_epochs=3")
    assert f"{cells}: has changed since" in refused("eval", str(folder), "--cells", str(cells))
    (folder / ".hydra" / "cells.sha256").unlink()
    train(f"resume={folder}", f"cells={cells}", "trainer.max_epochs=3")


def test_a_class_that_a_run_names_is_a_task_of_the_project(
    run: Path, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a module that lies beside the run, nor what a module of ours has imported."""
    (tmp_path / "stranger.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'mark')!r}).touch()\n")
    monkeypatch.chdir(tmp_path)
    path = run / ".hydra" / "config.yaml"
    config: Any = OmegaConf.load(path)
    for key in ("datamodule", "module"):
        before = config.task[key]
        for name, problem in (
            ("stranger.Data", "is not rnnzoo's own"),
            ("subprocess.Popen", "is not rnnzoo's own"),
            ("rnnzoo.hydra.separate_process.subprocess.Popen", "is not rnnzoo's own"),
            ("rnnzoo.tasks.sine.Path", f"task.{key}=rnnzoo.tasks.sine.Path: "),
        ):
            config.task[key] = name
            OmegaConf.save(config, path)
            tested = ("test_only=true", f"ckpt={run / 'checkpoints' / 'best.ckpt'}")
            for arguments in ((f"resume={run}", "trainer.max_epochs=2"), ("eval", str(run)), tested):
                assert problem in refused(*arguments)
        config.task[key] = before
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["../../x", "/x", "a/b", "..", "", "a\nb"])
def test_names_from_files_do_not_become_paths(name: str, run: Path, refused: Callable[..., str]) -> None:
    path = run / ".hydra" / "config.yaml"
    config: Any = OmegaConf.load(path)
    config.task.name = name
    OmegaConf.save(config, path)
    assert "no name of a task or cell" in refused("export", str(run), "--pt2")
    assert "task.name" in refused(f"resume={run}", "trainer.max_epochs=2")


# Folders and choices as a person would write them


@pytest.mark.parametrize(
    "name",
    ["it's", "a=b", "a,b", "{a}", "a b", "[a]", "(a)", "$a", "a\\b", 'say "a"', "100%", "ü", "#1", "a:b", "~a"],
)
def test_a_folder_of_any_name_is_resumed(name: str, run: Path, tmp_path: Path, train: Callable[..., Path]) -> None:
    folder = run.rename(tmp_path / name)
    train(f"resume={folder}", "trainer.max_epochs=2")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["epochs"] == 2


def test_a_folder_whose_name_hydra_would_fill_in(run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "rename the folder" in refused(f"resume={run.rename(tmp_path / '${a}')}")


@pytest.mark.parametrize("written", ["~/a run", "~/a run/checkpoints/last.ckpt"])
def test_a_run_below_the_home_folder_is_resumed(
    written: str, run: Path, tmp_path: Path, train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = run.rename(tmp_path / "a run")
    train(f"resume={written}", "trainer.max_epochs=2")
    assert json.loads((folder / "summary.json").read_text())["epochs"] == 2


@pytest.mark.parametrize("key", ["resume", "ckpt", "cells", "task=char_lm task.text"])
def test_a_home_folder_that_there_is_none_of(key: str, refused: Callable[..., str]) -> None:
    *before, key = key.split()
    more = ["test_only=true"] if key == "ckpt" else []
    assert "~nobody-at-all/x" in refused(*before, *more, f"{key}=~nobody-at-all/x")


@pytest.mark.parametrize("name", ["it's", "a=b", "a,b", "{a}", "a b", "(a)"])
def test_a_folder_of_any_name_is_trained_in(name: str, tmp_path: Path, train: Callable[..., Path]) -> None:
    assert (train(*SINE, f"hydra.run.dir={tmp_path / name}") / "summary.json").is_file()


def test_a_resumed_run_may_choose_other_hardware(
    run: Path, train: Callable[..., Path], refused: Callable[..., str]
) -> None:
    train(f"resume={run}", "hardware=cpu", "logger=csv", "trainer.max_epochs=2")
    assert "hardware=cpuu: no such hardware; did you mean cpu" in refused(f"resume={run}", "hardware=cpuu")
    kept = ("task=sine", "model=gru", "experiment=sine_article", "sweep=optuna", "task.horizon=3", "+model.zoneout=0.1")
    for argument in (*kept, "seed=2", "test_only=true"):
        assert "a resumed run keeps its" in refused(f"resume={run}", argument)


def test_what_a_resumed_run_does_otherwise_is_recorded(run: Path, train: Callable[..., Path]) -> None:
    config = run / ".hydra" / "config.yaml"
    before = config.read_text()
    train(f"resume={run}")
    assert config.read_text() == before
    train(f"resume={run}", "trainer.max_epochs=2", "optimizer=adam")
    settings = recorded_settings(run)
    assert (settings["trainer"]["max_epochs"], settings["optimizer"]["name"], settings["resume"]) == (2, "adam", None)
    overrides = list(OmegaConf.load(run / ".hydra" / "overrides.yaml"))
    assert overrides[: len(SINE)] == list(SINE) and "trainer.max_epochs=2" in overrides
    assert "trainer.max_epochs=2" in collect([run]).tables[0].best.command
    train(f"resume={run}")  # goes on to the same end, which it has reached
    assert json.loads((run / "summary.json").read_text())["epochs"] == 2
