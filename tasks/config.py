"""Between the command line and Hydra: a person's cells, runs to resume, and errors in one line.

Nothing here imports torch or Lightning unless a cell has to be read, so that help stays quick.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rnnzoo import registry
from rnnzoo.errors import UserError, nearest

VERBOSE = os.environ.get("HYDRA_FULL_ERROR") == "1"
"""Whether a person asked for tracebacks."""

RECURRENT_FIELDS: tuple[tuple[str, type], ...] = (
    ("hidden_size", int),
    ("num_layers", int),
    ("bidirectional", bool),
    ("dropout", float),
)
"""`Recurrent`'s options that every `model=` has; their defaults are the task's."""


def cli(main: Callable[[], Any]) -> None:
    """Run a Hydra main; bad input ends with one line on stderr and exit code 1. HYDRA_FULL_ERROR=1 shows all."""
    with refusing_bad_input():
        sys.argv[1:] = prepare(sys.argv[1:])
        if not VERBOSE:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints errors itself, over several lines
        main()


@contextmanager
def refusing_bad_input(discard: Path | None = None) -> Iterator[None]:
    """End the process with one line when bad input shows; remove the folder `discard` if no checkpoint is in it."""
    try:
        yield
    except (UserError, HydraException, OmegaConfBaseException, OSError) as error:
        if discard is not None and not (discard / "checkpoints").exists():
            shutil.rmtree(discard, ignore_errors=True)
        if VERBOSE:
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(1)


def prepare(arguments: list[str]) -> list[str]:
    """Make every registered cell, those of `cells=` included, a `model=` option; point `resume=` at its run.

    Returns the arguments for Hydra. Raises `UserError` for cells that cannot be loaded, and for a run folder that
    holds no run to resume, or one that would be overwritten.
    """
    values = {}
    for argument in arguments:
        key = argument.partition("=")[0]
        if key in ("cells", "resume", "hydra.run.dir"):
            values[key] = OverridesParser.create().parse_override(argument).value()
    resume = values.get("resume")
    if {"--help", "-h"} & set(arguments):
        _name_models(values.get("cells"))
        return arguments
    if resume is None:
        register_models(None if values.get("cells") is None else str(values["cells"]))
        folder = Path(str(values.get("hydra.run.dir", "")))
        if (folder / "checkpoints").is_dir() and "LOCAL_RANK" not in os.environ:
            raise UserError(f"hydra.run.dir={folder} already holds a run; choose another folder, or resume={folder}")
        return arguments
    folder = Path(str(resume)).expanduser().resolve()
    for needed in (".hydra/config.yaml", "checkpoints/last.ckpt"):
        if not (folder / needed).is_file():
            raise UserError(f"resume={resume}: nothing to resume there, {folder / needed} is missing")
    if "--config-path" in arguments:  # a process that rank 0 started with arguments already prepared
        return arguments
    return [
        "--config-path", str(folder / ".hydra"), "--config-name", "config", *arguments,
        f"hydra.run.dir='{folder}'", "hydra.output_subdir=null",
        "hydra/job_logging=disabled", "hydra/hydra_logging=disabled",
    ]  # fmt: skip


def register_models(cells: str | None) -> None:
    """Put every registered cell into Hydra's group `model`, its fields taken from its hyperparameters."""
    if cells is not None:
        registry.load(cells)
    store = ConfigStore.instance()
    for name in registry.list_cells():
        own = [(key, h.type, field(default=h.default)) for key, h in registry.get(name).hyperparameters.items()]
        common = [(key, kind, field(default=f"${{task.preset.{key}}}")) for key, kind in RECURRENT_FIELDS]
        node = make_dataclass(name, [("cell", str, field(default=name)), *common, *own])
        store.store(group="model", name=name, node=node)


def _name_models(cells: Any) -> None:
    """Only the names of `register_models`, read without importing anything: enough for help."""
    own = [Path(str(cells))] if cells is not None and Path(str(cells)).is_file() else []
    for path in [*Path(registry.__file__).with_name("cells").glob("*.py"), *own]:
        for name in registry.scan(path):
            ConfigStore.instance().store(group="model", name=name, node={"cell": name})


def resolve(config: DictConfig, folder: Path) -> dict[str, Any]:
    """The configuration as plain values, checked where no typed node or constructor does it, and recorded.

    Paths become absolute and the run's own .hydra/config.yaml holds what was resolved, so that the run can be
    resumed from anywhere. Raises `UserError` naming the key.
    """
    settings: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    for section, key in ((settings, "cells"), (settings["task"], "data"), (settings["task"], "text")):
        if section.get(key) and Path(str(section[key])).exists():
            section[key] = str(Path(section[key]).resolve())
    kinds: dict[str, tuple[type, ...]] = {"seed": (int,), "test_only": (bool,)}
    kinds |= dict.fromkeys(("cells", "resume", "ckpt"), (str, type(None)))
    for key, kind in kinds.items():
        if type(settings[key]) not in kind:
            raise UserError(f"{key}={settings[key]}: must be {kind[0].__name__}")
    for section, key in (("checkpoint", "every_n_steps"), ("early_stopping", "patience")):
        value = settings[section][key]
        optional = key == "patience" and value is None
        if not optional and (type(value) is not int or value < 1):
            raise UserError(f"{section}.{key}={value}: must be a positive integer")
    if settings["seed"] < 0:
        raise UserError(f"seed={settings['seed']}: must not be negative")
    for key in ("name", "schedule"):
        if not isinstance(settings["optimizer"].get(key), str):
            raise UserError(f"optimizer.{key}={settings['optimizer'].get(key)}: must be a name")
    record = folder / ".hydra" / "config.yaml"
    if settings["resume"] is None and record.is_file() and "LOCAL_RANK" not in os.environ:
        OmegaConf.save(OmegaConf.create(settings), record)
    return settings


def one_line(error: BaseException) -> str:
    """What is wrong and what to do, in one line."""
    cause = error.__cause__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if group and error.options:
            hint = nearest(name, error.options)
            own = "; cells of your own come in with cells=FILE.py" if group == "model" else ""
            return f"{group}={name}: no such {group}; {hint}{own}"
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        known = OmegaConf.to_container(cause.parent_node, resolve=False) if cause.parent_node is not None else None
        problem = str(cause.msg).splitlines()[0]
        if isinstance(known, dict) and str(cause.key) not in known:
            problem = f"no such key; {nearest(str(cause.key), map(str, known))}"
        return f"{cause.full_key}: {problem}"
    if isinstance(error, OverrideParseException):
        return f"cannot read the argument {error.override!r}; arguments are key=value"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'input/output'}: {error.strerror}"
    return " ".join(str(error).split())
