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


def find_class(task: Mapping[str, Any], key: str, recorded: bool = False) -> type[Any]:
    """The class whose dotted name is `task[key]`; `UserError` when there is none.

    A module of a person's own may lie in the working directory, but one that a run has `recorded` is loaded only where
    the person has named it as well: whoever gives away a run could give away a module along with it.
    """
    path = re.sub(r"^tasks\.", "rnnzoo.tasks.", str(task.get(key)))  # as version 0.1 recorded it
    module, _, name = path.rpartition(".")
    own = registry.loaded(module)
    if own is not None and isinstance(getattr(own, name, None), type):
        return getattr(own, name)
    if recorded and not path.startswith("rnnzoo."):
        raise UserError(f"task.{key}={path}: is not rnnzoo's own; if you trust it, say --cells with its file or module")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return get_class(path)
    except (ImportError, ValueError) as error:
        raise UserError(f"task.{key}={path}: no such class ({' '.join(str(error).split())})") from error
