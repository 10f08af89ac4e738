"""Runs that others ask for, and do not repeat once they have been done."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString

from rnnzoo.errors import UserError


def is_done(folder: Path, arguments: Iterable[str]) -> bool:
    """Whether a folder has the finished run that these arguments make.

    Raises `UserError` for a folder of another run, finished or not.
    """
    record = folder / ".hydra" / "overrides.yaml"
    if record.is_file():
        with naming(record):
            had, wanted = map(_of_the_run, (yaml.safe_load(record.read_text(encoding="utf-8")), arguments))
        if had != wanted:
            raise UserError(f"{folder}: made by {shlex.join(had)}, now it is {shlex.join(wanted)}; delete it")
    return (folder / "summary.json").is_file()


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
    """What a finished run came to; None for one that is not. Read it within `naming(folder)`."""
    path = folder / "summary.json"
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return found


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within, whatever a damaged file of a run raises is a `UserError` that names it."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(
            f"{path}: damaged ({' '.join(str(error).split())}); delete its folder, to run it again"
        ) from error
