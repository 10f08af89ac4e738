"""What a language model's units track: a small one, which learns a made-up language in seconds.

Shapes: T time steps, B streams of text, A characters of the alphabet, H units, S numbers of all states together.
"""

from __future__ import annotations

import copy
import math
import random
from dataclasses import dataclass
from functools import cache
from html import escape
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from markupsafe import Markup
from torch import Tensor, nn

from rnnzoo.explain import probe
from rnnzoo.explain.essays.page import Essay, Found, curves
from rnnzoo.explain.tracking import correlations, properties
from rnnzoo.recurrent import Recurrent

SEPARATORS = ",;:"
"""Outside of all brackets, within one, and within two, which is the most."""

ALPHABET = 'abcd ()"\n' + SEPARATORS
WIDTH = 24
"""A line ends at the first separator beyond so many characters."""

H, T, STREAMS, UPDATES, RATE = 48, 64, 32, 500, 1e-2
"""Of the model and of learning."""

LISTENERS = 512
"""Streams on which units are looked at."""

SHOWN = 240
"""Characters of the coloured text."""

TRACKED = ("quotes", "brackets", "column")


def write(characters: int, seed: int) -> str:
    """A text in the made-up language: words, lists in brackets, quotations, lines.

    What may follow a quotation mark hangs on whether it opens or closes, the separator on how many brackets are open,
    and where a line ends on how long it has become: whoever predicts the next character well must keep track of all.
    """
    chance = random.Random(seed)
    text: list[str] = []
    depth, quoted, column = 0, False, 0

    def put(character: str) -> None:
        nonlocal column
        text.append(character)
        column = 0 if character == "\n" else column + 1

    def word() -> None:
        for _ in range(chance.randint(1, 4)):
            put(chance.choice("abcd"))

    while len(text) < characters:
        if quoted:  # words and blanks; nothing else is there within a quotation
            word()
            if chance.random() < 0.4:
                put('"')
                quoted = False
            else:
                put(" ")
                continue
        elif chance.random() < 0.25 and depth < len(SEPARATORS) - 1:
            put("(")
            depth += 1
            continue
        elif chance.random() < 0.3:
            put('"')
            quoted = True
            continue
        else:
            word()
        while depth and chance.random() < 0.35:
            put(")")
            depth -= 1
        put(SEPARATORS[depth])
        put("\n" if column >= WIDTH else " ")
    return "".join(text[:characters])


def encode(text: str) -> Tensor:
    return torch.tensor([ALPHABET.index(character) for character in text])


class Model(nn.Module):
    """One-hot characters, an LSTM, and a linear map to the next one's logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Recurrent("lstm", len(ALPHABET), H, engine="native")
        self.head = nn.Linear(H, len(ALPHABET))

    def forward(self, codes: Tensor) -> Tensor:
        """Characters [T + 1, B] to the mean cross-entropy of each but the first, in nats."""
        output, _ = self.layer(F.one_hot(codes[:-1], len(ALPHABET)).float())
        return F.cross_entropy(self.head(output).flatten(0, 1), codes[1:].flatten())


class Tracker(NamedTuple):
    """The unit that goes with a property most: its number, Pearson's correlation, and R² of all units by time step."""

    unit: int
    correlation: float
    decoded: list[float]


@dataclass(frozen=True)
class Listening:
    """What a model's units tell of each property, and the model's loss in nats a character."""

    loss: float
    trackers: dict[str, Tracker]
    output: Tensor  # [T, B, H]


