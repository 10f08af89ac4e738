"""The options that every cell takes: each against its own definition, over the whole registry.

Shapes: T time steps, B batch, I input size, H hidden size.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rnnzoo import Bias, Cell, InputWeight, Recurrent, RecurrentWeight, UserError, gate, get, list_cells
from rnnzoo.options import GAIN, INITIALIZERS, Modifier

T, B, I, H = 5, 3, 4, 6  # noqa: E741  I is the input size everywhere in this project

cells = pytest.mark.parametrize("name", list_cells())


def make(name, **options):
    """The layer in float64 on the plain loop, or None where the cell refuses; the refusal names the option."""
    torch.manual_seed(0)
    try:
        return Recurrent(name, I, H, engine="reference", **options).double()
    except UserError as error:
        [key] = options
        cell = name if isinstance(name, str) else name.__name__
        assert str(error).startswith(key) and (get(name) if isinstance(name, str) else name).__name__ in str(error), (
            cell
        )
        return None


def x(steps=T):
    return torch.randn(steps, B, I, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def every(state):
    return state if isinstance(state, tuple) else (state,)


class Plain(Cell):
    """A gate, an element-wise path and a product with a product."""

    W, U, b = gate()
    V = RecurrentWeight()

    def step(self, x, h):
        return 0.5 * h + torch.tanh(x @ self.W + torch.tanh(h @ self.U + self.b) @ self.V)


class Additive(Cell):
    """No matrix at all."""

    b = Bias()

    def step(self, x, h):
        return 0.5 * h + x.sum(1, keepdim=True) + self.b


# Layer norm


def test_layer_norm_normalises_every_product():
    layer = make(Plain, layer_norm=True)
    cell = layer.cells[0]
    with torch.no_grad():
        getattr(cell, GAIN).normal_()
    of_W, of_U, of_V = getattr(cell, GAIN).split(H)  # in the order in which step makes the products
    h = torch.zeros(B, H, dtype=torch.float64)
    for x_t in x():
        inner = torch.tanh(F.layer_norm(h @ cell.U, (H,), of_U) + cell.b)
        h = 0.5 * h + torch.tanh(F.layer_norm(x_t @ cell.W, (H,), of_W) + F.layer_norm(inner @ cell.V, (H,), of_V))
    torch.testing.assert_close(layer(x())[0][-1], h)


@cells
def test_layer_norm_trains_its_gains(name):
    layer = make(name, layer_norm=True)
    if layer is None:
        return
    output, _ = layer(x())
    output.sum().backward()
    gain = getattr(layer.cells[0], GAIN)
    assert gain.shape == (sum(layer.cells[0].modifier.products[k].after for k in layer.cells[0].modifier.normed),)
    assert gain.grad.ne(0).any() and output.isfinite().all()


def test_layer_norm_of_a_single_feature_would_leave_only_its_sign():
    one = Recurrent("gru", 1, H, layer_norm=True, engine="reference")
    output = one(torch.tensor([[[0.1]], [[0.2]]]))[0], one(torch.tensor([[[0.2]], [[0.4]]]))[0]
    assert not torch.allclose(*output)


def test_fixed_maps_are_left_as_they_are():
    # the memory of a Legendre memory unit, m @ A, is no longer one if it is normalised or dropped from
    layer = make("lmu", layer_norm=True)
    cell, products = layer.cells[0], layer.cells[0].modifier.products
    assert [products[k].before for k in layer.cells[0].modifier.normed].count(cell.order) == 1  # m @ W_m, not m @ A
    assert make("esn", layer_norm=True) is None and make("esn", recurrent_dropout=0.1) is None


# Recurrent dropout


@cells
def test_recurrent_dropout_is_one_mask_a_sequence_and_none_in_evaluation(name):
    layer = make(name, recurrent_dropout=0.5)
    if layer is None:
        return
    plain = make(name)
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer.eval()(x())[0], plain.eval()(x())[0])
    layer.train()
    sizes = layer.cells[0].modifier.dropped
    masks = layer.cells[0].modifier.with_masks(x(50))[:, :, I:]
    assert masks.shape == (50, B, sum(sizes))
    assert (masks == masks[0]).all() and set(masks.unique().tolist()) <= {0.0, 2.0}


def test_recurrent_dropout_scales_what_products_see_and_nothing_else():
    layer = make(Plain, recurrent_dropout=0.5)
    cell = layer.cells[0]
    torch.manual_seed(3)
    output, _ = layer(x())
    torch.manual_seed(3)
    mask = cell.modifier.with_masks(x())[0, :, I:]
    assert mask.shape == (B, H) and 0 < mask.eq(0).sum() < mask.numel()
    h = torch.zeros(B, H, dtype=torch.float64)
    for x_t in x():
        inner = torch.tanh((mask * h) @ cell.U + cell.b)
        h = 0.5 * h + torch.tanh(x_t @ cell.W + (mask * inner) @ cell.V)
    torch.testing.assert_close(output[-1], h)


# Zoneout


@cells
def test_zoneout_keeps_units_in_training_and_takes_the_mean_in_evaluation(name):
    layer = make(name, zoneout=0.25)
    if layer is None:
        return
    cell = layer.cells[0]
    plain = make(name).cells[0]
    plain.load_state_dict(cell.state_dict())
    before = tuple(torch.randn_like(s).abs() for s in cell.initial_state(x()[0]))
    mean = cell.eval()(x()[0], *before)
    after, after_in_training = plain.eval()(x()[0], *before), plain.train()(x()[0], *before)
    torch.manual_seed(4)
    drawn = cell.train()(cell.modifier.with_masks(x()[:1])[0], *before)
    kept = 0
    for size, b, a, t, m, d in zip(cell.modifier.zoned, before, after, after_in_training, mean, drawn):
        if size == 0:  # a clock, or a past input
            assert torch.equal(a, m) and torch.equal(t, d)
            continue
        torch.testing.assert_close(m, 0.25 * b + 0.75 * a)
        assert (torch.isclose(d, b) | torch.isclose(d, t)).all()
        kept += torch.isclose(d, b).sum()
    assert kept > 0


def test_zoneout_keeps_the_stated_share():
    modifier = Modifier(False, 0.0, 0.3, (), (100,))
    masks = modifier.with_masks(torch.zeros(50, 8, 1))[:, :, 1:]
    # 40,000 draws: three standard deviations are 0.007
    assert masks.mean().item() == pytest.approx(0.3, abs=0.01)
    assert not (masks[0] == masks[1]).all()


# Weight drop


@pytest.mark.parametrize("engine", ["reference", "serial"])
def test_weight_drop_leaves_the_same_weights_out_at_all_steps(engine, shared_kernels):
    layer = Recurrent(Plain, I, H, weight_drop=0.25, engine=engine).double()
    cell = layer.cells[0]
    for _ in range(2):  # drawn anew at each call
        layer.zero_grad()
        output, _ = layer(x(), torch.ones(1, B, H, dtype=torch.float64))
        output.square().sum().backward()
        mask_U, mask_V = (M.grad.ne(0).double() / 0.75 for M in (cell.U, cell.V))  # what is left out has no gradient
        assert 0 < mask_U.eq(0).sum() < H * H and not torch.equal(mask_U, mask_V)
        U, V = (M.detach().clone().requires_grad_() for M in (cell.U, cell.V))
        h = torch.ones(B, H, dtype=torch.float64)
        total = 0
        for x_t in x():
            h = 0.5 * h + torch.tanh(x_t @ cell.W + torch.tanh(h @ (mask_U * U) + cell.b) @ (mask_V * V))
            total = total + h.square().sum()
        torch.testing.assert_close(output[-1], h)
        for mine, expected in zip((cell.U, cell.V), torch.autograd.grad(total, (U, V))):
            torch.testing.assert_close(mine.grad, expected)


@cells
def test_weight_drop_is_of_matrices_on_the_state_and_only_in_training(name):
    recurrent = [k for k, w in get(name).weights.items() if isinstance(w, RecurrentWeight) and w.trainable]
    layer = make(name, weight_drop=0.5)
    assert (layer is not None) == bool(recurrent)
    if layer is None:
        return
    for key in recurrent:
        nn.init.uniform_(getattr(layer.cells[0], key), 0.1, 0.5)  # some start from zero
    plain = make(name)
    plain.load_state_dict(layer.state_dict())
    assert not torch.allclose(layer(x())[0], plain(x())[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(layer.eval()(x())[0], plain.eval()(x())[0])
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), plain.parameters()))


def test_weight_drop_with_pieces_draws_once_and_with_resets():
    whole, pieces = (Recurrent("gru", I, H, weight_drop=0.5, checkpoint_every=n).double() for n in (0, 2))
    pieces.load_state_dict(whole.state_dict())
    found = []
    for layer in (whole, pieces):
        torch.manual_seed(5)
        resets = torch.zeros(T, B, dtype=torch.bool)
        resets[3] = True
        layer(x(), resets=resets)[0].square().sum().backward()
        found.append([p.grad for p in layer.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


# Every engine, with all of them at once


@pytest.mark.parametrize("name", ["gru", "lstm_projected", "qrnn", "clockwork"])
def test_engines_agree_on_modified_cells(name):
    pieces = ({"layer_norm": True}, {"recurrent_dropout": 0.3}, {"zoneout": 0.2})
    options = {key: value for piece in pieces for key, value in piece.items() if make(name, **piece)}
    loop = Recurrent(name, I, H, engine="reference", **options).double()
    auto = Recurrent(name, I, H, engine="auto", **options).double()
    auto.expected_calls = 10**6
    auto.load_state_dict(loop.state_dict())
    for mode in (True, False):
        found = []
        for layer in (loop, auto):
            torch.manual_seed(7)
            layer.train(mode).zero_grad()
            output, _ = layer(x(), lengths=[T, 2, 3])
            (output * torch.linspace(-1, 1, output.numel()).double().view_as(output)).sum().backward()
            found.append([output.detach(), *(p.grad for p in layer.parameters() if p.grad is not None)])
        for expected, value in zip(*found, strict=True):
            torch.testing.assert_close(value, expected)


# What the layer adds


@cells
def test_learned_initial_states_get_gradient_and_start_where_zero_does(name):
    layer = make(name, learn_initial_state=True)
    plain = make(name)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if ".initial_" not in k})
    torch.testing.assert_close(layer(x())[0], plain(x())[0])
    starts = {k: p for k, p in layer.named_parameters() if ".initial_" in k}
    clocks = [s for s in layer.cells[0].state_names if layer.cells[0].dims_of(s) == (1,)]
    assert len(starts) == len(layer.cells[0].state_names) - len(clocks)
    with torch.no_grad():
        for p in starts.values():
            p.add_(torch.rand_like(p))
    given = tuple(torch.rand(1, B, *shape, dtype=torch.float64) for shape in layer.cells[0].state_shapes())
    given = given if len(given) > 1 else given[0]
    # a state that is given is not touched
    torch.testing.assert_close(layer(x(), given)[0], plain(x(), given)[0])
    layer(x())[0].square().sum().backward()
    assert any(p.grad is not None and p.grad.ne(0).any() for p in starts.values())


@cells
def test_projection_and_residual(name):
    layer = make(name, projection=I)
    with_residual = Recurrent(name, I, H, projection=I, residual=True, engine="reference").double()
    with_residual.load_state_dict(layer.state_dict())
    assert layer.output_size == I
    hidden = make(name)
    hidden.load_state_dict({k: v for k, v in layer.state_dict().items() if k.startswith("cells.")})
    linear = layer.projections[0]
    expected = F.linear(hidden(x())[0], linear.weight, linear.bias)
    torch.testing.assert_close(layer(x())[0], expected)
    torch.testing.assert_close(with_residual(x())[0], expected + x())
    state, ys = None, []
    for x_t in x():
        y, state = with_residual.step(x_t, state)
        ys.append(y)
    torch.testing.assert_close(torch.stack(ys), expected + x())


# The block of deep stacks


@cells
def test_a_block_around_every_cell(name):
    """The cells of a layer of their own, and around them what the papers write, in torch."""
    deep = Recurrent(name, I, H, projection=3, block="glu", engine="reference").double()
    cells = Recurrent(name, 3, H, engine="reference").double()
    cells.load_state_dict({k: v for k, v in deep.state_dict().items() if k.startswith("cells.")})
    encoder, [block] = deep.encoder, deep.blocks
    u = F.linear(x(), encoder.weight, encoder.bias)
    gelu = F.gelu(cells(F.layer_norm(u, (3,), block.norm.weight, block.norm.bias))[0])
    value, gate = (gelu @ block.linear.weight.T + block.linear.bias).split(3, -1)
    expected = u + value * torch.sigmoid(gate)
    torch.testing.assert_close(deep(x())[0], expected)
    assert deep.output_size == 3
    state, ys = None, []
    for x_t in x():
        y, state = deep.step(x_t, state)
        ys.append(y)
    torch.testing.assert_close(torch.stack(ys), expected)


class Deep(nn.Module):
    """Two layers of GRU in both directions, each in its block, of torch's own modules."""

    def __init__(self, layer):
        super().__init__()
        self.encoder = nn.Linear(I, 2 * H)
        self.norms = nn.ModuleList(nn.LayerNorm(2 * H) for _ in range(2))
        self.grus = nn.ModuleList(nn.GRU(2 * H, H, bidirectional=True) for _ in range(2))
        self.linears = nn.ModuleList(nn.Linear(2 * H, 4 * H) for _ in range(2))
        self.double()
        self.encoder.load_state_dict(layer.encoder.state_dict())
        for k, block in enumerate(layer.blocks):
            plain = Recurrent("gru", 2 * H, H, bidirectional=True).double()
            own = {f"cells.{n}.{key}": v for n in (0, 1) for key, v in layer.cells[2 * k + n].state_dict().items()}
            plain.load_state_dict(own)
            self.grus[k].load_state_dict(plain.torch_state_dict())
            self.norms[k].load_state_dict(block.norm.state_dict())
            self.linears[k].load_state_dict(block.linear.state_dict())

    def forward(self, x):
        x = self.encoder(x)
        for norm, gru, linear in zip(self.norms, self.grus, self.linears):
            x = x + F.glu(linear(F.gelu(gru(norm(x))[0])), -1)
        return x


