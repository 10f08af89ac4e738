"""Kernels on disk: whole, one's own, few, and never a reason to stop.

Shapes: T time steps, B batch, I input size, H hidden size.
"""

from __future__ import annotations

import gc
import linecache
import os
import shutil
import stat
import subprocess
import sys
import time
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from rnnzoo import Cell, InputWeight, Recurrent, UserError
from rnnzoo import engine as engines
from rnnzoo.engine import library, serial
from rnnzoo.engine import plan as plans

I, H = 3, 4  # noqa: E741  I is the input size everywhere in this project


class Small(Cell):
    W = InputWeight()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x @ self.W + 0.5 * h)


@pytest.fixture(autouse=True)
def a_new_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forgets what a new process would not know; so may a test, by calling it."""

    def forget() -> None:
        monkeypatch.setattr(library, "_libraries", {})
        monkeypatch.setattr(serial, "_programs", {})
        for known in ("_failed", "_told"):
            monkeypatch.setattr(engines, known, type(getattr(engines, known))())
        library._version.cache_clear()
        library._tell_of_one_thread.cache_clear()

    forget()
    return forget


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The compiler's runs."""
    run, calls = subprocess.run, []

    def counted(command: list[str], *args: Any, **options: Any) -> Any:
        if "-shared" in command:
            calls.append(command)
        return run(command, *args, **options)

    monkeypatch.setattr(subprocess, "run", counted)
    return calls


def layer_of(engine: str = "serial") -> Recurrent:
    torch.manual_seed(0)
    layer = Recurrent(Small, I, H, engine=engine)
    layer.expected_calls = 10**6
    return layer


def assert_right(engine: str = "serial", used: str = "serial") -> None:
    layer, x = layer_of(engine), torch.randn(5, 3, I)
    output, _ = layer(x)
    assert layer.engine_used == used
    torch.testing.assert_close(output, layer_of("reference")(x)[0])


def assert_refused(words: str) -> None:
    """One line where the engine was asked for; one warning, and the plain loop, under auto."""
    with pytest.raises(UserError, match=words) as caught:
        layer_of()(torch.zeros(2, 1, I))
    assert "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match=words) as said:
        assert_right("auto", "reference")
    assert len(said) == 1
    assert_right("auto", "reference")


def kernels(cache: Path) -> list[Path]:
    return sorted((cache / "kernels").glob("*.so"))