def listen(model: Model, codes: Tensor, known: dict[str, Tensor]) -> Listening:
    """Characters [T + 1, B] and what is true of each of them but the last, [T, B]."""
    with torch.no_grad():
        loss = float(model(codes))
    [states] = probe.states_of({"layer": model.layer}, lambda: model(codes))["layer"]
    output = states[..., :H]
    wanted = torch.stack([known[name] for name in TRACKED], -1)  # [T, B, P]
    late = output[T // 2 :].flatten(0, 1)  # once the model has seen something
    found = correlations(late, wanted[T // 2 :].flatten(0, 1))
    decoded = probe.decodability(states.double(), wanted)  # [T, P]
    trackers = {}
    for name, of_units, curve in zip(TRACKED, found, decoded.T):
        best = int(of_units.abs().argmax())
        trackers[name] = Tracker(best, float(of_units[best]), curve.tolist())
    return Listening(loss, trackers, output)


@torch.no_grad()
def without(model: Model, codes: Tensor) -> list[float]:
    """By how much the loss rises, in nats a character, when one unit is held at 0: for each unit."""
    cell, B = model.layer._cell(0), codes.shape[1]
    x = F.one_hot(codes[:-1], len(ALPHABET)).float()
    mask = (1 - torch.eye(H)).repeat_interleave(B, 0)  # one copy of all streams for each unit
    mask = torch.cat([mask, torch.ones(B, H)])  # and one with nothing held
    h = c = torch.zeros(len(mask), H)
    losses = torch.zeros(H + 1)
    for x_t, wanted in zip(x, codes[1:]):
        h, c = cell(x_t.repeat(H + 1, 1), h, c)
        h, c = h * mask, c * mask
        loss = F.cross_entropy(model.head(h), wanted.repeat(H + 1), reduction="none")
        losses += loss.view(H + 1, B).mean(1) / len(x)
    return (losses[:-1] - losses[-1]).tolist()


@cache
def found() -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Model()
    untrained = copy.deepcopy(model)
    learned = encode(write(STREAMS * 8 * T, seed=1))
    streams = learned.view(STREAMS, -1).T  # [characters, B]
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    generator = torch.Generator().manual_seed(2)
    losses = []
    for update in range(UPDATES):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - update / UPDATES)
        start = int(torch.randint(len(streams) - T, (), generator=generator))
        optimizer.zero_grad()
        loss = model(streams[start : start + T + 1])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    text = write(LISTENERS * (T + 1), seed=3)
    known = {name: values.view(LISTENERS, T + 1).T[:-1] for name, values in properties(text).items()}
    codes = encode(text).view(LISTENERS, T + 1).T
    heard = {
        name: listen(network.requires_grad_(False), codes, known)
        for name, network in (("untrained", untrained), ("trained", model))
    }
    sample = write(SHOWN + 2 * T, seed=4)
    with torch.no_grad():
        shown = model.layer(F.one_hot(encode(sample)[:, None], len(ALPHABET)).float())[0][2 * T :, 0]
    lost = without(model, codes[:, :32])
    return {
        "tracked": TRACKED,
        "losses": losses,
        "heard": heard,
        "uniform": math.log(len(ALPHABET)),
        "alphabet": len(ALPHABET),
        "text": sample[2 * T :],
        "shown": shown,
        "lost": lost,
        "typical": sorted(lost)[H // 2],
        "worst": max(lost),
        "units": H,
        "steps": T,
        "updates": UPDATES,
        "streams": LISTENERS,
        "width": WIDTH,
        "deepest": len(SEPARATORS) - 1,
        "separators": SEPARATORS,
    }


def coloured(text: str, values: Tensor) -> Markup:
    """A text with a background for each character: how far a unit is above or below zero."""
    scaled = (70 * values / values.abs().max().clamp(min=1e-9)).round().int().tolist()
    pieces = [
        f'<i class="{"above" if value > 0 else "below"}" style="--much:{abs(value)}">{escape(character)}</i>'
        if character != "\n"
        else "\n"
        for character, value in zip(text, scaled)
    ]
    return Markup("".join(pieces))


def pictures(say: Any, found: Found) -> Found:
    heard: dict[str, Listening] = found["heard"]

    def decoded(which: str) -> dict[str, list[float]]:
        return {getattr(say, f"units_{name}")(): heard[which].trackers[name].decoded for name in TRACKED}

    firsts = [1] * len(TRACKED)
    return {
        "loss_chart": curves({"": found["losses"]}, say.label_update(), say.units_nats(), say.units_loss_chart()),
        "decoded_chart": curves(decoded("trained"), say.label_time(), "R²", say.units_decoded_chart(), starts=firsts),
        "untrained_chart": curves(
            decoded("untrained"), say.label_time(), "R²", say.units_untrained_chart(), starts=firsts
        ),
        "coloured": {
            name: coloured(found["text"], found["shown"][:, tracker.unit])
            for name, tracker in heard["trained"].trackers.items()
        },
    }


ESSAY = Essay("units", "essay_units.html", found, pictures)
