"""Which cells are alike, and where their equations differ, whatever letters their papers use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rnnzoo.explain.equations import Reading
from rnnzoo.explain.expression import Expression, Symbol

CLASSICS = ("rnn", "lstm", "gru")
"""One of them, the closest, stands among every cell's relatives."""

COMMUTATIVE = ("add", "hadamard", "scale")


@dataclass(frozen=True)
class Anatomy:
    """A cell's equations without their letters.

    Args:
        reading: the equations.
        parts: how often each kind of part occurs, whole equations included.
        wholes: how often each kind of right-hand side occurs.
    """

    reading: Reading
    parts: Counter[str]
    wholes: Counter[str]

    def key(self, e: Expression) -> str:
        """Two expressions of equal key do the same to inputs, states, weights and what is computed from them."""
        if e.op == "symbol":
            return self._role(e.detail)
        args = [self.key(arg) for arg in e.args]
        if e.op in COMMUTATIVE:
            args.sort()
        return f"{e.op}{'' if e.detail is None else e.detail}({', '.join(args)})"

    def _role(self, symbol: Symbol) -> str:
        if symbol.role == "state":
            shapes = self.reading.shapes
            past_input = shapes[symbol] == shapes.get(Symbol("x", "t", role="input"))
            what = "past input" if past_input else "output" if symbol.name == self.reading.output.name else "memory"
            return f"{what} {symbol.time}"
        return {"fixed": "weight", "output": "local", "size": "hyperparameter"}.get(symbol.role, symbol.role)


def anatomy(reading: Reading) -> Anatomy:
    """What a cell can be compared by; to be read at sizes I ≠ H, so that a past input is told from a state."""
    found = Anatomy(reading, Counter(), Counter())
    for equation in reading.equations:
        found.wholes[found.key(equation.value)] += 1
        found.parts.update(found.key(part) for part in composite(equation.value))
    return found


def composite(e: Expression) -> Iterator[Expression]:
    """All parts of an expression that are more than a letter or a number, itself included."""
    if e.args:
        yield e
        for arg in e.args:
            yield from composite(arg)


def likeness(a: Anatomy, b: Anatomy) -> float:
    """The share of parts that two cells have in common, from 0 to 1."""
    return (a.parts & b.parts).total() / max((a.parts | b.parts).total(), 1)


def relatives(name: str, zoo: Mapping[str, Anatomy], count: int = 3) -> list[str]:
    """The cells most like `name`, closest first, a classic one among them."""
    others = sorted((other for other in zoo if other != name), key=lambda o: (-likeness(zoo[name], zoo[o]), o))
    found = others[:count]
    classics = [other for other in others if other in CLASSICS]
    if not set(found) & set(CLASSICS) and classics:
        found[-1] = classics[0]
    return found


def differences(of: Anatomy, other: Anatomy) -> frozenset[Expression]:
    """The parts of a cell's equations that another cell lacks: the smallest that say it all."""
    found: set[Expression] = set()
    left = other.wholes.copy()

    def look(e: Expression) -> None:
        if of.key(e) in other.parts or not e.args:
            return
        before = len(found)
        if any(of.key(part) in other.parts for arg in e.args for part in composite(arg)):
            for arg in e.args:
                look(arg)
        if len(found) == before:  # it is new, or known parts are put together anew
            found.add(e)

    for equation in of.reading.equations:
        whole = of.key(equation.value)
        if left[whole]:
            left[whole] -= 1
        elif whole in other.wholes:
            found.add(equation.value)
        else:
            look(equation.value)
    return frozenset(found)
