"""Between the command line and Hydra: a person's cells, runs to resume, and errors in one line.

Nothing here imports torch or Lightning unless a cell has to be read, so that help stays quick.
"""

from __future__ import annotations

import inspect
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rnnzoo import registry
from rnnzoo.errors import UserError, nearest
from tasks.ranks import rank, started

GROUPS = ("task", "model", "optimizer", "hardware", "logger", "experiment", "sweep")

SINCE_THEN = {"param_match": None, "pictures": False, "sweep": None}
"""Keys that runs recorded by earlier versions lack, with what these did."""

ROOT = Path(__file__).parent.parent
"""Of the clone, from where processes that a launcher starts import `tasks`."""

FROM_TASK = ("hidden_size", "num_layers", "bidirectional", "dropout")
"""Keywords of `Recurrent` whose defaults are the task's."""


def cli(main: Callable[[], Any]) -> None:
    """Run a Hydra main; bad input ends with one line on stderr and exit code 1. HYDRA_FULL_ERROR=1 shows all."""
    # a variable of our own, because processes started from this one inherit what is set for Hydra below
    os.environ.setdefault("RNNZOO_TRACEBACK", os.environ.get("HYDRA_FULL_ERROR", "0"))
    with refusing_bad_input():
        sys.argv[1:] = prepare(sys.argv[1:])
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        if rank() > 0:  # process 0 speaks
            sys.stdout = io.StringIO()
            if started():  # and writes, into a folder named after its time; those that Lightning starts are told of it
                sys.argv[1:] += ["hydra.run.dir=.", "hydra.output_subdir=null"]
        os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints errors itself, over several lines
        refused.clear()
        main()
    if refused:
        sys.exit(1)


refused: list[str] = []
"""The lines of those jobs of a sweep whose input was bad; the others run."""


@contextmanager
def refusing_bad_input(discard: Path | None = None) -> Iterator[list[str]]:
    """One line when bad input shows, then the end of the process, or of the job if it is one of a sweep.

    Yields a list that takes up the line of such a job, for the sweep to know. The folder `discard` is removed if only
    Hydra wrote to it, with what is empty then above it.
    """
    lines: list[str] = []
    try:
        yield lines
    except BaseException as error:
        if discard is not None and rank() == 0 and [path.name for path in discard.glob("*")] == [".hydra"]:
            _remove(discard)
        bad_input = isinstance(error, (UserError, HydraException, OmegaConfBaseException, OSError))
        if not bad_input or os.environ.get("RNNZOO_TRACEBACK") == "1":
            raise
        line = f"error: {one_line(error)}"
        print(line, file=sys.stderr, flush=True)
        if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
            sys.exit(1)
        lines.append(line)


