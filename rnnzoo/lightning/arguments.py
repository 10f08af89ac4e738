"""Arguments checked against the annotations of what is to be called with them, before it is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, ValidationError, create_model

from rnnzoo.errors import UserError, nearest

T = TypeVar("T")

Fraction = Annotated[float, Field(ge=0, lt=1)]
"""A share, or a probability, that may be none."""

Portion = Annotated[float, Field(gt=0, lt=1)]
"""A share that is something."""


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What `target` can be given by name; a class's `**keywords` stand for what its base classes take."""
    named = dict(inspect.signature(target, eval_str=True).parameters)
    passed_on = [name for name, p in named.items() if p.kind is p.VAR_KEYWORD]
    for name in passed_on:
        del named[name]
        for base in target.__mro__[1:] if isinstance(target, type) else ():
            if "__init__" in vars(base):
                return named | {k: p for k, p in parameters(base).items() if k not in named}
    return named


def check(target: Callable[..., Any], arguments: Mapping[str, Any], section: str) -> dict[str, Any]:
    """Those of `arguments` that `target` takes, checked against its annotations.

    Raises `UserError` naming `section.key`, what is wanted there and what was given.
    """
    known = parameters(target)
    given = {name: arguments[name] for name in known if name in arguments}
    for name, parameter in known.items():
        if name not in given and parameter.default is parameter.empty:
            raise UserError(f"{section}.{name} is missing")
    fields: dict[str, Any] = {name: (known[name].annotation, ...) for name in given}
    try:
        create_model(section, __config__=ConfigDict(arbitrary_types_allowed=True, strict=True), **fields)(**given)
    except ValidationError as error:
        first = error.errors()[0]
        key = first["loc"][0]
        wanted = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
        raise UserError(f"{section}.{key}={arguments[str(key)]}: {wanted}") from None
    return given


def build(target: Callable[..., T], arguments: Mapping[str, Any], section: str) -> T:
    """Call `target` with those of `arguments` that it takes, checked as in `check`."""
    return target(**check(target, arguments, section))


def refuse_idle(target: Any, arguments: Mapping[str, Any], section: str) -> None:
    """Raise `UserError` for one of `arguments` that is not the default but changes nothing without another.

    Which may do so, `target.idle_without` says.
    """
    known = parameters(target)
    for name, other in target.idle_without.items():
        value = arguments.get(name, known[name].default)
        if value != known[name].default and not arguments.get(other):
            raise UserError(
                f"{section}.{name}={value}: changes nothing without {section}.{other}; set that as well, or leave it "
                "out"
            )


def refuse_unknown(arguments: Iterable[str], targets: Iterable[Callable[..., Any]], section: str) -> None:
    """Raise `UserError` naming the first of `arguments` that none of `targets` takes."""
    known = {name for target in targets for name in parameters(target)}
    for name in arguments:
        if name not in known:
            raise UserError(f"{section}.{name}: no such key; {nearest(name, known)}")
