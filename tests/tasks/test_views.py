"""What `rnnzoo play` makes of each task's module, beside the module called directly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ready import ready
from small import TEXT
from torch import Tensor, nn

from rnnzoo import UserError, cli
from rnnzoo.hydra.trained import data_of, load
from rnnzoo.lightning import SequenceData, SequenceModule
from rnnzoo.lightning.module import SequenceModule as Base
from rnnzoo.lightning.pictures.unit_page import properties
from rnnzoo.play.machine import Machine
from rnnzoo.tasks.addition import Addition
from rnnzoo.tasks.char_lm import Characters, CharLM
from rnnzoo.tasks.drawn import IGNORED
from rnnzoo.tasks.forecast import Forecast
from rnnzoo.tasks.frequency import Frequency, Irregular
from rnnzoo.tasks.imdb import Sentiment
from rnnzoo.tasks.memory import Adding, Copies, Copy, Sums
from rnnzoo.tasks.names import NameLM
from rnnzoo.tasks.recall import Pairs
from rnnzoo.tasks.series import mackey_glass
from rnnzoo.tasks.sine import Sine
from rnnzoo.tasks.symbols import Symbols
from rnnzoo.tasks.windows import Windows

MODEL = {"cell": "lstm", "hidden_size": 6}


def machine(module: Base, data: Any = None) -> Machine:
    return Machine("a run", module.eval(), module.view(lambda: data))


def made(kind: Callable[..., Any], **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(model=options.pop("model", MODEL), **options).eval()


def states(found: Machine, request: dict[str, Any], name: str = "h") -> Tensor:
    return found.session(request).cells[0].values(name)


def test_a_text_and_its_likely_ends() -> None:
    module = made(CharLM, alphabet="ehlo ")
    found = machine(module)
    answer = found.answer({"text": "hello he"})
    with torch.no_grad():
        logits, _ = module(torch.tensor([["ehlo ".index(c)] for c in "hello he"]))
    for likely, shares in zip(answer["likely"], logits[:, 0].softmax(-1)):
        assert [code for code, _ in likely] == shares.topk(5).indices.tolist()
        np.testing.assert_allclose([share for _, share in likely], shares.topk(5).values.numpy(), atol=1e-5)
    assert answer["labels"] == list("hello·he") and answer["drawn"] is None
    with torch.no_grad():
        [true] = module.layer.record(module.embed(torch.tensor([["ehlo ".index(c)] for c in "hello he"])))
    torch.testing.assert_close(states(found, {"text": "hello he"}), true["h"][:, 0])


def test_a_text_that_goes_on_is_read_on() -> None:
    """Character by character it is what the whole text is at once; only what is new is read and sent."""
    module = made(CharLM, alphabet="ehlo ")
    stepwise, whole = machine(module), machine(module)
    text, sent = "he", []
    for character in "llo he":
        sent.append(stepwise.answer({"text": text, "have": max(0, len(text) - 1)}))
        text += character
    last = stepwise.answer({"text": text, "have": len(text) - 1})
    torch.testing.assert_close(states(stepwise, {"text": text}), states(whole, {"text": text}))
    torch.testing.assert_close(stepwise.session({"text": text}).found[0], whole.session({"text": text}).found[0])
    assert [len(answer["likely"]) for answer in sent] == [1, 1, 1, 1, 1, 1] and last["values"]["shape"] == [1, 6]
    assert whole.answer({"text": text})["likely"][-1] == last["likely"][0]


@pytest.mark.parametrize(
    "how", [{"temperature": 0}, {"top_k": 1}, {"temperature": 0.7, "top_k": 3, "top_p": 0.9, "seed": 5}], ids=str
)
def test_what_is_drawn(how: dict[str, Any]) -> None:
    module = made(CharLM, alphabet="ehlo ")
    found = machine(module)
    text = "he"
    for _ in range(12):
        text += "ehlo "[found.answer({"text": text, "draw": how})["drawn"]]
    again = "he"
    for _ in range(12):
        again += "ehlo "[machine(module).answer({"text": again, "draw": how})["drawn"]]
    assert text == again
    if how.get("seed") is None:  # the likeliest: what `rnnzoo sample --greedy` writes
        assert text[2:] == "".join(islice(module.generate("he", torch.Generator(), top_k=1), 12))
    else:  # among the three likeliest after each character
        answer = found.answer({"text": text})
        ahead = answer["likely"][1:-1]
        assert all("ehlo ".index(c) in [code for code, _ in likely[:3]] for c, likely in zip(text[2:], ahead))


def test_a_held_unit_writes_something_else() -> None:
    """The next characters are the head's of the held state."""
    module = made(CharLM, alphabet="ehlo ")
    hold = {"cell": 0, "name": "h", "value": 0.0}
    likely = machine(module).answer({"text": "hello", "holds": [hold]})["likely"]
    shares = module.head.bias.detach().softmax(-1)
    np.testing.assert_allclose(
        [[share for _, share in row] for row in likely], shares.topk(5).values.expand(5, 5), atol=1e-5
    )


