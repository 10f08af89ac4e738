"""The command `rnnzoo`, also `python -m rnnzoo`: cells, trainings, and what they have left.

Nothing here imports torch, Lightning or Hydra before it is needed, so that help stays quick.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rnnzoo import __version__
from rnnzoo.errors import UserError, at_once, nearest, no_room
from rnnzoo.plain import masked, printable

if TYPE_CHECKING:
    from rnnzoo.hydra.verbs import Verb

KINDS = ("parallel", "diagonal", "serial")
FORMS = {
    "text": "the equations, for a terminal",
    "latex": "the equations, for a paper",
    "svg": "the diagram of one step",
    "html": "a page with all there is to say",
}
"""What `rnnzoo show` can print instead of its summary."""

EXTRAS = {
    "train": ("pytorch_lightning", "lightning", "hydra", "omegaconf", "torchmetrics", "pydantic", "optuna"),
    "gallery": ("matplotlib", "resvg_py"),  # also what `rnnzoo show --svg` and `--png` need
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "bench": ("matplotlib", "torchrecurrent"),
    "play": ("matplotlib", "starlette", "uvicorn"),
}
"""What `pip install 'rnnzoo[EXTRA]'` brings beside what cells, layer and engines need."""

INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code. Bad input ends with one line on stderr and exit code 1."""
    given = sys.argv[1:] if arguments is None else arguments
    if "bench" not in given[:1] and "OMP_WAIT_POLICY" not in os.environ:
        # Threads that spin while they wait take a busy machine's cores from those that work; to sleep at once is slow.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    for stream in (sys.stdout, sys.stderr):  # what a terminal's encoding lacks is written as \u2581, not raised
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _answer(given)
        finally:
            sys.stdout.flush()  # here, because what fails at the interpreter's end can only be complained about
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError) and end.__cause__ is None:  # as rich has it
            return 0
        raise
    except BrokenPipeError:  # whoever read the output, as head does, has had enough
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _answer(arguments: list[str]) -> int:
    try:
        return _run(arguments)
    except UserError as error:
        print(printable(masked(f"error: {' '.join(str(error).split())}")), file=sys.stderr)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        extras = [extra for extra, modules in EXTRAS.items() if missing in modules]
        if not extras:
            raise
        extra = next((extra for extra in extras if extra in arguments), extras[0])  # that of the command first
        print(printable(f"error: this needs {missing}: pip install 'rnnzoo[{extra}]'"), file=sys.stderr)
    except Exception as error:
        if not no_room(error):
            raise
        print(printable(f"error: this needs more memory than there is{at_once(error)}; ask for less"), file=sys.stderr)
    except KeyboardInterrupt as interrupt:
        print("; ".join(["interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        return INTERRUPTED
    return 1


def _run(arguments: list[str]) -> int:
    anywhere = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # before the command or after it
    anywhere.add_argument("--cells", action="append")
    if "train" in arguments[:1] or (arguments[:1] == ["--cells"] and arguments[2:3] == ["train"]):
        if any(argument.partition("=")[0] == "--cells" for argument in arguments):
            raise UserError("rnnzoo train takes code of your own as cells=FILE, without dashes")
        return train(arguments[1:])
    given, rest = anywhere.parse_known_args(arguments)
    cells = ",".join(given.cells or ())
    parser, commands = _parser()
    if rest and not rest[0].startswith("-") and rest[0] not in commands:
        verbs = _verbs(cells)
        if rest[0] in verbs:
            return _ask(verbs[rest[0]], rest[1:], cells)
        parser.error(f"{rest[0]}: no such command; {nearest(rest[0], [*commands, *verbs])}")
    if not rest or rest[0] not in commands:
        parser.parse_args(rest)  # help, version, and most of what is wrong end here
        parser.error(f"{rest[0]}: the command comes first")
    own, call = commands[rest[0]]
    options = own.parse_intermixed_args(rest[1:])  # names before and after options
    if cells:
        from rnnzoo import registry

        registry.load_all(cells)
    return call(options) or 0


def train(arguments: list[str]) -> int:
    """`rnnzoo train ARGUMENTS`, Hydra's, as if its module had been started by name: as it starts further processes."""
    sys.argv[1:] = arguments
    runpy.run_module("rnnzoo.hydra.train", run_name="__main__", alter_sys=True)
    return 0


Command = tuple[argparse.ArgumentParser, Callable[[argparse.Namespace], int | None]]
"""Reads a command's arguments, and does what they say."""


def _parser() -> tuple[argparse.ArgumentParser, dict[str, Command]]:
    """The parser that knows all commands but `train` and the tasks' own, and each of these."""
    parser = argparse.ArgumentParser(
        prog="rnnzoo",
        description="Recurrent networks: a cell is its equations.",
        epilog=_epilog(),
        allow_abbrev=False,
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--version", action="version", version=f"rnnzoo {__version__}")
    parser.add_argument(
        "--cells", metavar="FILE", help="a file or module with code of your own, or several, with any command"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made: dict[str, Command] = {}

    def add(name: str, what: str, call: Callable[[argparse.Namespace], int | None]) -> argparse.ArgumentParser:
        made[name] = (commands.add_parser(name, help=what, description=what), call)
        return made[name][0]

    add("train", "train a cell on a task: rnnzoo train model=gru task=imdb; rnnzoo train --help", lambda _: None)

    listing = add("list", "the registered cells", _list)
    listing.add_argument("pattern", nargs="?", default="*", help="a wildcard, as in '*lstm*'")
    listing.add_argument("--family", help="only one family, as in lstm; the module that the cell is written in")
    listing.add_argument("--kind", choices=KINDS, help="only cells whose state enters their step so")
    listing.add_argument("--fidelity", action="store_true", help="what each cell was checked against")

    showing = add("show", "one cell: source, equations as code, parameters, engines", _show)
    showing.add_argument("name", metavar="TARGET", help="a registered name, or FILE.py:Class")
    showing.add_argument("--input-size", type=int, default=64, help="default: 64")
    showing.add_argument("--hidden-size", type=int, default=128, help="default: 128")
    form = showing.add_mutually_exclusive_group()
    for key, kind in FORMS.items():
        form.add_argument(f"--{key}", dest="form", action="store_const", const=key, help=f"only {kind}")
    form.add_argument("--png", type=Path, metavar="FILE", help="write the diagram to a file")

    building = add("gallery", "a site of all cells, for a browser, without network or server", _gallery)
    building.add_argument("out", type=Path, help="folder to write it to")
    building.add_argument("--results", type=Path, metavar="FILE", help="Markdown whose tables have a column 'cell'")
    building.add_argument("--language", default="en", help="of index and essays: en or ja; default: en")

    checking = add("check", "the conformance suite on a cell of yours or of the zoo", _check)
    checking.add_argument("targets", nargs="*", metavar="TARGET", help="a registered name, or FILE.py:Class")
    checking.add_argument("--all", action="store_true", help="every registered cell")
    checking.add_argument("--out", type=Path, metavar="FILE.md", help="a table of what passed, in Markdown")

    measuring = add("bench", "speed and memory, side by side with the alternatives", _bench)
    measuring.add_argument("names", nargs="*", metavar="CELL", help="registered cells; all without")
    measuring.add_argument("--train", action="store_true", help="tasks instead: rnnzoo train beside a bare loop")
    measuring.add_argument("--sizes", nargs="+", metavar="T,B,I,H", help="default: five usual ones")
    measuring.add_argument(
        "--against",
        default="torch,loop",
        help="some of torch,loop,native,scan,operations,kernel,triton,graphs,torchrecurrent,jax,flashrnn",
    )
    measuring.add_argument("--engine", default="auto", help="one of auto, reference, native, serial, scan, matrix")
    measuring.add_argument("--threads", type=int, help="default: torch's")
    measuring.add_argument("--dtype", default="float32", help="one of float32, float64, bfloat16")
    measuring.add_argument("--device", default="cpu", help="cpu or cuda")
    measuring.add_argument("--rounds", type=int, default=9, help="in each of which all contenders take their turn")
    measuring.add_argument(
        "--out", type=Path, default=Path("bench"), help="folder of bench.csv, bench.md and bench.png"
    )
    measuring.add_argument("--resume", action="store_true", help="go on with what an interrupted bench has left there")

    reporting = add("report", "one table of results from any set of runs, also of several multiruns", _report)
    reporting.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a run, or a folder with runs below it")
    reporting.add_argument(
        "--out", type=Path, default=Path("report"), metavar="FOLDER", help="of results.csv, .md, .html; default: report"
    )

    claiming = add("claims", "what papers claimed of their cells, tried here", _claims)
    claiming.add_argument("names", nargs="*", metavar="NAME", help="files of conf/experiment/claim; all without")
    claiming.add_argument("--show", action="store_true", help="only what has been run already")
    claiming.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/claims"),
        metavar="FOLDER",
        help="of the runs; default: outputs/claims",
    )

    playing = add("league", "every cell on the same short tasks, as large as the others: one fair table", _league)
    playing.add_argument(
        "cells",
        nargs="*",
        metavar="CELL",
        help="that play; all without; KEY=VALUE is for each run, as in hydra/launcher=joblib",
    )
    playing.add_argument("--tasks", nargs="+", default=[], metavar="TASK", help="files of conf/experiment/league")
    playing.add_argument("--show", action="store_true", help="only what has been run already")
    playing.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/league"),
        metavar="FOLDER",
        help="of the runs and of league.csv; default: outputs/league",
    )

    probing = add("probe", "the dynamics of a run's model: gradients, Jacobians, fixed points, gates", _probe)
    probing.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder; several stand side by side")
    probing.add_argument("--out", type=Path, metavar="FOLDER", help="default: probe in each run's folder")
    probing.add_argument(
        "--html", nargs="?", type=Path, metavar="FILE", help="of the page; default: probe.html beside the other files"
    )

    playing = add("play", "a page on which a run's model, or an untrained cell, moves under your hands", _play)
    playing.add_argument(
        "targets", nargs="+", metavar="TARGET", help="a run's folder, or a cell; two stand side by side"
    )
    playing.add_argument("--save", type=Path, metavar="FILE.html", help="write a recorded session as one file instead")
    playing.add_argument("--text", help="what the model reads in that session, where it reads text")
    playing.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, so that only this machine can see it")
    playing.add_argument("--port", type=int, default=8765, help="default: 8765")

    testing = add("eval", "the test metrics of a run again, beside the recorded ones", _eval)
    exporting = add("export", "a trained model as one file that runs without this project", _export)
    for command in (testing, exporting):
        command.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or one of its checkpoints")
    file = exporting.add_mutually_exclusive_group(required=True)
    for key, kind in (("onnx", "ONNX, for onnxruntime and others"), ("pt2", "PyTorch's, for torch.export.load")):
        file.add_argument(f"--{key}", dest="form", action="store_const", const=key, help=kind)
    exporting.add_argument("--out", type=Path, metavar="FILE", help="default: a name of its own in the run's folder")
    return parser, made


def _verbs(cells: str = "") -> dict[str, list[Verb]]:
    """The commands that tasks bring along, those in files of a person's own too."""
    from rnnzoo import registry
    from rnnzoo.hydra.verbs import of_all_tasks

    return of_all_tasks([path for path in map(Path, registry.split(cells)) if path.is_file()])


def _epilog() -> str:
    try:
        found = [verb for verbs in _verbs().values() for verb in verbs]
    except ModuleNotFoundError:
        return "training and what comes after it: pip install 'rnnzoo[train]'"
    lines = [f"  {verb.name:12}  {verb.task}: {verb.summary[0].lower()}{verb.summary[1:]}" for verb in found]
    return "commands for the runs of one task, rnnzoo COMMAND RUN:\n" + "\n".join(lines)


def _ask(verbs: list[Verb], arguments: list[str], cells: str) -> int:
    """A command that one or several tasks bring along, whichever is the run's."""
    helped = not arguments or bool({"-h", "--help"} & set(arguments))
    for verb in verbs if helped or len(verbs) == 1 else ():
        parser = argparse.ArgumentParser(prog=f"rnnzoo {verb.name}", description=f"{verb.task}: {verb.summary}")
        parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or one of its checkpoints")
        verb.add_to(parser)
        if helped and len(verbs) > 1:
            parser.print_help()
        else:
            parser.parse_args(arguments)  # what is wrong shows before anything is loaded
    if helped:
        return 0 if arguments else 2
    from rnnzoo import registry
    from rnnzoo.hydra.verbs import call

    if cells:
        registry.load_all(cells)
    call(Path(arguments[0]), verbs, arguments[1:])
    return 0


def _list(options: argparse.Namespace) -> None:
    from rnnzoo.commands.listing import list_cells

    list_cells(options.pattern, options.family, options.kind, options.fidelity)


def _show(options: argparse.Namespace) -> None:
    from rnnzoo.commands.showing import show

    show(options.name, options.input_size, options.hidden_size, options.form, options.png)


def _gallery(options: argparse.Namespace) -> None:
    from rnnzoo import registry
    from rnnzoo.explain import gallery

    left_out = gallery.build(options.out, options.results, options.language)
    for name, reason in left_out.items():
        print(printable(f"left out {name}: {reason}"), file=sys.stderr)
    print(printable(f"written: {len(registry.list_cells()) - len(left_out)} cells to {options.out / 'index.html'}"))


def _check(options: argparse.Namespace) -> int:
    from rnnzoo.commands.checking import check_cells

    return check_cells(options.targets, options.all, options.out)


def _bench(options: argparse.Namespace) -> None:
    from rnnzoo.commands import benching

    if options.train:
        benching.measure_training(options.names, options.rounds)
    else:
        benching.measure_cells(options)


def _report(options: argparse.Namespace) -> None:
    from rnnzoo.hydra.report import publish

    publish(options.folders, options.out)


def _claims(options: argparse.Namespace) -> None:
    from rnnzoo.hydra.claims import publish

    publish(options.names, options.out, options.show)


def _league(options: argparse.Namespace) -> None:
    from rnnzoo.hydra.league import play

    more = [argument for argument in (*options.cells, *options.tasks) if "=" in argument]
    cells, tasks = ([name for name in names if name not in more] for names in (options.cells, options.tasks))
    play(cells, tasks, options.out, more, options.show)


def _probe(options: argparse.Namespace) -> None:
    from rnnzoo.hydra.probe_run import probe_runs

    probe_runs(options.runs, options.out, options.html)


def _play(options: argparse.Namespace) -> None:
    from rnnzoo.commands.playing import play

    play(options.targets, options.save, options.text, options.host, options.port)


def _eval(options: argparse.Namespace) -> int:
    from rnnzoo.hydra.evaluate import evaluate

    return 0 if evaluate(options.run) else 1


def _export(options: argparse.Namespace) -> None:
    from rnnzoo.hydra.export_run import export

    export(options.run, options.form, options.out)
