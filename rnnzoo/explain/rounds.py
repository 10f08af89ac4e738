"""Loops within a step: equations that repeat, each round with the results of the one before, said once.

What `equations` reads is unrolled; here equal rounds are found again, for the eye only.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from rnnzoo.explain.equations import Reading
from rnnzoo.explain.expression import Equation, Expression, Symbol
from rnnzoo.explain.notation import LaTeX, MathML, Notation

FEWEST = 3
"""Rounds that are folded; two are read faster as they stand."""

Block: TypeAlias = "tuple[Equation, ...]"


@dataclass(frozen=True)
class Rounds:
    """Equations that repeat.

    Args:
        enter: what the round before the first has for results, as equations; none where they are called so already.
        body: a round, k.
        leave: what the results of the last round are called afterwards.
        first: the number of the first round.
        count: how many there are.
        names: what is called otherwise in `body` than in the second round.
        once: the first round as a picture draws it: with its own arguments, and its results without numbers.
        results: of the last round, and what they are in `once`.
    """

    enter: Block
    body: Block
    leave: Block
    first: int
    count: int
    names: dict[Symbol, Symbol]
    once: Block
    results: dict[Symbol, Symbol]


def folded(reading: Reading) -> list[Equation | Rounds]:
    """The equations in order, in which rounds that repeat at least `FEWEST` times are one."""
    left, found = list(reading.equations), list[Equation | Rounds]()
    while left:
        for period in range(1, len(left) // FEWEST + 1):
            rounds = _rounds(left, period)
            if rounds is not None:
                found.append(rounds)
                left = left[period * rounds.count :]
                break
        else:
            found.append(left.pop(0))
    return found


def lines(reading: Reading, notation: Notation, marked: Collection[Expression] = ()) -> list[str]:
    """The equations, each written once; parts that are among `marked` are set off where the notation can."""
    written: list[str] = []
    for part in folded(reading):
        if isinstance(part, Equation):
            written.append(notation.equation(part, marked))
            continue
        within = [_renamed(e, part.names, part.first + 1) for e in marked]
        written += map(notation.equation, part.enter)
        written.append(_heading(part, notation))
        written += [notation.equation(equation, within) for equation in part.body]
        written += map(notation.equation, part.leave)
    return written


def _heading(rounds: Rounds, notation: Notation) -> str:
    count, first, last = rounds.count, rounds.first, rounds.first + rounds.count - 1
    if isinstance(notation, LaTeX):
        return rf"&\times {count} \text{{ for }} k \in \{{{first}, \dots, {last}\}}\colon"
    if isinstance(notation, MathML):
        span = f"<mi>k</mi><mo>=</mo><mn>{first}</mn><mo>,</mo><mo>…</mo><mo>,</mo><mn>{last}</mn>"
        return f'<math display="block"><mo>×</mo><mn>{count}</mn><mtext>&#xa0;for&#xa0;</mtext>{span}<mo>:</mo></math>'
    return f"× {count} for k = {first}, …, {last}:"


def _rounds(equations: Sequence[Equation], period: int) -> Rounds | None:
    """The rounds of `period` equations that stand at the beginning, or None."""
    blocks = [tuple(equations[at : at + period]) for at in range(0, len(equations) - period + 1, period)]
    targets = [_targets(block) for block in blocks]
    entry: dict[int, Symbol] = {}
    count = 1
    while count < len(blocks) and _follows(blocks[count - 1], blocks[count], targets[: count + 1], entry):
        count += 1
    first = targets[0][0].version
    numbered = isinstance(first, int) and all(
        symbol.version == first + j for j in range(count - 1) for symbol in targets[j]
    )
    inner = {symbol for block in targets[: count - 1] for symbol in block}
    after = {symbol for equation in equations[count * period :] for symbol in equation.value.symbols()}
    if count < FEWEST or not entry or not numbered or not isinstance(first, int) or inner & after:
        return None
    body = {
        **{symbol: replace(symbol, version="k") for symbol in targets[1]},
        **{symbol: replace(symbol, version="k−1") for symbol in targets[0]},
    }
    once = {symbol: replace(symbol, version=0) for symbol in targets[0]}
    before = [replace(targets[0][at], version=str(first - 1)) for at in entry]
    enter = [
        Equation((symbol,), Expression("symbol", (), given))
        for symbol, given in zip(before, entry.values())
        if given != replace(symbol, version=first - 1)
    ]
    named = [replace(symbol, version=str(first + count - 1)) for symbol in targets[0]]
    leave = [
        Equation((last,), Expression("symbol", (), symbol))
        for last, symbol in zip(targets[count - 1], named)
        if str(last.version) != symbol.version
    ]
    return Rounds(
        tuple(enter),
        tuple(_with(equation, body, first + 1) for equation in blocks[1]),
        tuple(leave),
        first,
        count,
        body,
        tuple(_with(equation, once, first) for equation in blocks[0]),
        {last: once[symbol] for last, symbol in zip(targets[count - 1], targets[0])},
    )


def _targets(block: Block) -> list[Symbol]:
    return [symbol for equation in block for symbol in equation.targets]


def _follows(before: Block, after: Block, targets: list[list[Symbol]], entry: dict[int, Symbol]) -> bool:
    """Whether a block is the round after another: the same, but for its results, and those of the round before.

    What the first round has in place of results of a round before is gathered in `entry`, by their position.
    """
    *earlier, old, new = targets
    if [s.name for s in old] != [s.name for s in new] or [len(e.targets) for e in before] != [
        len(e.targets) for e in after
    ]:
        return False

    def symbol(mine: Symbol, its: Symbol) -> bool:
        if its in new:
            return mine == old[new.index(its)]
        if its in old:
            at = old.index(its)
            return mine == (earlier[-1][at] if earlier else entry.setdefault(at, mine))
        return mine == its

    def same(mine: Expression, its: Expression) -> bool:
        if mine.op != its.op or len(mine.args) != len(its.args):
            return False
        if mine.op == "symbol":
            return symbol(mine.detail, its.detail)
        shifted = mine.op in ("part", "rows") and isinstance(mine.detail, int) and its.detail == mine.detail + 1
        return (mine.detail == its.detail or shifted) and all(map(same, mine.args, its.args))

    return all(same(a.value, b.value) for a, b in zip(before, after))


def _with(equation: Equation, names: dict[Symbol, Symbol], number: int) -> Equation:
    targets = tuple(names.get(target, target) for target in equation.targets)
    return Equation(targets, _renamed(equation.value, names, number))


def _renamed(e: Expression, names: dict[Symbol, Symbol], number: int) -> Expression:
    """The expression with other symbols; the matrix of this round's `number` is the k-th."""
    detail = names.get(e.detail, e.detail) if e.op == "symbol" else e.detail
    if e.op in ("part", "rows") and detail == number - 1:
        detail = "k"
    return replace(e, args=tuple(_renamed(a, names, number) for a in e.args), detail=detail)