def test_what_units_track() -> None:
    """A unit that is 1 inside quotes and 0 outside is the one that tracks quotes."""
    text = ('he said "hello there" and (then) went\n' * 12)[:400]
    module = made(CharLM, alphabet="".join(sorted(set(text))))
    data = Characters()
    data.val = torch.tensor([[module.hparams["alphabet"].index(c) for c in text]])
    quotes = properties(text)["quotes"]

    class Quoting(nn.Module):
        def forward(self, x: Tensor, state: Any = None) -> Any:
            return torch.stack([torch.randn(len(x)), quotes, -quotes + torch.randn(len(x))], -1)[:, None], state

    found = module.view(lambda: data)
    module.layer = Quoting()
    ranked = dict(found.more(module, {"text": "he"}, {"what": "units"})["units"])
    assert ranked["quotes"][0] == (1, 1.0) and ranked["quotes"][1][0] == 2 and ranked["quotes"][1][1] < -0.2


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"text": "help"}, "has never seen 'p'"), ({"text": ""}, "write something"), ({"text": 5}, "must be a text"),
        ({"text": "h" * 2001}, "2,001 characters are more than 2,000"), ({"text": "h", "choice": "x"}, "choice"),
        ({"text": "h", "draw": {"temperature": -1}}, "temperature: must be a number"),
        ({"text": "h", "draw": {"top_k": 99}}, "top_k: must be a number from 0 to 5"),
        ({"text": "h", "draw": {"top_p": 0}}, "top_p"), ({"text": "h", "draw": {"seed": 1.5}}, "seed"),
    ],
)  # fmt: skip
def test_texts_that_are_refused(request_: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        machine(made(CharLM, alphabet="ehlo ")).answer(request_)


def test_names_of_a_kind() -> None:
    module = made(NameLM, labels=["a", "b"], alphabet="xyz", longest=9)
    found = machine(module)
    for choice, label in (("a", 0), ("b", 1)):
        with torch.no_grad():
            logits, _ = module(torch.tensor([label]), torch.tensor([[0], [2], [3]]))
        for text in ("", "y", "yz"):
            likely = found.answer({"text": text, "choice": choice})["likely"]
            expected = logits[: len(text) + 1, 0].softmax(-1).topk(4)
            assert [[code for code, _ in row] for row in likely] == expected.indices.tolist()
    assert found.answer({"text": "yz", "choice": "b"})["labels"] == ["□", "y", "z"]
    with pytest.raises(UserError, match="one of a, b"):
        found.answer({"text": "y", "choice": "c"})


@pytest.mark.parametrize("pooling", ["max", "mean", "last"])
def test_a_review_and_the_pull_of_its_words(pooling: str) -> None:
    words = ["<padding>", "<unknown>", "good", "bad", "film", "a"]
    module = made(
        Sentiment, words=words, maxlen=9, embedding=5, pooling=pooling, model={**MODEL, "bidirectional": True}
    )
    found = machine(module)
    request = {"text": "A good, good film; not bad"}
    codes = torch.tensor([5, 2, 2, 4, 1, 3])

    @torch.no_grad()
    def logit(codes: Tensor) -> Tensor:
        return module(codes[:, None], torch.tensor([len(codes)]))[0]

    answer = found.answer(request)
    assert answer["labels"] == ["a", "good", "good", "film", "not", "bad"]
    assert answer["score"] == pytest.approx(float(logit(codes).sigmoid()), abs=1e-6)
    running = found.more({**request, "what": "running"})["pulls"]
    assert running == pytest.approx([float(logit(codes[: k + 1]).sigmoid()) - 0.5 for k in range(6)], abs=1e-4)
    without = found.more({**request, "what": "without"})["pulls"]
    others = [torch.cat([codes[:k], codes[k + 1 :]]) for k in range(6)]
    assert without == pytest.approx([float(logit(codes) - logit(rest)) for rest in others], abs=1e-4)
    # the gradient times the input, as the slope of the logit when a word's features grow
    gradient = found.more({**request, "what": "gradient"})["pulls"]
    small = 1e-3
    with torch.no_grad():
        features = module.embed(codes)[:, None]
        for k, pull in enumerate(gradient):
            larger, lesser = features.clone(), features.clone()
            larger[k], lesser[k] = features[k] * (1 + small), features[k] * (1 - small)
            up, down = (module.of_features(f, torch.tensor([6])) for f in (larger, lesser))
            assert pull == pytest.approx(float(up - down) / (2 * small), abs=2e-3)
    assert found.more({"text": "good", "what": "without"})["pulls"] == pytest.approx(
        [float(logit(torch.tensor([2])))], abs=1e-4
    )
    with pytest.raises(UserError, match="without a word"):
        found.answer({"text": "..."})
    with pytest.raises(UserError, match="let go of what is held"):
        found.more({**request, "what": "running", "holds": [{"cell": 0, "name": "h", "value": 0}]})


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_wave_goes_on(bidirectional: bool) -> None:
    module = made(Sine, step=math.pi / 6, prefix=4, horizon=7, model={**MODEL, "bidirectional": bidirectional})
    found = machine(module)
    rows = [[math.sin(t)] for t in range(5)]
    answer = found.answer({"rows": rows})
    with torch.no_grad():
        true = module.continue_wave(torch.tensor(rows)[:, None], 1 if bidirectional else 7)
    np.testing.assert_allclose(answer["following"], true[:, 0].numpy(), atol=1e-5)
    about = found.about()["view"]
    assert about["truth"][0] == [pytest.approx(math.sin(1 + 4 * math.pi / 6))] and len(about["given"]["rows"]) == 4


@pytest.mark.parametrize("strategy", ["direct", "recursive", "segments"])
def test_a_series_goes_on(strategy: str) -> None:
    data = ready(Windows(window=8, horizon=4, rows=300))
    module = made(Forecast, strategy=strategy, segment=2, **data.facts())
    found = machine(module, data)
    about = found.about()["view"]
    series = mackey_glass(300, 3).values
    np.testing.assert_allclose(about["given"]["rows"], series[-12:-4].numpy(), atol=1e-6)
    np.testing.assert_allclose(about["truth"], series[-4:].numpy(), atol=1e-6)
    answer = found.answer(about["given"])
    true = module.following_rows(torch.tensor(about["given"]["rows"], dtype=torch.float64))
    np.testing.assert_allclose(answer["following"], true.numpy(), atol=1e-5)
    with pytest.raises(UserError, match="must be 8 to 2,000 rows, not 7"):
        found.answer({"rows": about["given"]["rows"][1:]})


def test_a_sum_is_answered() -> None:
    module = made(Addition, digits=2)
    found = machine(module)
    answer = found.answer({"text": "12+34"})
    assert dict(answer["lines"]) == {"answer": module.answer(["12+34"])[0], "truth": "46"}
    encoder, decoder = found.session({"text": "12+34"}).cells
    assert (encoder.start, len(encoder.x), decoder.start, len(decoder.x)) == (0, 5, 5, 3)
    assert answer["labels"][:6] == list("43+21=")
    with pytest.raises(UserError, match="two numbers of at most 2 digits"):
        found.answer({"text": "123+4"})


def test_examples_of_symbols() -> None:
    data = ready(Pairs(T=12, pairs=2, vocabulary=8))
    module = made(Symbols, **data.facts())
    [batch] = list(islice(data.val_dataloader(), 1))
    with torch.no_grad():
        answers = module(batch.x[3:4].T)[:, 0].argmax(-1).tolist()
    answer = machine(module, data).answer({"number": 3})
    lines, asked = dict(answer["lines"]), [y != IGNORED for y in batch.y[3].tolist()]
    assert answer["labels"] == [str(x) for x in batch.x[3].tolist()]
    assert lines["answer"] == [str(n) if a else "" for n, a in zip(answers, asked)] and answer["count"] == 1600
    with pytest.raises(UserError, match="there are 1,600 examples"):
        machine(module, data).answer({"number": 1600})


@pytest.mark.parametrize(("data", "kind"), [(Sums(T=6), Adding), (Irregular(T=6), Frequency), (Copies(T=5), Copy)])
def test_other_examples(data: Any, kind: Any) -> None:
    module = made(kind)
    [batch] = list(islice(ready(data).val_dataloader(), 1))
    answer = machine(module, data).answer({"number": 1})
    lines = dict(answer["lines"])
    with torch.no_grad():
        if kind is Copy:
            assert lines["answer"] == [str(n) for n in module(batch.x[1:2].T)[:, 0].argmax(-1).tolist()]
            return
        assert float(lines["answer"]) == pytest.approx(float(module(batch.x[1:2].transpose(0, 1))), rel=1e-3)
    assert float(lines["truth"]) == pytest.approx(float(batch.y[1]), rel=1e-3) and answer["steps"] == 6


class Signs(SequenceData):
    batch_size = 4

    def read(self) -> None:
        self.train = self.val = self.test = torch.arange(60.0).view(12, 5, 1)


class First(SequenceModule):
    """A task of one's own that says nothing of how it is to be shown."""

    def __init__(self, **base: Any) -> None:
        super().__init__(**base)
        self.start()

    def build(self) -> None:
        self.layer = self.recurrent(1)
        self.head = nn.Linear(self.layer.output_size, 1)

    def score(self, batch: Tensor) -> tuple[Any, ...]:
        output, _ = self.layer(batch.transpose(0, 1))
        return F.mse_loss(self.head(output[-1])[:, 0], batch[:, 0, 0]), len(batch)


def test_a_task_of_ones_own_shows_its_states() -> None:
    module = made(First)
    found = machine(module, ready(Signs()))
    answer = found.answer({"number": 2})
    with torch.no_grad():
        [true] = module.layer.record(torch.arange(10.0, 15.0).view(5, 1, 1))
    torch.testing.assert_close(states(found, {"number": 2}), true["h"][:, 0])
    assert answer["labels"] == list("12345") and answer["count"] == 12


def test_a_run_is_opened_as_safely_as_by_sample(
    train: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(*TEXT, "model=gru")
    capsys.readouterr()
    assert cli.main(["play", str(run), "--save", str(tmp_path / "run.html"), "--text", "hello"]) == 0
    page = (tmp_path / "run.html").read_text(encoding="utf-8")
    session = json.loads(page.partition('id="session">')[2].partition("</script>")[0])
    trained = load(run)
    codes = torch.tensor([[trained.module.hparams["alphabet"].index(c)] for c in "hello"])
    with torch.no_grad():
        logits, _ = trained.module(codes)
    likely = session["runs"][0]["reply"]["likely"]
    assert [row[0][0] for row in likely] == logits[:, 0].argmax(-1).tolist()
    assert data_of(trained).alphabet == "ehlo"
    capsys.readouterr()
    other = ["play", str(run), "lstm", "--save", str(tmp_path / "both.html")]
    assert cli.main(other) == 1 and "of different tasks" in capsys.readouterr().err
    config = run / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("cells: null", f"cells: {tmp_path / 'evil.py'}"))
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    config.write_text(config.read_text().replace("cell: gru", "cell: evil"))
    assert cli.main(["play", str(run), "--save", str(tmp_path / "evil.html")]) == 1
    assert "executed" not in capsys.readouterr().err and not (tmp_path / "evil.html").exists()
