"""The plugin for Lightning: what a project of one's own can use of rnnzoo without Hydra and without its tasks.

    from rnnzoo.lightning import SequenceData, SequenceModule, ExactResume, CarriedState, Pictures

`SequenceModule` and `SequenceData` are the bases of the tasks; `ExactResume` (a callback) with `Batches` takes up a run
within its epoch, bit for bit; `CarriedState` (a mixin) is truncated back-propagation; `AveragedWeights` (a callback)
evaluates and saves a mean of the weights; `Pictures` (a callback) draws gradients by lag and gates. Projects that
import `lightning` and those that import `pytorch_lightning` are both served, see `framework`. Nothing here knows Hydra
or a task.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnnzoo.lightning.averaging import AveragedWeights
    from rnnzoo.lightning.carried_state import CarriedState
    from rnnzoo.lightning.data import Batches, SequenceData, position, shuffled
    from rnnzoo.lightning.exact_resume import ExactResume
    from rnnzoo.lightning.module import Diverged, SequenceModule
    from rnnzoo.lightning.pictures.callback import Pictures
    from rnnzoo.lightning.pictures.picture import Picture
    from rnnzoo.lightning.verbs import verb

_HOME = {
    "AveragedWeights": "averaging", "Batches": "data", "CarriedState": "carried_state", "Diverged": "module",
    "ExactResume": "exact_resume", "Picture": "pictures.picture", "Pictures": "pictures.callback",
    "SequenceData": "data", "SequenceModule": "module", "position": "data", "shuffled": "data", "verb": "verbs",
}  # fmt: skip
__all__ = [
    "AveragedWeights", "Batches", "CarriedState", "Diverged", "ExactResume", "Picture", "Pictures", "SequenceData",
    "SequenceModule", "position", "shuffled", "verb",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: most need Lightning, which takes seconds."""
    if name in _HOME:
        return getattr(importlib.import_module(f"rnnzoo.lightning.{_HOME[name]}"), name)
    raise AttributeError(f"module 'rnnzoo.lightning' has no attribute {name!r}")
