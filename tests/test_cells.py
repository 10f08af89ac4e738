"""Every registered cell against its paper: the equations once more, in NumPy float64, one sequence at a time.

The oracles use the papers' column vectors, so a cell's W [I, H] is the paper's matrix W [H, I] transposed.
Shapes: B batch, I input size, H hidden size.
"""

import numpy as np
import pytest
import torch
from numpy import tanh

from rnnzoo import Recurrent, get, list_cells
from rnnzoo.cell import Bias
from rnnzoo.registry import entry

B, I, H = 3, 4, 5  # noqa: E741  I is the input size everywhere in this project

# Only the zoo's own: plug-ins that are installed here bring tests of their own.
ZOO = [name for name in list_cells() if entry(name).module.startswith("rnnzoo.cells.")]


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def rnn(p, x, h, nonlinearity):
    """Elman 1990, with a bias and the non-linearity as a choice."""
    a = p.W @ x + p.U @ h + p.b
    h = {"tanh": tanh, "relu": lambda v: np.maximum(v, 0)}[nonlinearity](a)
    return h, (h,)


def lstm(p, x, h, c, forget_bias):
    """Gers et al. 2000: input, forget and output gate around one memory, tanh as both squashing functions."""
    i = sigmoid(p.W_i @ x + p.U_i @ h + p.b_i)
    f = sigmoid(p.W_f @ x + p.U_f @ h + p.b_f)
    o = sigmoid(p.W_o @ x + p.U_o @ h + p.b_o)
    c = f * c + i * tanh(p.W_g @ x + p.U_g @ h + p.b_g)
    h = o * tanh(c)
    return h, (h, c)


def lstm_peephole(p, x, y, c, forget_bias):
    """Greff et al. 2017, section II-A; the output gate sees the new memory."""
    z = tanh(p.W_z @ x + p.R_z @ y + p.b_z)
    i = sigmoid(p.W_i @ x + p.R_i @ y + p.p_i * c + p.b_i)
    f = sigmoid(p.W_f @ x + p.R_f @ y + p.p_f * c + p.b_f)
    c_new = z * i + c * f
    o = sigmoid(p.W_o @ x + p.R_o @ y + p.p_o * c_new + p.b_o)
    y = tanh(c_new) * o
    return y, (y, c_new)


def gru(p, x, h):
    """Cho et al. 2014 with cuDNN's biases: h = z∘h + (1-z)∘tanh(Wx + b + r∘(Uh + c))."""
    r = sigmoid(p.W_r @ x + p.U_r @ h + p.b_r)
    z = sigmoid(p.W_z @ x + p.U_z @ h + p.b_z)
    proposed = tanh(p.W_n @ x + p.b_n + r * (p.U_n @ h + p.c_n))
    h = z * h + (1 - z) * proposed
    return h, (h,)


def mgu(p, x, h):
    """Zhou et al. 2016, eq. 5: products with the concatenation [h, x], W = [U, W] there."""
    f = sigmoid(np.hstack([p.U_f, p.W_f]) @ np.concatenate([h, x]) + p.b_f)
    proposed = tanh(np.hstack([p.U_h, p.W_h]) @ np.concatenate([f * h, x]) + p.b_h)
    h = (1 - f) * h + f * proposed
    return h, (h,)


ORACLES = {"rnn": rnn, "lstm": lstm, "lstm_peephole": lstm_peephole, "gru": gru, "mgu": mgu}
"""From parameters `p`, one input [I], the states [H] and all hyperparameters to the output and the new states."""


def variants():
    """Each cell as it comes, and once more for each other choice of a hyperparameter that has choices."""
    found = []
    for name in ZOO:
        found.append(pytest.param(name, {}, id=name))
        for key, declared in get(name).hyperparameters.items():
            others = [choice for choice in declared.choices if choice != declared.default]
            found += [pytest.param(name, {key: choice}, id=f"{name}-{choice}") for choice in others]
    return found


