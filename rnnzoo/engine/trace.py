"""A cell's `step` as a graph of elementary operations, and the few things one does with such graphs.

Every node carries in `meta["val"]` what it stands for, its number of rows left open (a symbol), all else known.
Shapes: N rows, I input size.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import SymInt, Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from rnnzoo.cell import Cell, finest
from rnnzoo.engine import elementary
from rnnzoo.engine.forget import forgetting
from rnnzoo.engine.gradients import OPENED
from rnnzoo.engine.operations import VIEWS
from rnnzoo.engine.pairs import Paired, complex_numbers
from rnnzoo.engine.reads import Reads
from rnnzoo.engine.strict import Strict, agree, followed
from rnnzoo.errors import UserError

aten = torch.ops.aten


class Tracer:
    """Traces functions of tensors whose leading dimension, the rows, stays open."""

    def __init__(self) -> None:
        self.shapes = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self.shapes, allow_non_fake_inputs=True)

    def rows(self, *shape: int, like: Tensor) -> Tensor:
        """A tensor [N, *shape] of unknown N."""
        real = torch.empty(3, *shape, dtype=like.dtype, device=like.device)
        sizes = [DimDynamic.DUCK] + [DimDynamic.STATIC] * len(shape)  # equal open sizes get one symbol
        context: Any = StatelessSymbolicContext(dynamic_sizes=sizes, constraint_sizes=[None] * len(sizes))
        return self.mode.from_tensor(real, symbolic_context=context)

    def fixed(self, tensor: Tensor) -> Tensor:
        """A tensor of known shape."""
        return self.mode.from_tensor(tensor.detach(), static_shapes=True)

    def again(self, node: fx.Node) -> Tensor:
        """A new tensor like the one that `node` stands for."""
        with self.mode:
            return torch.empty_like(node.meta["val"])

    def trace(self, function: Callable[..., Any], *groups: Any, apart: bool = True) -> fx.Graph:
        """The graph of `function(*groups)`, its inputs in order of the groups.

        Unless `apart`, functions such as softplus stay whole: what is to be differentiated must not be taken
        apart before, because autograd's formulas are safe where those of the parts are not.
        """
        table = elementary.everything() if apart else elementary.structure()
        # autograd's own formulas write in place here and there
        with self.mode, torch._C._DisableAutocast(), _quiet():
            graph = forgetting(make_fx(functionalize(function), decomposition_table=table)(*groups)).graph
        followed(graph)
        if any(value.is_number for value in self.shapes.replacements.values()):
            raise UserError("it fixes the number of rows, as len(x) does where x.shape[0] would not")
        for node in graph.find_nodes(op="call_function", target=aten.select.int):
            node.args = (*args_of(node)[:2], *_from_the_front(node))
        for node in graph.find_nodes(op="call_function", target=aten.slice.Tensor):
            node.args = (*args_of(node)[:2], *_from_the_front(node), *args_of(node)[4:])
            if node.meta["val"].shape == args_of(node)[0].meta["val"].shape:  # x[:, ...] slices the rows too
                node.replace_all_uses_with(args_of(node)[0])
        return graph

    def call(self, graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
        """Add an operation to the end of `graph`; `args` may hold nodes."""
        with graph.inserting_before(graph.output_node()):
            node = graph.call_function(target, args)
        with self.mode, torch._C._DisableAutocast():
            node.meta["val"] = target(*fx.map_arg(args, lambda n: n.meta["val"]))
        return node


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch prints no traceback of its own for what fails, and opt_einsum asks for no number of rows."""
    log, einsum = logging.getLogger("torch._subclasses.fake_tensor"), torch.backends.opt_einsum
    before = log.disabled, einsum.enabled
    log.disabled, einsum.enabled = True, False
    try:
        yield
    finally:
        log.disabled, einsum.enabled = before


def _from_the_front(node: fx.Node) -> list[Any]:
    """The positions that a slice or a selection names, counted from the front also where it counts from the end."""
    operand, dim, *positions = args_of(node)
    size = operand.meta["val"].shape[dim]
    return [max(size + k, 0) if isinstance(k, int) and k < 0 else k for k in positions[:2]]


