"""The classes of a task, by the dotted names in its configuration."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import get_class

from rnnzoo import registry
from rnnzoo.errors import UserError
from rnnzoo.hydra.recorded import OWNED
from rnnzoo.lightning.framework import pl
from rnnzoo.lightning.module import SequenceModule


def find_class(task: Mapping[str, Any], key: str, recorded: bool = False) -> type[Any]:
    """The class whose dotted name is `task[key]`; `UserError` when there is none.

    A module of a person's own may lie in the working directory, but one that a run has `recorded` is loaded only where
    the person has named it as well: whoever gives away a run could give away a module along with it.
    """
    path = re.sub(r"^tasks\.", OWNED, str(task.get(key)))  # as version 0.1 recorded it
    module, _, name = path.rpartition(".")
    own = registry.loaded(module)
    if own is not None and isinstance(getattr(own, name, None), type):
        return _of_a_task(getattr(own, name), path, key)
    if recorded and not module.startswith(OWNED):
        raise UserError(f"task.{key}={path}: is not rnnzoo's own; if you trust it, say --cells with its file or module")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found: type[Any] = get_class(path)
    except (ImportError, ValueError) as error:
        raise UserError(f"task.{key}={path}: no such class ({' '.join(str(error).split())})") from error
    return _of_a_task(found, path, key)


def _of_a_task(found: type[Any], path: str, key: str) -> type[Any]:
    """The class itself. Raises `UserError` for one that is nothing of a task's: a program to run, say."""
    base = SequenceModule if key == "module" else pl.LightningDataModule
    if not issubclass(found, base):
        raise UserError(f"task.{key}={path}: is no {base.__name__}, as a task's {key} has to be")
    return found
