"""A trained model, from its run's folder or one of its checkpoints, ready to be used.

Nothing of a run is executed: tensors and plain values are read from it, the classes are the project's, and what is of a
person's own has been loaded before, because the person named it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnnzoo import __version__, registry
from rnnzoo.errors import UserError
from rnnzoo.hydra.recorded import loaded_code, recorded_settings, refuse_other_code
from rnnzoo.hydra.task_classes import find_class
from rnnzoo.lightning.arguments import build
from rnnzoo.lightning.checkpoints import one_cause, read_checkpoint
from rnnzoo.lightning.module import SequenceModule


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        module: in evaluation mode, on the CPU.
        settings: the configuration of its run.
        folder: of the run.
        checkpoint: the file that the weights are from.
        contents: of the checkpoint.
    """

    module: SequenceModule
    settings: dict[str, Any]
    folder: Path
    checkpoint: Path
    contents: dict[str, Any]


def load(run: Path) -> Trained:
    """The model of a run in its best epoch, or of one of the run's checkpoints.

    Code of its own that the run names is not loaded.

    Args:
        run: a run's folder, or a file in its `checkpoints`.

    Raises `UserError` naming the file when there is no such run, when its checkpoint is damaged or of another version,
    and when its cell is not to be had.
    """
    folder, checkpoint = _find(run)
    settings = recorded_settings(folder)
    contents = read_checkpoint(checkpoint)
    given = contents["hyper_parameters"]
    cell, model = settings["model"]["cell"], given.get("model")
    recorded = model.get("cell") if isinstance(model, dict) else None
    if recorded != cell:
        raise UserError(f"{checkpoint}: is of the cell {recorded}, not of {cell} as its folder says")
    if settings["cells"] and cell not in registry.list_cells():
        raise UserError(f"{folder}: its cell {cell} is of {settings['cells']}; if you trust that, say --cells with it")
    if settings["cells"] and registry.all_loaded():
        refuse_other_code(folder, loaded_code())
    kind = find_class(settings["task"], "module", recorded=True)
    try:
        module = build(kind, {**settings["task"], **kind.renewed(contents)}, "hyper_parameters")
        module.learn_from(None)
        module.load_state_dict(contents["state_dict"])
    except Exception as error:  # whatever a task makes of arguments and weights that are not its own
        version = contents.get("rnnzoo_version", "an earlier version")
        raise UserError(
            f"{checkpoint}: written by rnnzoo {version}, does not fit {__version__} ({one_cause(error)})"
        ) from error
    return Trained(module.eval(), settings, folder, checkpoint, contents)


def data_of(trained: Trained) -> Any:
    """The data module of a trained model's run, its data read. Raises `UserError` when they are not there."""
    task = trained.settings["task"]
    data: Any = build(find_class(task, "datamodule", recorded=True), {**task, **trained.settings}, "task")
    data.prepare_data()
    data.setup()
    return data


def _find(run: Path) -> tuple[Path, Path]:
    """The folder of a run, and the checkpoint that is meant."""
    if run.is_dir():
        found = [run / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
        for checkpoint in found:
            if checkpoint.is_file():
                return run, checkpoint
        raise UserError(f"{run}: no run there, {found[0]} is missing")
    if not run.is_file():
        raise UserError(f"{run}: no such run; name its folder or one of its checkpoints")
    return run.absolute().parent.parent, run
