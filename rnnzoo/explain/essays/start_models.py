"""The essay's experiments, small enough to run anew each time the page is built, each from a seed of its own.

Code has rows, x @ U with U [in, out]; the equations that are read off it have columns, U x with U [out, in].
Shapes: M sequences, T time steps, I, H, O features of input, hidden state and output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn, relu, sigmoid, tanh

from rnnzoo.cell import Cell
from rnnzoo.explain.card import FLOW_SIZES
from rnnzoo.explain.measure import LAGS
from rnnzoo.registry import get

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": sigmoid, "tanh": tanh, "ReLU": relu}
STEP = math.pi / 8
"""Between two values of a sine wave, in radians."""


class LinearFit(NamedTuple):
    """A linear unit ŷ = w x + b after every step of learning y = x: `errors` holds 1 − w, `losses` the batch's MSE."""

    w: float
    b: float
    losses: list[float]
    errors: list[float]
    rate: float
    batch: int

    @property
    def factor(self) -> float:
        """What a step multiplies 1 − w by, in the geometric mean."""
        return (self.errors[-1] / self.errors[0]) ** (1 / (len(self.errors) - 1))


def fit_line(steps: int = 60, rate: float = 0.3, batch: int = 64) -> LinearFit:
    """Stochastic gradient descent from w = b = 0 on x from U(−1, 1), a fresh batch each step."""
    generator = torch.Generator().manual_seed(0)
    w = b = torch.zeros((), dtype=torch.float64)
    losses, errors = [], [1.0]
    for _ in range(steps):
        x = 2 * torch.rand(batch, generator=generator, dtype=torch.float64) - 1
        miss = w * x + b - x
        losses.append(float((miss**2).mean()))
        w, b = w - rate * 2 * (miss * x).mean(), b - rate * 2 * miss.mean()
        errors.append(float(1 - w))
    return LinearFit(float(w), float(b), losses, errors, rate, batch)


def truncated_normal(rows: int, columns: int, generator: torch.Generator, gain: float = 1.0) -> Tensor:
    """Initial weights [rows, columns] of a dense layer on x [M, rows]: N(0, σ²) within ±2σ, σ = gain / √rows."""
    std = gain / math.sqrt(rows)
    return nn.init.trunc_normal_(torch.empty(rows, columns), 0.0, std, -2 * std, 2 * std, generator=generator)


