"""Pictures of learning: what they show is true, and nothing of the training changes for them."""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import small
import torch
from matplotlib.image import imread
from ready import ready

from rnnzoo import Cell, InputWeight, Recurrent, RecurrentWeight, list_cells
from rnnzoo.lightning.checkpoints import read_checkpoint
from rnnzoo.lightning.pictures.activity import observe
from rnnzoo.lightning.pictures.dynamics import Dynamics
from rnnzoo.lightning.pictures.gates import gate_shares, sigmoid_gates
from rnnzoo.lightning.pictures.lag import GradientFlow, lag_norms
from rnnzoo.lightning.pictures.picture import Seen
from rnnzoo.lightning.pictures.unit_page import UnitPage, correlations, properties
from rnnzoo.tasks.imdb import RunningScore, Sentiment, Sentiments

# 40 windows in batches of 8 are five steps an epoch
SINE = (*small.SINE, "task.window=5", "optimizer.schedule=constant")
TEXT = (
    "hardware=cpu", "task=char_lm", "task.window=20", "task.streams=4", "task.embedding=4", "task.sample_length=0",
    "model.hidden_size=8", "trainer.max_epochs=2", "trainer.limit_train_batches=5",
)  # fmt: skip
IMDB = (
    "hardware=cpu", "task=imdb", "task.batch_size=7", "task.pool=2", "task.embedding=4", "task.val_fraction=0.2",
    "model.hidden_size=4", "trainer.max_epochs=2",
)  # fmt: skip


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]
    return found


def same(left: Path, right: Path) -> bool:
    ours, theirs = weights(left), weights(right)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def blank(png: Path) -> bool:
    return bool(imread(png)[..., :3].std() < 0.02)


