"""A run's folder: one process at a time, and what happens when it is deleted meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT
from test_recorded import SINE, files

from rnnzoo import UserError
from rnnzoo.cli import main
from rnnzoo.lightning.run_lock import locked

HOLDER = """
import sys, time
from pathlib import Path
from rnnzoo.lightning.run_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Another process has the folder, and is killed at the end."""
    held = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(held, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield
        finally:
            os.kill(process.pid, signal.SIGKILL)


def test_a_folder_is_one_processs_until_that_is_dead(
    tmp_path: Path, train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(*SINE)
    new = tmp_path / "new"
    for arguments in ((f"resume={folder}", "trainer.max_epochs=2"), (*SINE, f"hydra.run.dir={new}")):
        with holding(folder if arguments[0].startswith("resume") else new):
            before = files(tmp_path)
            capsys.readouterr()
            with pytest.raises(SystemExit) as end:
                train(*arguments)
            error = capsys.readouterr().err
            assert end.value.code == 1 and error.count("\n") == 1 and "another process trains there" in error
            assert files(tmp_path) == before
        train(*arguments)
    assert (new / "summary.json").is_file()


def test_a_lock_leaves_no_folders(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with locked(tmp_path / "a" / "b"), locked(tmp_path / "link" / "b"), locked(tmp_path / "link" / ".." / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "link").unlink()
    assert not list(tmp_path.iterdir())
    taken = pytest.raises(UserError, match="another process")
    with holding(tmp_path / "c"), taken, locked(tmp_path / "c"):
        pass


DELETED = """
import shutil
from pathlib import Path
import torch
from rnnzoo import Cell, gate, register

calls = -6  # of which the rehearsal makes six

@register("deleting")
class Deleting(Cell):
    W, U, b = gate()

    def step(self, x, h):
        global calls
        calls += self.training
        if calls == 4:
            shutil.rmtree({folder!r})
            calls += 1
        return torch.tanh(x @ self.W + h @ self.U + self.b)
"""


def test_a_folder_that_is_deleted_meanwhile(
    tmp_path: Path, train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, cells = tmp_path / "run", tmp_path / "own.py"
    cells.write_text(DELETED.format(folder=str(folder)))
    own = [argument for argument in SINE if argument != "model=rnn"]
    train(*own, f"cells={cells}", "model=deleting", f"hydra.run.dir={folder}")
    error = capsys.readouterr().err
    assert error.startswith(f"{folder}: was deleted while its run goes on") and error.count("\n") == 1
    assert main(["eval", str(folder), "--cells", str(cells)]) == 0
    train(f"resume={folder}", f"cells={cells}", "trainer.max_epochs=2")
