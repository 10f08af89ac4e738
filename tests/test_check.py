"""The author's kit: every cell of the zoo passes, and each check finds the fault that it is there for."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, sigmoid, tanh

from rnnzoo import (
    Cell,
    Recurrent,
    RecurrentWeight,
    State,
    UserError,
    Weight,
    check,
    cli,
    gate,
    get,
    list_cells,
    registry,
)
from rnnzoo.check import CHECKS, EQUALS, compare, conformance
from rnnzoo.engine import COMPILED, ENGINES, serial
from rnnzoo.engine.rehearsal import fault, obstacle
from rnnzoo.engine.steps import Steps

TITLES = [title for title, _, _ in CHECKS]


@pytest.mark.parametrize("name", list_cells())
def test_every_registered_cell_conforms(name, empty_memory_is_nan, monkeypatch):
    findings = list(conformance(get(name), [torch.float64]))  # float32 would double the time; test_serial.py has it
    # the plan that is there now, by torch's operations, as other devices run it
    monkeypatch.setattr(serial, "_programs", {})
    monkeypatch.setattr(serial, "loop", lambda plan, *options: Steps(plan, compiled=False))
    findings.append(compare(get(name), "serial", [torch.float64]))
    assert not [f"{f.check}: {f.detail}" for f in findings if f.passed is False]
    assert len(findings) > len(CHECKS) + 1
    assert next(f for f in findings if f.check.startswith("engine=serial")).passed, "no cell is left on the plain loop"


class Good(Cell):
    """A plain cell, from which the faulty ones differ by their fault."""

    W, U, b = gate()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return tanh(x @ self.W + h @ self.U + self.b)


class TooFewStates(Good):
    """Forgets to return c."""

    def step(self, x, h, c):
        return tanh(x @ self.W + h @ self.U + self.b)


class WrongShape(Good):
    """Returns a state of another shape."""

    S = State("hidden", "hidden")

    def step(self, x, S):
        return (x @ self.W) + S.mean(1)


class NotFinite(Good):
    """Starts from nothing."""

    u = Weight("hidden", init=float("nan"))

    def step(self, x, h):
        return tanh(x @ self.W + h @ self.U + self.b) * self.u


class Undocumented(Good):
    def step(self, x, h):
        return tanh(x @ self.W + h @ self.U + self.b)


class Constant(Good):
    """Holds a constant of its own precision."""

    def step(self, x, h):
        return tanh(x @ self.W + h @ self.U + self.b) * torch.full((12,), 0.5, dtype=torch.float64)


class OtherOutput(Good):
    """Its readout has other features than it says."""

    def step(self, x, h):
        return tanh(x @ self.W + h @ self.U + self.b)

    def readout(self, x, h):
        return torch.cat([h, h], -1)


class FixedSize(Good):
    """Has an output of 12 features whatever H is."""

    def step(self, x, h):
        return tanh(x @ self.W + h @ self.U + self.b)

    def readout(self, x, h):
        return h.new_zeros(*h.shape[:-1], 12) + h[..., :1]


class Centred(Good):
    """Takes the mean over the batch."""

    def step(self, x, h):
        h = tanh(x @ self.W + h @ self.U + self.b)
        return h - h.mean(0)


class Remembers(Good):
    """Keeps something outside of its states."""

    def step(self, x, h):
        h = tanh(x @ self.W + h @ self.U + self.b)
        last = vars(self).get("last")
        vars(self)["last"] = h.detach()
        return h if last is None or last.shape != h.shape else h + 0.5 * last


class FixedBatch(Good):
    """Knows only batches of 3."""

    def step(self, x, h):
        return tanh(x.reshape(3, -1) @ self.W + h @ self.U + self.b)


class InPlace(Good):
    """Writes to its state."""

    def step(self, x, h):
        return h.mul_(0.5) + tanh(x @ self.W + h @ self.U + self.b)


class Chance(Good):
    """Draws random numbers."""

    def step(self, x, h):
        return tanh(x @ self.W + h @ self.U + self.b) * torch.rand_like(h)


class Stops(Good):
    """Lets no gradient through its gate."""

    def step(self, x, h):
        return sigmoid(x @ self.W).detach() * tanh(x @ self.W + h @ self.U + self.b)


class Dead(Good):
    """Declares a matrix and does not use it."""

    V = RecurrentWeight()

    def step(self, x, h):
        return tanh(x @ self.W + h @ self.U + self.b)


class Explodes(Good):
    """Doubles its state at every step."""

    def step(self, x, h):
        return 2 * h + x @ self.W + h @ self.U + self.b


class Sets(Good):
    """Sets an attribute that its hyperparameters do not tell."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.secret = lambda h: 2 * h

    def step(self, x, h):
        return tanh(x @ self.W + self.secret(h) @ self.U + self.b)


