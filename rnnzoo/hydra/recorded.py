"""What a run has recorded of itself, read with care: whoever gives away a run could have written anything there.

Code that a run names is loaded only where the person names it as well, on the command line, and only if it is what the
run was made with.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rnnzoo import registry
from rnnzoo.errors import UserError
from rnnzoo.files import expanded, writing

SINCE_THEN = {"param_match": None, "pictures": False, "sweep": None, "claim": None, "league": None, "probe": False}
"""Keys that runs recorded by earlier versions lack, with what these did."""

NEEDED = {
    "": ("task", "model", "cells"),
    "task": ("name", "datamodule", "module"),
    "model": ("cell",),
}
"""Sections of a run's configuration, and those of their keys whose value is a text."""

OWNED = "rnnzoo.tasks."
"""Where the classes lie that a recorded run may name without a person's word."""

OF_HYDRA = ("hydra", "defaults")
"""What Hydra would obey and a run does not record."""


def recorded_settings(folder: Path) -> dict[str, Any]:
    """The configuration of the run in `folder`.

    Raises `UserError` naming the file when it is missing, damaged or not what a run records.
    """
    path = folder / ".hydra" / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: no run there, {path} is missing; a checkpoint is used in its run's folder")
    try:
        text = path.read_text(encoding="utf-8")
        settings = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # whatever YAML's parser and OmegaConf raise
        raise UserError(f"{path}: damaged ({(str(error).splitlines() or ['?'])[0]})") from error
    if not isinstance(settings, dict) or not set(NEEDED[""]) <= settings.keys():
        raise UserError(f"{path}: not the configuration of a run")
    for key in (key for key in OF_HYDRA if key in settings):
        raise UserError(f"{path}: has a section {key!r}, which no run records; if the rest is a run's, take that out")
    if re.search(r"^\s*#\s*@package", text, re.MULTILINE):
        raise UserError(f"{path}: says '# @package', which no run records; if the rest is a run's, take that out")
    if "${" in text:
        raise UserError(f"{path}: says '${{', which no run records, for Hydra to fill in; write what is meant")
    for section, keys in NEEDED.items():
        if section and not isinstance(settings[section], dict):
            raise UserError(f"{path}: damaged ({section} is not a group of keys)")
        for key in keys if section else ():
            if not isinstance(settings[section].get(key), str):
                raise UserError(f"{path}: damaged ({section}.{key} is not a text)")
    if not isinstance(settings["cells"], (str, type(None))):
        raise UserError(f"{path}: damaged (cells is not a text)")
    return {**SINCE_THEN, **settings}


def recorded_overrides(folder: Path) -> list[str]:
    """The overrides that the run in `folder` was started with, none if that is not recorded.

    Raises `UserError` naming the file when it is damaged.
    """
    path = folder / ".hydra" / "overrides.yaml"
    if not path.is_file():
        return []
    try:
        overrides = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # whatever YAML's parser and OmegaConf raise
        raise UserError(f"{path}: damaged ({(str(error).splitlines() or ['?'])[0]}); delete it to go on") from error
    if not isinstance(overrides, list):
        raise UserError(f"{path}: damaged (not a list); delete it to go on")
    return list(map(str, overrides))


def is_foreign(folder: Path) -> bool:
    """Whether what Hydra has recorded in `folder` is another application's."""
    try:
        config = OmegaConf.load(folder / ".hydra" / "config.yaml")
    except Exception:  # missing or damaged, so that nothing can be said
        return False
    return not set(NEEDED[""]) <= set(config)


def named(settings: Mapping[str, Any]) -> str:
    """The name under which a run's results are kept: task and cell.

    Raises `UserError` for those that would lead out of its folder.
    """
    for section, key in (("task", "name"), ("model", "cell")):
        name = settings[section][key]
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]*", name):
            raise UserError(f"{section}.{key}={name!r}: no name of a task or cell; letters, digits, _ . + and -")
    return f"{settings['task']['name']}_{settings['model']['cell']}"


def record_code(folder: Path, cells: str) -> None:
    """Keep the checksum of a person's own code beside the configuration that names it."""
    with writing(folder / ".hydra" / "cells.sha256") as partial:
        lines = (f"{_checksum(_file_of(target))}  {target}\n" for target in registry.split(cells))
        partial.write_text("".join(lines), encoding="utf-8")


def refuse_other_code(folder: Path, files: Iterable[Path]) -> None:
    """Raise `UserError` unless what the run in `folder` was made with is among `files`, if that is recorded."""
    path = folder / ".hydra" / "cells.sha256"
    files = list(files)
    if not path.is_file():
        return
    recorded = {line.partition(b" ")[0].decode("ascii", "replace") for line in path.read_bytes().splitlines()}
    if not recorded <= set(map(_checksum, files)):
        raise UserError(
            f"{', '.join(map(str, files))}: has changed since the run in {folder} was made with it, so that its "
            f"weights may mean something else; if that is meant, delete {path}"
        )


def refuse_unnamed_code(folder: Path, settings: Mapping[str, Any], cells: str | None) -> None:
    """Raise `UserError` for a run with code of its own unless `cells`, from the command line, is what it was made with.

    Args:
        settings: the run's.
        cells: a file or module, None if the person has named none.
    """
    if cells is not None:
        refuse_other_code(folder, map(_file_of, registry.split(cells)))
    elif settings["cells"]:
        raise UserError(
            f"{folder}: is a run with code of its own; if you trust that, say cells={settings['cells']} as well"
        )


def refuse_foreign_classes(settings: Mapping[str, Any], cells: str | None) -> None:
    """Raise `UserError` for a run of a task neither rnnzoo's nor in what `cells` names, on the command line."""
    mine = {name for target in registry.split(cells or "") for name in (target, Path(target).stem)}
    for key in ("datamodule", "module"):
        path = re.sub(r"^tasks\.", OWNED, settings["task"][key])
        if not path.startswith(OWNED) and path.rpartition(".")[0] not in mine:
            raise UserError(
                f"task.{key}={path}: is not rnnzoo's own; if you trust it, say cells= with its file or module"
            )


def loaded_code() -> list[Path]:
    """The files of what the person has named, once that is loaded."""
    return [Path(str(module.__file__)) for module in registry.all_loaded() if getattr(module, "__file__", None)]


def _file_of(cells: str) -> Path:
    """The file of what `cells=` names, a path or a module; `UserError` if there is none."""
    path = expanded(cells)
    if path.is_file():
        return path.resolve()
    try:
        spec = find_spec(cells)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise UserError(f"cells={cells}: no such file or module; say with cells= where its code is now")
    return Path(spec.origin)


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
