"""Runs that others ask for, and do not repeat once they have been done."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException

from rnnzoo.errors import UserError, nearest

DIVERGED = "diverged.json"
"""What a run leaves in place of summary.json if its training has come to an infinity or to what is no number."""

ENDS = "summary.json", DIVERGED
"""What a run that has ended has one of."""

DAMAGES = (
    ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, yaml.YAMLError, HydraException,
)  # fmt: skip
"""What reading a damaged file of a run raises."""


def experiments(folder: Path, names: Sequence[str], unknown: str) -> list[Path]:
    """The files of these names in a folder of experiments, all of them for none.

    Raises `UserError` for a name of which there is none; it begins with `unknown`, whose {} becomes that name.
    """
    known = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    for name in names:
        if name not in known:
            raise UserError(f"{unknown.format(name)}; {nearest(name, known)}")
    return [known[name] for name in names or known]


def is_done(folder: Path, arguments: Iterable[str]) -> bool:
    """Whether a folder has the run that these arguments make, finished or diverged, as it would again.

    Raises `UserError` for a folder of another run, finished or not.
    """
    record = folder / ".hydra" / "overrides.yaml"
    if record.is_file():
        with naming(record):
            had, wanted = map(_of_the_run, (yaml.safe_load(record.read_text(encoding="utf-8")), arguments))
        if had != wanted:
            raise UserError(f"{folder}: made by {shlex.join(had)}, now it is {shlex.join(wanted)}; delete it")
    return any((folder / name).is_file() for name in ENDS)


def beside(folder: Path, arguments: Iterable[str]) -> str:
    """What the run in a folder was given besides these arguments, as `settings` has it; nothing without a record."""
    record = folder / ".hydra" / "overrides.yaml"
    if not record.is_file():
        return ""
    with naming(record):
        return settings(yaml.safe_load(record.read_text(encoding="utf-8")), arguments)


def settings(arguments: Iterable[str], besides: Iterable[str] = ()) -> str:
    """Arguments but for those others, in one order and way, without what changes no run, such as the file of a cell."""
    others = _of_the_run(besides)
    return shlex.join(g for g in _of_the_run(arguments) if g not in others and not g.startswith("cells="))


def _of_the_run(arguments: Iterable[str]) -> list[str]:
    """Without what says where and by whom it is run, and in one way: a multirun writes 0.003 for 3e-3, and quotes."""
    told = OverridesParser.create().parse_overrides([a for a in arguments if not a.startswith(("hydra.", "hydra/"))])
    return sorted(f"{given.get_key_element()}={_unquoted(given.value())}" for given in told)


def _unquoted(value: Any) -> Any:
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_unquoted(each) for each in value]
    return {key: _unquoted(each) for key, each in value.items()} if isinstance(value, dict) else value


def summary(folder: Path) -> dict[str, Any] | None:
    """What a finished run, or one that has diverged, came to; None for any other. Read it within `naming(folder)`."""
    for name in ENDS:
        if (folder / name).is_file():
            found: Any = json.loads((folder / name).read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise ValueError("not what a run leaves")
            return found
    return None


def measured(ended: dict[str, Any], metric: str) -> float:
    """A metric of what `summary` gives; NaN if the run has diverged."""
    return math.nan if "diverged" in ended else float(ended["metrics"][metric])


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within, whatever a damaged file of a run raises is a `UserError` that names it."""
    try:
        yield
    except DAMAGES as error:
        raise UserError(
            f"{path}: damaged ({' '.join(str(error).split())}); delete its folder, to run it again"
        ) from error
