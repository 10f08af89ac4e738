"""A short training on each real file, where they are: what is learned at once is learned."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

DATA = Path(__file__).parents[3] / "shared" / "data"

pytestmark = [
    pytest.mark.data,
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="the real data are not here"),
]


def metrics(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "summary.json").read_text())["metrics"]
    return found


@pytest.mark.parametrize(("name", "alphabet"), [("tinyshakespeare.txt", 65), ("linux-1.0.txt", 98), ("neko.txt", 3041)])
def test_texts(name: str, alphabet: int, train: Callable[..., Path]) -> None:
    text = (DATA / "text" / name).read_text(encoding="utf-8")
    counts = Counter(text)
    assert len(counts) == alphabet
    folder = train(
        "hardware=cpu", "task=char_lm", f"task.text={DATA / 'text' / name}", "task.window=32", "model.hidden_size=64",
        "trainer.max_epochs=1", "trainer.limit_train_batches=100", "trainer.limit_val_batches=20",
        "trainer.limit_test_batches=20", "optimizer.lr=1e-2",
    )  # fmt: skip
    # better than knowing how frequent each character is
    unigram = -sum(n / len(text) * math.log(n / len(text)) for n in counts.values())
    assert metrics(folder)["val/loss"] < unigram - 0.2


def test_reviews(train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnzoo.tasks.nb_svm.LONGEST", 1)  # pairs and triples take minutes
    folder = train(
        "hardware=cpu", "task=imdb", f"task.data={DATA / 'imdb' / 'aclImdb_labelled.tar.gz'}", "task.maxlen=50",
        "task.embedding=16", "model.hidden_size=16", "trainer.max_epochs=1", "optimizer.lr=1e-2",
        "trainer.limit_test_batches=20",
    )  # fmt: skip
    found = metrics(folder)
    assert found["val/accuracy"] > 0.75
    assert found["baseline/test_accuracy"] > 0.87
