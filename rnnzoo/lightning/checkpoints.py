"""Checkpoints that are whole or not there, and that are read without running anything in them."""

from __future__ import annotations

import os
import traceback
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rnnzoo.errors import UserError
from rnnzoo.files import writing
from rnnzoo.lightning.framework import pl

SECTIONS = {"state_dict": dict, "hyper_parameters": dict, "global_step": int}
"""What is read of a checkpoint of a training run."""

TO_GO_ON = {
    "epoch": int, "loops": dict, "callbacks": dict, "optimizer_states": list, "lr_schedulers": list,
    "pytorch-lightning_version": str,
}  # fmt: skip
"""What Lightning needs besides, to go on with it or to test it."""

OF_A_SCHEDULE = {"last_epoch": int, "total_iters": int, "base_lrs": list}


class AtomicCheckpointIO(pl.plugins.io.TorchCheckpointIO):  # type: ignore[name-defined]
    """Checkpoints that are whole or not there: written beside their place, flushed, then moved into it."""

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As Lightning's own, once the file's checksums have been compared."""
        refuse_damaged(path)
        loaded: dict[str, Any] = super().load_checkpoint(path, *args, **kwargs)
        return loaded

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with writing(Path(path)) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())


def one_cause(error: BaseException) -> str:
    """The first line of the deepest exception behind `error`, where torch buries the reason."""
    while error.__context__ is not None:
        error = error.__context__
    return (str(error).splitlines() or [type(error).__name__])[0]


def refuse_damaged(path: str | Path) -> None:
    """Raise `UserError` unless the file is there and each of its parts has the checksum that was written with it.

    torch reads the parts of the archive without a look at their checksums.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
        if part is not None:
            raise ValueError(f"the checksum of {part} is wrong")
    except Exception as error:  # a damaged archive raises whatever its reader stumbles over
        raise UserError(f"{path}: damaged or not a checkpoint ({one_cause(error)})") from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's contents, loaded without running code from it; `UserError` if it is missing or damaged."""
    refuse_damaged(path)
    try:
        contents: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        _require(contents, SECTIONS)
        if not all(isinstance(weight, torch.Tensor) for weight in contents["state_dict"].values()):
            raise ValueError("state_dict must have tensors only")
    except Exception as error:
        raise UserError(f"{path}: damaged or not a checkpoint ({one_cause(error)})") from error
    return contents


def _require(contents: object, sections: dict[str, type]) -> None:
    """Raise `ValueError` unless `contents` has all these sections, each of its type."""
    if not isinstance(contents, dict):
        raise ValueError("not a checkpoint of a training run")
    for name, kind in sections.items():
        if not isinstance(contents.get(name), kind):
            raise ValueError(f"{name} {f'is no {kind.__name__}' if name in contents else 'is missing'}")


@contextmanager
def restoring(path: str | None) -> Iterator[None]:
    """Within, whatever Lightning raises while it restores the checkpoint at `path` is a `UserError` that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        of_lightning = [f.name for f in frames if Path(f.filename).stem == "checkpoint_connector"]
        if path is None or not any("restore" in name or "resume" in name for name in of_lightning):
            raise
        raise UserError(f"{path}: damaged, cannot go on from it ({one_cause(error)})") from error


def load_matching(path: str | None, module: pl.LightningModule, end: object = None) -> int:
    """The step of the checkpoint at `path`, 0 for None.

    Raises `UserError` unless it was written by a module like this, and if its run is past the epoch `end` already.
    """
    if path is None:
        return 0
    checkpoint = read_checkpoint(path)
    try:
        _require(checkpoint, TO_GO_ON)
        if len(checkpoint["optimizer_states"]) != 1:  # of several, Lightning would restore as many as there are
            raise ValueError("optimizer_states are not those of one optimizer")
        for state in checkpoint["lr_schedulers"]:
            _require(state, OF_A_SCHEDULE)
    except ValueError as error:
        raise UserError(f"{path}: damaged or not a checkpoint ({error})") from None
    for key, value in checkpoint["hyper_parameters"].items():
        free = key in ("optimizer", "engine", "seed")
        if not free and key in module.hparams and not _same(module.hparams[key], value):
            theirs, ours = _difference(key, value, module.hparams[key])
            raise UserError(f"{path} was trained with {theirs}, not {ours}")
    weights, own = checkpoint["state_dict"], module.state_dict()
    if {key: weight.shape for key, weight in weights.items()} != {key: weight.shape for key, weight in own.items()}:
        raise UserError(f"{path} does not fit task and model: it was written by another kind of run")
    had = checkpoint["callbacks"].get("Clock", {}).get("epochs", 0)  # as rnnzoo.lightning.records counts
    if isinstance(end, int) and 0 < end < had:
        raise UserError(f"{path}: its run has had {had} epochs; set trainer.max_epochs to more than {end}")
    step: int = checkpoint["global_step"]
    return step


def _same(ours: Any, theirs: Any) -> bool:
    """Whether two hyperparameters are equal; a damaged file may have put a tensor there."""
    try:
        return bool(ours == theirs)
    except (RuntimeError, ValueError):
        return False


def _difference(key: str, theirs: Any, ours: Any) -> tuple[str, str]:
    """The first key that two hyperparameters differ in, with the value that it has in each."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in (*ours, *theirs):
            if name not in theirs or name not in ours or not _same(theirs[name], ours[name]):
                return _difference(f"{key}.{name}", theirs.get(name), ours.get(name))
    return _short(key, theirs), _short(key, ours)


def _short(key: str, value: Any) -> str:
    text = str(value)
    return f"{key}={text if len(text) < 200 else text[:200] + '...'}"
