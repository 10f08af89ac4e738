"""The essay "From a dense layer to a recurrent zoo": its prose is a template, its numbers and figures are made here."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from markupsafe import Markup
from torch import Tensor

from rnnzoo.explain import chart, essay_models, measure
from rnnzoo.explain.card import SIZES, Card, templates
from rnnzoo.explain.equations import BATCH, Reading, read_function
from rnnzoo.explain.expression import Equation, Expression, Symbol
from rnnzoo.explain.notation import MathML
from rnnzoo.explain.write import transpose
from rnnzoo.registry import entry, list_cells

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
    essay_models.hidden, essay_models.output, essay_models.output_error, essay_models.hidden_error, essay_models.share,
    essay_models.run, essay_models.backpropagate,
)  # fmt: skip
"""Functions whose source stands on the page."""


def body() -> str:
    """The page as HTML, from `<h1>` on, for the site's shell.

    Takes seconds: all experiments run. The same text every time; the global random state is left as it was.
    """
    line = essay_models.fit_line()
    product = essay_models.fit_product()
    waves = essay_models.learn_waves()
    cards = {name: Card(entry(name)) for name in CHOICE}
    flows = {
        "rnn": cards["rnn"].flow,
        "rnn, U halved": measure.gradient_flow(essay_models.make("rnn", scale=0.5)),
        "rnn, U doubled": measure.gradient_flow(essay_models.make("rnn", scale=2.0)),
        "irnn": cards["irnn"].flow,
    }
    gated = {
        name: {b: measure.gradient_flow(essay_models.make(name, forget_bias=b)) for b in FORGET_BIASES}
        for name in GATED
    }
    depth = {gain: essay_models.signal_by_depth(gain) for gain in GAINS}
    page = templates().get_template("essay.html")
    return page.render(
        number=number,
        pace=pace,
        math=_symbol,
        line=line,
        line_chart=_curves(
            {"loss": line.losses}, "step", "mean squared error", "The loss of a linear unit falls", log=True
        ),
        activations=[(name, *essay_models.slopes(f, (-2.0, 0.5, 2.0))) for name, f in essay_models.ACTIVATIONS.items()],
        depth=depth,
        depth_chart=_curves(
            {f"s = {gain:g} / √n": values for gain, values in depth.items()},
            "layers passed",
            "standard deviation",
            "The signal's standard deviation, layer by layer, for each width of the initial weights",
            log=True,
        ),
        truncation=_truncation(),
        product=product,
        product_chart=Markup(
            chart.lines(
                {
                    "dense layer": list(zip(product.true, product.dense)),
                    "linear": list(zip(product.true, product.linear)),
                },
                "true x₁x₂",
                "prediction",
                "Predictions of the dense layer lie on the diagonal, those of the linear function near zero",
                dots=True,
            )
        ),
        forward=_formulas(*read_as(essay_models.hidden, "h"), *read_as(essay_models.output, "y")),
        waves=waves,
        shapes={name: weight.shape[::-1] for name, weight in waves.network._asdict().items()},
        wave_loss_chart=_curves({"loss": waves.losses}, "update", "mean squared error", "The loss falls", log=True),
        wave_chart=_curves(
            {"true wave": waves.true, "continued": waves.continued},
            "time step t",
            "value of the wave",
            "The network continues a sine wave from its own predictions",
            starts=(0, waves.steps),
        ),
        errors=_formulas(*read_as(essay_models.output_error, "delta_y"), *read_as(essay_models.hidden_error, "delta")),
        gradients=_gradients(),
        code="\n\n".join(inspect.getsource(function).rstrip() for function in SHOWN),
        differences=essay_models.compare_with_autograd(steps=waves.steps, sequences=8, sizes=(3, 16, 2)),
        epsilon=torch.finfo(torch.float64).eps,
        flows=flows,
        flow_chart=_flow_chart(flows, "Gradients of simple networks vanish, stay or explode with the lag"),
        slope=essay_models.tanh_slope(essay_models.make("rnn")),
        lags=measure.LAGS,
        sizes=SIZES,
        gated=gated,
        lstm_chart=_flow_chart(
            {f"lstm, forget bias {b:g}": flow for b, flow in gated["lstm"].items()} | {"rnn": flows["rnn"]},
            "The LSTM's gradients last the longer the larger its forget bias",
        ),
        gate=lambda bias: 1 / (1 + math.exp(-bias)),
        equations={
            name: _formulas(*card.reading.equations) for name, card in cards.items() if name in GATED or name == "rnn"
        },
        cards=cards,
        zoo=len(list_cells()),
    )


def _curves(
    series: dict[str, Sequence[float]],
    x_label: str,
    y_label: str,
    title: str,
    log: bool = False,
    starts: Sequence[int] = (),
) -> Markup:
    """A chart of values that follow one another, each series from 0 or from its number in `starts`."""
    firsts = starts or [0] * len(series)
    points = {
        name: [(float(first + k), value) for k, value in enumerate(values)]
        for first, (name, values) in zip(firsts, series.items())
    }
    return Markup(chart.lines(points, x_label, y_label, title, log))


def number(value: float, digits: int = 3) -> Markup:
    """A number for the text, rounded to so many digits; whole numbers in full.

    >>> number(-1234), number(0.66668), number(4.44e-16, 2)
    (Markup('−1,234'), Markup('0.667'), Markup('4.4 × 10<sup>−16</sup>'))
    """
    if isinstance(value, int):
        written = f"{value:,}"
    elif value == 0 or 1e-3 <= abs(value) < 1e4:
        written = f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"
    else:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        written = f"{mantissa} × 10<sup>{int(exponent)}</sup>"
    return Markup(written.replace("-", "−"))


def pace(factor: float) -> str:
    """How many steps halve or double what each step multiplies by `factor`.

    >>> pace(0.5), pace(1.0), pace(1.0718)
    ('halved every 1.0 steps', 'stays', 'doubled every 10.0 steps')
    """
    if abs(factor - 1) < 1e-6:
        return "stays"
    if factor == 0:
        return "cut off"
    return f"{'halved' if factor < 1 else 'doubled'} every {abs(math.log(2) / math.log(factor)):.1f} steps"


def _truncation() -> tuple[float, float]:
    """What remains of s when a normal is cut at ±2σ: measured on 100,000 draws, and in closed form."""
    drawn = essay_models.truncated_normal(1000, 100, torch.Generator().manual_seed(0)) * math.sqrt(1000)
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
        (equation,) = read_as(essay_models.share, f"d{weight}", error=error, signal=signal)
        rows.append(
            '<div><math display="block"><mfrac><mrow><mo>∂</mo><mi>E</mi></mrow>'
            f"<mrow><mo>∂</mo><mi>{weight}</mi></mrow></mfrac><mo>=</mo>"
            "<munderover><mo>∑</mo><mrow><mi>t</mi><mo>=</mo><mn>1</mn></mrow><mi>τ</mi></munderover>"
            f"{MathML().write(equation.value)}</math></div>"
        )
    return Markup('<div class="equations">' + "".join(rows) + "</div>")


def _symbol(name: str, time: str = "") -> Markup:
    return Markup(f"<math>{MathML().symbol(Symbol(name, time))}</math>")


def _flow_chart(flows: dict[str, measure.Flow], title: str) -> Markup:
    points = {name: [(float(lag), norm) for lag, norm in enumerate(f.norms, 1)] for name, f in flows.items()}
    return Markup(chart.lines(points, "lag k in time steps", "‖∂ output(T) / ∂ state(T − k)‖", title, log=True))