def signal_by_depth(gain: float, width: int = 128, layers: int = 10) -> list[float]:
    """Standard deviation of x and of what each of `layers` tanh layers makes of it, for weights of that gain."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, width, generator=generator)
    found = [float(x.std())]
    for _ in range(layers):
        x = tanh(x @ truncated_normal(width, width, generator, gain))
        found.append(float(x.std()))
    return found


def slopes(activation: Callable[[Tensor], Tensor], at: tuple[float, ...]) -> list[float]:
    """f′ at some points."""
    x = torch.tensor(at, requires_grad=True)
    return torch.autograd.grad(activation(x).sum(), x)[0].tolist()


class ProductFit(NamedTuple):
    """y = x₁x₂ learned: mean squared errors on fresh points, the true values and predictions of some of them."""

    linear_mse: float
    mse: dict[str, float]
    hidden: int
    true: list[float]
    linear: list[float]
    dense: list[float]


def fit_product(steps: int = 400, hidden: int = 16, shown: int = 150) -> ProductFit:
    """The best linear function, by least squares, and a dense hidden layer of each activation, by Adam.

    x is uniform on the square [−1, 1]². `dense` is what the tanh network predicts.
    """
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(4000, 2, generator=generator) - 1
    (x, x_new), (y, y_new) = x.split(2000), x.prod(1, keepdim=True).split(2000)
    with_one, with_one_new = (torch.cat([a, torch.ones(len(a), 1)], 1) for a in (x, x_new))
    linear = with_one_new @ torch.linalg.lstsq(with_one, y).solution
    mse, predictions = {}, {}
    for name, activation in ACTIVATIONS.items():
        W = truncated_normal(2, hidden, generator).requires_grad_()
        V = truncated_normal(hidden, 1, generator).requires_grad_()
        b, c = torch.zeros(hidden, requires_grad=True), torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.Adam([W, b, V, c], lr=0.03)
        for _ in range(steps):
            optimizer.zero_grad()
            (activation(x @ W + b) @ V + c - y).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            predictions[name] = activation(x_new @ W + b) @ V + c
        mse[name] = float((predictions[name] - y_new).square().mean())
    points = [p[:shown, 0].tolist() for p in (y_new, linear, predictions["tanh"])]
    return ProductFit(float((linear - y_new).square().mean()), mse, hidden, *points)


class Network(NamedTuple):
    """Parameters of a simple RNN with a linear output, or one number or gradient for each of them."""

    U: Tensor  # [I, H]
    W: Tensor  # [H, H]
    b: Tensor  # [H]
    V: Tensor  # [H, O]
    c: Tensor  # [O]


def start(inputs: int, hidden: int, outputs: int, generator: torch.Generator) -> Network:
    """Truncated-normal weights, biases 0."""
    return Network(
        truncated_normal(inputs, hidden, generator),
        truncated_normal(hidden, hidden, generator),
        torch.zeros(hidden),
        truncated_normal(hidden, outputs, generator),
        torch.zeros(outputs),
    )


def hidden(x: Tensor, h_prev: Tensor, U: Tensor, W: Tensor, b: Tensor) -> Tensor:
    return tanh(x @ U + h_prev @ W + b)


def output(h: Tensor, V: Tensor, c: Tensor) -> Tensor:
    return h @ V + c


def output_error(y: Tensor, d: Tensor) -> Tensor:
    return y - d


def hidden_error(h: Tensor, delta_y: Tensor, delta_next: Tensor, V: Tensor, W: Tensor) -> Tensor:
    return (delta_y @ V.T + delta_next @ W.T) * (1 - h**2)


def share(error: Tensor, signal: Tensor) -> Tensor:
    """One sequence's and one step's part of a weight's gradient, from [M, n] and [M, m] to [M, n, m]."""
    return error[:, :, None] * signal[:, None, :]


def run(x: Tensor, network: Network) -> tuple[Tensor, Tensor]:
    """From x [T, M, I] to states h [T + 1, M, H], zeros first, and outputs y [T, M, O]."""
    U, W, b, V, c = network
    h = [x.new_zeros(x.shape[1], len(W))]
    for x_t in x:
        h.append(hidden(x_t, h[-1], U, W, b))
    return torch.stack(h), output(torch.stack(h[1:]), V, c)


def backpropagate(x: Tensor, d: Tensor, network: Network) -> Network:
    """Gradients of E = ½ Σₜ ‖yₜ − dₜ‖², summed over sequences, derived by hand; x [T, M, I], d [T, M, O].

    >>> differences = compare_with_autograd(steps=7, sequences=3, sizes=(2, 5, 4))
    >>> {name: difference < 1e-12 for name, difference in differences.items()}
    {'U': True, 'W': True, 'b': True, 'V': True, 'c': True}
    """
    h, y = run(x, network)
    dU, dW, db, dV, dc = (torch.zeros_like(parameter) for parameter in network)
    delta = torch.zeros_like(h[0])
    for t in reversed(range(len(x))):
        delta_y = output_error(y[t], d[t])
        delta = hidden_error(h[t + 1], delta_y, delta, network.V, network.W)
        dU += share(delta, x[t]).sum(0).T
        dW += share(delta, h[t]).sum(0).T
        db += delta.sum(0)
        dV += share(delta_y, h[t + 1]).sum(0).T
        dc += delta_y.sum(0)
    return Network(dU, dW, db, dV, dc)