class Leaky(Cell):
    """h_t = a h_{t-1} + W x_t + t, so that the output k steps later has the gradient a^k."""

    a: float = 0.8

    W = InputWeight()

    def step(self, x: torch.Tensor, h: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.a * h + x @ self.W + t, t + 1


class Turning(Cell):
    """h_t = (h_{t-1} U) / 2 + W x_t with U orthogonal, so that every gradient halves with each step."""

    W, U = InputWeight(), RecurrentWeight()

    def step(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return h @ self.U / 2 + x @ self.W


# What is measured


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_gradient_of_linear_cells_falls_with_powers(bidirectional: bool) -> None:
    for kind, factor in ((Leaky, 0.8), (Turning, 0.5)):
        layer = Recurrent(kind, 3, 5, num_layers=2, bidirectional=bidirectional)
        found = observe(layer, torch.randn(9, 2, 3))
        assert len(found) == (4 if bidirectional else 2)
        for observed in found:
            assert lag_norms(observed) == pytest.approx([factor**k for k in range(1, 9)], rel=1e-5)


def test_a_state_that_another_is_made_from_counts_once() -> None:
    """h_t = c_t is also what h was made from at each step before, but only the way through c is c's."""

    class Shown(Leaky):
        def step(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            c = 0.5 * c + 0.25 * h + x @ self.W
            return c, c + 0

    [observed] = observe(Recurrent(Shown, 3, 5), torch.randn(4, 2, 3))
    # both states pass on: (h, c) -> h is (1/4, 1/2), after k steps times (3/4)^(k-1)
    expected = [(5 / 16) ** 0.5 * 0.75 ** (k - 1) for k in range(1, 4)]
    assert lag_norms(observed) == pytest.approx(expected, rel=1e-5)


def test_gates_equal_a_gru_in_numpy() -> None:
    torch.manual_seed(0)
    layer = Recurrent("gru", 3, 4)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=2.0)
    x = torch.randn(6, 5, 3)
    torch_weights = {name: tensor.numpy() for name, tensor in layer.torch_state_dict().items()}
    W, U, b, c = (torch_weights[f"{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))

    def sigmoid(v: Any) -> Any:
        return 1 / (1 + np.exp(-v))

    h, r, z = np.zeros((5, 4)), np.zeros((6, 5, 4)), np.zeros((6, 5, 4))
    for t in range(6):
        of_x, of_h = x[t].numpy() @ W.T + b, h @ U.T + c  # [B, 3H], torch's order r, z, n
        r[t], z[t] = sigmoid(of_x[:, :4] + of_h[:, :4]), sigmoid(of_x[:, 4:8] + of_h[:, 4:8])
        h = (1 - z[t]) * np.tanh(of_x[:, 8:] + r[t] * of_h[:, 8:]) + z[t] * h

    names = sigmoid_gates(layer)
    [observed] = observe(layer, x, names)
    assert sorted(observed.gates) == ["r", "z"]
    for name, expected in (("r", r), ("z", z)):
        shares = {"mean": expected.mean(), "closed": (expected < 0.1).mean(), "open": (expected > 0.9).mean()}
        assert gate_shares(observed.gates[name]) == pytest.approx(shares, abs=1e-5)
    assert gate_shares(observed.gates["z"])["open"] > 0.05


def test_observing_leaves_no_trace() -> None:
    layer = Recurrent("lstm", 3, 4, num_layers=2, dropout=0.5, recurrent_dropout=0.5, checkpoint_every=2).train()
    layer(torch.randn(3, 2, 3))[0].sum().backward()
    gradients = [parameter.grad.clone() for parameter in layer.parameters() if parameter.grad is not None]
    before = {name: value for name, value in vars(layer).items() if isinstance(value, (int, str, type(None)))}
    random = torch.get_rng_state()
    with torch.inference_mode():
        x = torch.randn(5, 2, 3)
    torch.set_rng_state(random)
    observe(layer, x, ["f"])
    assert torch.equal(torch.get_rng_state(), random)
    assert {name: getattr(layer, name) for name in before} == before
    assert all(cell.training and not cell._forward_hooks for cell in layer.cells)
    assert all(torch.equal(p.grad, g) for p, g in zip(layer.parameters(), gradients) if p.grad is not None)


def test_the_profiler_of_before_comes_back() -> None:
    class Broken(Turning):
        def step(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("broken")

    def mine(*arguments: Any) -> None: ...

    sys.setprofile(mine)
    try:
        with pytest.raises(RuntimeError, match="broken"):
            observe(Recurrent(Broken, 3, 4), torch.randn(2, 2, 3), ["z"])
        assert sys.getprofile() is mine
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("name", list_cells())
def test_every_cell_can_be_observed(name: str) -> None:
    layer = Recurrent(name, 4, 8)
    names = sigmoid_gates(layer)
    [observed] = observe(layer, torch.randn(4, 2, 4), names)
    norms = lag_norms(observed)
    assert len(norms) == 3 and norms[0] > 0 and np.isfinite(norms).all()
    assert sorted(observed.gates) == sorted(names)
    for values in observed.gates.values():
        assert values.min() >= 0 and values.max() <= 1


def test_properties_of_a_text() -> None:
    found = {name: values.int().tolist() for name, values in properties('  a(["b"])\n\tc"\n\nd').items()}
    assert found == {
        #            _  _  a  (  [  "  b  "  ]  )  \n \t c  "  \n \n d
        "quotes":      [0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0],
        "brackets":    [0, 0, 0, 1, 2, 2, 2, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        "column":      [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 1, 2, 3, 0, 0, 1],
        "indentation": [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0, 1, 1, 1, 0, 0, 0],
    }  # fmt: skip


def test_correlations_equal_numpy_and_find_what_was_planted() -> None:
    generator = torch.Generator().manual_seed(0)
    units = torch.randn(500, 6, generator=generator)
    planted = torch.arange(500) % 7.0
    units[:, 4] = 3 - 0.5 * planted + 0.1 * units[:, 4]
    units[:, 2] = 0.3
    [found] = correlations(units, planted[:, None])
    assert found[2] == 0
    assert int(found.abs().argmax()) == 4 and found[4] < -0.98
    expected = [np.corrcoef(units[:, h].numpy(), planted.numpy())[0, 1] for h in (0, 1, 3, 4, 5)]
    assert found[[0, 1, 3, 4, 5]].tolist() == pytest.approx(expected, abs=1e-6)


class Counting(torch.nn.Module):
    """Reads one-hot characters; unit 1 counts those since the line's end, the others do nothing."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        output = torch.zeros(*x.shape[:2], 3)
        for t in range(len(x)):
            output[t, :, 1] = (output[t - 1, :, 1] + 1 if t else 1) * (1 - x[t, :, 0])
        return output, None


def test_the_page_holds_the_text_as_it_is_and_the_unit_that_counts(tmp_path: Path) -> None:
    text = "a</script><b>&\u2028 $x_1$\t一\n" * 60
    alphabet = "".join(sorted(set(text)))
    assert alphabet[1] == "\n"
    codes = torch.tensor([alphabet.index(character) for character in text])
    module = SimpleNamespace(
        hparams={"alphabet": alphabet}, device=torch.device("cpu"), layer=Counting(),
        embed=lambda codes: (codes == 1).float()[..., None], head=lambda output: output.new_zeros(*output.shape[:2], 20)
        if output.dim() == 3 else torch.arange(20.0).expand(len(output), 20),
    )  # fmt: skip
    page = UnitPage()
    found = page.measure(Seen(module, SimpleNamespace(val=codes[None]), 2, {}))
    assert found.keys() == {"column"}  # quotes, brackets and indentation are constant here
    assert found["column"] == pytest.approx(1)

    figure = page.draw(tmp_path / "unit_page_epoch_003.png")
    assert figure is not None
    figure.savefig(tmp_path / "page.png")
    assert not blank(tmp_path / "page.png")
    html = (tmp_path / "unit_page_epoch_003.html").read_text()
    assert "http" not in html and html.count("</script>") == 2
    [held] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    data = json.loads(held)
    assert "".join(data["text"]) == text[: len(data["text"])]
    assert data["units"][0]["label"] == "column: unit 1, correlation +1.00"
    assert data["units"][0]["values"][:3] == pytest.approx([k / (len(text) // 60 - 1) for k in (1, 2, 3)], abs=1e-3)
    likely = torch.arange(20.0).softmax(0)
    for (candidate, probability), code in zip(data["next"][0], (19, 18, 17, 16, 15)):
        assert (candidate, probability) == (alphabet[code], pytest.approx(float(likely[code]), abs=1e-3))


@pytest.mark.parametrize("pooling", ["max", "mean", "last"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_running_score_is_what_each_prefix_alone_gets(pooling: Any, bidirectional: bool, reviews: Path) -> None:
    data = ready(Sentiments(str(reviews), 50, 400, 7, 2, 0.2, seed=1))
    module = Sentiment(
        model={"cell": "gru", "hidden_size": 4, "bidirectional": bidirectional},
        optimizer={"name": "adamw", "lr": 1e-3, "schedule": "constant"},
        engine="auto",
        seed=1,
        words=data.vocabulary,
        maxlen=400,
        embedding=4,
        pooling=pooling,
        word_dropout=0,
        embedding_dropout=0,
        dropout=0,
    ).eval()
    picture = RunningScore()
    picture.measure(Seen(module, data, 0, {}))
    assert picture.labels == ["positive"] * 2 + ["negative"] * 2
    for words, scores in zip(picture.words, picture.history[0]):
        codes = torch.tensor([data.vocabulary.index(word) for word in words])
        for t in (1, len(codes) // 2, len(codes)):
            alone = module(codes[:t, None], torch.tensor([t])).sigmoid().item()
            assert scores[t - 1] == pytest.approx(alone, abs=1e-5)


def test_a_cell_without_source_has_no_gates(capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, Any] = {"Turning": Turning}
    exec("class Sourceless(Turning):\n    def step(self, x, h):\n        return h @ self.U + x @ self.W", scope)
    layer = Recurrent(scope["Sourceless"], 3, 4)
    assert sigmoid_gates(layer) == []
    said = capsys.readouterr().out
    assert "pictures=true shows no gates" in said and "Sourceless cannot be read" in said
    assert len(lag_norms(observe(layer, torch.randn(3, 2, 3))[0])) == 2


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_gradients_that_are_nothing_can_be_drawn(value: float, tmp_path: Path) -> None:
    picture = GradientFlow()
    picture.history = {epoch: {"layer_1": [value] * 5} for epoch in range(2)}
    figure = picture.draw(tmp_path / "picture.png")
    assert figure is not None
    figure.savefig(tmp_path / "picture.png")
    assert not blank(tmp_path / "picture.png")


# Runs


def test_sine_learns_the_same_and_leaves_pictures(train: Callable[..., Path]) -> None:
    """Twelve epochs are measured every third time and after the last; the first and the last are always drawn."""
    on, off = train(*SINE, "trainer.max_epochs=12", "pictures=true"), train(*SINE, "trainer.max_epochs=12")
    assert same(on, off)
    for name in ("gradient_flow", "gates", "prediction"):
        for epoch in ("001", "012"):
            assert not blank(on / "plots" / f"{name}_epoch_{epoch}.png")
    assert not list(on.rglob("*.partial"))
    found = [row for row in rows(on) if "pictures/prediction/rmse" in row]
    assert [row["epoch"] for row in found] == [0, 3, 6, 9, 11]
    assert all("val/loss" in row for row in found)
    assert 0 < found[-1]["pictures/gradient_flow/layer_1/lag_4"] < found[-1]["pictures/gradient_flow/layer_1/lag_1"] < 2
    assert 0 < found[-1]["pictures/gates/layer_1/z/mean"] < 1
    assert sorted(path.name for path in (off / "plots").iterdir()) == ["closed_loop.png", "loss.png"]
    assert not any("pictures" in key for row in rows(off) for key in row)
    without = [{key: value for key, value in row.items() if "pictures" not in key} for row in rows(on)]
    assert without == rows(off)


def test_dynamics_are_measured_while_it_learns(train: Callable[..., Path]) -> None:
    """The same weights with and without; of a linear cell the numbers are known."""
    on, off = train(*SINE, "trainer.max_epochs=2", "probe=true"), train(*SINE, "trainer.max_epochs=2")
    assert same(on, off)
    assert sorted(path.name for path in (on / "plots").glob("*epoch*")) == [
        "dynamics_epoch_001.png", "dynamics_epoch_002.png",
    ]  # fmt: skip
    assert not blank(on / "plots" / "dynamics_epoch_002.png")
    found = [row for row in rows(on) if "pictures/dynamics/layer_1/exponent" in row]
    assert [row["epoch"] for row in found] == [0, 1] and all(
        row["pictures/dynamics/layer_1/exponent"] < 0 for row in found
    )

    layer = Recurrent(Leaky, 3, 5)
    picture = Dynamics()
    measured = picture.measure(Seen(None, None, 0, {"layer_1": observe(layer, torch.randn(30, 2, 3))[0]}))
    curve = picture.history[0]["layer_1"]["reach"]
    # beside h there is a clock, which passes on all of itself, and 1 to h at each step
    assert measured["layer_1/exponent"] == pytest.approx(0, abs=0.15)
    assert curve[-1] == pytest.approx(math.hypot(1, (1 - 0.8**30) / 0.2), rel=0.01)
    assert sorted(picture.history[0]["layer_1"]["real"]) == pytest.approx([0.8] * 20 + [1.0] * 20, abs=1e-3)


class LastStep(torch.nn.Module):
    """The sum of a layer's last output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Recurrent(Turning, 3, 5)

    def score(self, batch: torch.Tensor) -> tuple[torch.Tensor, int]:
        return self.layer(batch.transpose(0, 1))[0][-1].sum(), len(batch)


def test_the_gradient_of_the_loss_is_followed_back() -> None:
    """An orthogonal matrix keeps the norm of ones, √5, and each step halves it; of the batch only a few rows count."""
    module, batch = LastStep(), torch.randn(20, 7, 3)
    picture = Dynamics()
    seen = observe(module.layer, batch[:8].transpose(0, 1))
    picture.measure(Seen(module, None, 0, {"layer_1": seen[0]}, batch))
    assert picture.history[0]["layer_1"]["gradients"] == pytest.approx([5**0.5 * 0.5**k for k in range(6, 0, -1)])
    assert module.layer.engine == "auto" and all(p.grad is None for p in module.parameters())


def test_nothing_is_imported_when_off(train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "rnnzoo.lightning.pictures.callback",
        "rnnzoo.lightning.pictures.activity",
        "rnnzoo.lightning.pictures.unit_page",
        "rnnzoo.explain",
    ):
        monkeypatch.setitem(sys.modules, name, None)  # to import it is an error now
    callbacks = read_checkpoint(train(*SINE, "trainer.max_epochs=1") / "checkpoints" / "last.ckpt")["callbacks"]
    assert not [name for name in callbacks if "Pictures" in name]
    with pytest.raises(ImportError):
        train(*SINE, "trainer.max_epochs=1", "pictures=true")


def test_a_resumed_run_keeps_the_curves_of_before(train: Callable[..., Path]) -> None:
    whole = train(*SINE, "trainer.max_epochs=4")
    broken = train(*SINE, "trainer.max_epochs=2", "pictures=true")
    train(f"resume={broken}", "trainer.max_epochs=4")
    assert same(whole, broken)
    assert not blank(broken / "plots" / "gradient_flow_epoch_004.png")
    callbacks = read_checkpoint(broken / "checkpoints" / "last.ckpt")["callbacks"]
    for history in callbacks["Pictures"].values():
        assert list(history) == [0, 1, 2, 3]
    assert [row["epoch"] for row in rows(broken) if "pictures/prediction/rmse" in row] == [0, 1, 2, 3]


def test_a_run_with_pictures_is_resumed_without(train: Callable[..., Path]) -> None:
    folder = train(*SINE, "trainer.max_epochs=1", "pictures=true")
    train(f"resume={folder}", "trainer.max_epochs=2", "pictures=false")
    train(*SINE, "test_only=true", f"ckpt={folder / 'checkpoints' / 'best.ckpt'}")


@pytest.mark.parametrize("model", ["gru", "mlstm"])
def test_char_lm_learns_the_same_and_leaves_a_page(model: str, tmp_path: Path, train: Callable[..., Path]) -> None:
    """Carried states, matrices among them, and dropout are as they would have been."""
    text = tmp_path / "text.txt"
    text.write_text('def f(x):\n    return "a" + g(x[0])\n\n\n' * 300)
    on, off = (train(*TEXT, f"model={model}", f"task.text={text}", f"pictures={s}") for s in ("true", "false"))
    assert same(on, off)
    for name in ("gradient_flow", "unit_page", *["gates"] * (model == "gru")):  # mlstm's gates are exponentials
        assert not blank(on / "plots" / f"{name}_epoch_002.png")
    html = (on / "plots" / "unit_page_epoch_002.html").read_text()
    for name in ("quotes", "brackets", "column", "indentation"):
        found = [row[f"pictures/unit_page/{name}"] for row in rows(on) if f"pictures/unit_page/{name}" in row]
        assert len(found) == 2 and 0 < found[1] <= 1
        assert f"{name}: unit" in html and f"{found[1]:.2f}" in html


def test_a_text_without_properties_has_no_page(train: Callable[..., Path]) -> None:
    folder = train(*TEXT, "task.corpus=hello", "pictures=true", "model=rnn")
    # of one line: only the column grows, and an Elman network has no gates
    assert {path.name for path in (folder / "plots").glob("*_epoch_002.png")} == {
        "gradient_flow_epoch_002.png", "unit_page_epoch_002.png",
    }  # fmt: skip


def test_imdb_learns_the_same_and_leaves_running_scores(reviews: Path, train: Callable[..., Path]) -> None:
    on, off = (train(*IMDB, f"task.data={reviews}", f"pictures={switch}") for switch in ("true", "false"))
    assert same(on, off)
    for name in ("gradient_flow", "gates", "running_score"):
        assert not blank(on / "plots" / f"{name}_epoch_002.png")
    scores = [row[f"pictures/running_score/review_{k}"] for row in rows(on)[:1] for k in (1, 2, 3, 4)]
    assert all(0 < score < 1 for score in scores)
    assert "pictures/gradient_flow/layer_1_backward/lag_4" in rows(on)[0]


def test_pictures_go_to_tensorboard(train: Callable[..., Path]) -> None:
    folder = train(*SINE, "logger=tensorboard", "trainer.max_epochs=1", "pictures=true")
    events = b"".join(path.read_bytes() for path in (folder / "tensorboard").glob("events.out.tfevents.*"))
    assert b"pictures/gates/layer_1/z/mean" in events and b"\x89PNG" in events


def test_a_switch_is_true_or_false(train: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    for value in ("maybe", "1", "null"):
        with pytest.raises(SystemExit):
            train(*SINE, f"pictures={value}")
        error = capsys.readouterr().err
        assert f"pictures={value.replace('null', 'None')}: must be bool" in error and error.count("\n") == 1
