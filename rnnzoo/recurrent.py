"""The layer people use: any cell, stacked, in one or both directions, over whole sequences or step by step.

Shapes: T time steps, B batch, I input size, H hidden size, L layers, D directions (1 or 2).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from rnnzoo import engine as engines
from rnnzoo import registry, torch_nn
from rnnzoo.cell import Cell
from rnnzoo.engine.stepping import Frozen
from rnnzoo.errors import UserError
from rnnzoo.options import (
    Modifier,
    check_flags,
    check_shares,
    dropped_weights,
    initialise,
    modify,
    with_dropped_weights,
)
from rnnzoo.recording import noting
from rnnzoo.resets import backwards, check_resets, resetting
from rnnzoo.sequences import blank, check_lengths, extend, reverse
from rnnzoo.stack import Stack, sizes
from rnnzoo.states import State, join, split

__all__ = ["Recurrent", "State", "Stepper"]


class Recurrent(Stack):
    """A recurrent layer used like `nn.LSTM`, for every cell alike.

    Args:
        cell: a registered name or a `Cell` class.
        input_size: features of the input, I.
        hidden_size: features of the state, H, or a list of them, one a layer.
        num_layers: stacked layers, L; each takes the output of the one below.
        bidirectional: run each layer in both directions and concatenate the outputs.
        batch_first: input and output are [B, T, ...] instead of [T, B, ...]; states are not affected.
        dropout: probability of dropping an output between layers, so it needs a block, or `num_layers` of 2 or more.
        layer_norm: normalise every product with a matrix in the cell's step.
        recurrent_dropout: probability of dropping what the products of the state see, one mask a sequence.
        zoneout: probability that a unit keeps its state of the step before.
        weight_drop: probability of leaving out a weight between the state and itself, drawn once a call.
        projection: features that each layer's output is linearly mapped to; 0 for no such map.
        residual: add each layer's input to its output, wherever the sizes are equal.
        block: `glu` stands a `rnnzoo.stack.GatedBlock` around each layer (norm, GELU, GLU, `dropout` inside, residual),
            after a linear map of the input to the features between them: `projection`, or D·H of the last layer.
        learn_initial_state: the states that a sequence starts from are parameters, zero at first.
        initializer: how weights start: `default` (as the cell declares), torch, orthogonal, xavier or identity.
        forget_bias: where the bias of the gate that keeps the old state starts.
        chrono: the longest dependency in time steps, from which the biases of the gates start; 0 for none.
        checkpoint_every: keep only the states of every so many time steps for the backward pass, and compute what
            lies between again: a third more time, little memory. 0 keeps all.
        engine: how the cells are run: `auto`, or a name from `rnnzoo.engine`.
        hyperparameters: the cell's own, by name. `bias=True` and others of torch's keywords that ask for nothing more
            are taken too.

    `hidden_sizes` are those of all layers, `hidden_size` is that of the last.

    `expected_calls`, to be set by whoever knows how often the layer will run, lets `engine="auto"` compile at once or
    not at all; otherwise it compiles when the layer has run so long that compiling would have paid back. `engine_used`
    says which engine ran last.

    Layer norm, recurrent dropout, zoneout: `rnnzoo.options.modify`; weight drop: `rnnzoo.options.with_dropped_weights`;
    initial values: `rnnzoo.options.initialise`.

    Raises `UserError` for unknown cells, engines and hyperparameters, for values out of range, and for options that the
    cell cannot honour.
    """

    def __init__(
        self,
        cell: str | type[Cell],
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        bidirectional: bool = False,
        batch_first: bool = False,
        dropout: float = 0.0,
        layer_norm: bool = False,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        weight_drop: float = 0.0,
        projection: int = 0,
        residual: bool = False,
        block: str = "none",
        learn_initial_state: bool = False,
        initializer: str = "default",
        forget_bias: float | None = None,
        chrono: int = 0,
        checkpoint_every: int = 0,
        engine: str = "auto",
        **hyperparameters: Any,
    ) -> None:
        super().__init__(num_layers, dropout, projection, residual, block)
        check_flags(bidirectional=bidirectional, batch_first=batch_first)
        check_shares(weight_drop=weight_drop)
        if type(checkpoint_every) is not int or checkpoint_every < 0:
            raise UserError(f"checkpoint_every must be a number of time steps, or 0, not {checkpoint_every!r}")
        kind = registry.get(cell) if isinstance(cell, str) else cell
        if not (isinstance(kind, type) and issubclass(kind, Cell)):
            raise UserError(f"cell must be a registered name or a subclass of rnnzoo.Cell, not {cell!r}")
        hyperparameters = torch_nn.hyperparameters(kind, hyperparameters)
        directions = 2 if bidirectional else 1
        self.input_size = input_size
        self.hidden_sizes = sizes(hidden_size, num_layers)
        self.hidden_size = self.hidden_sizes[-1]
        self.bidirectional = bidirectional
        self.batch_first = batch_first
        self.cells = nn.ModuleList()
        features = [self._begin(input_size, directions * self.hidden_size)]
        for size in self.hidden_sizes:
            for _ in range(directions):
                made = kind(features[-1], size, **hyperparameters)
                initialise(made, initializer, forget_bias, chrono)
                modify(made, layer_norm, recurrent_dropout, zoneout, learn_initial_state)
                if weight_drop and not dropped_weights(made):
                    raise UserError(f"weight_drop: {kind.__name__} has no learned matrix on its state")
                self.cells.append(made)
            features.append(self._surround(features[-1], directions * made.output_size))
        if residual and all(before != after for before, after in pairwise(features)):
            raise UserError(f"residual: no layer has as many outputs as inputs; the sizes are {features}")
        self.output_size = features[-1]
        self.checkpoint_every = checkpoint_every
        self.weight_drop = weight_drop
        self.engine = engine
        self.engine_used = engine
        self.expected_calls: int | None = None
        self._steps = 0
        engines.check(engine, self._cell(0))

    def forward(
        self,
        input: Tensor | PackedSequence,
        state: State | None = None,
        lengths: Tensor | list[int] | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, State]:
        """Run over whole sequences.

        Args:
            input: [T, B, I], [B, T, I] if `batch_first`, [T, I] for a single sequence, or a `PackedSequence`.
            state: the initial state; zero if left out.
            lengths: [B], how many steps of each padded sequence are real; outputs past them are zero.
            resets: truth values, shaped as the input without its features: before which steps a sequence starts anew
                from the initial state, zero or learned. Nothing passes from one such part of a sequence to the next,
                no gradient either, nor, in the backward direction of a bidirectional layer, from the next to the one
                before. A given state is thus that of the first part, backwards of the last, and is not used where the
                first step is reset; the state returned is that of the last part, backwards of the first.

        Returns the output, shaped as the input with D·H features, and the state at each sequence's end.

        Raises `UserError` for shapes that do not fit.
        """
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise UserError("a PackedSequence knows its lengths; leave lengths out")
            if resets is not None:
                raise UserError("resets need a padded input; give its lengths in place of a PackedSequence")
            return self._forward_packed(input, state)
        self._check_features(input, (2, 3), "3 dimensions (2 for one sequence)")
        unbatched = input.dim() == 2
        x = input.unsqueeze(1) if unbatched else input.transpose(0, 1) if self.batch_first else input
        if x.shape[0] == 0:
            raise UserError(f"input of shape {list(input.shape)} holds no time step")
        if unbatched and state is not None:
            state = state.unsqueeze(1) if isinstance(state, Tensor) else tuple(s.unsqueeze(1) for s in state)

        if resets is not None:
            check_resets(resets, input.shape[:-1])
            resets = resets.to(x.device)
            resets = resets[:, None] if unbatched else resets.T if self.batch_first else resets
        lengths = None if lengths is None else self._check_lengths(lengths, x)
        output, state = self._run(x, state, lengths, resets)

        if unbatched:
            state = state.squeeze(1) if isinstance(state, Tensor) else tuple(s.squeeze(1) for s in state)
            return output.squeeze(1), state
        return output.transpose(0, 1) if self.batch_first else output, state

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One time step: x [B, I] and the state so far to the output [B, H] and the new state.

        Raises `UserError` for a bidirectional layer, which needs the whole sequence.
        """
        if self.bidirectional:
            raise UserError("a bidirectional layer cannot be stepped: it needs the whole sequence")
        self._check_features(x, (2,), "2 dimensions, batch first")
        states = split(self._cells(), state, x)
        finals = []
        x = self._enter(x)
        for index, before in enumerate(states):
            cell, read = self._cell(index), self._read(x, index)
            after = self._thinned(cell)(self._with_masks(cell, read[None])[0], *before)
            finals.append(after)
            x = self._finish(x, cell.readout(read, *after), index)
        return x, join(finals)

    def stepper(self, state: State | None = None, known: Tensor | None = None) -> Stepper:
        """`step` made fast for a trained layer: its weights are taken as they are now, and no gradients are kept.

        Args:
            state: the initial state; zero if left out.
            known: [A, I], all inputs that can occur, if they are few; the stepper then takes their numbers [B].

        Raises `UserError` for a bidirectional layer, and in training mode, where steps are random.
        """
        if self.bidirectional:
            raise UserError("a bidirectional layer cannot be stepped: it needs the whole sequence")
        if self.training:
            raise UserError("a layer in training mode has no weights to rely on; call its eval() first")
        return Stepper(self, state, known)

    def record(self, input: Tensor, state: State | None = None) -> list[dict[str, Tensor]]:
        """Everything that the cells' equations give a name, at every time step, whatever the engine.

        Takes full sequences and the initial state as `forward` does. Returns for each of `cells` its variables by name,
        new states under the states' own names, [T, B, ...] each, in the order of the input's time; a name that a step
        gives twice has its last value. Gradients flow back from all of it, but under `torch.no_grad()`.
        """
        twin = copy.copy(self)
        twin.engine, twin.checkpoint_every = "reference", 0
        with noting(self._cells()) as found:
            twin(input, state)
        order = [-1 if self.bidirectional and index % 2 else 1 for index in range(len(found))]
        return [{name: torch.stack(v[:: order[k]]) for name, v in each.items()} for k, each in enumerate(found)]

    def load_torch(self, state_dict: dict[str, Tensor]) -> None:
        """Copy the weights of an `nn.RNN`, `nn.LSTM` or `nn.GRU` of the same shape from its state dict.

        Raises `UserError` when the cell is not torch's, or the state dict does not fit.
        """
        self._check_torch()
        torch_nn.load(self._cells(), 2 if self.bidirectional else 1, state_dict)

    def torch_state_dict(self) -> dict[str, Tensor]:
        """The weights as the state dict of an `nn.RNN`, `nn.LSTM` or `nn.GRU` of the same shape.

        Raises `UserError` when the cell is not torch's.
        """
        self._check_torch()
        return torch_nn.weights(self._cells(), 2 if self.bidirectional else 1)

    def flatten_parameters(self) -> None:
        """Does nothing, as there is nothing to do; programs written for torch's layers call it."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        torch_nn.refuse(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def extra_repr(self) -> str:
        return f"engine={self.engine}"

    def _run(
        self, x: Tensor, state: State | None, lengths: Tensor | None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """x [T, B, I] to the output [T, B, D·H] and the state."""
        directions = 2 if self.bidirectional else 1
        states = split(self._cells(), state, x[0])
        finals = []
        x = self._enter(x if lengths is None else extend(x, lengths))
        for layer in range(self.num_layers):
            read = self._read(x, layer)
            outputs = []
            for direction in range(directions):
                index = layer * directions + direction
                source = reverse(read, lengths) if direction else read
                anew = backwards(resets, lengths) if direction and resets is not None else resets
                output, final = self._over_time(self._cell(index), source, states[index], lengths, anew)
                outputs.append(reverse(output, lengths) if direction else output)
                finals.append(final)
            x = self._finish(x, torch.cat(outputs, -1) if self.bidirectional else outputs[0], layer)
            if lengths is not None and layer < self.num_layers - 1:
                x = extend(x, lengths)
        return x if lengths is None or self.is_plain else blank(x, lengths), join(finals)

    def _over_time(
        self, cell: Cell, x: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One cell over x [T, B, I], in one go or, with `checkpoint_every`, piece by piece."""
        x, cell = self._with_masks(cell, x), self._thinned(cell)
        if resets is not None:
            cell, x = resetting(cell), torch.cat([x, resets[..., None].to(x.dtype)], -1)
            engines.check(self.engine, cell)
        self._steps += len(x)
        steps = self._steps if self.expected_calls is None else self.expected_calls * engines.TYPICAL_LENGTH

        chosen = self.engine_used = engines.select(self.engine, steps, cell, x)

        def run(x: Tensor, lengths: Tensor | None, *state: Tensor) -> tuple[Tensor, ...]:
            # what was chosen now: under a checkpoint this runs again later, when the layer may have changed engines
            output, final = engines.ENGINES[chosen].run(cell, x, state, lengths)
            return output, *final

        every = self.checkpoint_every or len(x)
        outputs = []
        for start in range(0, len(x), every):
            piece = x[start : start + every]
            left = None if lengths is None else (lengths - start).clamp(0, len(piece))
            if every < len(x) and torch.is_grad_enabled():
                output, *final = checkpoint(run, piece, left, *state, use_reentrant=False)
            else:
                output, *final = run(piece, left, *state)
            state = tuple(final)
            outputs.append(output)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs), state

    def _forward_packed(self, packed: PackedSequence, state: State | None) -> tuple[PackedSequence, State]:
        self._check_features(packed.data, (2,), "2 dimensions when packed")
        x, lengths = pad_packed_sequence(packed)
        output, state = self._run(x, state, lengths.to(x.device))
        # By hand, for the order among sequences of one length must stay; batch sizes lie on the CPU, so nothing waits.
        order = packed.sorted_indices
        output = output if order is None else output.index_select(1, order)
        rows = (torch.arange(x.shape[1])[None] < packed.batch_sizes[:, None]).flatten().nonzero()[:, 0]  # of [T · B]
        return packed._replace(data=output.flatten(0, 1).index_select(0, rows.to(x.device))), state

    def _check_features(self, input: Tensor, dimensions: tuple[int, ...], wanted: str) -> None:
        if input.dim() not in dimensions or input.shape[-1] != self.input_size:
            raise UserError(f"input must have {wanted} and {self.input_size} features, not shape {list(input.shape)}")

    def _check_lengths(self, lengths: Tensor | list[int], x: Tensor) -> Tensor:
        return check_lengths(lengths, *x.shape[:2]).to(x.device)

    def _with_masks(self, cell: Cell, x: Tensor) -> Tensor:
        """x [T, B, I] with what the cell's modifier needs beside it in training."""
        return cell.modifier.with_masks(x) if isinstance(cell.modifier, Modifier) and self.training else x

    def _thinned(self, cell: Cell) -> Cell:
        """The cell without the weights that are left out in training."""
        return with_dropped_weights(cell, self.weight_drop) if self.weight_drop and self.training else cell

    def _cell(self, index: int) -> Cell:
        cell = self.cells[index]
        assert isinstance(cell, Cell)
        return cell

    def _cells(self) -> list[Cell]:
        return [self._cell(index) for index in range(len(self.cells))]

    def _check_torch(self) -> None:
        if not self.is_plain:
            raise UserError(
                "no torch weights for this layer: torch's layers have no projection of the output, no residual "
                "connections and no block"
            )


