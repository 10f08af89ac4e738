"""What trained models are used for, from the command line: to sample, to judge, to forecast, to be tested again."""

from __future__ import annotations

import csv
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from rnnzoo import UserError, __version__
from rnnzoo.export import export as export_model
from tasks.base import SequenceModule, build, find_class, writing
from tasks.char_lm import CharLM
from tasks.forecast import DRAWN_ROWS, Forecast
from tasks.imdb import Sentiment, number, tokenize
from tasks.run import HARMLESS
from tasks.series import following, read_csv
from tasks.trained import Trained, load

Kind = TypeVar("Kind", bound=SequenceModule)

TICKS = "▁▂▃▄▅▆▇█"

MEANINGS = ("alphabet", "labels", "columns", "targets", "center", "scale")
"""What exported files tell of a module: which character, class or column a number stands for, and how it was scaled."""


def _of_kind(run: Path, kind: type[Kind], command: str, task: str) -> tuple[Trained, Kind]:
    """The model of a run, which must be of a task that the command is for."""
    trained = load(run)
    if not isinstance(trained.module, kind):
        raise UserError(f"{run}: is a run of {trained.settings['task']['name']}; rnnzoo {command} is for task={task}")
    return trained, trained.module


def sample(
    run: Path, prime: str, length: int, temperature: float, top_k: int | None, top_p: float, seed: int | None
) -> None:
    """Write `prime` and what the model goes on with to stdout, as it comes; see `CharLM.generate`.

    Raises `UserError` for characters that the model does not know, and for numbers out of range.
    """
    _, module = _of_kind(run, CharLM, "sample", "char_lm")
    unknown = sorted(set(prime) - set(module.hparams["alphabet"]))
    if unknown:
        raise UserError(f"--prime: the model has never seen {', '.join(map(repr, unknown))}")
    for name, value, good in (
        ("temperature", temperature, temperature > 0),
        ("length", length, length >= 0),
        ("top-k", top_k, top_k is None or top_k > 0),
        ("top-p", top_p, 0 < top_p <= 1),
    ):
        if not good:
            further = {"top-p": "be positive, and at most 1", "length": "not be negative"}
            raise UserError(f"--{name} {value}: must {further.get(name, 'be positive')}")
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    sys.stdout.write(prime)
    for character in islice(module.generate(prime, generator, temperature, top_k, top_p), length):
        sys.stdout.write(character)
        sys.stdout.flush()
    sys.stdout.write("\n")


def predict(run: Path, reviews: Iterable[str], as_json: bool, running: bool) -> None:
    """Judge reviews: each for a person to read, with the score along the text, or as a line of JSON.

    `running` adds the words and the score along them to the JSON; it takes as long as reading each beginning anew.
    Raises `UserError` for a review without a word, naming its line if there are several.
    """
    trained, module = _of_kind(run, Sentiment, "predict", "imdb")
    vocabulary, maxlen = trained.contents["Sentiments"]["vocabulary"], trained.settings["task"]["maxlen"]
    for line, review in enumerate(reviews, 1):
        try:
            codes = number(review, vocabulary, maxlen)
        except UserError as error:
            raise UserError(f"line {line}: {error}" if as_json else str(error)) from None
        with torch.no_grad():
            scores = module.judge(codes, running or not as_json)
        label = "positive" if scores[-1] > 0.5 else "negative"
        words = tokenize(review)[-maxlen:]
        if as_json:
            found: dict[str, Any] = {"label": label, "probability": round(scores[-1], 4)}
            if running:
                found |= {"words": words, "running": [round(score, 4) for score in scores]}
            print(json.dumps(found, ensure_ascii=False), flush=True)
        else:
            _show(label, words, scores)


