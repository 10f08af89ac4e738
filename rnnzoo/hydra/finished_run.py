"""A finished run as the tables of results need it: what its folder says of it, read with care."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from omegaconf import OmegaConf
from pydantic import BaseModel, ValidationError

APART = ("task", "model", "seed")
"""Overrides that have columns of their own."""

NOT_OF_THE_RUN = ("hydra", "resume", "sweep")  # overrides that say where and why a run was made


class Summary(BaseModel):
    """What the table needs of a run's summary.json."""

    task: str
    model: str
    seed: int
    monitor: str
    mode: Literal["min", "max"]
    best_epoch: int | None
    metrics: dict[str, float]
    parameters: int
    seconds_per_epoch: float
    steps_per_second: float | None
    peak_memory_mib: int
    peak_gpu_memory_mib: int | None
    machine: str

    @property
    def test(self) -> str:
        """The test metric of the monitor's name."""
        return "test/" + self.monitor.partition("/")[2]


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its summary, the overrides it was started with, and its monitor by epoch from 1."""

    folder: Path
    summary: Summary
    overrides: tuple[str, ...]
    curve: Sequence[tuple[float, float]]

    @classmethod
    def read(cls, folder: Path) -> Run:
        """The run in `folder`; `ValueError` or `OSError` says in one line what is wrong with it."""
        try:
            summary = Summary.model_validate_json((folder / "summary.json").read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(" ".join(["summary.json:", *map(str, first["loc"]), first["msg"]])) from None
        try:
            overrides = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "overrides.yaml"), resolve=False)
        except Exception as error:  # whatever YAML's parser and OmegaConf raise
            raise ValueError(f".hydra/overrides.yaml: {getattr(error, 'strerror', None) or 'unreadable'}") from None
        if not isinstance(overrides, list):
            raise ValueError(".hydra/overrides.yaml: not a list")
        mine = [text for text in map(str, overrides) if _key(text).partition(".")[0] not in NOT_OF_THE_RUN]
        return cls(folder, summary, tuple(mine), _curve(folder / "metrics.csv", summary.monitor))

    @cached_property
    def choices(self) -> tuple[str, ...]:
        """What was chosen apart from task, model and seed, in an order that does not depend on the command."""
        last = {_key(text): text for text in self.overrides}
        return tuple(sorted(text for key, text in last.items() if key not in APART))

    @property
    def command(self) -> str:
        """What repeats the run, for a shell."""
        return shlex.join(["rnnzoo", "train", *self.overrides])


def _curve(path: Path, name: str) -> list[tuple[float, float]]:
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [(float(row["epoch"]) + 1, float(row[name])) for row in csv.DictReader(file) if row.get(name)]
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise ValueError(f"metrics.csv: {error}") from None


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")