@pytest.mark.parametrize("engine", ["reference", "native", "serial"])
def test_blocks_around_two_directions(engine, shared_kernels):
    """Ragged sequences, parts that start anew, and their gradients are those of each part alone; padding is NaN."""
    torch.manual_seed(0)
    layer = Recurrent("gru", I, H, 2, bidirectional=True, block="glu", engine=engine).double()
    theirs = Deep(layer)
    padded = x().masked_fill(torch.arange(T)[:, None, None] >= torch.tensor([5, 2, 4])[:, None], math.nan)
    output, _ = layer(padded, lengths=[5, 2, 4])
    for b, length in enumerate([5, 2, 4]):
        torch.testing.assert_close(output[:length, b], theirs(x()[:length, b]))
        assert not output[length:, b].any()
    weights = torch.rand_like(output)
    (output * weights).sum().backward()
    sum((theirs(x()[:n, b]) * weights[:n, b]).sum() for b, n in enumerate([5, 2, 4])).backward()
    for mine, other in ((layer.encoder, theirs.encoder), (layer.blocks[1].linear, theirs.linears[1])):
        torch.testing.assert_close(mine.weight.grad, other.weight.grad)
    torch.testing.assert_close(layer.blocks[0].norm.weight.grad, theirs.norms[0].weight.grad)
    if engine == "reference":
        resets = torch.zeros(T, B, dtype=torch.bool)
        resets[2] = True
        torch.testing.assert_close(layer(x(), resets=resets)[0], torch.cat([theirs(x()[:2]), theirs(x()[2:])]))


