"""Lets go what torch keeps of every trace as long as the process lives: a search over thousands of sizes makes many.

Measured for plans of `rnn`: 0.15 MB each, nearly all of it what operations give for open shapes; these tables hang on
their trace's environment, which torch's tables of simplified sizes keep.
"""

from __future__ import annotations

import linecache
import weakref

from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv


def forgetting(made: fx.GraphModule) -> fx.GraphModule:
    """The module, whose source, kept to be shown in tracebacks, goes with it."""
    weakref.finalize(made, _forget_source, type(made).forward.__code__.co_filename).atexit = False
    return made


def _forget_source(name: str) -> None:
    linecache.cache.pop(name, None)
    fx.graph_module._loader.eval_cache.pop(name, None)


def forget_shapes() -> None:
    """Empty the tables of results by operation and shapes, and of simplified sizes, which are there for speed alone."""
    FakeTensorMode.cache_clear()
    for member in vars(ShapeEnv).values():
        if hasattr(member, "cache_clear"):
            member.cache_clear()