class Coarse(Good):
    """Loses its digits in a small difference."""

    def step(self, x, h):
        return 0.01 * tanh((1000 + x @ self.W + h @ self.U + self.b) - 1000)


class Typo(Good):
    """Misspells a weight."""

    def step(self, x, h):
        return tanh(x @ self.Ws + h @ self.U + self.b)


class Lists(Good):
    """Returns its states in a list."""

    def step(self, x, h, c):
        return [tanh(x @ self.W + h @ self.U + self.b), c]


class Drops(Good):
    """Has dropout of its own, in training only."""

    def step(self, x, h):
        return torch.dropout(tanh(x @ self.W + h @ self.U + self.b), 0.5, self.training)


class DropsAlways(Good):
    """Has dropout of its own, in evaluation too."""

    def step(self, x, h):
        return torch.dropout(tanh(x @ self.W + h @ self.U + self.b), 0.5, True)


class CentredInTraining(Good):
    """Takes the mean over the batch, as batch norm does."""

    def step(self, x, h):
        h = tanh(x @ self.W + h @ self.U + self.b)
        return h - h.mean(0) if self.training else h


class Counts(Good):
    """Keeps a count in a buffer."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.register_buffer("count", torch.zeros(()))

    def step(self, x, h):
        self.count += 1
        return tanh(x @ self.W + h @ self.U + self.b)


class Overwrites(Good):
    """Writes to what its own gradient is computed from."""

    def step(self, x, h):
        return sigmoid(x @ self.W + h @ self.U + self.b).mul_(0.5).exp().sub_(1)


class FromTheFront(Good):
    """Its readout counts dimensions from the front, where all time steps come together."""

    def step(self, x, h):
        return tanh(x @ self.W + h @ self.U + self.b)

    def readout(self, x, h):
        return h - h[:, :1]


class Ponders(Good):
    """Shrinks numbers until none is large: a loop that data end, but row by row."""

    def step(self, x, h):
        h = tanh(x @ self.W + h @ self.U + self.b)
        while (h.abs() > 0.5).any():
            h = torch.where(h.abs() > 0.5, 0.7 * h, h)
        return h


class Numpy(Good):
    """Leaves torch."""

    def step(self, x, h):
        return torch.from_numpy((x @ self.W + h @ self.U + self.b).detach().numpy()).tanh()


class Branches(Good):
    """Decides for all rows by one number."""

    def step(self, x, h):
        h = x @ self.W + h @ self.U + self.b
        return tanh(h) if h.sum() > 0 else h


FAULTS = {
    TooFewStates: ("declaration", "step returns 1 tensor", "write return h, c"),
    WrongShape: ("declaration", "S as [B, hidden=12], and was given [B, hidden=12, hidden=12]", "State("),
    NotFinite: ("declaration", "u does not start as finite", "init="),
    Constant: ("declaration", "torch.float64", "x's dtype"),
    OtherOutput: ("declaration", "24 features", "override output_size"),
    Centred: ("declaration", "mixes rows", "dimension 0"),
    Remembers: ("declaration", "another h when it is taken twice", "has to be a state"),
    InPlace: ("declaration", "writes to h", "h = h + ..."),
    Chance: ("declaration", "draws random numbers", "zoneout"),
    DropsAlways: ("declaration", "draws random numbers in evaluation", "only if self.training"),
    CentredInTraining: ("declaration", "mixes rows", "dimension 0"),
    Counts: ("declaration", "writes to self.count", "self.count = self.count + ..."),
    Overwrites: ("declaration", "modified by an inplace operation", "write nothing in place"),
    FromTheFront: ("declaration", "for all time steps together", "count dimensions from the end"),
    Typo: ("declaration", "self.Ws: nothing of that name", "did you mean W?"),
    Lists: ("declaration", "returns a list", "write return h, c"),
    Branches: ("declaration", "asks for a tensor's value", "torch.where"),
    FixedBatch: ("declaration", "shape '[3, -1]' is invalid", "own_cell"),
    FixedSize: ("shapes", "readout", "fixed sizes"),
    Stops: ("gradients", "Jacobian", "detach"),
    Numpy: ("gradients", "expected to be zero", "detach"),
    Dead: ("no dead parameter", "no gradient reaches V", "trainable=False"),
    Explodes: ("finite", "not finite", "bound the state"),
    Sets: ("saved", "pickle", "attributes"),
    Coarse: ("bfloat16", "differs by", "lose digits"),
    Undocumented: ("documented", "no docstring", "write one"),
}
"""For each faulty cell the check that must fail, and words of what it says and advises."""


@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.__name__)
def test_each_fault_is_found_alone_and_advised_on(kind):
    title, words, cure = FAULTS[kind]
    findings = list(conformance(kind, [torch.float64]))
    [finding] = [f for f in findings if f.passed is False]
    assert finding.check.startswith(title) and words in finding.detail and cure in finding.advice, finding
    assert "\n" not in finding.detail
    before = findings[: findings.index(finding)]
    after = [f for f in findings if f not in before and f is not finding and f.check != "documented"]
    assert all(f.passed is None for f in after)
    assert all(f.passed or "not for this cell" in f.detail for f in before)


@pytest.mark.parametrize("kind", [Typo, Lists, TooFewStates, WrongShape, Constant, Branches, Drops, Numpy, InPlace])
def test_every_engine_names_the_same_cause(kind, capfd):
    found = obstacle(kind(3, 4))
    for engine in ("reference", "native", "serial", "scan"):
        if engine == "reference" and kind in (Branches, Drops, Numpy, InPlace):  # which the plain loop can run
            continue
        with pytest.raises(UserError, match=re.escape(str(found))):
            Recurrent(kind, 3, 4, engine=engine)(torch.randn(5, 2, 3))
    assert capfd.readouterr().err == ""  # nor does torch print anything of its own


@pytest.mark.parametrize(("kind", "words"), [(Drops, "draws random numbers"), (Ponders, "asks for a tensor's value")])
def test_what_only_the_plain_loop_runs_is_no_fault(kind, words):
    findings = list(conformance(kind, [torch.float64]))
    assert not [f for f in findings if f.passed is False] and words in findings[0].detail
    skipped = {f.check: f.detail for f in findings if f.passed is None}
    assert len(skipped) == len(ENGINES) - 1 and all(words in skipped[f"engine={e} {EQUALS}"] for e in COMPILED)
    assert fault(kind(3, 4)) is None
    layer, x = Recurrent(kind, 3, 4, engine="auto"), torch.randn(5, 2, 3)
    layer.expected_calls = 10**6
    with pytest.warns(UserWarning, match=rf"{words}.*engine=auto goes on without compiling"):
        layer(x)[0].sum().backward()
    assert layer.engine_used == "reference"


def test_a_good_cell_passes_all():
    findings = list(conformance(Good))
    assert [f.check for f in findings][: len(TITLES)] == TITLES
    assert all((f.passed or "not for this cell" in f.detail) and not f.advice for f in findings)


def test_checks_a_class_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "mine.py"
    path.write_text(
        "from torch import tanh\nfrom rnnzoo import Cell, gate\n\n\nclass Mine(Cell):\n    '''Mine.'''\n\n"
        "    W, U, b = gate()\n\n    def step(self, x, h):\n        return tanh(x @ self.W + self.b)\n"
    )
    assert cli.main(["check", f"{path}:Mine"]) == 1
    printed = capsys.readouterr().out
    assert "no gradient reaches U" in printed and "trainable=False" in printed and "│ skipped │" in printed
    for target, words in (
        (f"{path}:Mini", "did you mean Mine"),
        (str(path), f"{path}:MyCell"),
        ("lstn", "did you mean"),
        (f"{tmp_path}/none.py:Mine", "no such file"),
    ):
        assert cli.main(["check", target]) == 1
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


def test_find_takes_names_and_classes():
    assert registry.find("gru") is get("gru")
    assert registry.find("rnnzoo.cells.gru:MGU") is get("mgu")
    with pytest.raises(UserError, match="no cell class 'Tensor'"):
        registry.find("rnnzoo.cells.gru:Tensor")


def test_what_passed_is_a_table_in_markdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = {
        "rnn": [check.Finding("trace", True, "fine"), check.Finding("compiled", None, "no compiler")],
        "gru": [check.Finding("trace", False, "broken"), check.Finding("compiled", True, "fine")],
    }
    monkeypatch.setattr(check, "conformance", lambda kind: findings["rnn" if kind is get("rnn") else "gru"])
    assert cli.main(["check", "rnn", "gru", "--out", str(tmp_path / "table.md")]) == 1
    assert (tmp_path / "table.md").read_text().splitlines() == [
        "| cell | trace | compiled |",
        "|---|---|---|",
        "| rnn | yes | skipped |",
        "| gru | NO | yes |",
    ]