def _remove(folder: Path) -> None:
    """Remove a folder, then those above it that are empty, up to the working directory."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # not empty
        for parent in folder.parents:
            if not parent.is_relative_to(Path.cwd()) or parent == Path.cwd():
                break
            parent.rmdir()


def prepare(arguments: list[str]) -> list[str]:
    """Make every registered cell, those of `cells=` included, a `model=` option; point `resume=` at its run.

    Returns the arguments for Hydra. Raises `UserError` for cells that cannot be loaded, for a run folder that holds
    no run to resume, or one that would be overwritten, and for what Hydra would answer with a traceback.
    """
    values = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if equals and not key:
            raise UserError(f"cannot read the argument {argument!r}; arguments are KEY=VALUE")
        if key == "model.cell":
            raise UserError(f"{argument}: the cell is what model= chooses; say model={text}")
        if key in ("cells", "resume", "hydra.run.dir", "param_match"):
            values[key] = value_of(argument)
        chooses = equals and key in GROUPS and argument not in ("experiment=null", "sweep=null")
        if chooses and isinstance(value_of(argument), (int, float, type(None))):
            raise UserError(f"{key}={text}: name one; python train.py --help lists them")
    resume = values.get("resume")
    if {"--help", "-h"} & set(arguments):
        _name_models(values.get("cells"))
        return arguments
    from tasks import sweep  # which needs this module

    sweep.register()
    chosen = any(argument.startswith("sweep=") and argument != "sweep=null" for argument in arguments)
    if chosen and not any(argument.startswith("-") for argument in arguments):
        arguments = [*arguments, "--multirun"]  # as conf/sweep/ says too, but Hydra reads it only if all else is right
    if resume is None:
        register_models(None if values.get("cells") is None else str(values["cells"]))
        folder = Path(str(values.get("hydra.run.dir", "")))
        if (folder / "checkpoints").is_dir() and rank() == 0:
            raise UserError(f"hydra.run.dir={folder} already holds a run; choose another folder, or resume={folder}")
        return arguments
    if "param_match" in values:
        raise UserError(f"param_match={values['param_match']}: a resumed run keeps its hidden size; leave it out")
    folder = Path(str(resume)).expanduser().resolve()
    for needed in (".hydra/config.yaml", "checkpoints/last.ckpt"):
        if not (folder / needed).is_file():
            raise UserError(f"resume={resume}: nothing to resume there, {folder / needed} is missing")
    if "--config-path" in arguments:  # a process that rank 0 started with arguments already prepared
        return arguments
    return repeating(folder, arguments)


def repeating(folder: Path, arguments: Sequence[str] = ()) -> list[str]:
    """Arguments for Hydra to run in `folder` what was recorded there, changed by `arguments`."""
    return [
        "--config-path", str(folder / ".hydra"), "--config-name", "config", *arguments,
        f"hydra.run.dir='{folder}'", "hydra.output_subdir=null",
        "hydra/job_logging=disabled", "hydra/hydra_logging=disabled",
    ]  # fmt: skip


def value_of(argument: str) -> Any:
    """What Hydra understands after the = of an argument."""
    return OverridesParser.create().parse_override(argument).value()


def register_models(cells: str | None) -> None:
    """Put every registered cell into Hydra's group `model`, its fields taken from its hyperparameters."""
    if cells is not None:
        registry.load(cells)
    from rnnzoo.recurrent import Recurrent  # needs torch, as the cells do

    common: list[Any] = [("cell", str)]
    for key, parameter in inspect.signature(Recurrent, eval_str=True).parameters.items():
        if key not in ("cell", "input_size", "batch_first", "engine", "hyperparameters"):
            default = f"${{task.preset.{key}}}" if key in FROM_TASK else parameter.default
            kind = Any if key == "hidden_size" else parameter.annotation  # a number or a list, which the layer checks
            common.append((key, kind, field(default=default)))
    for name in registry.list_cells():
        kind = registry.get(name)
        if _stored.get(name) is not kind:
            own = [(key, h.type, field(default=h.default)) for key, h in kind.hyperparameters.items()]
            node = make_dataclass(name, [*common, *own])(cell=name)
            ConfigStore.instance().store(group="model", name=name, node=node)
            _stored[name] = kind


_stored: dict[str, type] = {}
"""The cells that `register_models` has put into Hydra's store, which takes a third of a second for the zoo."""


def _name_models(cells: Any) -> None:
    """Only the names of `register_models`, read without importing anything: enough for help."""
    _stored.clear()
    own = [Path(str(cells))] if cells is not None and Path(str(cells)).is_file() else []
    for path in [*Path(registry.__file__).with_name("cells").glob("*.py"), *own]:
        for name in registry.scan(path):
            ConfigStore.instance().store(group="model", name=name, node={"cell": name})


def resolve(config: DictConfig, folder: Path) -> dict[str, Any]:
    """The configuration as plain values, checked where no typed node or constructor does it, and recorded.

    Paths become absolute and the run's own .hydra/config.yaml holds what was resolved, so that the run can be
    resumed from anywhere. Raises `UserError` naming the key.
    """
    settings: dict[str, Any] = {**SINCE_THEN, **OmegaConf.to_container(config, resolve=True)}  # type: ignore[dict-item]
    for section, key in ((settings, "cells"), (settings["task"], "data"), (settings["task"], "text")):
        if section.get(key) and Path(str(section[key])).exists():
            section[key] = str(Path(section[key]).resolve())
    kinds: dict[str, tuple[type, ...]] = {"seed": (int,), "engine": (str,), "test_only": (bool,), "pictures": (bool,)}
    kinds |= dict.fromkeys(("cells", "resume", "ckpt"), (str, type(None))) | {"param_match": (int, type(None))}
    kinds |= dict.fromkeys(("checkpoint", "early_stopping", "trainer", *GROUPS[:5]), (dict,)) | {
        "sweep": (dict, type(None))
    }
    for key in settings.keys() ^ kinds.keys():
        raise UserError(f"{key}: " + ("no such key; " + nearest(key, kinds) if key in settings else "is missing"))
    for key, kind in kinds.items():
        if type(settings[key]) not in kind:
            raise UserError(
                f"{key}={settings[key]}: must be {'a group of keys' if kind[0] is dict else kind[0].__name__}"
            )
    if settings["seed"] < 0:
        raise UserError(f"seed={settings['seed']}: must not be negative")
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
        return (
            f"cannot read the argument {error.override!r}: arguments are KEY=VALUE, and a value with brackets, '=' or "
            "letters beyond ASCII needs quotes of its own, as in 'task.text=\"my novel (1).txt\"'"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'input/output'}: {error.strerror}"
    return " ".join(str(error).split())
