"""Between the command line and Hydra: a person's cells, runs to resume, and what Hydra would answer with a traceback.

Nothing here imports torch or Lightning unless a cell has to be read, so that help stays quick.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from rnnzoo import registry
from rnnzoo.errors import UserError, nearest
from rnnzoo.files import expanded
from rnnzoo.hydra.models import named_models, register_models
from rnnzoo.hydra.recorded import recorded_settings, refuse_foreign_classes, refuse_unnamed_code
from rnnzoo.hydra.refusals import no_such, refused, refusing_bad_input
from rnnzoo.hydra.search.sweeper import register_sweepers
from rnnzoo.hydra.settings import GROUPS, quoted, quoted_value, repeating, testing
from rnnzoo.lightning.ranks import rank, started
from rnnzoo.plain import printable

CONF = Path(str(importlib.import_module("rnnzoo.conf").__file__)).parent
"""The folder of choices: `conf/` of a clone, or the package's own."""

ROOT = Path(__file__).parents[2]
"""From where processes that a launcher starts import rnnzoo."""


def command(main: Callable[[], Any]) -> None:
    """Run a Hydra main; bad input ends with one line on stderr and exit code 1. HYDRA_FULL_ERROR=1 shows all."""
    # a variable of our own, because processes started from this one inherit what is set for Hydra below
    os.environ.setdefault("RNNZOO_TRACEBACK", os.environ.get("HYDRA_FULL_ERROR", "0"))
    with refusing_bad_input():
        if {"--help", "-h"} & set(sys.argv[1:]):
            print(help_text(sys.argv[1:]))
            return
        sys.argv[1:] = sorted(sys.argv[1:], key=MULTIRUN.__contains__)  # Hydra reads no overrides after it
        _refuse_misspelt(sys.argv[1:])
        sys.argv[1:] = announced(sys.argv[1:])
        sys.argv[1:] = prepare(sys.argv[1:])
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        if rank() > 0:  # process 0 speaks
            sys.stdout = io.StringIO()
            if started():  # and writes, into a folder named after its time; those that Lightning starts are told of it
                sys.argv[1:] += ["hydra.run.dir=.", "hydra.output_subdir=null"]
        os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints errors itself, over several lines
        refused.clear()
        with _own_folder(sys.argv[1:]):
            main()
    if refused:
        sys.exit(1)


def _own_folder(arguments: list[str]) -> AbstractContextManager[None]:
    """Keeps the folder of a single run to this process, before Hydra writes its configuration there."""
    flags = {argument for argument in arguments if argument.startswith("-")} - {"--config-path", "--config-name"}
    folders = [argument for argument in arguments if argument.startswith("hydra.run.dir=") and "${" not in argument]
    if flags or not folders or rank() > 0:
        return nullcontext()
    from rnnzoo.lightning.run_lock import locked

    return locked(Path(str(value_of(folders[-1]))))


def announced(arguments: list[str]) -> list[str]:
    """The arguments, the run's folder among them, once it has been said what begins: to load torch takes seconds."""
    given = {key: value for key, equals, value in (argument.partition("=") for argument in arguments) if equals}
    experiment = _experiment(given.get("experiment", ""))
    mode = given.get("hydra.mode", experiment.get("hydra", {}).get("mode"))
    several = given.get("sweep", "null") != "null" or mode == "MULTIRUN" or set(MULTIRUN) & set(arguments)
    if rank() > 0 or "resume" in given or any(a.startswith("-") and a not in MULTIRUN for a in arguments):
        return arguments
    chosen = {"task": "sine", "model": "gru", "hardware": "auto", **_chosen(experiment)}
    tested = _of_checkpoint(arguments)
    if tested is not None:
        recorded = recorded_settings(tested)
        chosen |= {"task": recorded["task"]["name"], "model": recorded["model"]["cell"]}
    chosen |= {key: value for key, value in given.items() if key in chosen}
    if chosen["hardware"] == "auto" and sys.platform == "linux":
        chosen["hardware"] = "auto (a GPU)" if Path("/dev/nvidiactl").exists() else "auto (the CPU)"
    what = ", ".join(f"{key} {value}" for key, value in chosen.items())
    if several:
        print(printable(f"{what}: several runs"), flush=True)
    if several or any("," in value for value in chosen.values()):
        return arguments
    folder = given.get("hydra.run.dir") or f"outputs/{chosen['task']}/{chosen['model']}/{datetime.now():{TIME}}"
    print(printable(f"{what}, folder {folder}"), flush=True)
    return arguments if "hydra.run.dir" in given else [*arguments, f"hydra.run.dir={folder}"]


MULTIRUN = ("-m", "--multirun")

TIME = "%Y-%m-%d_%H-%M-%S-%f"


