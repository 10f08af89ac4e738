"""The operations of `listed.py` in kernels: what torch gives, for special values too, forwards and backwards.

Some stand in one step, each on sixteen numbers of its own: a kernel for each takes longer, and so does one for all.
Shapes: N rows.
"""

from __future__ import annotations

import functools

import pytest
import torch
from listed import COMPLEX, EVERY, FALLING, Listed
from test_operations import ROWS
from torch import Tensor

from rnnzoo import Cell, Recurrent, State, UserError, Weight
from rnnzoo.engine import serial

pytestmark = pytest.mark.usefixtures("shared_kernels", "empty_memory_is_nan", "as_users_compile")

torch.manual_seed(0)
W, K, b = torch.randn(16, 16), torch.randn(4, 4), torch.randn(16)
SIZES = {
    name: operation(torch.ones(2, 16), torch.ones(2, 4, 4), W, K, b).flatten().numel() // 2
    for name, operation in EVERY.items()
}


ORDINARY, ZEROS = 6, 2
"""So many rows are of ordinary numbers, they stand last; and so many before them of zeros and ones. Of complex numbers,
where torch's result is infinite or none in other rows, ours may be another such."""


class Weighted(Cell):
    W, K, b = Weight(16, 16), Weight(4, 4), Weight(16)

    def apply(self, operation: Listed, v: Tensor) -> Tensor:
        found = operation(v, v.unflatten(-1, (4, 4)), self.W, self.K, self.b)
        return found.reshape(v.shape[0], -1).to(v.dtype)


def beside(names: tuple[str, ...]) -> type[Weighted]:
    """A cell whose step has these operations."""

    class Beside(Weighted):
        y, v = State(sum(SIZES[name] for name in names)), State(16 * len(names))

        def step(self, x: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            each = zip(names, v.unflatten(-1, (-1, 16)).unbind(1), strict=True)
            return torch.cat([self.apply(EVERY[name], part) for name, part in each], -1), v

    return Beside


NAMES = tuple(EVERY)
TOGETHER = {name: NAMES[k - k % 8 : k - k % 8 + 8] for k, name in enumerate(NAMES)}
"""The operations that stand in one step with each."""


def rows() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    special = torch.tensor(ROWS, dtype=torch.float64).clamp(
        -1024, 1024
    )  # where sums overflow or cancel, their order tells
    special[torch.tensor(ROWS).isinf()] = torch.tensor(ROWS, dtype=torch.float64)[torch.tensor(ROWS).isinf()]
    ordinary = torch.randn(ORDINARY, 16, generator=generator, dtype=torch.float64)
    zeros = torch.tensor([[0.0, -0.0] * 8, [1.0] * 16], dtype=torch.float64)
    return torch.cat([special, zeros, ordinary]).float()


@functools.cache
def results(names: tuple[str, ...]) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    """By engine and operation: outputs [N, n] and gradients [N, 16]."""
    found = {}
    kind, sizes = beside(names), [SIZES[name] for name in names]
    for engine in ("serial", "reference"):
        layer = Recurrent(kind, 1, 1, engine=engine)
        with torch.no_grad():
            for parameter, value in zip((layer.cells[0].W, layer.cells[0].K, layer.cells[0].b), (W, K, b)):
                parameter.copy_(value)
        x = rows()
        assert serial.lacks(layer.cells[0], x) is None
        v = x.repeat(1, len(names))[None].requires_grad_()
        output, _ = layer(x.new_zeros(1, len(x), 1), (x.new_zeros(1, len(x), sum(sizes)), v))
        (gradient,) = torch.autograd.grad(output.sum(), v)
        parts = zip(output.detach()[0].split(sizes, -1), gradient[0].split(16, -1), strict=True)
        found[engine] = dict(zip(names, parts, strict=True))
    return found


@pytest.mark.parametrize("name", EVERY)
def test_listed_operations_are_those_of_torch(name):
    both = results(TOGETHER[name])
    each = zip(both["serial"][name], both["reference"][name], strict=True)
    for k, (found, expected) in enumerate(each):
        if (name in UNSAID and k) or name in ("var_mean", "group_norm"):
            found, expected = found[-ORDINARY:], expected[-ORDINARY:]
        if name in COMPLEX:
            special = torch.arange(len(found))[:, None] < len(found) - ORDINARY - ZEROS
            found, expected = (torch.where(special & ~expected.isfinite(), 0.0, each) for each in (found, expected))
        torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-4, atol=1e-5)
        zero = (found == 0) & (expected == 0)
        if name in EXACT:
            assert torch.equal(found.signbit() & zero, expected.signbit() & zero)


UNSAID = {"topk", "kthvalue", "cumprod"}
"""Where torch picks one of equal numbers, or has two formulas for what is no number; so has var_mean, of means.

Of equal numbers group_norm there multiplies first and subtracts then, which leaves what rounding took."""

EXACT = {"flip", "roll", "index by a list", "gather", "max(dim)", "sort", "tril", "diagonal", "strided slice"}
"""Where zeros must keep their sign."""


@pytest.mark.parametrize("name", FALLING)
def test_operations_without_a_form_are_named(name):
    operation, word = FALLING[name]

    class One(Weighted):
        y, v = State(16), State(16)

        def step(self, x: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            return self.apply(operation, v).sum(-1, keepdim=True) * y, v

    cell = One(3, 4)
    try:
        reason = serial.lacks(cell)
    except UserError as error:
        reason = str(error)
    assert reason is not None and word in reason
