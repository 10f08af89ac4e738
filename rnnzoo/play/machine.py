"""A model on the page: its sessions, of which the last few are kept, and their numbers as the page reads them.

Shapes: T time steps, n numbers of a value.
"""

from __future__ import annotations

import base64
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rnnzoo import registry
from rnnzoo.cell import Cell
from rnnzoo.errors import UserError
from rnnzoo.explain.living import Living
from rnnzoo.play.session import Hold, Recorded, cells_of, record
from rnnzoo.play.view import Request, Session, View, holds_in, text_in, whole_in
from rnnzoo.states import join

KEPT = 4
"""Sessions in memory; an older one is run again when it is asked for."""

UNITS = 256
"""Numbers of one value that are sent."""


class Machine:
    """A model and what can be done with it.

    Args:
        title: for the page.
        module: in evaluation mode.
        view: the task's.

    Raises `UserError` for a model without a recurrent layer.
    """

    def __init__(self, title: str, module: nn.Module, view: View) -> None:
        self.title, self.module, self.view = title, module, view
        self.cells = cells_of(module)
        if not self.cells:
            raise UserError(f"{title}: the model has no recurrent layer to be seen")
        self.living: list[Living | str] = [_living(cell) for *_, cell in self.cells]
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def about(self) -> dict[str, Any]:
        """All that does not change: for each cell its diagram, or why there is none."""
        cells = []
        for (name, layer, index, cell), living in zip(self.cells, self.living):
            drawn = {"reason": living} if isinstance(living, str) else _drawn(living)
            backward = layer.bidirectional and index % 2 == 1
            kind = registry.entry_of(type(cell)).name
            sizes = {"size": cell.hidden_size, "kind": kind, "states": cell.state_names}
            cells.append({"name": name, "backward": backward, **sizes, **drawn})
        return {"title": self.title, "kind": self.view.kind, "view": self.view.about(), "cells": cells}

    def session(self, request: Request) -> Session:
        """The session of a request's input and holds, run anew if it is not kept."""
        given, holds = self.view.read(request), holds_in(request, len(self.cells))
        key = repr((given, holds))
        if key not in self._sessions:
            self._sessions[key] = self._run(given, holds)
            while len(self._sessions) > KEPT:
                self._sessions.popitem(last=False)
        self._sessions.move_to_end(key)
        return self._sessions[key]

    def _run(self, given: dict[str, Any], holds: tuple[Hold, ...]) -> Session:
        known = self._begun(given, holds)
        if known is None:
            (labels, found), cells = record(self.module, lambda module: self.view.run(module, given), holds)
            total = max(cell.start + len(cell.x) for cell in cells)
            labels = [*labels, *map(str, range(len(labels) + 1, total + 1))][:total]
            return Session(given, holds, labels, found, cells)
        (labels, found), cells = record(
            self.module, lambda module: self.view.run(module, given, known), holds, len(known.labels)
        )
        cells = [_joined(old, new) for old, new in zip(known.cells, cells)]
        return Session(given, holds, known.labels + labels, self.view.joined(known.found, found), cells)

    def _begun(self, given: dict[str, Any], holds: tuple[Hold, ...]) -> Session | None:
        """The longest beginning that a session in memory has in common with one of this input and these holds."""
        best, steps = None, 0
        one_forward_layer = not any(layer.bidirectional or layer is not self.cells[0][1] for _, layer, *_ in self.cells)
        for session in self._sessions.values():
            common = int(min(self.view.shared(session.given, given), _same_until(session.holds, holds)))
            if steps < common and (one_forward_layer or common == len(session.labels)):
                steps, best = common, session
        return best if best is None or steps == len(best.labels) else self._cut(best, steps)

    def _cut(self, session: Session, steps: int) -> Session:
        """The beginning of a session of one layer that reads forward."""
        state = join([tuple(tensor[None] for tensor in cell.before[steps]) for cell in session.cells])
        given, found = self.view.cut(session.given, session.found, steps, state)
        cells = [
            replace(
                cell, x=cell.x[:steps], before=cell.before[:steps],
                names={name: values[:steps] for name, values in cell.names.items()},
            )
            for cell in session.cells
        ]  # fmt: skip
        return Session(given, session.holds, session.labels[:steps], found, cells)

    def answer(self, request: Request) -> dict[str, Any]:
        """Labels and the view's reply from the step `have` on, and the values of one variable, `name` of `cell`."""
        session = self.session(request)
        have = whole_in(request, "have", 0, len(session.labels), 0)
        cell = session.cells[whole_in(request, "cell", 0, len(self.cells) - 1, 0)]
        name = text_in(request, "name", 100) or cell.cell.state_names[0]
        if name not in cell.names:
            raise UserError(f"name: {name} is not among {', '.join(cell.names)}")
        seen = min(max(have - cell.start, 0), len(cell.x))
        return {
            "labels": session.labels[have:], "names": list(cell.names), "start": cell.start, "steps": len(cell.x),
            "values": pack(cell.values(name, seen)[:, :UNITS]) if seen < len(cell.x) else None,
            **self.view.reply(session, request, have),
        }  # fmt: skip

    def look(self, request: Request) -> dict[str, Any]:
        """What is on each line of a cell's diagram at its own step `step`, and the cell's old states."""
        session = self.session(request)
        number = whole_in(request, "cell", 0, len(self.cells) - 1, 0)
        cell = session.cells[number]
        step = whole_in(request, "step", 0, len(cell.x) - 1)
        return {"wires": [None if v is None else pack(v[:UNITS]) for v in self.wires(number, cell, step)]}

    def wires(self, number: int, cell: Recorded, step: int) -> Sequence[Tensor | None]:
        """The values [n] of a step on each line of the diagram, none where there is no diagram."""
        living = self.living[number]
        if isinstance(living, str):
            return []
        states = dict(zip(cell.cell.state_names, cell.before[step]))
        named = {name: values[step] for name, values in cell.names.items()}
        found = living.values(cell.x[step], states, named)
        return [None if value is None else torch.from_numpy(value) for value in found]

    def more(self, request: Request) -> dict[str, Any]:
        """What takes longer, of the model as it is."""
        if holds_in(request, len(self.cells)):
            raise UserError("this is said of the model as it is; let go of what is held")
        return self.view.more(self.module, self.view.read(request), request)