def rewrite(path: Path, change: Callable[[bytes], bytes], mode: int = 0o600) -> None:
    """In a new file: this process still runs the old one."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(change(content))
    path.chmod(mode)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut short": lambda path: rewrite(path, lambda content: content[:3000]),
    "empty": lambda path: rewrite(path, lambda content: b""),
    "one byte": lambda path: rewrite(path, lambda content: content[:-9] + b"x" + content[-8:]),
    "text": lambda path: rewrite(path, lambda content: b"no kernel"),
    "no checksum": lambda path: path.with_suffix(".sha256").unlink(),
    "another checksum": lambda path: path.with_suffix(".sha256").write_bytes(b"\xff" * 64),
    "writable by others": lambda path: rewrite(path, lambda content: content, 0o666),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_kernel_is_built_again_once(damage, own_cache, a_new_process, compiles):
    assert_right()
    (path,) = kernels(own_cache)
    a_new_process()
    DAMAGES[damage](path)
    assert_right()
    assert len(compiles) == 2
    assert kernels(own_cache) == [path]
    a_new_process()
    assert_right()
    assert len(compiles) == 2


def test_a_kernel_cut_short_does_not_end_the_process(own_cache):
    """In a process of its own, which would die of SIGBUS."""
    assert_right()
    rewrite(kernels(own_cache)[0], lambda content: content[:3000])
    code = "import sys; sys.path.insert(0, 'tests'); import test_library; test_library.assert_right()"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_kernel_that_cannot_be_loaded_is_a_refusal(monkeypatch):
    def noexec(path: str) -> Any:
        raise OSError(f"{path}: failed to map segment from shared object")

    monkeypatch.setattr("ctypes.CDLL", noexec)
    assert_refused("Small: its kernel cannot be loaded: .*failed to map segment.*RNNZOO_CACHE")


def test_a_cache_that_is_a_file_is_a_refusal(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RNNZOO_CACHE", str(tmp_path / "file"))
    assert_refused("Small: its kernel cannot be kept: .*RNNZOO_CACHE")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_is_not_writable_is_a_refusal(own_cache):
    own_cache.chmod(0o500)
    assert_refused("Small: its kernel cannot be kept: .*RNNZOO_CACHE")


def test_a_home_that_is_not_known_is_a_refusal(monkeypatch):
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("RNNZOO_CACHE")
    monkeypatch.setattr(Path, "home", unknown)
    assert_refused("Small: its kernel cannot be kept: there is no home folder.*RNNZOO_CACHE")


@pytest.mark.parametrize(
    ("command", "words"),
    [('g++ "', "CXX='g\\+\\+ \"' is no command"), ("/", "there is no /; set CXX"), ("false", "false does not work")],
)
def test_a_compiler_that_is_none_is_a_refusal(command, words, monkeypatch):
    monkeypatch.setenv("CXX", command)
    assert_refused(words)


def test_an_empty_name_of_a_compiler_is_none(monkeypatch):
    monkeypatch.setenv("CXX", "  ")
    assert_right()


def test_kernels_are_for_their_owner_only(own_cache):
    before = os.umask(0)
    try:
        assert_right()
    finally:
        os.umask(before)
    assert stat.S_IMODE((own_cache / "kernels").stat().st_mode) == 0o700
    files = [p for p in (own_cache / "kernels").iterdir() if p.is_file()]
    assert {p.suffix for p in files} == {".so", ".sha256"}
    assert {stat.S_IMODE(p.stat().st_mode) for p in files} == {0o600}


@pytest.mark.parametrize("folder", ["", "kernels"])
def test_a_folder_that_others_may_write_to_is_refused(folder, own_cache):
    (own_cache / "kernels").mkdir()
    (own_cache / folder).chmod(0o777)
    assert_refused("Small: no kernels are loaded from .*, where others may write: chmod go-w")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_is_owned_by_others_is_never_loaded(what, own_cache, a_new_process, compiles):
    assert_right()
    (path,) = kernels(own_cache)
    a_new_process()
    os.chown(path.parent if what == "folder" else path, 65534, 65534)
    if what == "folder":
        assert_refused("where others may write")
    else:
        assert_right()
        assert len(compiles) == 2


def test_kernels_used_longest_ago_are_removed(own_cache, monkeypatch, a_new_process):
    assert_right()
    (first,) = kernels(own_cache)
    for age in range(1, 6):
        copy = first.with_name(f"Old-{age}.so")
        shutil.copy(first, copy)
        copy.with_suffix(".sha256").write_text("")
        os.utime(copy, (time.time() - 100 * age,) * 2)
    left = first.with_name("tmp_of_a_killed_compiler")
    left.mkdir()
    os.utime(left, (0, 0))
    size = first.stat().st_size
    monkeypatch.setattr(library, "LIMIT", 4 * size)
    first.unlink()
    a_new_process()
    assert_right()
    assert kernels(own_cache) == sorted([first, *(first.with_name(f"Old-{age}.so") for age in (1, 2, 3))])
    assert not first.with_name("Old-5.sha256").exists() and not left.exists()


def test_a_kernel_that_is_used_is_young(own_cache, a_new_process):
    assert_right()
    (path,) = kernels(own_cache)
    os.utime(path, (0, 0))
    a_new_process()
    assert_right()
    assert path.stat().st_mtime > time.time() - 60


def test_kernels_of_cells_that_are_gone_are_let_go(monkeypatch):
    monkeypatch.setattr(library, "_libraries", weakref.WeakValueDictionary())
    monkeypatch.setattr(serial, "_programs", weakref.WeakKeyDictionary())
    monkeypatch.setattr(plans, "_kept", [])
    layer = layer_of()
    cell = weakref.ref(layer.cells[0])
    layer(torch.zeros(2, 1, I))[0].sum().backward()
    assert len(library._libraries) == 1
    del layer
    plans._kept.clear()  # as 64 others would
    gc.collect()
    assert cell() is None and not library._libraries
    assert_right()


def test_a_search_over_many_sizes_does_not_grow(own_cache, monkeypatch):
    """Nor does what torch keeps of traces, nor what the system has loaded; only a compiler would take long."""
    monkeypatch.setattr(plans, "_kept", [])
    monkeypatch.setattr(plans, "KEPT", 3)
    monkeypatch.setattr(library, "_libraries", weakref.WeakValueDictionary())
    monkeypatch.setattr(serial, "_programs", weakref.WeakKeyDictionary())
    assert_right()
    (built,) = kernels(own_cache)

    def copied(command: list[str], source: str, path: Path, name: str) -> None:
        shutil.copy(built, path)
        shutil.copy(built.with_suffix(".sha256"), path.with_suffix(".sha256"))

    monkeypatch.setattr(library, "_compile", copied)
    sizes = []
    for hidden in range(5, 15):
        layer = Recurrent(Small, I, hidden, engine="serial")
        serial.prepare(layer.cells[0])
        del layer
        gc.collect()
        mapped = {
            line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if str(own_cache) in line
        }
        kept = [part for part in linecache.cache if part.startswith("<eval_with_key>")]
        sources = torch.fx.graph_module._loader.eval_cache
        shapes = sum(type(thing) is ShapeEnv for thing in gc.get_objects())
        sizes.append([len(library._libraries), len(mapped), len(kept), len(sources), len(FakeTensorMode.cache), shapes])
    assert sizes[3] == sizes[-1] and sizes[-1][:2] == [3, 3]


@pytest.fixture
def without_openmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "compiler"
    script.write_text(
        '#!/bin/sh\nfor a in "$@"; do [ "$a" = -fopenmp ] && echo "error: cannot find -lomp" >&2 && exit 1; done\n'
        'exec g++ "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))


def test_a_compiler_without_openmp_makes_kernels_for_one_thread(without_openmp, a_new_process, compiles):
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.warns(UserWarning, match="has no OpenMP, so compiled cells run on one thread") as said:
            assert_right()
            assert_right("auto")
        assert len(said) == 1
        a_new_process()
        with pytest.warns(UserWarning, match="one thread"):
            assert_right()
        assert len(compiles) == 3  # two failed, and nothing was tried again
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(shutil.which("clang++") is None, reason="no clang++")
def test_clang_makes_kernels(monkeypatch):
    monkeypatch.setenv("CXX", "clang++")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "clang.. has no OpenMP", UserWarning)  # Debian has it in another package
        for name in ("lstm", "gru"):
            torch.manual_seed(0)
            layer = Recurrent(name, I, 33, engine="serial")
            x = torch.randn(5, 3, I)
            found = [layer(x)[0], *torch.autograd.grad(layer(x)[0].sum(), list(layer.parameters()))]
            layer.engine = "reference"
            expected = [layer(x)[0], *torch.autograd.grad(layer(x)[0].sum(), list(layer.parameters()))]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
