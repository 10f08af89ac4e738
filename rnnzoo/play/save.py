"""A session as one file that replays it: page, styles, scripts and numbers, with no server and no network.

Of each value the first numbers are kept, in eight bits, so that a lecture's file stays small.
"""

from __future__ import annotations

import base64
import json
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from rnnzoo.explain.card import stylesheet
from rnnzoo.play.machine import Machine, pack
from rnnzoo.play.view import LONGEST, Request
from rnnzoo.progress import steps

UNITS, NUMBERS = 64, 32
"""Units of a variable through time, and numbers of a value on a line, that are kept."""

DRAWN = 200
"""Characters that a language model adds to the text it begins with."""

PAGE = files("rnnzoo.play") / "page"
MODULES = ("boxes", "diagram", "inputs", "panel", "play", "series")
"""The page's scripts, by the names that they import each other by."""


def page(machines: list[Machine], request: Request) -> str:
    """The file's text: what the machines did with a request's input. Raises `UserError` for what they cannot read."""
    given = dict(request)
    if machines[0].view.kind == "text" and "text" not in request:
        given = _went_on(machines[0], machines[0].about()["view"]["given"])
    session = {"runs": [_run(machine, {**machine.about()["view"]["given"], **given}) for machine in machines]}
    return html(json.dumps(session, separators=(",", ":"), allow_nan=False))


def html(session: str | None, imports: str = "") -> str:
    """The page around a session, with all that it needs inside; without one, with the files of a server."""
    text = (PAGE / "play.html").read_text(encoding="utf-8")
    if session is None:
        return text.replace("IMPORTS", imports)
    style = stylesheet() + (PAGE / "play.css").read_text(encoding="utf-8")
    sources = {name: base64.b64encode((PAGE / f"{name}.js").read_bytes()).decode() for name in MODULES}
    inside = {f"play/{name}": f"data:text/javascript;base64,{source}" for name, source in sources.items()}
    # inside a script element only "<" could end it early
    data = session.replace("<", "\\u003c")
    script = f'<script type="application/json" id="session">{data}</script>\n'
    script += '<script type="module">import "play/play";</script>'
    parts = {
        '<link rel="stylesheet" href="/page/style.css">\n': "",
        '<link rel="stylesheet" href="/page/play.css">': f"<style>{style}</style>",
        "IMPORTS": json.dumps({"imports": inside}),
        '<script type="module" src="/page/play.js"></script>': script,
    }
    for before, after in parts.items():
        text = text.replace(before, after)
    return text


def _went_on(machine: Machine, given: dict[str, Any]) -> dict[str, Any]:
    """A text and what the model goes on with, drawn always alike."""
    for _ in steps(range(DRAWN), "writing"):
        known = max(0, len(given["text"]) - 1)
        answer = machine.answer({**given, "have": known, "draw": {"seed": 1, "temperature": 0.8}})
        symbol = machine.view.about()["symbols"][answer["drawn"]]
        if len(given["text"]) >= LONGEST or symbol not in machine.view.about()["alphabet"]:
            break
        given = {**given, "text": given["text"] + symbol}
    return given


def _run(machine: Machine, given: dict[str, Any]) -> dict[str, Any]:
    session = machine.session(given)
    about = machine.about()
    about["view"]["given"] = session.given
    cells = []
    for number, cell in enumerate(session.cells):
        each = [machine.wires(number, cell, step) for step in steps(range(len(cell.x)), "recording")]
        cells.append({
            "start": cell.start, "steps": len(cell.x), "lines": [_packed(list(wire)) for wire in zip(*each)],
            "names": {name: pack(cell.values(name)[:, :UNITS], 8) for name in cell.names},
        })  # fmt: skip
    return {"about": about, "labels": session.labels, "reply": machine.view.reply(session, {}, 0), "cells": cells}


def _packed(values: list[Tensor | None]) -> dict[str, Any] | None:
    """A line's values through time; None if a step has none."""
    there = [value[:NUMBERS] for value in values if value is not None]
    return pack(torch.stack(there), 8) if there and len(there) == len(values) else None
