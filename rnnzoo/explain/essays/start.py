"""From a dense layer to a recurrent zoo: a dense layer that reads its own last answer, and on to gates."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from rnnzoo.explain import chart, measure
from rnnzoo.explain.card import SIZES, Card
from rnnzoo.explain.equations import BATCH, Reading, read_function
from rnnzoo.explain.essays import start_models as models
from rnnzoo.explain.essays.page import Essay, Found, curves
from rnnzoo.explain.expression import Equation, Expression
from rnnzoo.explain.notation import MathML
from rnnzoo.explain.write import transpose
from rnnzoo.registry import entry

CHOICE = ("rnn", "irnn", "lstm", "gru", "mgu", "cornn", "min_gru", "lru")
"""Cells of the last section's table."""

GATED = ("lstm", "gru")
GAINS = (0.5, 1.0, 2.0)
FORGET_BIASES = (0.0, 1.0, 3.0)

SHAPES = {
    "x": (BATCH, 2), "h": (BATCH, 4), "h_prev": (BATCH, 4), "delta": (BATCH, 4), "delta_next": (BATCH, 4),
    "y": (BATCH, 1), "d": (BATCH, 1), "delta_y": (BATCH, 1),
    "U": (2, 4), "W": (4, 4), "b": (4,), "V": (4, 1), "c": (1,),
}  # fmt: skip
"""Of what is read as an equation; the sizes do not show there."""

SHOWN = (
    models.hidden, models.output, models.output_error, models.hidden_error, models.share,
    models.run, models.backpropagate,
)  # fmt: skip
"""Functions whose source stands on the page."""


@cache
def found() -> dict[str, Any]:
    cards = {name: Card(entry(name)) for name in CHOICE}
    return {
        "line": models.fit_line(),
        "activations": [(name, *models.slopes(f, (-2.0, 0.5, 2.0))) for name, f in models.ACTIVATIONS.items()],
        "depth": {gain: models.signal_by_depth(gain) for gain in GAINS},
        "truncation": _truncation(),
        "product": models.fit_product(),
        "forward": _formulas(*read_as(models.hidden, "h"), *read_as(models.output, "y")),
        "waves": (waves := models.learn_waves()),
        "shapes": {name: weight.shape[::-1] for name, weight in waves.network._asdict().items()},
        "errors": _formulas(*read_as(models.output_error, "delta_y"), *read_as(models.hidden_error, "delta")),
        "gradients": _gradients(),
        "code": "\n\n".join(inspect.getsource(function).rstrip() for function in SHOWN),
        "differences": models.compare_with_autograd(steps=waves.steps, sequences=8, sizes=(3, 16, 2)),
        "epsilon": torch.finfo(torch.float64).eps,
        "flows": {
            "rnn": cards["rnn"].flow,
            "halved": measure.gradient_flow(models.make("rnn", scale=0.5)),
            "doubled": measure.gradient_flow(models.make("rnn", scale=2.0)),
            "irnn": cards["irnn"].flow,
        },
        "slope": models.tanh_slope(models.make("rnn")),
        "lags": measure.LAGS,
        "sizes": SIZES,
        "gated": {
            name: {b: measure.gradient_flow(models.make(name, forget_bias=b)) for b in FORGET_BIASES} for name in GATED
        },
        "gate": lambda bias: 1 / (1 + math.exp(-bias)),
        "equations": {
            name: _formulas(*card.reading.equations) for name, card in cards.items() if name in GATED or name == "rnn"
        },
        "cards": cards,
    }


