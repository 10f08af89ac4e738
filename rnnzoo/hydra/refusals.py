"""Bad input ends with one line: that of a command, or of one job of a sweep, whose other jobs go on."""

from __future__ import annotations

import os
import re
import shutil
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rnnzoo import registry
from rnnzoo.errors import UserError, at_once, nearest, no_room
from rnnzoo.lightning.preempt import watch
from rnnzoo.lightning.ranks import rank
from rnnzoo.plain import masked, printable


class ProcessDied(RuntimeError):
    """A process of a job has died, which is not the job's fault: it may be repeated."""


refused: list[str] = []
"""The lines of those jobs of a sweep whose input was bad, or which failed; the others run."""


@contextmanager
def refusing_bad_input(discard: Path | None = None) -> Iterator[list[str]]:
    """One line when bad input shows, then the end of the process, or of the job if it is one of a sweep.

    A fault of a person's own code is one line as well. Whatever else a job of a sweep raises is its failure alone: a
    line, and the others run.

    Yields a list that takes up the line of such a job, for the sweep to know. The folder `discard` is removed if only
    Hydra wrote to it, with what is empty then above it.
    """
    lines: list[str] = []
    try:
        yield lines
    except BaseException as error:
        if discard is not None and rank() == 0 and [path.name for path in discard.glob("*")] == [".hydra"]:
            _remove(discard)
        if isinstance(error, BrokenPipeError):  # whoever read the output has had enough, and a run cannot say more
            if watch.last is not None and not (watch.last.parent.parent / "summary.json").is_file():
                watch.say("nobody reads the output any more, which has ended the run")
                raise SystemExit(1) from error
            raise
        bad_input = isinstance(error, (UserError, HydraException, OmegaConfBaseException, OSError)) or no_room(error)
        one_of_many = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
        failed = (
            (one_of_many or own_line(error)) and isinstance(error, Exception) and not isinstance(error, ProcessDied)
        )
        if not (bad_input or failed) or os.environ.get("RNNZOO_TRACEBACK") == "1":
            raise
        more = "" if bad_input or one_of_many else "; HYDRA_FULL_ERROR=1 shows from where it was called"
        line = printable(masked(f"error: {one_line(error) if bad_input else located(error)}{more}"))
        print(line, file=sys.stderr, flush=True)
        if not one_of_many:
            sys.exit(1)
        lines.append(line)


def _remove(folder: Path) -> None:
    """Remove a folder, then those above it that are empty, up to the working directory."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # not empty
        for parent in folder.parents:
            if not parent.is_relative_to(Path.cwd()) or parent == Path.cwd():
                break
            parent.rmdir()


def located(error: BaseException) -> str:
    """What was raised, in one line, after the line of the person's own code that raised it if there is one."""
    return f"{own_line(error)}{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def own_line(error: BaseException) -> str:
    """File and line of the person's own code that has raised an error; empty if none has."""
    own = {str(Path(str(module.__file__))) for module in registry.all_loaded() if getattr(module, "__file__", None)}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in own]
    return f"{frames[-1].filename} line {frames[-1].lineno}: " if frames else ""


SIZE = re.compile(r"\+*((?:task|model)\.\w+)=\[?(\d[\d_,]*)\]?")
"""An argument that may be such a size: its key, and the numbers in it."""


def _lower(error: BaseException) -> str:
    """The line about what does not fit into the memory: which of the sizes given is to be lower, the largest first."""
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    sizes = {found[1]: found[2] for argument in given if (found := SIZE.fullmatch(argument))}
    largest = sorted(sizes, key=lambda key: -max(map(int, re.findall(r"\d+", sizes[key].replace("_", "")))))
    lower = ", ".join(f"{key}={sizes[key]}" for key in largest) or "task.batch_size, model.hidden_size"
    return f"the sizes given need more memory than there is{at_once(error)}; lower one of {lower}"


def no_such(group: str, name: str, options: Iterable[str]) -> str:
    """The line about a choice of a group that there is none of."""
    own = "; rnnzoo list shows all, and cells of your own come in with cells=FILE.py" if group == "model" else ""
    return f"{group}={name}: no such {group}; {nearest(name, options)}{own}"


def one_line(error: BaseException) -> str:
    """What is wrong and what to do, in one line."""
    if no_room(error):
        return _lower(error)
    cause = error.__cause__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if group and error.options:
            return no_such(group, name, error.options)
    several = re.match(r"Ambiguous value for argument '(.*?)'\s*1\.", str(error), re.DOTALL)
    if several:
        return f"{several[1]}: several values are several runs, which need -m; a list is written [a,b]"
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        known = OmegaConf.to_container(cause.parent_node, resolve=False) if cause.parent_node is not None else None
        problem = str(cause.msg).splitlines()[0]
        if isinstance(known, dict) and str(cause.key) not in known:
            problem = f"no such key; {nearest(str(cause.key), map(str, known))}"
        return f"{cause.full_key}: {problem}"
    if isinstance(error, OverrideParseException):
        return (
            f"cannot read the argument {error.override!r}: arguments are KEY=VALUE, and a value with brackets, '=' or "
            "letters beyond ASCII needs quotes of its own, as in 'task.text=\"my novel (1).txt\"'"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'input/output'}: {error.strerror}"
    return " ".join(str(error).split())
