"""Compiled kernels: built once, kept on disk, verified before they are loaded, and removed when others are used more.

They lie in `kernels` in the cache folder, which only its owner may write to; `$CXX` names the compiler (default `g++`),
`$CXXFLAGS` what it is told beside the flags here. A compiler without OpenMP makes kernels for one thread.
"""

from __future__ import annotations

import _ctypes
import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import MutableMapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import torch

from rnnzoo.errors import UserError
from rnnzoo.files import cache_folder
from rnnzoo.plain import printable

logger = logging.getLogger("rnnzoo")

FLAGS = (
    "-std=c++14",  # in later ones <cmath> alone takes a tenth of a second
    "-O3", "-march=native", "-fPIC", "-shared",
    "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip

STRAIGHT = "-fno-thread-jumps", "-fno-tree-pre"
"""Jumps of loops over vectors only make work: gcc follows each case of a condition to the end, clang does not. What a
function makes of its clamped ends gcc also computes beforehand, and of two such functions, one after the other, as in
softplus, it can then no longer vectorise the loop."""

Way: TypeAlias = "tuple[str, ...]"
Builds: TypeAlias = "dict[Way, tuple[list[str], str]]"
"""The compiler's command and the kernel's key, by way."""

THREADS, ALONE = "-fopenmp", "-fopenmp-simd"

WAYS: tuple[Way, ...] = ((THREADS, *STRAIGHT), (THREADS,), (ALONE, *STRAIGHT), (ALONE,))
"""What is asked for beside these, until a compiler knows all of it; without OpenMP there is one thread, and loops are
vectorised nevertheless."""

FUNCTIONS = ("recur", "step", "back")

LIMIT = 128 << 20
"""Of so many bytes of kernels, those used last are kept."""

DAY = 86400

OTHERWISE = "set RNNZOO_CACHE to a folder of your own, or use engine=reference"

_libraries: MutableMapping[str, ctypes.CDLL] = weakref.WeakValueDictionary()


def load(source: str, name: str, half: bool) -> ctypes.CDLL:
    """Compile, unless that was done before, and load. Raises `UserError` when that cannot be."""
    compiler = _words("CXX", name) or ["g++"]
    machine = f"{_version(name, *compiler)} {platform.machine()} {_processor()}"
    linked = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu"] if half else []
    builds: Builds = {}
    for way in WAYS:
        command = [*compiler, *FLAGS, *way, *linked, *_words("CXXFLAGS", name)]
        key = hashlib.sha256(f"{machine} {command}\n{source}".encode()).hexdigest()[:24]
        if key in _libraries:
            return _libraries[key]
        builds[way] = command, key
    try:
        library, key, way = _from_disk(name, builds) or _built(source, name, builds)
    except OSError as error:
        raise UserError(f"{name}: its kernel cannot be kept: {error}; {OTHERWISE}") from error
    if ALONE in way:
        _tell_of_one_thread(compiler[0])
    _libraries[key] = library
    weakref.finalize(library, _ctypes.dlclose, library._handle).atexit = False
    return library


def module(text: str, name: str) -> ModuleType:
    """Python that was generated, kept on disk and imported. Raises `UserError` when that cannot be.

    It is kept for Triton, which reads the source of functions.
    """
    key = hashlib.sha256(text.encode()).hexdigest()[:24]
    label = f"rnnzoo_kernel_{key}"
    if label in sys.modules:
        return sys.modules[label]
    try:
        folder = _folder(name)
        path = folder / f"{name}-{key}.py"
        if not path.exists() or _of_others(path.stat()) or path.read_text(encoding="utf-8") != text:
            with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
                file.write(text)
            Path(file.name).replace(path)
            _tidy(folder, path)
        os.utime(path)
    except OSError as error:
        raise UserError(f"{name}: its kernel cannot be kept: {error}; {OTHERWISE}") from error
    made = ModuleType(label)
    made.__file__ = str(path)
    exec(compile(text, str(path), "exec"), made.__dict__)
    sys.modules[label] = made
    return made


def _from_disk(name: str, builds: Builds) -> tuple[ctypes.CDLL, str, Way] | None:
    """What was built before, if it is whole."""
    folder = _folder(name)
    for way, (_, key) in builds.items():
        try:
            return _open(folder / f"{name}-{key}.so"), key, way
        except _Damaged:
            continue
    return None


def _built(source: str, name: str, builds: Builds) -> tuple[ctypes.CDLL, str, Way]:
    """A new kernel, with OpenMP if the compiler has it."""
    folder, first = _folder(name), None
    for way, (command, key) in builds.items():
        path = folder / f"{name}-{key}.so"
        try:
            _compile(command, source, path, name)
        except UserError as error:
            first = first or error
            continue
        _tidy(folder, path)
        try:
            return _open(path), key, way
        except _Damaged as error:
            raise UserError(f"{name}: its kernel cannot be loaded: {error}; {OTHERWISE}") from error
    assert first is not None
    raise first


class _Damaged(Exception):
    """Why a file is not the kernel that was built."""


def _open(path: Path) -> ctypes.CDLL:
    """Load a kernel. Raises `_Damaged` when the file is not there, not whole, or may have been changed by others."""
    try:
        with path.open("rb") as file:
            if _of_others(os.fstat(file.fileno())):
                raise _Damaged(f"others may write to {path}")
            digest = hashlib.sha256(file.read()).hexdigest()
        # code that is cut short ends the process, not the call
        if path.with_suffix(".sha256").read_text() != digest:
            raise _Damaged(f"{path} is damaged")
        library = ctypes.CDLL(str(path))
        for function in FUNCTIONS:
            getattr(library, function)
        os.utime(path)
    except (OSError, ValueError, AttributeError) as error:
        raise _Damaged(str(error)) from error
    return library


def _of_others(status: os.stat_result) -> bool:
    """Whether somebody else but root owns a file or folder, or may write to it."""
    return status.st_uid not in (0, os.geteuid()) or bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _folder(name: str) -> Path:
    """Where kernels lie, made if it is not there. Raises `UserError` where others may put theirs."""
    try:
        root = cache_folder()
    except UserError as error:
        raise UserError(f"{name}: its kernel cannot be kept: {error}; {OTHERWISE}") from error
    folder = root / "kernels"
    root.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    # in a folder with the sticky bit, such as /tmp, others can neither rename nor remove it
    around = root.stat()
    if _of_others(folder.stat()) or (around.st_mode & stat.S_IWOTH and not around.st_mode & stat.S_ISVTX):
        raise UserError(f"{name}: no kernels are loaded from {folder}, where others may write: chmod go-w; {OTHERWISE}")
    return folder


def _compile(command: list[str], source: str, path: Path, name: str) -> None:
    logger.info("compiling the loop of %s, which takes a second or two", name)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        text = Path(scratch) / f"{name}.cpp"
        text.write_text(source)
        built, digest = Path(scratch) / "kernel.so", Path(scratch) / "kernel.sha256"
        done = subprocess.run(
            [command[0], str(text), "-o", str(built), *command[1:]], capture_output=True, text=True, check=False
        )
        if done.returncode:
            line = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[-300:])
            raise UserError(f"{name}: {command[0]} cannot compile its kernel: {line}; use engine=reference")
        digest.write_text(hashlib.sha256(built.read_bytes()).hexdigest())
        for made, place in ((digest, path.with_suffix(".sha256")), (built, path)):
            made.chmod(0o600)
            _settle(made)
            made.replace(place)  # at once, so that another process never loads half a file
        _settle(path.parent)