def test_dropout_within_a_block():
    """Of what the GELU gives and of what the GLU gives; the residual path is never dropped."""
    layer = Recurrent("gru", I, 50, dropout=0.5, block="glu")
    with torch.no_grad():
        layer.blocks[0].linear.weight.zero_()  # so that the GLU gives b σ(b') whatever was dropped before
    u = layer.encoder(torch.ones(40, 9, I))
    value, gate = layer.blocks[0].linear.bias.split(50)
    added = (layer(torch.ones(40, 9, I))[0] - u) / (value * gate.sigmoid())
    assert 0.45 < (added.abs() < 1e-2).float().mean() < 0.55
    torch.testing.assert_close(
        added[added.abs() > 1e-2], torch.full_like(added[added.abs() > 1e-2], 2), rtol=0.1, atol=0
    )
    with torch.no_grad():
        layer.blocks[0].linear.weight.normal_()
        layer.blocks[0].dropout.p, expected = 0.0, layer.eval()(torch.ones(40, 9, I))[0]
    torch.testing.assert_close(layer.train()(torch.ones(40, 9, I))[0], expected)


def test_layers_of_different_sizes_meet_in_their_blocks():
    layer = Recurrent("lru", I, [8, 6], 2, block="glu")
    assert [cell.input_size for cell in layer.cells] == [6, 6] and layer.output_size == 6
    found = {key: list(value.shape) for key, value in layer.state_dict().items() if not key.startswith("cells.")}
    around = {"norm.weight": [6], "norm.bias": [6], "linear.bias": [12]}
    assert found == {
        "encoder.weight": [6, I], "encoder.bias": [6],
        "blocks.0.linear.weight": [12, 8], "blocks.1.linear.weight": [12, 6],
        **{f"blocks.{k}.{key}": shape for k in (0, 1) for key, shape in around.items()},
    }  # fmt: skip