def _experiment(name: str) -> dict[str, Any]:
    """What the file of an experiment has."""
    path = CONF / "experiment" / f"{name}.yaml"
    if not name or not path.is_file():
        return {}
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def _chosen(experiment: Mapping[str, Any]) -> dict[str, str]:
    """Task and model that an experiment chooses."""
    chosen = {k.removeprefix("override /"): v for each in experiment.get("defaults", []) for k, v in each.items()}
    params = experiment.get("hydra", {}).get("sweeper", {}).get("params", {})
    return {key: value for key, value in {**chosen, **params}.items() if key in ("task", "model")}


def prepare(arguments: list[str]) -> list[str]:
    """Make every registered cell, those of `cells=` included, a `model=` option; point `resume=` at its run.

    Returns the arguments for Hydra. Raises `UserError` for cells that cannot be loaded, for a run folder that holds
    no run to resume, or one that would be overwritten, and for what Hydra would answer with a traceback.
    """
    values = {}
    arguments = [_literal(argument) for argument in arguments]
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if equals and not key:
            raise UserError(f"cannot read the argument {argument!r}; arguments are KEY=VALUE")
        if key == "model.cell":
            raise UserError(f"{argument}: the cell is what model= chooses; say model={text}")
        if key in ("cells", "resume", "hydra.run.dir"):
            values[key] = value_of(argument)
        chooses = equals and key in GROUPS and argument not in ("experiment=null", "sweep=null")
        if chooses and isinstance(value_of(argument), (int, float, type(None))):
            raise UserError(f"{key}={text}: name one; rnnzoo train --help lists them")
    resume = values.get("resume")
    register_sweepers()
    chosen = any(argument.startswith("sweep=") and argument != "sweep=null" for argument in arguments)
    if chosen and not any(argument.startswith("-") for argument in arguments):
        arguments = [*arguments, "--multirun"]  # as conf/sweep/ says too, but Hydra reads it only if all else is right
    if resume is None:
        folder = _of_checkpoint(arguments)
        if folder is not None:
            cells = None if values.get("cells") is None else str(values["cells"])
            recorded = recorded_settings(folder)
            refuse_unnamed_code(folder, recorded, cells)
            refuse_foreign_classes(recorded, cells)
            return testing(folder, [part for argument in arguments for part in _of_group(argument)])
        register_models(None if values.get("cells") is None else str(values["cells"]))
        folder = Path(str(values.get("hydra.run.dir", "")))
        left = ("checkpoints/last.ckpt", "summary.json")  # else it was killed too early to go on from there
        if rank() == 0 and any((folder / name).is_file() for name in left):
            raise UserError(f"hydra.run.dir={folder} already holds a run; choose another folder, or resume={folder}")
        return arguments
    folder = expanded(str(resume)).resolve()
    if folder.name == "last.ckpt" and folder.is_file():  # what goes on is its run
        folder = folder.parent.parent
    arguments = [f"resume={quoted(str(folder))}" if a.startswith("resume=") else a for a in arguments]
    if "${" in str(folder):
        raise UserError(f"resume={folder}: what stands after a ${{ is Hydra's to fill in; rename the folder")
    for needed in (".hydra/config.yaml", "checkpoints/last.ckpt"):
        if not (folder / needed).is_file():
            raise UserError(f"resume={resume}: nothing to resume there, {folder / needed} is missing")
    cells = values.get("cells")
    if "cells" not in values or cells is not None:
        refuse_unnamed_code(folder, recorded_settings(folder), None if cells is None else str(cells))
    if "--config-path" in arguments:  # a process that rank 0 started with arguments already prepared
        return arguments
    _refuse_other_run(arguments)
    return repeating(folder, [part for argument in arguments for part in _of_group(argument)])


def _of_checkpoint(arguments: list[str]) -> Path | None:
    """The folder of the run whose checkpoint is to be tested, if it and nothing else says what task and model are."""
    given = {key: text for key, equals, text in (argument.partition("=") for argument in arguments) if equals}
    tested = given.get("test_only", "").lower() == "true" and "ckpt" in given
    if not tested or {"task", "model", "experiment"} & given.keys() or "--config-path" in arguments:
        return None
    folder = Path(str(value_of(_literal(f"ckpt={given['ckpt']}")))).absolute().parent.parent
    return folder if (folder / ".hydra" / "config.yaml").is_file() else None


