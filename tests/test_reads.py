"""What a step reads beside its weights is watched: a plan is never run where the step would now say something else.

Shapes: T time steps, B batch, I input size, H hidden size.
"""

from __future__ import annotations

import functools
import random
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnzoo import Cell, InputWeight, Recurrent, RecurrentWeight, UserError, Weight
from rnnzoo.engine import plan as plans
from rnnzoo.engine import serial, steps

I, H = 3, 4  # noqa: E741  I is the input size everywhere in this project

SCALE = 1.0
TABLE = {"scale": [1.0]}


@dataclass
class Settings:
    scale: float = 1.0

    def twice(self) -> float:
        return 2 * self.scale


class Gain:
    """Its methods run where no code names them."""

    def __call__(self, v: Tensor) -> Tensor:
        return v

    def __mul__(self, v: Tensor) -> Tensor:
        return v

    def __getitem__(self, key: int) -> float:
        return 1.0

    def __getattr__(self, name: str) -> float:
        return 1.0


GAIN = Gain()
SETTINGS = Settings()
CONSTANTS = types.SimpleNamespace(scale=1.0)


def scaled(v: Tensor, by: float = 1.0) -> Tensor:
    return by * v


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong here is the plan; compiling takes seconds."""
    monkeypatch.setattr(serial, "_programs", {})
    monkeypatch.setattr(serial, "loop", lambda plan, *options: steps.Steps(plan, compiled=False))


class Plain(Cell):
    W, U = InputWeight(), RecurrentWeight()
    factor = 1.0

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x @ self.W + h @ self.U)

    def helper(self, v: Tensor) -> Tensor:
        return v

    @property
    def both(self) -> float:
        return self.factor


def cell(body: Callable[[Any, Tensor], Tensor], base: type[Plain] = Plain) -> type[Plain]:
    """A cell whose step ends in `body(self, what a plain cell returns)`."""

    class Made(base):  # type: ignore[valid-type, misc]
        def step(self, x: Tensor, h: Tensor) -> Tensor:
            return body(self, torch.tanh(x @ self.W + h @ self.U))

    return Made


def assert_like_reference(layer: Recurrent) -> None:
    """Outputs and gradients of the engine are those of the loop."""
    torch.manual_seed(1)
    x = torch.randn(4, 2, I, dtype=torch.float64)
    found = {}
    chosen = layer.engine
    for engine in (chosen, "reference"):
        layer.engine = engine
        output, _ = layer(x)
        found[engine] = [output, *torch.autograd.grad(output.sin().sum(), list(layer.parameters()))]
    layer.engine = chosen
    torch.testing.assert_close(found[chosen], found["reference"], rtol=1e-9, atol=1e-9)


def layer_of(kind: type[Cell], engine: str = "serial") -> Recurrent:
    torch.manual_seed(0)
    return Recurrent(kind, I, H, engine=engine).double()


def set_scale(layer: Recurrent, value: float) -> None:
    layer.cells[0].scale = value


def nested(by: float) -> Callable[[Tensor], Tensor]:
    return lambda v: by * v


class WithAttribute(Plain):
    def __init__(self, *sizes: int, **others: Any) -> None:
        super().__init__(*sizes, **others)
        self.scale: Any = 1.0
        self.table: Any = {"a": [1.0, 2.0]}
        self.settings = Settings()
        self.array = np.ones(H)
        self.function: Any = nested(1.0)
        self.partial = functools.partial(scaled, by=1.0)
        self.act = nn.LeakyReLU(0.5)


def rescale_array(c: Any, value: float) -> None:
    c.array[0] = value


def change_act(c: Any, value: float) -> None:
    c.act.negative_slope = value


ATTRIBUTES: dict[str, tuple[Callable[[Any, Tensor], Tensor], Callable[[Any, float], None]]] = {
    "number": (lambda c, v: c.scale * v, lambda c, k: setattr(c, "scale", k)),
    "by name": (lambda c, v: getattr(c, "sca" + "le") * v, lambda c, k: setattr(c, "scale", k)),
    "truth": (lambda c, v: v if c.scale == 1 else -v, lambda c, k: setattr(c, "scale", k)),
    "in a table": (lambda c, v: c.table["a"][1] * v, lambda c, k: c.table["a"].__setitem__(1, k)),
    "of an object": (lambda c, v: c.settings.scale * v, lambda c, k: setattr(c.settings, "scale", k)),
    "method of an object": (lambda c, v: c.settings.twice() * v, lambda c, k: setattr(c.settings, "scale", k)),
    "array": (lambda c, v: float(c.array[0]) * v, rescale_array),
    "function": (lambda c, v: c.function(v), lambda c, k: setattr(c, "function", nested(k))),
    "partial": (lambda c, v: c.partial(v), lambda c, k: setattr(c, "partial", functools.partial(scaled, by=k))),
    "module": (lambda c, v: c.act(v), change_act),
    "class attribute, hidden": (lambda c, v: c.factor * v, lambda c, k: setattr(c, "factor", k)),
    "class attribute": (lambda c, v: c.factor * v, lambda c, k: setattr(type(c), "factor", k)),
    "of the type": (lambda c, v: type(c).factor * v, lambda c, k: setattr(type(c), "factor", k)),
    "property": (lambda c, v: c.both * v, lambda c, k: setattr(c, "factor", k)),
    "method": (
        lambda c, v: c.helper(v),
        lambda c, k: setattr(type(c), "helper", lambda self, v: k * v),
    ),
}


@pytest.mark.parametrize("what", ATTRIBUTES)
def test_attributes_are_read_anew(what):
    body, change = ATTRIBUTES[what]
    kind = cell(body, WithAttribute)
    first, second = layer_of(kind), layer_of(kind)
    assert_like_reference(first)
    change(second.cells[0], 3.0)
    assert_like_reference(second)
    assert_like_reference(first)
    change(first.cells[0], -2.0)
    assert_like_reference(first)
    assert_like_reference(second)


def global_number(c: Any, v: Tensor) -> Tensor:
    return SCALE * v


def global_table(c: Any, v: Tensor) -> Tensor:
    return TABLE["scale"][0] * v


def global_object(c: Any, v: Tensor) -> Tensor:
    return SETTINGS.twice() * CONSTANTS.scale * v


def global_gain(c: Any, v: Tensor) -> Tensor:
    return GAIN(GAIN * v) * GAIN[0] * GAIN.anything


def global_function(c: Any, v: Tensor) -> Tensor:
    return scaled(v)


def inner_function(c: Any, v: Tensor) -> Tensor:
    return (lambda w: SCALE * w)(v)


def library_function(c: Any, v: Tensor) -> Tensor:
    return F.softplus(v)


def imported(c: Any, v: Tensor) -> Tensor:
    from tests_constants import FACTOR  # type: ignore[import-not-found]

    return FACTOR * v


GLOBALS = {
    "number": (global_number, lambda m: m.setitem(globals(), "SCALE", 3.0)),
    "a zero of another sign": (global_number, lambda m: m.setitem(globals(), "SCALE", -1.0)),
    "table": (global_table, lambda m: m.setitem(TABLE, "scale", [3.0])),
    "object": (global_object, lambda m: m.setattr(SETTINGS, "scale", 3.0)),
    "namespace": (global_object, lambda m: m.setattr(CONSTANTS, "scale", 3.0)),
    "method of a class": (global_object, lambda m: m.setattr(Settings, "twice", lambda self: 5.0)),
    "call of an object": (global_gain, lambda m: m.setattr(Gain, "__call__", lambda self, v: -v)),
    "operator of an object": (global_gain, lambda m: m.setattr(Gain, "__mul__", lambda self, v: -v)),
    "item of an object": (global_gain, lambda m: m.setattr(Gain, "__getitem__", lambda self, key: -1.0)),
    "whatever an object is asked for": (global_gain, lambda m: m.setattr(Gain, "__getattr__", lambda self, name: -1.0)),
    "helper": (global_function, lambda m: m.setitem(globals(), "scaled", lambda v: 3 * v)),
    "default": (global_function, lambda m: m.setattr(scaled, "__defaults__", (3.0,))),
    "code, as reloading changes it": (
        global_function,
        lambda m: m.setattr(scaled, "__code__", (lambda v, by: 3 * by * v).__code__),
    ),
    "in an inner function": (inner_function, lambda m: m.setitem(globals(), "SCALE", 3.0)),
    "function of a library": (library_function, lambda m: m.setattr(F, "softplus", torch.sigmoid)),
}


@pytest.mark.parametrize("what", GLOBALS)
def test_what_code_names_is_read_anew(what, monkeypatch):
    body, change = GLOBALS[what]
    layer = layer_of(cell(body))
    assert_like_reference(layer)
    change(monkeypatch)
    assert_like_reference(layer)


def test_what_is_imported_within_the_step_is_read_anew(monkeypatch):
    import sys

    module = types.ModuleType("tests_constants")
    module.FACTOR = 1.0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tests_constants", module)
    layer = layer_of(cell(imported))
    assert_like_reference(layer)
    module.FACTOR = 3.0  # type: ignore[attr-defined]
    assert_like_reference(layer)


def test_closures_are_read_anew():
    by = 1.0
    layer = layer_of(cell(lambda c, v: by * v))
    assert_like_reference(layer)
    by = 3.0
    assert_like_reference(layer)


def test_a_step_that_is_replaced_is_traced_anew():
    kind = cell(lambda c, v: v)
    layer = layer_of(kind)
    assert_like_reference(layer)
    kind.step = lambda self, x, h: torch.sin(x @ self.W + h @ self.U)
    assert_like_reference(layer)
    kind.step.__code__ = (lambda self, x, h: torch.cos(x @ self.W + h @ self.U)).__code__
    assert_like_reference(layer)


def test_a_step_that_failed_is_tried_again_once_mended():
    kind = cell(lambda c, v: v if float(v.sum()) > 0 else -v)
    layer = layer_of(kind, "reference")
    assert serial.refuses(layer.cells[0]) is not None
    kind.step = Plain.step
    assert serial.refuses(layer.cells[0]) is None


class Parent(Plain):
    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return self.helper(torch.tanh(x @ self.W + h @ self.U)) * self.factor


class Child(Parent):
    """Inherits the step, and not what it calls."""

    factor = 3.0

    def helper(self, v: Tensor) -> Tensor:
        return -v


@pytest.mark.parametrize("change", [None, nn.utils.parametrizations.orthogonal], ids=["plain", "parametrized"])
def test_a_step_that_is_inherited_calls_the_methods_of_its_own_class(change):
    for kind in (Parent, Child):
        layer = layer_of(kind)
        if change is not None:
            change(layer.cells[0], "U")
        assert_like_reference(layer)


class LowRank(Plain):
    rank: int = 2

    A, B = Weight("hidden", "rank"), Weight("rank", "hidden")

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x @ self.W + h @ self.U + h @ self.A @ self.B)


def test_weights_of_another_shape_have_a_plan_of_their_own():
    layer = layer_of(LowRank)
    assert_like_reference(layer)
    layer.cells[0].A = nn.Parameter(torch.randn(H, 1, dtype=torch.float64))
    layer.cells[0].B = nn.Parameter(torch.randn(1, H, dtype=torch.float64))
    assert_like_reference(layer)


def set_attribute(c: Any, v: Tensor) -> Tensor:
    c.seen = v
    return v


def append(c: Any, v: Tensor) -> Tensor:
    c.table["a"].append(1.0)
    return v


def write_global(c: Any, v: Tensor) -> Tensor:
    global SCALE
    SCALE += 1
    return v


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(v: Tensor) -> Tensor:
        return v.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g


class Twice(Doubled):
    @staticmethod
    def forward(v: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return v.clone(), v.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor, h: Tensor) -> Tensor:  # type: ignore[override]
        return g + h


TWICE = "step gives another h when it is taken twice"
REFUSED = {
    "sets an attribute": (set_attribute, "it sets self.seen"),
    "appends": (append, "it changes self.table"),
    "writes a global": (write_global, "it changes SCALE"),
    "chance": (lambda c, v: random.random() * v, TWICE),
    "time": (lambda c, v: time.time() * v, TWICE),
    "NumPy's chance": (lambda c, v: np.random.rand() * v, TWICE),
    "iterator": (lambda c, v: next(c.scale) * v, "Made.step cannot be traced: it reads self.scale"),
    "tensor": (lambda c, v: float(c.scale) * v, "it reads self.scale"),
    "all attributes": (lambda c, v: c.__dict__["scale"] * v, "self.__dict__"),
    "all globals": (lambda c, v: globals()["SCALE"] * v, "it calls globals"),
    "mode": (lambda c, v: v if torch.is_grad_enabled() else -v, "torch.is_grad_enabled"),
    "two results": (lambda c, v: Twice.apply(v)[0], "Twice returns other than one tensor"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_watched_is_refused_by_name(what):
    body, words = REFUSED[what]
    kind = cell(body, WithAttribute)
    layer = layer_of(kind, "auto")
    layer.cells[0].scale = {"iterator": iter([2.0] * 99), "tensor": torch.tensor(2.0)}.get(what, 1.0)
    with pytest.raises(UserError, match=words):
        plans.plan(layer.cells[0])


def test_what_changes_again_and_again_is_refused_by_name():
    layer = layer_of(cell(lambda c, v: c.scale * v, WithAttribute))
    with pytest.raises(UserError, match=r"Made: self.scale has changed 8 times.*engine=reference"):
        for step in range(20):
            layer.cells[0].scale = 1.0 / (1 + step)
            assert_like_reference(layer)


def test_plans_are_not_kept_for_ever():
    import gc
    import weakref

    made = [weakref.ref(plans.plan(Plain(1, size))) for size in range(1, plans.KEPT + 6)]
    gc.collect()
    assert sum(ref() is not None for ref in made) == plans.KEPT


GRADIENTS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "in place": lambda c, v: v.clone().detach_(),
    "hook": lambda c, v: (v.register_hook(lambda g: 2 * g), v)[1] if v.requires_grad else v,
    "inference_mode": torch.inference_mode()(lambda c, v: 2 * v),
    "from numbers": lambda c, v: v * torch.tensor(v.tolist()),
}


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("what", GRADIENTS)
def test_gradients_that_are_stopped_or_changed_are_refused(what, mode):
    layer = layer_of(cell(GRADIENTS[what]), "auto")
    layer.expected_calls = 10**6
    said = {
        "from numbers": "step leaves torch",
        "inference_mode": "Inference tensors cannot be saved for backward",
    }.get(what, "Made.step cannot be traced: .*; use engine=reference")
    with pytest.raises(UserError, match=said), mode():
        plans.plan(layer.cells[0])


def test_what_tracing_does_not_see_shows_in_the_gradients(monkeypatch):
    monkeypatch.setattr("rnnzoo.engine.strict.CHANGES", set())
    monkeypatch.setattr("rnnzoo.engine.strict.PROPERTIES", {})
    with pytest.raises(UserError, match="other numbers or gradients"):
        plans.plan(cell(GRADIENTS["hook"])(I, H))


STOPPED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "detach": lambda c, v: v.sin().detach() * v,
    "data": lambda c, v: v * v.data,
    "data of a weight": lambda c, v: v @ c.U.data,
    "no_grad": lambda c, v: v * torch.no_grad()(lambda v: (2 * v).sin())(v),
    "set_grad_enabled": lambda c, v: v * (torch.set_grad_enabled(False), 2 * v, torch.set_grad_enabled(True))[1],
    "own gradient": lambda c, v: Doubled.apply(v),
    "of the input": lambda c, v: Doubled.apply(torch.ones_like(v)) * v + Doubled.apply(c.U.sum()),
}


@pytest.mark.parametrize("what", STOPPED)
def test_gradients_that_are_stopped_or_ones_own_are_those_of_the_reference(what):
    assert_like_reference(layer_of(cell(STOPPED[what])))


def test_tensors_that_are_not_declared_are_weights_too():
    class Buffered(Plain):
        def __init__(self, *sizes: int, **others: Any) -> None:
            super().__init__(*sizes, **others)
            self.register_buffer("mask", torch.linspace(0, 1, H))

        def step(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(x @ self.W + h @ self.U) * self.mask

    layer = layer_of(Buffered)
    assert_like_reference(layer)
    layer.cells[0].mask += 1
    assert_like_reference(layer)
    normed = Recurrent("gru", I, H, engine="serial", layer_norm=True).double()
    assert_like_reference(normed)
