"""What a step reads beside its arguments and tensors: attributes, globals, closures, defaults, and code, its own too.

A plan is good for as long as all of that is what it was when the step was traced. Attributes of the cell are noted as
tracing reads them; for the rest the code of the step, and of what it calls outside of libraries, is searched for names.
What cannot be watched, such as the time or an open file, is refused by name.
"""

from __future__ import annotations

import builtins
import dis
import enum
import functools
import inspect
import sys
import sysconfig
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from rnnzoo.cell import Cell, State, Weight
from rnnzoo.errors import UserError

MISSING = object()

PLAIN = (int, float, complex, str, bytes, bool, type(None), type(...), range, torch.dtype, torch.device, torch.layout)
"""What says everything when it is printed."""

ITSELF = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.WrapperDescriptorType,
          types.MethodDescriptorType, types.GetSetDescriptorType, np.ufunc, enum.Enum,
          torch._ops.OperatorBase, torch._ops.OpOverloadPacket)  # fmt: skip
"""What is equal to nothing but itself."""

CHANCE = {"random", "secrets", "time", "datetime", "os", "posix", "uuid", "numpy.random"}
"""Modules whose functions may say something else at every call."""

BOUND = (type, types.ModuleType, type(None))
"""What built-in functions belong to that read nothing more."""

MODES = (torch.is_grad_enabled, torch.is_inference_mode_enabled, torch.is_autocast_enabled, torch.initial_seed)
"""What tells under what the step is run, or what chance will be."""

ANYTHING = {"globals", "eval", "exec", "open", "input", "vars", "locals"}
"""Built-in functions with which code reads what nobody can name beforehand."""

COMPUTED = (property, functools.cached_property)

GROUND = ("rnnzoo.cell", "rnnzoo.options", "rnnzoo.errors")

UNASKED = {"__init__", "__new__", "__del__", "__repr__", "__str__", "__format__", "__init_subclass__", "__set_name__",
           "__class_getitem__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__dir__"}  # fmt: skip
"""Methods that make or show an object; other ones of such names run where no code names them, as `__call__` does."""

PARTS = 2000
"""A value of more parts than this is too large to be compared at every call."""

