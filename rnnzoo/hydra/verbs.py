"""The commands that a task's trained model answers to: methods marked as verbs, read off the source.

They are read from the text, because a command's help must not wait for torch.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from rnnzoo.errors import UserError
from rnnzoo.hydra.command_line import CONF
from rnnzoo.lightning.verbs import verbs_of
from rnnzoo.plain import printable


def whole(text: str) -> int:
    """A whole number that a computer's can hold."""
    number = int(text)
    if abs(number) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text} has more than 64 bits")
    return number


whole.__name__ = "int"  # as argparse calls it where it is none
TYPES: dict[str, Callable[[str], Any]] = {"str": str, "int": whole, "float": float, "Path": Path}


class Parameter(NamedTuple):
    """An argument of a verb: required, and then given by its place, or an option."""

    name: str
    kind: str
    required: bool
    default: Any
    help: str


class Verb(NamedTuple):
    """A method of a task's module that the command line finds."""

    name: str
    task: str
    summary: str
    parameters: list[Parameter]

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        """Give a parser this verb's arguments."""
        for p in self.parameters:
            shown = "" if p.default in (None, "", False) else f"; default: {p.default}"
            if p.required:
                parser.add_argument(p.name, type=TYPES[p.kind], help=p.help)
            elif p.kind == "bool":
                parser.add_argument(f"--{p.name.replace('_', '-')}", action="store_true", help=p.help)
            else:
                parser.add_argument(
                    f"--{p.name.replace('_', '-')}", type=TYPES[p.kind], default=p.default, help=p.help + shown,
                    metavar=p.name.upper(),
                )  # fmt: skip


def scan(path: Path) -> list[Verb]:
    """The verbs in a Python file; `UserError` when it cannot be parsed."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    methods = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return [_read(node, path) for node in methods if any(ast.unparse(d) == "verb" for d in node.decorator_list)]


def _read(method: ast.FunctionDef, path: Path) -> Verb:
    text = ast.get_docstring(method) or ""
    helps = dict(re.findall(r"^    (\w+): (.*?)\.?$", text, re.MULTILINE))
    given = method.args.args[1:]
    defaults = [None] * (len(given) - len(method.args.defaults)) + list(method.args.defaults)
    parameters = []
    for argument, default in zip(given, defaults):
        kind = ast.unparse(argument.annotation).partition(" |")[0] if argument.annotation else "str"
        if kind not in (*TYPES, "bool"):
            known = ", ".join(TYPES)
            raise UserError(f"{path}, line {argument.lineno}: a verb's arguments are {known} or bool, not {kind}")
        value = None if default is None else ast.literal_eval(default)
        parameters.append(Parameter(argument.arg, kind, default is None, value, helps.get(argument.arg, "")))
    return Verb(method.name, path.stem, text.partition("\n")[0].rstrip("."), parameters)


def of_all_tasks(further: Iterable[Path] = ()) -> dict[str, list[Verb]]:
    """The verbs of rnnzoo's tasks, and those of files of a person's own, by name."""
    found: dict[str, list[Verb]] = {}
    for path in [*sorted((CONF.parent / "tasks").glob("*.py")), *further]:
        for verb in scan(path):
            found.setdefault(verb.name, []).append(verb)
    return found


def call(run: Path, verbs: list[Verb], arguments: list[str]) -> None:
    """Ask a run's trained model one of several verbs of one name, whichever is its task's.

    Raises `UserError` when its task has none of that name.
    """
    import torch

    from rnnzoo.hydra.trained import load

    trained = load(run)
    kind, name = type(trained.module), verbs[0].name
    if name not in verbs_of(kind):
        others, task = ", ".join(["eval", "export", *verbs_of(kind)]), trained.settings["task"]["name"]
        raise UserError(
            f"{run}: is a run of {task}, which can be asked to {others}; rnnzoo {name} is for "
            f"{', '.join(verb.task for verb in verbs)}"
        )
    stem = getattr(kind, name).__module__.rpartition(".")[2]
    own = [verb for verb in verbs if verb.task == stem or verb.task in stem]
    parser = argparse.ArgumentParser(prog=f"rnnzoo {name} {run}")
    own[0].add_to(parser)
    answer = parser.parse_args(arguments)
    with torch.no_grad(), _spelt_out():
        getattr(trained.module, name)(**vars(answer))


class _SpeltOut(io.TextIOBase):
    """A terminal that obeys nothing of what a model says: its alphabet is a stranger's file."""

    def __init__(self, terminal: TextIO) -> None:
        self.terminal = terminal

    def write(self, text: str) -> int:
        self.terminal.write(printable(text))
        return len(text)

    def flush(self) -> None:
        self.terminal.flush()


def _spelt_out() -> AbstractContextManager[Any]:
    """Spells out control characters if they would reach a terminal; files and pipes get the text as it is."""
    return redirect_stdout(_SpeltOut(sys.stdout)) if sys.stdout.isatty() else nullcontext()