class Stepper:
    """Steps a layer and keeps its state; see `Recurrent.stepper`."""

    def __init__(self, layer: Recurrent, state: State | None, known: Tensor | None) -> None:
        self._layer, self._first = layer, state
        with torch.no_grad():
            self._known = None if known is None else layer._enter(known)
            read = None if self._known is None else layer._read(self._known, 0)
        self._cells = [
            Frozen(layer._cell(index), layer.engine, None if index else read) for index in range(len(layer.cells))
        ]
        gives = type(layer._cell(0)).readout is not Cell.readout
        self._needed = gives or not layer.is_plain  # the input itself
        self._states: list[tuple[Tensor, ...]] | None = None

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """The next time step: x [B, I], or the numbers [B] of known inputs, to the output [B, H]."""
        layer, given = self._layer, x
        if self._known is None:
            x = layer._enter(x)
        elif self._states is None or self._needed:
            x = self._known[x]
        if self._states is None:
            self._states = split(layer._cells(), self._first, x)
        for index, frozen in enumerate(self._cells):
            read = layer._read(x, index)
            known = not index and self._known is not None
            self._states[index] = after = frozen(given if known else read, *self._states[index])
            x = layer._finish(x, frozen.cell.readout(read, *after), index)
        return x

    @property
    def state(self) -> State | None:
        """The state after the last step, as the layer takes and returns it."""
        return self._first if self._states is None else join(self._states)