def random_cell(name, options):
    """The cell in float64 with every parameter random, biases included."""
    cell = get(name)(I, H, **options).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.normal_(std=0.5)
    return cell


def random_state(cell, batch):
    # from the cell's own zero states, so that a cell with states of another shape needs no other test
    return tuple(torch.randn_like(s) for s in cell.initial_state(torch.zeros(batch, I, dtype=torch.float64)))


class Paper:
    """A cell's parameters as float64 arrays, matrices transposed to the papers' W [H, I]."""

    def __init__(self, cell):
        for name, parameter in cell.named_parameters():
            setattr(self, name, parameter.detach().numpy().T)


def test_every_cell_has_an_oracle():
    assert set(ZOO) == set(ORACLES)


@pytest.mark.parametrize("name", ZOO)
def test_cites_its_source_and_says_what_it_is(name):
    assert entry(name).source
    assert get(name).__doc__


@pytest.mark.parametrize(("name", "options"), variants())
def test_equals_the_paper_over_twenty_steps(name, options):
    torch.manual_seed(0)
    cell = random_cell(name, options)
    paper = Paper(cell)
    hyperparameters = {key: options.get(key, h.default) for key, h in cell.hyperparameters.items()}
    xs = torch.randn(20, B, I, dtype=torch.float64)
    state = random_state(cell, B)
    expected = [tuple(s[row].numpy() for s in state) for row in range(B)]

    for x in xs:
        state = cell(x, *state)
        output = cell.readout(x, *state)
        for row in range(B):
            y, expected[row] = ORACLES[name](paper, x[row].numpy(), *expected[row], **hyperparameters)
            np.testing.assert_allclose(output[row].detach().numpy(), y, rtol=1e-10, atol=1e-12)
            for mine, theirs in zip(state, expected[row], strict=True):
                np.testing.assert_allclose(mine[row].detach().numpy(), theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), variants())
def test_gradient_of_one_step(name, options):
    torch.manual_seed(1)
    cell = random_cell(name, options)
    x = torch.randn(2, I, dtype=torch.float64)
    inputs = tuple(t.requires_grad_() for t in (x, *random_state(cell, 2), *cell.parameters()))
    n = len(cell.state_names)
    # gradcheck perturbs the tensors it is given in place, so the cell sees its parameters move
    assert torch.autograd.gradcheck(lambda x, *others: cell(x, *others[:n]), inputs)


@pytest.mark.parametrize(("name", "options"), variants())
def test_does_not_write_to_its_arguments(name, options):
    torch.manual_seed(2)
    cell = random_cell(name, options)
    before = [torch.randn(B, I, dtype=torch.float64), *random_state(cell, B)]
    given = [t.clone() for t in before]
    cell(*given)
    assert all(torch.equal(a, b) for a, b in zip(given, before))


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize(("name", "options"), variants())
def test_every_parameter_gets_gradient(name, options, engine):
    torch.manual_seed(3)
    layer = Recurrent(name, I, H, engine=engine, **options).double()
    output, _ = layer(torch.randn(4, B, I, dtype=torch.float64))
    (output * torch.randn_like(output)).sum().backward()
    for key, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.ne(0).any(), key


@pytest.mark.parametrize("name", [n for n in ZOO if "forget_bias" in get(n).hyperparameters])
@pytest.mark.parametrize("options", [{}, {"forget_bias": -2.5}], ids=["default", "chosen"])
def test_forget_gate_starts_from_its_bias_and_other_biases_from_zero(name, options):
    cell = get(name)(I, H, **options)
    # 1 is Jozefowicz et al. 2015, section 2.2
    assert torch.equal(cell.b_f, torch.full((H,), options.get("forget_bias", 1.0)))
    others = [key for key, weight in cell.weights.items() if isinstance(weight, Bias) and key != "b_f"]
    assert others and all(getattr(cell, key).eq(0).all() for key in others)