LIBRARIES = tuple({sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")})


class Unwatchable(Exception):
    """Why a value cannot be compared with what it was."""


class Reads:
    """What was read, and what it was: of the cell by attribute, of namespaces and objects by name."""

    def __init__(self, kind: type[Cell], cell: Cell | None = None) -> None:
        self.kind = kind
        self._cell = cell
        # these `plan` compares itself
        self._keyed = {*kind.hyperparameters, "input_size", "hidden_size", "modifier", "training"}
        self._own: dict[str, Any] = {}
        self._spaces: dict[tuple[int, str], tuple[Any, str, Any, str]] = {}
        self._attributes: dict[tuple[int, str], tuple[Any, str, Any, str]] = {}
        self._forms: dict[int, tuple[Any, Any, str]] = {}  # of what may change in place
        self._owners: dict[int, Any] = {}
        self._names: set[str] = set()
        self._seen: set[int] = set()

    def begin(self) -> None:
        """Note what the code of the step names. Raises `UserError` for what cannot be watched."""
        self._owner(self.kind)
        self._function(self.kind.step, "step", root=True)
        self._names |= {"step", "forward", "initial_state", "state_shapes", "backward", "setup_context"}
        self._search()

    def attribute(self, name: str) -> None:
        """Note that the cell was asked for this attribute. Raises `UserError` when it cannot be watched."""
        if name in self._own or name in self._keyed or self._cell is None:
            return
        value = self._own[name] = _own(self._cell, name)
        if value is MISSING:
            value = inspect.getattr_static(self.kind, name, MISSING)
        if not (value is MISSING or inspect.isroutine(value) or isinstance(value, (Weight, State, *COMPUTED))):
            self._value(value, f"self.{name}")
        elif isinstance(value, types.FunctionType):
            self._function(value, f"self.{name}")
        self._names.add(name)
        self._search()

    def check(self) -> None:
        """Raise `UserError` when the step has changed what it reads."""
        changed = None if self._cell is None else self.change(self._cell)
        if changed is not None:
            raise UserError(f"it changes {changed}")

    def forget(self) -> None:
        """Let go of the cell, which keeps what is known of it."""
        self._cell = None

    def change(self, cell: Cell) -> str | None:
        """The first thing that is not for `cell` what it was for the cell that was traced, or None."""
        own = vars(cell)
        for name, value in self._own.items():
            now = own.get(name, MISSING)
            if now is not value and not self._same(_own(cell, name), value):
                return f"self.{name}"
        for space, name, value, label in self._spaces.values():
            if space.get(name, MISSING) is not value and not self._same(space.get(name, MISSING), value):
                return label
        for owner, name, value, label in self._attributes.values():
            if getattr(owner, name, MISSING) is not value and not self._same(getattr(owner, name, MISSING), value):
                return label
        for value, form, label in self._forms.values():
            if not _is(value, form):
                return label
        return None

    def _same(self, now: Any, before: Any) -> bool:
        if id(before) in self._forms:
            return _is(now, self._forms[id(before)][1])
        return now is before or _is(now, _form_or(before))

    def _value(self, value: Any, label: str, must: bool = True) -> None:
        """Watch what a value is made of. Raises `UserError` if it `must` be watched and cannot be."""
        found: list[Any] = []
        try:
            form = _Forms(found).of(value)
        except Unwatchable as reason:
            if must:
                raise UserError(f"it reads {label}, {reason}") from None
            return
        if not _fixed(value):
            self._forms[id(value)] = value, form, label
        for part in found:
            if isinstance(part, types.FunctionType):
                self._function(part, label)
            else:
                self._owner(part)

    def _owner(self, owner: Any) -> None:
        """From here on watch those of its attributes whose name some code contains."""
        if not _library(owner):
            self._owners[id(owner)] = owner

    def _search(self) -> None:
        """Watch whatever the names found so far may mean."""
        known = -1
        while known != (known := len(self._names) + len(self._owners) + len(self._seen)):
            for owner in list(self._owners.values()):
                spaces = [c for c in owner.__mro__ if not _library(c)] if isinstance(owner, type) else [owner]
                for name in {n for space in spaces for n in vars(space) if n in self._names or _unnamed(space, n)}:
                    self._member(owner, name)
                    for space in spaces:  # what `super` may find
                        if name in vars(space) and vars(space)[name] is not inspect.getattr_static(owner, name):
                            self._member(space, name)

    def _member(self, owner: Any, name: str) -> None:
        value = inspect.getattr_static(owner, name)
        if isinstance(value, (Weight, State)) or (id(owner), name) in self._attributes:
            return
        label = f"{owner.__name__}.{name}"
        self._attributes[id(owner), name] = owner, name, getattr(owner, name), label
        if isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        elif isinstance(value, COMPUTED):
            value = value.fget if isinstance(value, property) else value.func
        if isinstance(value, types.FunctionType):
            self._function(value, label)
        else:
            self._value(value, label, must=False)

    def _function(self, function: Any, label: str, root: bool = False) -> None:
        """Watch a function and what its code names. What belongs to a library is taken as it is."""
        code = getattr(function, "__code__", None)
        if code is None or id(function) in self._seen or (not root and _library(function)):
            return
        self._seen.add(id(function))
        for name in ("__code__", "__defaults__", "__kwdefaults__"):
            self._attributes[id(function), name] = function, name, getattr(function, name), f"the code of {label}"
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._value(value, f"a default of {label}")
        closure: dict[str, Any] = {}
        for name, cell in zip(code.co_freevars, function.__closure__ or ()):
            try:
                value = closure[name] = cell.cell_contents
            except ValueError:  # not assigned
                continue
            self._attributes[id(cell), "cell_contents"] = cell, "cell_contents", value, name
            if name != "__class__":
                self._value(value, name)
        self._code(code, function.__globals__, closure)

    def _code(self, code: types.CodeType, space: dict[str, Any], closure: dict[str, Any]) -> None:
        value, label = MISSING, ""
        for step in dis.get_instructions(code):
            name = step.argval
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                label, value = name, self._global(space, name)
            elif step.opname in ("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"):
                label, value = name, closure.get(name, MISSING)
            elif step.opname in ("IMPORT_NAME", "IMPORT_FROM", "LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"):
                self._names.add(name)
                if step.opname == "IMPORT_NAME":
                    label, value = name, sys.modules.get(name, MISSING)
                    if value is not MISSING:
                        self._owner(value)
                elif isinstance(value, (types.ModuleType, type)) and hasattr(value, name):
                    owner, value = value, getattr(value, name)
                    label = f"{label}.{name}"
                    self._attributes[id(owner), name] = owner, name, value, label
                    self._value(value, label)
                else:
                    value = MISSING
            elif step.opname not in ("PRECALL", "CACHE", "PUSH_NULL", "EXTENDED_ARG"):
                value = MISSING
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant, space, closure)

    def _global(self, space: dict[str, Any], name: str) -> Any:
        value = space.get(name, MISSING)
        if value is MISSING:
            value = getattr(builtins, name, MISSING)
            if name in ANYTHING:
                raise UserError(f"it calls {name}")
            return value
        if (id(space), name) not in self._spaces:
            self._spaces[id(space), name] = space, name, value, name
            self._value(value, name)
        return value


class _Forms:
    """What values are made of, in tuples that can be compared; functions, types and modules met go into `found`."""

    def __init__(self, found: list[Any] | None = None) -> None:
        self.found = [] if found is None else found
        self.left = PARTS
        self.above: list[int] = []

    def of(self, value: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise Unwatchable("which is too large to be compared at every call")
        if id(value) in self.above:
            return "again", len(self.above) - self.above.index(id(value))
        if any(value is mode for mode in MODES):
            raise Unwatchable("which asks under what it is run")
        if {_module(value), _module(type(value))} & CHANCE:
            raise Unwatchable("which may be something else at every call")
        if isinstance(value, types.BuiltinFunctionType) and not isinstance(value.__self__, BOUND):
            return value.__name__, self.of(value.__self__)
        if isinstance(value, ITSELF):
            if isinstance(value, (types.FunctionType, type, types.ModuleType)):
                self.found.append(value)
            return value
        if isinstance(value, PLAIN):
            return type(value), repr(value)
        self.above.append(id(value))
        try:
            return type(value), tuple(map(self.of, self._parts(value)))
        finally:
            self.above.pop()

    def _parts(self, value: Any) -> Iterator[Any]:
        if isinstance(value, torch.Tensor):
            raise Unwatchable("a tensor that the cell neither declares nor registers as a buffer")
        if isinstance(value, (np.ndarray, np.generic)):
            yield from (str(value.dtype), value.shape, value.tobytes())
        elif isinstance(value, types.MethodType):
            yield from (value.__func__, value.__self__)
        elif isinstance(value, functools.partial):
            yield from (value.func, value.args, value.keywords)
        elif isinstance(value, slice):
            yield from (value.start, value.stop, value.step)
        elif isinstance(value, (set, frozenset)):
            yield from sorted(value, key=repr)
        else:
            known = isinstance(value, (tuple, list, dict, types.MappingProxyType))
            if isinstance(value, (tuple, list)):
                yield from value
            elif known:
                yield from (part for pair in value.items() for part in pair)
            slots = [n for c in type(value).__mro__ for n in vars(c).get("__slots__", ()) if hasattr(value, n)]
            if not (known or slots or hasattr(value, "__dict__")):
                raise Unwatchable(f"a {type(value).__name__}, which cannot be compared with what it was")
            self.found.append(type(value))
            yield from (part for name in slots for part in (name, getattr(value, name)))
            yield from (part for pair in getattr(value, "__dict__", {}).items() for part in pair)


def _unnamed(owner: Any, name: str) -> bool:
    """Whether a class's method runs where no code names it."""
    hidden = isinstance(owner, type) and name.startswith("__") and name.endswith("__") and name not in UNASKED
    return hidden and isinstance(vars(owner)[name], types.FunctionType)


def _fixed(value: Any) -> bool:
    """Whether a value stays what it is."""
    return isinstance(value, (*PLAIN, *ITSELF)) or (type(value) in (tuple, frozenset) and all(map(_fixed, value)))


def _form_or(value: Any) -> Any:
    try:
        return _Forms().of(value)
    except Unwatchable:
        return value


def _is(value: Any, form: Any) -> bool:
    """Whether a value has this form."""
    return bool(_form_or(value) == form)


def _own(cell: Cell, name: str) -> Any:
    """What the cell itself, rather than its class, has under a name."""
    return vars(cell).get(name, cell._modules.get(name, MISSING))


def _module(value: Any) -> str:
    if isinstance(value, types.ModuleType):
        return value.__name__
    name = getattr(value, "__module__", None)
    return name if isinstance(name, str) else ""


def _library(value: Any) -> bool:
    """Whether a function, class or module is part of Python, of an installed package, or of what cells stand on."""
    if _module(value) in ("builtins", *GROUND):
        return True
    if isinstance(value, types.FunctionType):
        return value.__code__.co_filename.startswith(("<frozen", *LIBRARIES))
    file = getattr(sys.modules.get(_module(value)), "__file__", None)
    return (file or "").startswith(LIBRARIES) or _module(value) in sys.builtin_module_names
