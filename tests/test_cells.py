"""Every registered cell against its paper's equations in NumPy (tests/oracles), and against installed packages.

Shapes: B batch, I input size, H hidden size.
"""

import re
from importlib import import_module

import numpy as np
import pytest
import torch

from rnnzoo import Recurrent, get, list_cells
from rnnzoo.check import reachable
from rnnzoo.registry import entry

B, I, H = 3, 4, 6  # noqa: E741  I is the input size everywhere in this project

# Only the zoo's own: plug-ins that are installed here bring tests of their own.
ZOO = [name for name in list_cells() if entry(name).module.startswith("rnnzoo.cells.")]
FAMILIES = {entry(name).family: import_module(f"oracles.{entry(name).family}") for name in ZOO}
TWINS = {name: twin for family in FAMILIES.values() for name, twin in getattr(family, "TWINS", {}).items()}
GRADIENTS = FAMILIES["neural"].GRADIENTS


def oracle(name):
    return getattr(FAMILIES[entry(name).family], name)


def variants():
    """Each cell as it comes, and once more for each other choice of a hyperparameter that has choices."""
    found = []
    for name in ZOO:
        found.append(pytest.param(name, {}, id=name))
        for key, declared in get(name).hyperparameters.items():
            choices = declared.choices or ((True, False) if declared.type is bool else ())
            others = [choice for choice in choices if choice != declared.default]
            found += [pytest.param(name, {key: choice}, id=f"{name}-{choice}") for choice in others]
    return [*found, pytest.param("indrnn", {"bound": 0.4}, id="indrnn-bound")]


def random_cell(name, options):
    """The cell in float64 with every trainable parameter random, biases included."""
    cell = get(name)(I, H, **options).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.normal_(std=0.5)
    return cell


class Paper:
    """A cell's parameters as float64 arrays, matrices transposed to the papers' W [H, I]."""

    def __init__(self, cell):
        for name in cell.weights:
            array = getattr(cell, name).detach().numpy()
            setattr(self, name, array.T if array.ndim == 2 else array)


def test_every_oracle_and_every_twin_is_of_a_cell():
    assert set(TWINS) == {name for name in ZOO if entry(name).package}
    # a cell without an oracle fails below, by name


@pytest.mark.parametrize("name", ZOO)
def test_cites_its_source_and_says_what_it_is(name):
    assert entry(name).source
    assert get(name).__doc__
    code = entry(name).code  # a file says nothing without the commit that it is read at
    assert not code or re.match(r"github\.com/[\w.-]+/[\w.-]+ at [0-9a-f]{7}, \S", code)


def test_a_transcription_of_the_same_source_is_no_evidence_of_its_own():
    twice = {name for name in ZOO if entry(name).package and not entry(name).independent}
    assert twice == {"sgrn", "miru1", "miru2", "lstm_residual", "lstm_memory_control", "lstm_wmc", "tau_gru"}


@pytest.mark.parametrize(("name", "options"), variants())
def test_equals_the_paper_over_twenty_steps(name, options):
    torch.manual_seed(0)
    cell = random_cell(name, options)
    paper = Paper(cell)
    hyperparameters = {key: options.get(key, h.default) for key, h in cell.hyperparameters.items()}
    xs = torch.randn(20, B, I, dtype=torch.float64)
    state = reachable(cell, B)
    expected = [tuple(s[row].numpy() for s in state) for row in range(B)]

    for x in xs:
        state = cell(x, *state)
        output = cell.readout(x, *state)
        for row in range(B):
            y, expected[row] = oracle(name)(paper, x[row].numpy(), *expected[row], **hyperparameters)
            np.testing.assert_allclose(output[row].detach().numpy(), y, rtol=1e-10, atol=1e-12)
            for mine, theirs in zip(state, expected[row], strict=True):
                np.testing.assert_allclose(mine[row].detach().numpy(), theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), [v for v in variants() if v.values[0] in TWINS])
def test_equals_the_package_over_twenty_steps(name, options):
    torch.manual_seed(4)
    cell = random_cell(name, options)
    twin = TWINS[name](cell)
    state = expected = reachable(cell, B)
    for x in torch.randn(20, B, I, dtype=torch.float64):
        state, expected = cell(x, *state), twin(x, *expected)
        for mine, theirs in zip(state, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), [("lif", {}), ("surnn", {"harmonics": 3})], ids=list(GRADIENTS))
def test_surrogate_gradient_of_one_step_is_the_formula_of_its_paper(name, options):
    torch.manual_seed(6)
    cell = random_cell(name, options)
    paper = Paper(cell)
    hyperparameters = {key: getattr(cell, key) for key in cell.hyperparameters}
    x = torch.randn(B, I, dtype=torch.float64)
    before = {"x": x, **dict(zip(cell.state_names, reachable(cell, B)))}
    after = cell(*(t.requires_grad_() for t in before.values()))
    directions = [torch.randn_like(state) for state in after]
    weights = dict(cell.named_parameters())
    found = torch.autograd.grad(after, (*before.values(), *weights.values()), directions)
    found = {key: gradient.numpy() for key, gradient in zip((*before, *weights), found)}

    rows = [[t[row].detach().numpy() for t in (*before.values(), *directions)] for row in range(B)]
    expected = [GRADIENTS[name](paper, *row, **hyperparameters) for row in rows]
    for key in before:
        np.testing.assert_allclose(found[key], [row[key] for row in expected], rtol=1e-10, atol=1e-12, err_msg=key)
    for key in weights:
        total = sum(row[key] for row in expected)
        np.testing.assert_allclose(found[key].T, total, rtol=1e-10, atol=1e-12, err_msg=key)


# test_check.py has the defaults
@pytest.mark.parametrize(("name", "options"), [v for v in variants() if v.values[1]])
def test_gradient_of_one_step(name, options):
    torch.manual_seed(1)
    cell = random_cell(name, options)
    x = torch.randn(2, I, dtype=torch.float64)
    inputs = tuple(t.requires_grad_() for t in (x, *reachable(cell, 2), *cell.parameters()))
    n = len(cell.state_names)
    # gradcheck perturbs the tensors it is given in place, so the cell sees its parameters move
    assert torch.autograd.gradcheck(lambda x, *others: cell(x, *others[:n]), inputs)


@pytest.mark.parametrize("name", ZOO)
def test_defaults_are_stable_at_256_units_and_200_steps(name):
    torch.manual_seed(5)
    # the plain loop would take the exponential of a matrix at every step
    layer = Recurrent(name, 16, 256, engine="serial" if name == "orthogonal" else "reference")
    x = torch.randn(200, 4, 16, requires_grad=True)
    output, _ = layer(x)
    assert output.isfinite().all() and output.abs().max() < 1e3
    (output - torch.randn_like(output)).square().mean().backward()
    for key, tensor in {"x": x, **dict(layer.named_parameters())}.items():
        assert 1e-12 < tensor.grad.norm() < 1e6, key
