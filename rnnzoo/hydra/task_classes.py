"""The classes of a task, by the dotted names in its configuration."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import get_class

from rnnzoo.errors import UserError


def find_class(task: Mapping[str, Any], key: str) -> type[Any]:
    """The class whose dotted name is `task[key]`; `UserError` when there is none.

    A module of a person's own may lie in the working directory.
    """
    path = re.sub(r"^tasks\.", "rnnzoo.tasks.", str(task.get(key)))  # as version 0.1 recorded it
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return get_class(path)
    except (ImportError, ValueError) as error:
        raise UserError(f"task.{key}={path}: no such class ({' '.join(str(error).split())})") from error