def forecast(run: Path, data: Path, plot: Path) -> None:
    """Write the rows that follow those of a CSV file to stdout, as CSV, and draw them behind the file's last rows.

    Raises `UserError` for a file that lacks a column or rows of the run's, or holds what is no number.
    """
    _, module = _of_kind(run, Forecast, "forecast", "forecast")
    known, targets = module.hparams, module.hparams["targets"]
    series = read_csv(str(data), known["date"], known["columns"], source=str(data))
    try:
        rows = module.forecast(series.values).tolist()
    except UserError as error:
        raise UserError(f"{data}: {error}") from None
    dates = following(series.dates, len(rows))
    time: list[Any] = [*series.dates, *dates] if dates else [*range(1, len(series.values) + len(rows) + 1)]
    figure = Figure(figsize=(10, 3 * len(targets)), layout="constrained")
    shown = slice(max(len(series.values) - max(DRAWN_ROWS, 3 * len(rows)), 0), len(series.values))
    for k, (name, axes) in enumerate(zip(targets, figure.subplots(len(targets), squeeze=False)[:, 0])):
        before = series.values[shown, module.at[k]]
        axes.plot(time[shown], before, color="0.6", linewidth=2, label=data.name)
        axes.plot(time[-len(rows) :], [row[k] for row in rows], ".-", color="C3", label="forecast")
        axes.set(ylabel=name)
        axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    with writing(plot) as partial:
        figure.savefig(partial, dpi=120, format="png")
    print(f"written: {plot}", file=sys.stderr)
    clock = all(date == date.replace(hour=0, minute=0, second=0, microsecond=0) for date in dates)
    written = csv.writer(sys.stdout, lineterminator="\n")
    written.writerow([series.date or "row", *targets])
    for moment, row in zip(time[-len(rows) :], rows):
        written.writerow([f"{moment:%Y-%m-%d}" if dates and clock else moment, *(f"{value:.6g}" for value in row)])


def export(run: Path, form: str, out: Path | None) -> None:
    """Write the model as one file that runs without this project, `out` or a name of its own in the run's folder.

    See `rnnzoo.export.export`. The metadata has the task, the cell and, in JSON each, what the model's numbers stand
    for: its alphabet, vocabulary, classes, columns and scaling, as far as it has them.
    Raises `UserError` for what cannot be exported.
    """
    trained = load(run)
    task, cell = trained.settings["task"]["name"], trained.settings["model"]["cell"]
    meanings = {key: trained.module.hparams[key] for key in MEANINGS if key in trained.module.hparams}
    if isinstance(trained.module, Sentiment):
        meanings["vocabulary"] = trained.contents["Sentiments"]["vocabulary"]
    metadata = {key: json.dumps(value, ensure_ascii=False) for key, value in meanings.items()}
    file = export_model(trained.module, form, {"rnnzoo": __version__, "task": task, "cell": cell, **metadata})
    path = out or trained.folder / f"{task}_{cell}.{form}"
    with writing(path) as partial:
        partial.write_bytes(file)
    print(f"written: {path}, {len(file):,} bytes")


def _show(label: str, words: list[str], scores: list[float]) -> None:
    """The verdict, and the words with a bar after each: how probable it was there that the review is positive."""
    console = Console(highlight=False)
    console.print(f"[bold]{label}[/bold], P(positive) = {scores[-1]:.3f}, along the {len(words)} words read:")
    marks = (f"{word}{TICKS[min(int(8 * score), 7)]}" for word, score in zip(words, scores))
    console.print(" ".join(marks), markup=False)


def evaluate(run: Path) -> bool:
    """Test the model again on its run's data, and print its metrics beside the recorded ones; whether they are equal.

    Raises `UserError` when the run has no test, or was made on data that is not there.
    """
    trained = load(run)
    settings, module = trained.settings, trained.module
    task = settings["task"]
    data: Any = build(find_class(task, "datamodule"), {**task, **settings}, "task")
    if not data.has_test:
        raise UserError(f"{run}: task={task['name']} has no test")
    path = trained.folder / "summary.json"
    summary: Any = json.loads(path.read_bytes()) if path.is_file() else {"metrics": {}, "steps": 0}
    recorded = summary["metrics"]
    module.expect(summary["steps"])  # so that the engine is the one that trained
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message)
    with tempfile.TemporaryDirectory() as folder:  # pictures of the test are in the run's own
        trainer = pl.Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        found = trainer.test(module, data, verbose=False)[0]
    table = Table("metric", "now", "recorded", title=f"{trained.checkpoint}", title_justify="left")
    equal = True
    for name, value in found.items():
        before = recorded.get(name)
        equal &= before is None or abs(value - before) <= 1e-4 * max(abs(before), 1e-3)
        table.add_row(name, f"{value:.6g}", "–" if before is None else f"{before:.6g}")
    Console().print(table)
    print("equal to the recorded ones" if equal else "NOT equal to the recorded ones")
    return equal
