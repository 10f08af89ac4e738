"""What trained models are used for, from the command line: to sample, to judge, to forecast, to be tested again."""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table

from rnnzoo import UserError
from tasks.base import SequenceModule, build, find_class
from tasks.char_lm import CharLM
from tasks.imdb import Sentiment, number, tokenize
from tasks.run import HARMLESS
from tasks.trained import Trained, load

Kind = TypeVar("Kind", bound=SequenceModule)

TICKS = "▁▂▃▄▅▆▇█"


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
    path = trained.folder / "summary.json"
    recorded = json.loads(path.read_bytes())["metrics"] if path.is_file() else {}
    table = Table("metric", "now", "recorded", title=f"{trained.checkpoint}", title_justify="left")
    equal = True
    for name, value in found.items():
        before = recorded.get(name)
        equal &= before is None or abs(value - before) <= 1e-5 * max(abs(before), 1e-3)
        table.add_row(name, f"{value:.6g}", "–" if before is None else f"{before:.6g}")
    Console().print(table)
    print("equal to the recorded ones" if equal else "NOT equal to the recorded ones")
    return equal
