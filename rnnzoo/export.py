"""A trained model as one file that runs without this project: ONNX, or torch's own PT2.

    Path("lstm.onnx").write_bytes(export(layer, "onnx"))
    Path("lstm.pt2").write_bytes(export(layer, "pt2"))  # torch.export.load("lstm.pt2").module()(input, state)

Shapes: T time steps, B batch, both open in the file; I input size, L layers, D directions, H hidden size.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_leaves, tree_map

from rnnzoo.cell import Cell
from rnnzoo.engine.hooks import hooks
from rnnzoo.engine.plan import Plan, plan
from rnnzoo.engine.rewrite import ADD, MUL, SUB
from rnnzoo.engine.trace import effective, inputs, module, sample
from rnnzoo.errors import UserError, nearest
from rnnzoo.recurrent import Recurrent
from rnnzoo.states import join, split

Run: TypeAlias = "Callable[..., list[Tensor]]"
"""Takes what a model takes, and returns the tensors that it returns, one after another."""

SIZES = (5, 3), (1, 1), (7, 2)
"""T and B of the sequences that a file is made from, and of those that it is tried on."""


def export(model: nn.Module, form: str, metadata: Mapping[str, str] | None = None) -> bytes:
    """A model for evaluation as the bytes of one file, "onnx" or "pt2", which takes any T and B.

    The file takes what `model.forward` must be given, and `state` where that is one of its parameters, and returns what
    `forward` returns. `input` is what a `Recurrent` takes, `x` what its first layer does, [T, B, I], `lengths` [B]
    int64, between 1 and T, which a file cannot check; other parameters, and an `x` that is something else, are what the
    model's `example_inputs(T, B)` has under their names, a dictionary of tensors. PT2 is called as the model is. ONNX
    has an input `initial_NAME` for each state, and the outputs `output` and `final_NAME`; states are [L·D, B, ...].

    Where a learned initial state is not zero, it stands in the metadata as `initial_NAME`, in JSON [L·D, ...]. PT2
    keeps all metadata in the extra file `metadata.json`.

    The file has been tried at other T and B and gives what the model gives.

    Raises `UserError` for an unknown form, for packages that are missing, and for a cell that has no such form.
    """
    if form not in FORMS:
        raise UserError(f"{form}: no such form; {nearest(form, FORMS)}")
    if form == "onnx" and not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        raise UserError("onnx needs packages more: pip install 'rnnzoo[export]'")
    cells = [part for part in model.modules() if isinstance(part, Cell)]
    if not cells:
        raise UserError(f"{form}: {type(model).__name__} has no recurrent layer")
    name = type(cells[0]).__name__
    found = next(filter(None, (hooks(cell, backward=False) for cell in cells)), None)
    if found is not None:
        raise UserError(f"{form}: {name} has {found}; remove them, those of pruning by torch.nn.utils.prune.remove")

    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    layers = [part for part in model.modules() if isinstance(part, Recurrent)]
    for layer in layers:
        layer.engine = "reference"  # nothing is compiled for a few steps
    trials = [_trial(model, layers[0], *sizes) for sizes in SIZES]
    notes = {**(metadata or {}), **(_beginning(layers[0]) if "state" in trials[0].given else {})}
    for layer in layers:
        _loop_in_graph(layer, form)
    with torch.no_grad(), _quiet():
        try:
            file, run = FORMS[form](_graph(model, trials[0]), trials[0], notes)
            wrong = [
                sizes for sizes, trial in zip(SIZES, trials) if not _agree(run(*trial.given.values()), trial.results)
            ]
        except Exception as error:
            raise UserError(f"{form}: {name} has no such form: {_reason(error)}") from error
    if wrong:
        raise UserError(f"{form}: {name} comes out wrong, at T and B of {wrong[0]}")
    return file


class _Looping(Recurrent):
    """A layer whose loop over time is one operation of a graph, so that T stays open."""

    ready: dict[Cell, tuple[Plan, list[Tensor], list[Tensor]]]
    """Each cell's plan, and what it computes from the weights: for the products of the input, and for the loop."""

    def _over_time(
        self, cell: Cell, x: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        if resets is not None:
            raise UserError("a file's loop knows no resets")
        made, outer, shared = self.ready[cell]
        steps, batch, features = x.shape
        rows = x.reshape(steps * batch, features)
        # x itself where it is a leaf: with a view of a view of its input, torch fixes B
        leaves = [
            x if leaf is rows else leaf.reshape(steps, batch, *leaf.shape[1:])
            for leaf in _Strict(module(made.project)).run(rows, *outer)
        ]
        running = torch.arange(steps)[:, None] < (steps if lengths is None else lengths)  # [T, B or 1]
        readout = type(cell).readout is not Cell.readout

        def step(*given: Tensor) -> list[Tensor]:
            old, runs, rest = given[: len(state)], given[len(state)], given[len(state) + 1 :]
            new = _Strict(module(made.recur)).run(*rest[: len(leaves)], *old, *rest[len(leaves) :])
            if lengths is not None:
                new = [torch.where(_beside(runs, n), n, o) for n, o in zip(new, old)]
            # clones, because nothing that a scan returns may share memory
            return [n.clone() for n in (*new, *(new if readout else new[:1]))]

        # views, because scan takes values of the graph and no constants
        given = [tensor.view_as(tensor) for tensor in shared]
        results = torch.ops.higher_order.scan(step, [*state], [running, *leaves], given)
        final, stacks = results[: len(state)], results[len(state) :]
        output = cell.readout(x[..., : cell.input_size], *stacks) if readout else stacks[0]
        return output if lengths is None else output.masked_fill(~_beside(running, output), 0), tuple(final)

    def _check_lengths(self, lengths: Any, x: Tensor) -> Tensor:
        return lengths


def _beside(mask: Tensor, tensor: Tensor) -> Tensor:
    return mask.reshape(*mask.shape, *[1] * (tensor.dim() - mask.dim()))


class _Strict(fx.Interpreter):
    """Runs a plan's graph, in which a number may come before the tensor, which only torch's own functions take."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in (ADD, MUL, SUB) and not isinstance(args[0], Tensor):
            args = (torch.scalar_tensor(args[0], dtype=args[1].dtype), *args[1:])
        return super().call_function(target, args, kwargs)


def _loop_in_graph(layer: Recurrent, form: str) -> None:
    ready = {}
    for index in range(len(layer.cells)):
        cell = layer._cell(index)
        try:
            made = plan(cell)
        except UserError as error:
            raise UserError(f"{form}: {str(error).removesuffix('; use engine=reference')}") from error
        # clones, because nothing that a scan takes may share memory either
        prepared = [tensor.clone() for tensor in module(made.prepare)(*effective(cell).values())]
        outer = sum(str(node.target).startswith("outer") for node in inputs(made.project))
        ready[cell] = made, prepared[:outer], prepared[outer:]
    layer.__class__ = _Looping
    assert isinstance(layer, _Looping)
    layer.ready = ready


class _Held(nn.Module):
    """A module whose tensors are constants of the graph, so that only those that it uses come into the file."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.held = (module,)

    def forward(self, *given: Any) -> Any:
        return self.held[0](*given)


class _Trial(NamedTuple):
    """What a model is given, which dimensions of that are open, under which names, and what it returns."""

    given: dict[str, Any]
    open: tuple[Any, ...]
    names: tuple[list[str], list[str]]
    results: list[Tensor]


def _trial(model: nn.Module, layer: Recurrent, steps: int, batch: int) -> _Trial:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(steps, batch, layer.input_size, generator=generator, dtype=sample(layer._cell(0)).dtype)
    input = x.transpose(0, 1) if layer.batch_first else x
    state = layer(input)[1]
    time_first = {0: "time", 1: "batch"}
    known = {
        "input": (input, {1: "time", 0: "batch"} if layer.batch_first else time_first),
        "x": (x, time_first),
        "lengths": (1 + torch.arange(batch) % steps, {0: "batch"}),
        "state": (state, tree_map(lambda tensor: {1: "batch"}, state)),
    }
    known |= {name: (_examples(model, steps, batch)[name], dims) for name, dims in _open_in_examples(model).items()}
    parameters = inspect.signature(model.forward).parameters.values()
    wanted = [p.name for p in parameters if p.default is p.empty or p.name == "state"]
    for key in wanted:
        if key not in known:
            raise UserError(
                f"{type(model).__name__} cannot be exported: what its {key} may be is not known; give it a method "
                "example_inputs(T, B) that says"
            )
    given = {key: known[key][0] for key in wanted}
    try:
        results = tree_leaves(model(*given.values()))
    except UserError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{key} {list(part.shape)}" for key, part in given.items() if isinstance(part, Tensor))
        raise UserError(
            f"{type(model).__name__} cannot be exported: it fails on {shapes} ({_reason(error)}); give it a method "
            "example_inputs(T, B) that says what it may be given"
        ) from error
    states = layer._cell(0).state_names
    takes = [n for key in wanted for n in ([f"initial_{s}" for s in states] if key == "state" else [key])]
    gives = ["output", *(f"final_{s}" for s in states)][: len(results)]
    return _Trial(given, tuple(known[key][1] for key in wanted), (takes, gives), results)


def _examples(model: nn.Module, steps: int, batch: int) -> dict[str, Tensor]:
    """What the model's own `example_inputs` has, if it has one; the same every time."""
    make: Any = getattr(model, "example_inputs", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dict(make(steps, batch)) if callable(make) else {}


def _open_in_examples(model: nn.Module) -> dict[str, dict[int, str]]:
    """Which dimensions of its examples are T or B: those that are as large as what was asked for."""
    sizes = {101: "time", 103: "batch"}
    return {
        name: {dim: sizes[size] for dim, size in enumerate(example.shape) if size in sizes}
        for name, example in _examples(model, *sizes).items()
    }


def _beginning(layer: Recurrent) -> dict[str, str]:
    """Each state that sequences start from, if it is not zero: [L·D, ...] in JSON."""
    cell = layer._cell(0)
    states = join(split(layer._cells(), None, sample(cell).new_zeros(1, layer.input_size)))
    named = zip(cell.state_names, tree_leaves(states))
    return {f"initial_{name}": json.dumps(s[:, 0].tolist()) for name, s in named if s.any()}


def _graph(model: nn.Module, trial: _Trial) -> ExportedProgram:
    dims = {name: Dim(name, min=1) for name in ("time", "batch")}
    shapes = tree_map(dims.get, trial.open)
    made = torch.export.export(_Held(model), tuple(trial.given.values()), dynamic_shapes=(shapes,), strict=False)
    for graph in (part.graph for part in made.graph_module.modules() if isinstance(part, fx.GraphModule)):
        for node in graph.nodes:
            node.meta.pop("stack_trace", None)  # whoever reads the file need not know where this project lay
    return made


def _onnx(program: ExportedProgram, trial: _Trial, metadata: dict[str, str]) -> tuple[bytes, Run]:
    import onnxruntime

    takes, gives = trial.names
    made = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=takes, output_names=gives, dynamic_shapes=trial.open
    )
    assert made is not None
    made.optimize()  # once more, because the first time leaves constants that nothing uses, of which onnxruntime warns
    made.model.metadata_props.update(metadata)
    file = made.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(*given: Any) -> list[Tensor]:
        arrays = (tensor.numpy() for tensor in tree_leaves(given))
        return [torch.from_numpy(array) for array in session.run(None, dict(zip(takes, arrays)))]

    return file, run


def _pt2(program: ExportedProgram, trial: _Trial, metadata: dict[str, str]) -> tuple[bytes, Run]:
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})
    file.seek(0)
    loaded = torch.export.load(file).module()
    return file.getvalue(), lambda *given: tree_leaves(loaded(*given))


FORMS = {"onnx": _onnx, "pt2": _pt2}


def _agree(found: list[Tensor], wanted: list[Tensor]) -> bool:
    """Whether tensors are of the same shapes, and equal to half of their digits."""
    return len(found) == len(wanted) and all(
        f.shape == w.shape and torch.allclose(f, w, tolerance, tolerance, equal_nan=True)
        for f, w in zip(found, wanted)
        for tolerance in [torch.finfo(w.dtype).eps ** 0.5]
    )


def _reason(error: BaseException) -> str:
    """The first line of what was at the bottom of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch has to say about itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