def trace_step(
    cell: Cell, tracer: Tracer, like: Tensor, reads: Reads, readout: bool = False
) -> tuple[fx.Graph, tuple[str, ...]]:
    """The graph of (x [N, I], states, weights) -> new states, and the names of the weights.

    `like` has the dtype and the device of all; `reads` is told what else the step reads. With `readout` the output
    follows the new states.

    Raises `UserError` when the step cannot be traced.
    """
    weights = effective(cell)

    def step(x: Tensor, states: Sequence[Tensor], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with Strict():
            return _step(bare(cell, dict(zip(weights, tensors)), reads), x, states, readout)

    try:
        reads.begin()
        with torch.inference_mode(False), torch.enable_grad():  # the plan is there for all modes
            x = torch.empty(3, cell.features, dtype=like.dtype, device=like.device)
            start = bare(cell, {}, reads).initial_state(x)
            states = [tracer.rows(*s.shape[1:], like=s) for s in start]
            fakes = [tracer.fixed(w) for w in weights.values()]
            given = tracer.rows(cell.features, like=like), states, fakes
            graph = tracer.trace(step, *given, apart=False)
            if complex_numbers(graph):
                graph = tracer.trace(Paired(module(graph)).run, *given, apart=False)
        reads.check()
    except Exception as error:
        raise UserError(
            f"{author(cell).__name__}.step cannot be traced: {reason(error)}; use engine=reference"
        ) from error
    strange = [
        n for n in graph.nodes if n.op == "get_attr" or (n.op == "call_function" and not is_size(n) and not _plain(n))
    ]
    if strange:
        raise UserError(
            f"{author(cell).__name__}.step cannot be traced: {strange[0].target} is not an elementary operation "
            "on tensors without chance (a constant tensor must be a buffer of the cell); use engine=reference"
        )
    count = len(outputs(graph)) - readout
    if count != len(states):
        raise UserError(f"{author(cell).__name__}.step returns {count} states where {len(states)} came in")
    for node, state in zip(outputs(graph), states):
        if not (state.is_floating_point() or state.is_complex()):
            raise UserError(f"{author(cell).__name__} has a state of {state.dtype}; count in floating-point numbers")
        if node.meta["val"].shape != state.shape:
            raise UserError(
                f"{author(cell).__name__}.step returns a state of shape {list(node.meta['val'].shape)} "
                f"where {list(state.shape)} came in"
            )
    _try(cell, graph, list(start), weights, reads, readout)
    return graph, tuple(weights)


def _step(cell: Cell, x: Tensor, states: Sequence[Tensor], readout: bool) -> tuple[Tensor, ...]:
    """One step's new states, the output after them if it is asked for."""
    new = cell.forward(x, *states)
    return (*new, cell.readout(x[:, : cell.input_size], *new)) if readout else new


def _try(
    cell: Cell, graph: fx.Graph, states: list[Tensor], weights: dict[str, Tensor], reads: Reads, readout: bool
) -> None:
    """Run step and graph once, on chance numbers: what tracing does not see shows in numbers or gradients."""
    count = len(states)

    def step(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        return _step(bare(cell, dict(zip(weights, others[count:])), reads), x, others[:count], readout)

    with torch.inference_mode(False), torch.enable_grad(), torch._C._DisableAutocast():
        generator = torch.Generator(states[0].device).manual_seed(0)
        given = [
            torch.randn(shape, generator=generator, dtype=states[0].dtype, device=states[0].device)
            for shape in [(5, cell.features), *((5, *s.shape[1:]) for s in states)]  # not as many rows as in tracing
        ]
        tensors, like = [*given, *weights.values()], states[0].dtype
        if readout:  # norms of small numbers, as readouts have them, lose too many digits to tell
            tensors = [t.to(finest(t)) if t.is_floating_point() else t for t in tensors]
        try:
            traced = module(graph)
            agreed = agree(step, lambda x, *o: traced(x, list(o[:count]), list(o[count:])), tensors, like)
        except Exception as error:
            raise UserError(
                f"{author(cell).__name__}.step cannot be tried: {reason(error)}; use engine=reference"
            ) from error
    if not agreed:
        raise UserError(
            f"{author(cell).__name__}.step cannot be traced: what was traced gives other numbers or gradients; "
            "use engine=reference"
        )


def sample(cell: Cell, x: Tensor | None = None) -> Tensor:
    """A tensor of the dtype and device that the cell computes in; x tells if the cell has no numbers of its own."""
    for tensor in cell._parameters.values():  # what `parameters` begins with, a good deal later
        if tensor is not None and tensor.is_floating_point():
            return tensor
    numbers = (t for t in (*cell.parameters(), *cell.buffers()) if t.is_floating_point() or t.is_complex())
    return next(numbers, torch.empty(0) if x is None else x)


def recorded(cell: Cell, x: Tensor) -> bool:
    """Whether autograd records what the cell makes of x."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in (x, *cell.parameters()))


def reason(error: BaseException) -> str:
    """The first line of an error, or its kind where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _plain(node: fx.Node) -> bool:
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return isinstance(node.meta.get("val"), Tensor) and not random


def author(cell: Cell) -> type[Cell]:
    """The class that wrote the cell's step: a parametrization puts a subclass of its own in its place."""
    return next(c for c in type(cell).__mro__ if "step" in vars(c))


def effective(cell: Cell) -> dict[str, Tensor]:
    """The tensors that step sees, by name: parameters, also tied, pruned or parametrized, and buffers."""
    names = [*cell.weights, *(cell.modifier.reads if cell.modifier else ())]
    return {name: getattr(cell, name) for name in names} | dict(cell.named_buffers(recurse=False))


def kind_of(cell: Cell) -> type[Cell]:
    """The cell's class, without the subclass that a parametrization puts in its place."""
    kind = type(cell)
    return kind.__mro__[1] if "parametrizations" in cell._modules else kind


def bare(cell: Cell, tensors: dict[str, Tensor], reads: Reads) -> Cell:
    """The cell's equations on other tensors, if any are given, without hooks and parametrizations.

    What it is asked for is told to `reads`.
    """
    kind = kind_of(cell)
    quiet = frozenset(tensors) | {"_parameters", "_buffers"}
    made: Any = object.__new__(type(kind.__name__, (_Recording, kind), {"_reads": reads, "_quiet": quiet}))
    own = object.__getattribute__(made, "__dict__")
    own.update({k: v for k, v in vars(cell).items() if k not in tensors})
    if tensors:
        own.update(_parameters=tensors, _buffers={})
    return made


class _Recording:
    """Stands before a cell's class: tells what is read of the cell, and refuses to be written to."""

    _reads: Reads
    _quiet: frozenset[str]
    _parameters: dict[str, Any]
    _buffers: dict[str, Any]
    _modules: dict[str, Any]

    def __init_subclass__(cls) -> None:
        """Nothing: what a cell's class does for its subclasses is done."""

    def __getattribute__(self, name: str) -> Any:
        made: Any = type(self)
        if name == "__dict__":
            raise UserError("it reads self.__dict__, and so attributes that are not known beforehand")
        if not name.startswith("__") and name not in made._quiet:
            made._reads.attribute(name)
        return super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        for group in (self._parameters, self._buffers, self._modules):
            if name in group:
                return group[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise UserError(f"it sets self.{name}")


def args_of(node: fx.Node) -> tuple[Any, ...]:
    """The positional arguments of an operation, of whatever types they are."""
    return node.args


def inputs(graph: fx.Graph) -> list[fx.Node]:
    """The placeholders, in order."""
    return [node for node in graph.nodes if node.op == "placeholder"]


def outputs(graph: fx.Graph) -> list[fx.Node]:
    """What the graph returns, in order."""
    (returned,) = args_of(graph.output_node())
    return list(returned) if isinstance(returned, (tuple, list)) else [returned]


def tensors(node: fx.Node) -> list[fx.Node]:
    """The operands of `node` that are tensors."""
    return [n for n in node.all_input_nodes if isinstance(n.meta["val"], Tensor)]


def recomputable(node: fx.Node) -> bool:
    """Whether `node` is element-wise, a view, a concatenation or a constant, and so cheap."""
    own = node.target in OPENED and all(n.meta["val"].shape == node.meta["val"].shape for n in tensors(node))
    pointwise = own or torch.Tag.pointwise in getattr(node.target, "tags", ())  # own as far as shapes tell
    return pointwise or node.target in VIEWS or node.target is aten.cat.default or not tensors(node)


def rows_first(node: fx.Node) -> bool:
    """Whether the open dimension, if there is one, leads, and is nothing but rows."""
    return not has_rows(node) or (isinstance(first := node.meta["val"].shape[0], SymInt) and multiple(first) == 1)


def multiple(size: Any) -> int:
    """By what a size that is open is a multiple of the number of rows; a matrix's rows may be counted with these."""
    return int(size.node.expr.as_coeff_Mul()[0])


def is_size(node: fx.Node) -> bool:
    """Whether `node` is a size rather than a tensor."""
    return isinstance(node.meta.get("val"), (int, SymInt))


def has_rows(node: fx.Node) -> bool:
    """Whether the tensor that `node` stands for has an open dimension."""
    return any(isinstance(size, SymInt) for size in node.meta["val"].shape)


def ancestors(roots: Iterable[fx.Node], stop: Callable[[fx.Node], bool] = lambda node: False) -> list[fx.Node]:
    """All that `roots` are computed from, themselves included, operands first; what `stop` holds for has none.

    Nor has a number of rows, which is the same for all tensors.
    """

    def operands_of(node: fx.Node) -> Iterator[fx.Node]:
        return iter(() if stop(node) or node.target is aten.sym_size.int else node.all_input_nodes)

    found: dict[fx.Node, None] = {}
    stack: list[tuple[fx.Node, Iterator[fx.Node]]] = []
    for root in roots:
        stack.append((root, operands_of(root)))
        while stack:
            node, operands = stack[-1]
            following = next((n for n in operands if n not in found), None)
            if following is not None:
                stack.append((following, operands_of(following)))
            else:
                stack.pop()
                found.setdefault(node)
    return list(found)


def merge_equal(graph: fx.Graph, among: Callable[[fx.Node], bool]) -> None:
    """Of the operations for which `among` holds, those that do the same to the same operands become one."""
    first: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "call_function" and among(node):
            made = first.setdefault((node.target, str(node.args), str(node.kwargs)), node)
            if made is not node:
                node.replace_all_uses_with(made, propagate_meta=False)
                graph.erase_node(node)


def extract(given: Mapping[fx.Node, str], wanted: Sequence[fx.Node | None]) -> fx.Graph:
    """A new graph that computes the nodes `wanted` from those `given`, which become its placeholders, so named.

    A wanted None is returned as None. Sizes are read off the first placeholder that has rows.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node, name in given.items():
        copies[node] = graph.create_node("placeholder", name, name=name)  # `placeholder` would mix up W and w
        copies[node].meta = dict(node.meta)
    rows = next((copies[node] for node in given if has_rows(node)), None)
    for node in ancestors([n for n in wanted if n is not None], stop=lambda n: n in given):
        if node in copies:
            continue
        if node.op == "placeholder":
            raise AssertionError(f"{node} is needed and not given")
        if node.target is aten.sym_size.int:
            assert rows is not None
            dim = next(d for d, size in enumerate(rows.meta["val"].shape) if isinstance(size, SymInt))
            size, times = graph.call_function(aten.sym_size.int, (rows, dim)), multiple(node.meta["val"])
            size.meta["val"] = rows.meta["val"].shape[dim]
            copies[node] = size if times == 1 else graph.call_function(operator.mul, (size, times))
            copies[node].meta = dict(node.meta)
        else:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    graph.output(tuple(None if n is None else copies[n] for n in wanted))
    return graph


def module(graph: fx.Graph) -> fx.GraphModule:
    """The graph as a function on tensors."""
    return forgetting(fx.GraphModule(nn.Module(), graph))