def pictures(say: Any, found: Found) -> dict[str, Markup]:
    line, product, waves, flows = (found[name] for name in ("line", "product", "waves", "flows"))
    error = say.label_mse()
    return {
        "line_chart": curves({"": line.losses}, say.label_update(), error, say.start_line_chart(), log=True),
        "depth_chart": curves(
            {f"s = {gain:g} / √n": values for gain, values in found["depth"].items()},
            say.start_depth_layers(),
            say.start_depth_std(),
            say.start_depth_chart(),
            log=True,
        ),
        "product_chart": Markup(
            chart.lines(
                {
                    say.start_product_dense(): list(zip(product.true, product.dense)),
                    say.start_product_linear(): list(zip(product.true, product.linear)),
                },
                say.start_product_true(),
                say.start_product_prediction(),
                say.start_product_chart(),
                dots=True,
            )
        ),
        "wave_loss_chart": curves({"": waves.losses}, say.label_update(), error, say.start_wave_loss_chart(), log=True),
        "wave_chart": curves(
            {say.start_wave_true(): waves.true, say.start_wave_continued(): waves.continued},
            say.label_time(),
            say.start_wave_value(),
            say.start_wave_chart(),
            starts=(0, waves.steps),
        ),
        "flow_chart": _flow_chart(
            say, {getattr(say, f"start_flow_{name}")(): flow for name, flow in flows.items()}, say.start_flow_chart()
        ),
        "lstm_chart": _flow_chart(
            say,
            {say.start_lstm_bias(bias): flow for bias, flow in found["gated"]["lstm"].items()} | {"rnn": flows["rnn"]},
            say.start_lstm_chart(),
        ),
    }


ESSAY = Essay("start", "essay.html", found, pictures)


def _truncation() -> tuple[float, float]:
    """What remains of s when a normal is cut at ±2σ: measured on 100,000 draws, and in closed form."""
    drawn = models.truncated_normal(1000, 100, torch.Generator().manual_seed(0)) * math.sqrt(1000)
    density, inside = math.exp(-2) / math.sqrt(2 * math.pi), math.erf(math.sqrt(2))
    return float(drawn.std()), math.sqrt(1 - 4 * density / inside)


def read_as(function: Callable[..., Tensor], target: str, **renamed: str) -> list[Equation]:
    """The equations of one of the network's functions, with [out, in] weights throughout.

    `renamed` says where an argument is called otherwise than in the function.
    """
    names = (renamed.get(own, own) for own in inspect.signature(function).parameters)
    reading = read_function(function, target, **{name: torch.zeros(SHAPES[name]) for name in names})
    return [Equation(equation.targets, _turn(equation.value, reading)) for equation in reading.equations]


def _turn(e: Expression, reading: Reading) -> Expression:
    """Transpose the weights that a reading has as the code has them, because there no row is multiplied by them."""
    if e.op == "symbol" and len(reading.shapes[e.detail]) == 2 and e.detail not in reading.turned:
        return transpose(e)
    args = tuple(_turn(arg, reading) for arg in e.args)
    return transpose(*args) if e.op == "transpose" else replace(e, args=args)


def _formulas(*equations: Equation) -> Markup:
    written = (f"<div>{MathML().equation(equation)}</div>" for equation in equations)
    return Markup(f'<div class="equations">{"".join(written)}</div>')


def _gradients() -> Markup:
    """The gradients of U, W and V as sums over time of what `share` makes of errors and signals."""
    rows = []
    for weight, error, signal in (("U", "delta", "x"), ("W", "delta", "h_prev"), ("V", "delta_y", "h")):
        (equation,) = read_as(models.share, f"d{weight}", error=error, signal=signal)
        rows.append(
            '<div><math display="block"><mfrac><mrow><mo>∂</mo><mi>E</mi></mrow>'
            f"<mrow><mo>∂</mo><mi>{weight}</mi></mrow></mfrac><mo>=</mo>"
            "<munderover><mo>∑</mo><mrow><mi>t</mi><mo>=</mo><mn>1</mn></mrow><mi>τ</mi></munderover>"
            f"{MathML().write(equation.value)}</math></div>"
        )
    return Markup('<div class="equations">' + "".join(rows) + "</div>")


def _flow_chart(say: Any, flows: dict[str, measure.Flow], title: str) -> Markup:
    points = {name: [(float(lag), norm) for lag, norm in enumerate(f.norms, 1)] for name, f in flows.items()}
    return Markup(chart.lines(points, say.label_lag(), say.start_flow_norm(), title, log=True))