def _settle(path: Path) -> None:
    """Have the disk hold what was written."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _tidy(folder: Path, latest: Path) -> None:
    """Remove the kernels that were not used for longest, and what compilers left that were killed."""
    ages = {}
    for path in folder.iterdir():
        try:
            status = path.stat()
            if path.suffix in (".so", ".py") and path != latest:
                ages[path] = status.st_mtime, status.st_size
            elif path.is_dir() and status.st_mtime < time.time() - DAY:
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:  # by another process
            continue
    left = LIMIT - latest.stat().st_size
    for path, (_, size) in sorted(ages.items(), key=lambda item: -item[1][0]):
        left -= size
        if left < 0:
            path.unlink(missing_ok=True)
            path.with_suffix(".sha256").unlink(missing_ok=True)


def _words(variable: str, name: str) -> list[str]:
    """A variable of the environment as a shell would split it."""
    text = os.environ.get(variable, "")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(
            f"{name}: {variable}={text!r} is no command ({error}), so engine=serial cannot compile"
        ) from error


@cache
def _version(name: str, *compiler: str) -> str:
    if shutil.which(compiler[0]) is None:
        raise UserError(f"{name}: engine=serial needs a C++ compiler, and there is no {compiler[0]}; set CXX")
    try:
        done = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"{name}: {' '.join(compiler)} does not work, so engine=serial cannot compile; set CXX"
        ) from error
    return done.stdout.partition("\n")[0]


@cache
def _tell_of_one_thread(compiler: str) -> None:
    text = f"{compiler} has no OpenMP, so compiled cells run on one thread; set CXX to another"
    warnings.warn(printable(text), stacklevel=2)


@cache
def _processor() -> str:
    """What the machine's processor can do: kernels in a shared home folder must not reach a lesser one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