@pytest.mark.parametrize("options", [{"projection": I}, {"projection": I, "residual": True}, {"block": "glu"}], ids=str)
def test_outputs_past_a_sequences_length_are_zero(options):
    output, _ = Recurrent("gru", I, H, 2, **options)(torch.randn(T, B, I), lengths=[5, 2, 4])
    assert [int(o.any(-1).sum()) for o in output.unbind(1)] == [5, 2, 4]


def test_residual_needs_a_layer_whose_sizes_agree():
    with pytest.raises(UserError, match=r"residual: no layer has as many outputs as inputs; the sizes are \[4, 6\]"):
        Recurrent("gru", I, H, residual=True)
    Recurrent("gru", I, H, 2, residual=True)
    Recurrent("gru", I, H, bidirectional=True, projection=I, residual=True)


# Initial values


@cells
@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_initializers(name, initializer):
    layer = make(name, initializer=initializer)
    if layer is None:
        return
    cell = layer.cells[0]
    recurrent = [getattr(cell, k) for k, w in cell.weights.items() if isinstance(w, RecurrentWeight)]
    own = [getattr(cell, k) for k, w in cell.weights.items() if isinstance(w, (InputWeight, RecurrentWeight, Bias))]
    if initializer == "identity":
        assert all(torch.equal(U, torch.eye(*U.shape, dtype=torch.float64)) for U in recurrent)
    elif initializer == "orthogonal":
        for U in recurrent:
            gram = U @ U.T if len(U) <= U.shape[1] else U.T @ U
            torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64), rtol=0, atol=1e-5)  # float32
    elif initializer == "xavier":
        assert all(U.abs().max() <= math.sqrt(6 / sum(U.shape)) for U in recurrent)
    elif initializer == "torch":
        assert all(0 < W.abs().max() <= 1 / math.sqrt(H) for W in own)
    assert initializer == "default" or recurrent or own


