"""A function of tensors once more from its source, with an ear for what it assigns and returns."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from rnnzoo.errors import UserError


def rewritten(
    function: Any,
    note: Callable[[Any, Any], Any],
    entered: Callable[[Any], Any] = lambda value: value,
    returned: Callable[[Any], Any] | None = None,
) -> Callable[..., Any]:
    """The function, compiled anew.

    Args:
        function: written in a file.
        note: is handed a name, or a tuple of such, and what is assigned to it; what it returns is assigned instead.
        entered: is handed every value that the function finds around it, and returns what it is to find.
        returned: is handed what the function returns, and returns what is returned instead.

    Raises `UserError` when the source is not to be had, or assigns to what has no name.
    """
    try:
        lines = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        raise UserError(f"the source of {function.__qualname__} is not to be had; write the cell to a file") from None
    tree = _Noting().visit(ast.parse(lines))
    definition = tree.body[0]
    if not isinstance(definition, ast.FunctionDef):
        raise UserError(f"{function.__qualname__} is not written as a function")
    if {ast.unparse(decorator) for decorator in definition.decorator_list} - {"property", "staticmethod"}:
        raise UserError(f"{function.__qualname__} has a decorator")
    definition.decorator_list = []
    definition.returns = None
    for argument in ast.walk(definition.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    scope = {name: entered(value) for name, value in function.__globals__.items()}
    scope |= {name: entered(value) for name, value in inspect.getclosurevars(function).nonlocals.items()}
    scope["__note__"] = note
    if returned is not None:
        definition.body = [_Returning().visit(statement) for statement in definition.body]
        scope["__returned__"] = returned
    exec(compile(ast.fix_missing_locations(tree), "<equations>", "exec"), scope)
    made: Callable[..., Any] = scope[definition.name]
    return made


class _Noting(ast.NodeTransformer):
    """Hands what is assigned to a name to `__note__` together with the name."""

    def visit_Assign(self, node: ast.Assign) -> Any:
        self.generic_visit(node)
        value: ast.expr = node.value
        for target in node.targets:
            names = ast.parse(repr(_names(target)), mode="eval").body
            value = ast.Call(ast.Name("__note__", ast.Load()), [names, value], [])
        return ast.copy_location(ast.Assign(node.targets, value), node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        if node.value is None:
            return node
        return self.visit_Assign(ast.copy_location(ast.Assign([node.target], node.value), node))

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        if not isinstance(node.target, ast.Name):
            raise UserError(f"line {node.lineno} of it writes in place")
        read_ = ast.copy_location(ast.Name(node.target.id, ast.Load()), node)
        value = ast.copy_location(ast.BinOp(read_, node.op, node.value), node)
        return self.visit_Assign(ast.copy_location(ast.Assign([node.target], value), node))


class _Returning(ast.NodeTransformer):
    """Hands what is returned to `__returned__`, but for what functions within return."""

    def visit_Return(self, node: ast.Return) -> Any:
        value = node.value or ast.Constant(None)
        return ast.copy_location(ast.Return(ast.Call(ast.Name("__returned__", ast.Load()), [value], [])), node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        return node


def _names(target: ast.expr) -> Any:
    if isinstance(target, ast.Name):
        return target.id
    if isinstance(target, (ast.Tuple, ast.List)):
        return tuple(map(_names, target.elts))
    if isinstance(target, ast.Starred):
        raise UserError(f"line {target.lineno} of it assigns to *{ast.unparse(target.value)}")
    raise UserError(f"line {target.lineno} of it writes in place")
