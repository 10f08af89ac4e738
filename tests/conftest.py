"""Fixtures for all tests: one thread a process, one seed, a cache of their own, and runs in this process."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two processes with two threads each fight over cores

import gc
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from rnnzoo import list_cells, registry

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


SHARING = {
    "test_gallery.py": "pages", "test_essay.py": "pages", "test_essays.py": "pages", "test_install.py": "install",
    "test_verbs.py": "verbs", "test_diagram.py": "diagrams", "test_play.py": "play", "test_play_page.py": "play",
}  # fmt: skip
"""What files share whose tests use what took long to make."""


class ByFunction(LoadScopeScheduling):
    """One process runs all cases of a test, or all tests of files that share something: nothing is made twice."""

    def _split_scope(self, nodeid: str) -> str:
        return SHARING.get(Path(nodeid.partition("::")[0]).name) or nodeid.partition("[")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFunction:
    return ByFunction(config, log)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # torch and sympy are never garbage, and to scan them again and again takes a tenth of tracing's time


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is read from or left in the user's cache; nothing asks the network; compilers are in a hurry."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("RNNZOO_CACHE", str(folder))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("CXXFLAGS", "-O0")
    return folder


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """Every test draws the same numbers whenever it runs, alone or among others."""
    import numpy as np
    import torch

    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)


@pytest.fixture
def as_users_compile(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are optimised as they are for users, where what a compiler makes of them is what is tested."""
    monkeypatch.delenv("CXXFLAGS")


@pytest.fixture
def shared_kernels(
    own_cache: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, worker_id: str
) -> None:
    """A kernel is compiled once a session, for all processes of pytest."""
    base = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("RNNZOO_CACHE", str((base if worker_id == "master" else base.parent) / "shared"))


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`train("task=sine", ...)` runs train.py in this process and returns the run's folder.

    Bad input raises SystemExit, as at the command line.
    """
    from rnnzoo.hydra.command_line import command
    from rnnzoo.hydra.train import main

    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    count = 0

    def run(*arguments: str) -> Path:
        nonlocal count
        count += 1
        named = [a.partition("=")[2] for a in arguments if a.startswith(("resume=", "hydra.run.dir="))]
        folder = Path(named[0]) if named else tmp_path / f"run{count}"
        own = [] if named else [f"hydra.run.dir={folder}"]
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *arguments, *own])
        command(main)
        return folder

    return run


@pytest.fixture(scope="session")
def python() -> Iterator[list[str]]:
    """What stands for `python` in a command that need not see an interpreter start: see forking.py."""
    if sys.platform != "linux":  # elsewhere a process that has loaded such libraries may not be forked
        yield [sys.executable]
        return
    script = str(Path(__file__).with_name("forking.py"))
    with tempfile.TemporaryDirectory() as folder:
        place = f"{folder}/socket"
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen([sys.executable, script, "serve", place], **pipes) as server:
            assert server.stdout is not None and server.stdout.readline() == b"ready\n"
            yield [sys.executable, "-SE", script, place]


@pytest.fixture
def command(python: list[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`command("train.py", ...)` runs Python on a script or module of the project in a process of its own."""
    return lambda *arguments, **options: _ended([*python, *arguments], options)


@pytest.fixture
def interpreter() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same in a new interpreter, where what is imported, and when, is what is tested."""
    return lambda *arguments, **options: _ended([sys.executable, *arguments], options)


def _ended(command: list[str], options: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, **{"cwd": ROOT, "capture_output": True, "text": True, **options})


@pytest.fixture(autouse=True)
def cells_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells that a test loads are forgotten after it."""
    list_cells()  # installed cells are loaded once only, so before the copies are made
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(registry, "_loaded", dict(registry._loaded))


@pytest.fixture
def empty_memory_is_nan() -> Iterator[None]:
    """With deterministic algorithms, torch fills what `torch.empty` returns with NaN."""
    import torch

    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """A tree of film reviews, 21 of each kind in both parts, of different lengths."""
    for split in ("train", "test"):
        for sentiment, word in (("pos", "fine"), ("neg", "dull")):
            for number in range(21):
                path = tmp_path / "aclImdb" / split / sentiment / f"{number}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("it is a " * (1 + number % 4) + (word if number % 5 else "film") + " and long" * number)
    return tmp_path / "aclImdb"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed, which these tests look at the pages with")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        new_page = opened.new_page

        def patient(**options: Any) -> Any:
            page = new_page(**options)
            page.set_default_timeout(120_000)  # ms; beside other processes half a minute was too short once
            return page

        opened.new_page = patient  # type: ignore[method-assign]
        yield opened
        opened.close()
