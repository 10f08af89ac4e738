"""Lightning, as `pl`, under the name that the project at hand uses: `pytorch_lightning` or `lightning.pytorch`.

The two packages hold the same classes twice, and each refuses the other's. Whichever was imported first is taken;
where neither was, the one that is installed.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

NAMES = ("pytorch_lightning", "lightning.pytorch")


def _chosen() -> Any:
    loaded = [name for name in sys.modules if name in NAMES]
    installed = [name for name in NAMES if find_spec(name.partition(".")[0])]
    name = [*loaded, *installed, NAMES[0]][0]
    for part in ("callbacks", "loggers", "plugins.environments", "plugins.io", "plugins.precision", "utilities"):
        importlib.import_module(f"{name}.{part}")
    return importlib.import_module(name)


if TYPE_CHECKING:
    import pytorch_lightning as pl
else:
    pl = _chosen()

__all__ = ["pl"]
