"""A run's configuration as plain values: checked, recorded, and read again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from rnnzoo import registry
from rnnzoo.errors import UserError, nearest
from rnnzoo.files import expanded, writing
from rnnzoo.hydra.recorded import SINCE_THEN, record_code, recorded_overrides, recorded_settings
from rnnzoo.lightning.ranks import rank

GROUPS = ("task", "model", "optimizer", "hardware", "logger", "experiment", "sweep")

NEEDED = {
    "task": ("name", "datamodule", "module"), "model": ("cell", "hidden_size"), "hardware": ("accelerator",),
    "logger": ("name",), "optimizer": ("name", "lr", "schedule"), "trainer": ("precision",),
}  # fmt: skip
"""Keys without which nothing can be run, by their sections."""


def resolve(config: DictConfig, folder: Path) -> dict[str, Any]:
    """The configuration as plain values, checked where no typed node or constructor does it, and recorded.

    Paths become absolute and the run's own .hydra/config.yaml holds what was resolved, so that the run can be
    resumed from anywhere. Raises `UserError` naming the key.
    """
    settings: dict[str, Any] = {**SINCE_THEN, **OmegaConf.to_container(config, resolve=True)}  # type: ignore[dict-item]
    kinds: dict[str, tuple[type, ...]] = {"seed": (int,), "engine": (str,)}
    kinds |= dict.fromkeys(("test_only", "pictures", "probe"), (bool,))
    kinds |= dict.fromkeys(("cells", "resume", "ckpt"), (str, type(None))) | {"param_match": (int, type(None))}
    kinds |= dict.fromkeys(("checkpoint", "early_stopping", "trainer", *GROUPS[:5]), (dict,))
    kinds |= dict.fromkeys(("sweep", "claim", "league"), (dict, type(None)))
    for key in settings.keys() ^ kinds.keys():
        raise UserError(f"{key}: " + ("no such key; " + nearest(key, kinds) if key in settings else "is missing"))
    for key, kind in kinds.items():
        if type(settings[key]) not in kind:
            raise UserError(
                f"{key}={settings[key]}: must be {'a group of keys' if kind[0] is dict else kind[0].__name__}"
            )
    for section, keys in NEEDED.items():
        for key in keys:
            if key not in settings[section]:
                raise UserError(f"{section}.{key} is missing")
    if settings["cells"]:
        places = [(path, expanded(path)) for path in registry.split(settings["cells"])]
        settings["cells"] = ",".join(str(place.resolve()) if place.exists() else path for path, place in places)
    for group, key in ((settings["task"], "data"), (settings["task"], "text")):
        if group.get(key) and Path(str(group[key])).exists():
            group[key] = str(Path(group[key]).resolve())
    if not 0 <= settings["seed"] < 2**32:
        raise UserError(f"seed={settings['seed']}: must be from 0 to {2**32 - 1}, as NumPy wants it")
    if settings["param_match"] is not None and settings["param_match"] < 1:
        raise UserError(f"param_match={settings['param_match']}: must be a positive number of parameters")
    positive: dict[str, tuple[type, ...]] = {
        "checkpoint.every_n_steps": (int,),
        "early_stopping.patience": (int, type(None)),
        "trainer.accumulate_grad_batches": (int,),
        "trainer.gradient_clip_val": (int, float, type(None)),
    }
    for name, kind in positive.items():
        section, key = name.split(".")
        value = settings[section].get(key)
        if type(value) not in kind or (value is not None and value <= 0):
            other = ", or null for none" if type(None) in kind else ""
            raise UserError(f"{name}={value}: must be a positive {'number' if float in kind else 'integer'}{other}")
    if settings["resume"] is not None:
        settings["sweep"] = None  # its trial has ended or been given up
    record(settings, folder)
    return settings


def record(settings: dict[str, Any], folder: Path) -> None:
    """Write the configuration where Hydra has put its own, unless another run or process has done so."""
    path = folder / ".hydra" / "config.yaml"
    if settings["resume"] is None and path.is_file() and rank() == 0:
        OmegaConf.save(OmegaConf.create(settings), path)
        if settings["cells"]:
            record_code(folder, settings["cells"])


def record_changes(settings: dict[str, Any], folder: Path, overrides: Iterable[str]) -> None:
    """Record what a resumed run does otherwise than before, so that whoever uses its folder has the same in mind."""
    before = recorded_settings(folder)
    now = {**before, **{key: value for key, value in settings.items() if key not in ("resume", "sweep")}}
    if now == before:
        return
    path = folder / ".hydra" / "overrides.yaml"
    mine = [text.lstrip("+") for text in overrides if not text.startswith(("~", "resume=", "cells="))]
    known = recorded_overrides(folder)
    for name, content in (("config", now), ("overrides", [*known, *(text for text in mine if text not in known)])):
        with writing(path.with_stem(name)) as partial:
            OmegaConf.save(OmegaConf.create(content), partial)


def repeating(folder: Path, arguments: Sequence[str] = ()) -> list[str]:
    """Arguments for Hydra to run in `folder` what was recorded there, changed by `arguments`."""
    return [
        "--config-path", str(folder / ".hydra"), "--config-name", "config", *arguments,
        f"hydra.run.dir={quoted(str(folder))}", "hydra.output_subdir=null",
        "hydra/job_logging=disabled", "hydra/hydra_logging=disabled",
    ]  # fmt: skip


def testing(folder: Path, arguments: Sequence[str]) -> list[str]:
    """Arguments for Hydra to test, in a new folder, a checkpoint of the run that was recorded in `folder`."""
    return [
        "--config-path", str(folder / ".hydra"), "--config-name", "config", "++sweep=null", *arguments,
        "hydra/job_logging=disabled", "hydra/hydra_logging=disabled",
    ]  # fmt: skip


def quoted(text: str) -> str:
    """A text as Hydra has to be given it to read just that."""
    return QuotedString(text, Quote.single).with_quotes()


def quoted_value(value: Any) -> str:
    """A value of a YAML file of the project as an override; interpolations in it stay what they are."""
    if isinstance(value, str):
        return quoted(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")