def _same_until(some: tuple[Hold, ...], others: tuple[Hold, ...]) -> float:
    """The first step where other things may be held; of two that hold the same thing the later one in order counts."""
    different = [hold for pair in zip_longest(some, others) if pair[0] != pair[1] for hold in pair if hold]
    return min((hold.start for hold in different), default=math.inf)


def _joined(old: Recorded, new: Recorded) -> Recorded:
    names = {name: [*values, *new.names[name]] for name, values in old.names.items() if name in new.names}
    x, before = [*old.x, *new.x], [*old.before, *new.before]
    return Recorded(old.name, old.cell, old.backward, old.start, old.rows, x, before, names)


def _living(cell: Cell) -> Living | str:
    try:
        return Living(cell)
    except UserError as error:
        return str(error)


def _drawn(living: Living) -> dict[str, Any]:
    return {"svg": living.svg, "wires": living.wires, "variables": living.variables}


def pack(values: Tensor, bits: int = 16) -> dict[str, Any]:
    """Numbers as whole ones of a few bits in base64, and what to multiply them by; infinity is a large number."""
    finite = values.detach().double().nan_to_num(nan=0.0, posinf=3e38, neginf=-3e38).numpy()
    largest = 2 ** (bits - 1) - 1
    scale = float(np.abs(finite).max(initial=0.0)) / largest or 1.0
    whole = np.round(finite / scale).astype(f"<i{bits // 8}")
    return {
        "shape": list(finite.shape),
        "bits": bits,
        "scale": scale,
        "data": base64.b64encode(whole.tobytes()).decode(),
    }