@cells
def test_forget_bias_and_chrono(name):
    layer = make(name, forget_bias=1.5)
    roles = {k: w.role for k, w in get(name).weights.items() if w.role}
    assert (layer is None) == (not {"forget", "update"} & set(roles.values()))
    if layer is None:
        assert make(name, chrono=10) is None
        return
    default, cell = make(name).cells[0], layer.cells[0]
    for key, role in roles.items():
        start = getattr(default, key)
        expected = {"forget": torch.full_like(start, 1.5), "update": torch.full_like(start, -1.5), "input": start}
        assert torch.equal(getattr(cell, key), expected[role])
    cell = make(name, chrono=100).cells[0]
    for key, role in roles.items():
        b = getattr(cell, key) if role == "forget" else -getattr(cell, key)
        # Tallec & Ollivier 2018: log U(1, T - 1)
        assert (b >= 0).all() and (b <= math.log(99)).all() and b.unique().numel() == b.shape[-1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"zoneout": 1.0}, ["zoneout", "below 1", "1.0"]),
        ({"recurrent_dropout": -0.1}, ["recurrent_dropout", "-0.1"]),
        ({"zoneout": True}, ["zoneout", "True"]),
        ({"weight_drop": 1.0}, ["weight_drop", "1.0"]),
        ({"layer_norm": 1}, ["layer_norm", "true or false", "1"]),
        ({"learn_initial_state": "no"}, ["learn_initial_state", "'no'"]),
        ({"residual": 1}, ["residual", "1"]),
        ({"block": "gul"}, ["block='gul'", "did you mean glu"]),
        ({"block": "glu", "residual": True}, ["block=glu", "leave residual out"]),
        ({"dropout": 0.1}, ["dropout acts between layers", "num_layers"]),
        ({"projection": -1}, ["projection", "features", "-1"]),
        ({"projection": 2.0}, ["projection", "2.0"]),
        ({"initializer": "ortogonal"}, ["ortogonal", "did you mean orthogonal"]),
        ({"initializer": "chrono"}, ["chrono is a key of its own"]),
        ({"chrono": 2}, ["chrono", "3 or more", "2"]),
        ({"chrono": 10, "forget_bias": 1.0}, ["chrono", "forget_bias", "one of them"]),
        ({"forget_bias": True}, ["forget_bias", "True"]),
    ],
    ids=str,
)
def test_wrong_values_are_refused(options, words):
    with pytest.raises(UserError) as caught:
        Recurrent("lstm", I, I, **options)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("key", ["layer_norm", "recurrent_dropout", "initializer", "weight_drop"])
def test_a_cell_without_a_matrix_says_so(key):
    value = {"layer_norm": True, "recurrent_dropout": 0.1, "initializer": "identity", "weight_drop": 0.5}[key]
    with pytest.raises(UserError, match=rf"{key}.*Additive has no"):
        Recurrent(Additive, I, H, **{key: value})


def test_a_cell_that_chooses_its_initial_state_keeps_it():
    class Chooses(Plain):
        def initial_state(self, x):
            return (x.new_ones(len(x), self.hidden_size),)

    with pytest.raises(UserError, match="learn_initial_state: Chooses"):
        Recurrent(Chooses, I, H, learn_initial_state=True)


def test_torch_weights_do_not_fit_what_torch_has_not():
    for options in ({"layer_norm": True}, {"projection": 2}, {"residual": True}, {"block": "glu"}):
        with pytest.raises(UserError, match="torch"):
            Recurrent("gru", H, H, **options).torch_state_dict()