def compare_with_autograd(steps: int, sequences: int, sizes: tuple[int, int, int]) -> dict[str, float]:
    """Largest absolute difference between `backpropagate` and autograd for each parameter, in double precision."""
    generator = torch.Generator().manual_seed(0)
    network = Network(*(p.double().requires_grad_() for p in start(*sizes, generator)))
    x, d = (torch.randn(steps, sequences, n, generator=generator, dtype=torch.float64) for n in sizes[::2])
    _, y = run(x, network)
    automatic = torch.autograd.grad((y - d).square().sum() / 2, network)
    with torch.no_grad():
        by_hand = backpropagate(x, d, network)
    return {name: float((a - m).abs().max()) for name, a, m in zip(Network._fields, automatic, by_hand)}


class Waves(NamedTuple):
    """A simple RNN that has learned to predict sine waves, and one wave that it continues."""

    network: Network
    windows: int
    steps: int
    losses: list[float]
    true: list[float]
    continued: list[float]

    @property
    def floor(self) -> float:
        """The least mean squared error: from the first value nobody can tell a rise from a fall."""
        return math.sin(STEP) ** 2 / (2 * self.steps)

    @property
    def rmse(self) -> float:
        """Of the continuation."""
        return _root_mean_square([a - b for a, b in zip(self.true[self.steps :], self.continued)])

    @property
    def size(self) -> float:
        """Root mean square of the wave itself over the same steps."""
        return _root_mean_square(self.true[self.steps :])


def learn_waves(windows: int = 64, steps: int = 12, updates: int = 300, horizon: int = 48) -> Waves:
    """Learn x_{t+1} from x_1 ... x_t, then go on for `horizon` steps from the network's own predictions.

    Windows x [T, M, 1] of sin(θ + t STEP), phases θ even over the circle. Gradients are `backpropagate`'s.
    """
    phase = 2 * math.pi * torch.arange(windows) / windows
    wave = torch.sin(phase[:, None] + STEP * torch.arange(steps + 1)).T[:, :, None]
    network = start(1, 16, 1, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(network, lr=0.01)
    losses = []
    for _ in range(updates):
        for parameter, gradient in zip(network, backpropagate(wave[:-1], wave[1:], network)):
            parameter.grad = gradient / (windows * steps)
        optimizer.step()
        losses.append(float((run(wave[:-1], network)[1] - wave[1:]).square().mean()))
    true = torch.sin(1 + STEP * torch.arange(steps + horizon)).tolist()
    return Waves(network, windows, steps, losses, true, list(islice(_continue(true[:steps], network), horizon)))


def _root_mean_square(numbers: Sequence[float]) -> float:
    return math.sqrt(sum(number**2 for number in numbers) / len(numbers))


def _continue(shown: list[float], network: Network) -> Iterator[float]:
    h, y = run(torch.tensor(shown).reshape(-1, 1, 1), network)
    state, value = h[-1], y[-1]
    while True:
        yield float(value)
        state = hidden(value, state, *network[:3])
        value = output(state, *network[3:])


def make(name: str, scale: float = 1.0, forget_bias: float | None = None) -> Cell:
    """A cell whose gradients are to be followed, with the seed and the sizes of the cards but other initial values.

    Args:
        name: as registered.
        scale: what a simple RNN's recurrent weights U are multiplied by.
        forget_bias: where the bias of the gate that keeps the old state starts, if not where the cell has it.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        cell = get(name)(*FLOW_SIZES)
        if scale != 1:
            cell.get_parameter("U").mul_(scale)
        for bias in [key for key, weight in cell.weights.items() if weight.role == "forget"]:
            if forget_bias is not None:
                cell.get_parameter(bias).fill_(forget_bias)
    return cell


@torch.no_grad()
def tanh_slope(cell: Cell, steps: int = LAGS) -> float:
    """Root mean square of tanh′ = 1 − h² in a simple RNN that runs on inputs from N(0, 1)."""
    generator = torch.Generator().manual_seed(0)  # the inputs of `gradient_flow`, so that the two can be compared
    x = torch.randn(steps, 1, cell.input_size, generator=generator, dtype=torch.float64).float()
    (h,) = cell.initial_state(x[0])
    found = []
    for x_t in x:
        (h,) = cell(x_t, h)
        found.append(1 - h**2)
    return float(torch.stack(found).square().mean().sqrt())
