"""Checkpoints that are whole or not there, and that are read without running anything in them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from rnnzoo.errors import UserError
from rnnzoo.files import writing
from rnnzoo.lightning.framework import pl


class AtomicCheckpointIO(pl.plugins.io.TorchCheckpointIO):  # type: ignore[name-defined]
    """Checkpoints that are whole or not there: written beside their place, flushed, then moved into it."""

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


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's contents, loaded without running code from it; `UserError` if it is missing or damaged."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        contents: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if not {"state_dict", "hyper_parameters", "global_step"} <= contents.keys():
            raise ValueError("not a checkpoint of a training run")
    except Exception as error:
        raise UserError(f"{path}: damaged or not a checkpoint ({one_cause(error)})") from error
    return contents


def load_matching(path: str | None, module: pl.LightningModule) -> int:
    """The step of the checkpoint at `path`, 0 for None; `UserError` unless it was written by a module like this."""
    if path is None:
        return 0
    checkpoint = read_checkpoint(path)
    for key, value in checkpoint["hyper_parameters"].items():
        free = key in ("optimizer", "engine", "seed")
        if not free and key in module.hparams and module.hparams[key] != value:
            raise UserError(f"{path} was trained with {_short(key, value)}, not {_short(key, module.hparams[key])}")
    if checkpoint["state_dict"].keys() != module.state_dict().keys():
        raise UserError(f"{path} does not fit task and model: it was written by another kind of run")
    step: int = checkpoint["global_step"]
    return step


def _short(key: str, value: Any) -> str:
    text = str(value)
    return f"{key}={text if len(text) < 200 else text[:200] + '...'}"