def _refuse_misspelt(arguments: list[str]) -> None:
    """Raise `UserError` for a choice or a key that there is none of, as Hydra would once torch and cells are loaded."""
    if any(argument.startswith(("-c", "--config", "hydra.searchpath=", "resume=")) for argument in arguments):
        return  # choices of a person's own, or recorded ones
    known = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))
    top = [*known, *GROUPS, "hydra"]
    given = {key: text for key, equals, text in (argument.partition("=") for argument in arguments) if equals}
    for key, text in given.items():
        section, _, name = key.partition(".")
        if not re.fullmatch(r"\w+(\.\w+)*", key) or section == "hydra":
            continue
        if section not in top and "experiment" not in given:
            raise UserError(f"{key}: no such key; {nearest(section, top)}")
        if key in GROUPS:
            names = [path.stem for path in (CONF / key).glob("*.yaml")]
            if key == "model":
                if "cells" in given or entry_points(group="rnnzoo.cells"):
                    continue
                names = named_models(None)
            for choice in text.split(","):
                if re.fullmatch(r"\w+", choice) and choice not in ("null", *names):
                    raise UserError(no_such(key, choice, names))
        elif name and "experiment" not in given and section not in ("model", "sweep"):
            files = (CONF / section).glob("*.yaml")
            loaded = [known.get(section) or {}, *(yaml.safe_load(path.read_text(encoding="utf-8")) for path in files)]
            keys = {key for each in loaded for key in (*each, *(each.get(section) or ()))}  # of some, a whole choice
            if name.partition(".")[0] not in keys:
                raise UserError(f"{key}: no such key; {nearest(name, keys)}")


CHANGEABLE = (
    "resume", "cells", "hydra", "trainer", "checkpoint", "early_stopping", "optimizer", "hardware", "logger",
    "pictures", "probe", "engine", "task.data", "task.text",
)  # fmt: skip
"""What a resumed run may be given anew, by sections and keys: how long and where it goes on, and where its data are."""


def _refuse_other_run(arguments: list[str]) -> None:
    """Raise `UserError` for an argument that would make another run of the one that is resumed."""
    for key in (argument.partition("=")[0].lstrip("+~") for argument in arguments if not argument.startswith("-")):
        section = re.split(r"[./]", key)[0]
        if key not in CHANGEABLE and section not in CHANGEABLE:
            raise UserError(f"{key}: a resumed run keeps its {section}; leave it out, or begin a new run")


PATHS = ("resume", "hydra.run.dir", "ckpt", "cells")
"""Arguments that are a path, which a person writes as it is."""


def _literal(argument: str) -> str:
    """The argument, quoted if it is a path that Hydra would read as something else: one with ' = , {} or a space."""
    key, _, text = argument.partition("=")
    if key not in PATHS or text in ("", "null") or text[0] in "'\"" or (key == "hydra.run.dir" and "${" in text):
        return argument
    several = key == "cells"  # which is no sweep
    text = ",".join(registry.split(text)) if several else str(expanded(text))
    here = key in ("cells", "resume", "hydra.run.dir") or text.startswith("~") or Path(text).exists()
    return f"{key}={quoted(text)}" if here else argument


def _of_group(argument: str) -> list[str]:
    """The argument for a run that is resumed, in whose record a choice has become the keys that it stood for.

    Raises `UserError` for a choice that is not there.
    """
    key, equals, name = argument.partition("=")
    if not equals or key not in GROUPS:
        return [argument]
    names = sorted(path.stem for path in (CONF / key).glob("*.yaml"))
    if name not in names:
        raise UserError(f"{argument}: no such {key}; {nearest(name, names)}")
    loaded = yaml.safe_load((CONF / key / f"{name}.yaml").read_text(encoding="utf-8"))
    return [f"~{key}", *(f"+{key}.{k}={quoted_value(value)}" for k, value in loaded.items())]


def help_text(arguments: list[str]) -> str:
    """What `rnnzoo train --help` says: the choices that there are, cells of `cells=` included, and the commonest keys.

    Read off files, because Hydra takes a second to compose the same.
    """
    own = [argument.partition("=")[2] for argument in arguments if argument.startswith("cells=")]
    more = [Path(after) for before, after in pairwise(arguments) if before in ("--config-dir", "-cd")]
    choices = {group: named_models(own[-1] if own else None) if group == "model" else [] for group in GROUPS}
    for group, names in choices.items():
        names += [path.stem for folder in (CONF, *more) for path in (folder / group).glob("*.yaml")]
    lines = (f"{group}: {', '.join(sorted(names))}" for group, names in choices.items())
    groups = "\n".join(textwrap.fill(line, 100, subsequent_indent="  ") for line in lines) + "\n"
    template: str = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))["hydra"]["help"]["template"]
    return template.replace("$APP_CONFIG_GROUPS", groups).rstrip()


def value_of(argument: str) -> Any:
    """What Hydra understands after the = of an argument."""
    return OverridesParser.create().parse_override(argument).value()


def requeued(arguments: list[str]) -> list[str]:
    """The command's arguments, or `resume=` for a job that SLURM starts once more and that left a checkpoint.

    Such a job is known by SLURM_RESTART_COUNT, and its folder by a `hydra.run.dir=` that stays the same.
    """
    folders = [argument for argument in arguments if argument.startswith("hydra.run.dir=")]
    again = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    if not again or not folders or any(argument.startswith("resume=") for argument in arguments):
        return arguments
    if not (Path(str(value_of(folders[-1]))) / "checkpoints" / "last.ckpt").is_file():
        return arguments
    own = [argument for argument in arguments if argument.startswith("cells=")]
    return ["resume=" + folders[-1].partition("=")[2], *own]
