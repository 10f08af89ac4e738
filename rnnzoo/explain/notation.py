"""Equations as LaTeX, as MathML and as plain text, all three written by one walk over the tree."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from html import escape

from rnnzoo.explain.expression import Equation, Expression, Symbol

GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "zeta": "ζ", "eta": "η", "theta": "θ",
    "iota": "ι", "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "pi": "π", "rho": "ρ", "sigma": "σ",
    "tau": "τ", "phi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω", "Gamma": "Γ", "Delta": "Δ", "Theta": "Θ",
    "Lambda": "Λ", "Sigma": "Σ", "Phi": "Φ", "Psi": "Ψ", "Omega": "Ω",
}  # fmt: skip
NAMES = {"dt": "Δt", "lamda": "λ"}
"""What is called otherwise in equations than in code."""

FUNCTIONS = {
    "sigmoid": "σ", "relu": "ReLU", "silu": "SiLU", "sign": "sgn", "layer_norm": "LN", "rms_norm": "RMS",
    "matrix_exp": "expm",
}  # fmt: skip
"""Functions that are called otherwise in equations than in code."""

FENCES = {"absolute": "||", "stack": "[]", "floor": "⌊⌋", "ceil": "⌈⌉"}
"""What is written as a pair of signs around it."""

ACCENTS = {"new": "~", "tilde": "~", "hat": "^", "bar": "¯", "prime": "′"}

COMBINING = {"~": "\u0303", "^": "\u0302", "¯": "\u0304"}
WORDS = ("in", "on", "re", "im")
"""Subscripts of two letters that are one word and not two indices."""

PRODUCT = re.compile("[A-Z][a-z]")
"""A name that says which product it is the value of, as Wx; it is set in parentheses, lest it be read as one."""

ATOM, POWER, TOGETHER, OPEN, TIMES, SUM, CASES = 5, 4, 3, 2, 1, 0, -1
"""How tightly an expression holds together: a name, a power, a product without a sign, one that ends in log, a product
with a sign, a sum, cases without a right brace."""

LEVELS = {
    "add": SUM, "negate": SUM, "hadamard": TIMES, "divide": TIMES, "power": POWER, "transpose": POWER, "rows": POWER,
    "part": POWER,
}  # fmt: skip


def spell(symbol: Symbol) -> tuple[str, str, str, tuple[str, ...]]:
    """What stands before a symbol ("log" or nothing), its letter or word, its accent, and its subscripts."""
    name, before, accent = symbol.name.strip("_") or "·", "", "′" if symbol.prime else ""
    time = (symbol.time,) if symbol.time else ()
    if name in ("input_size", "hidden_size"):
        return before, "n", accent, (name[0],)
    if name.startswith("log_"):
        name, before = name[4:], "log"
    if name.startswith("new_"):
        name, accent = name[4:], ACCENTS["new"]
    base, *below = (part for part in name.split("_") if part)
    if below and below[-1] in ACCENTS:
        accent = ACCENTS[below.pop()]
    if below == ["size"]:
        base, below = "n", [base]
    if len(base) > 1 and base not in GREEK and base not in NAMES and any(len(part) > 2 for part in below):
        return before, name, accent, time  # words, not a letter and its index
    if PRODUCT.fullmatch(base):
        base = f"({base})"
    below = [part if part == "xi" else GREEK.get(part, NAMES.get(part, part)) for part in below]
    return before, GREEK.get(base, NAMES.get(base, base)), accent, (*below, *time)


class Notation:
    """Plain text for terminals; the other notations say differently how each thing is put."""

    fractions = False
    """Whether a quotient is on two lines, so that it needs no parentheses, and cases lack their right brace."""

    SPACE, DOT = " ", " · "
    """Between the factors of a product without a sign; the dot stands before a number."""

    NUMBER = re.compile("[0-9]")
    """How what begins with a number begins."""

    def equation(self, equation: Equation, marked: Collection[Expression] = ()) -> str:
        """`targets` = `value`; parts of the value that are among `marked` are set off where the notation can."""
        targets = [self.symbol(target) for target in equation.targets]
        left = targets[0] if len(targets) == 1 else self.fence("[", self.join(targets, ";"), "]")
        return self.join([left, self.write(equation.value, CASES, marked)], "=")

    def write(self, e: Expression, level: int = SUM, marked: Collection[Expression] = ()) -> str:
        """An expression, in parentheses unless it holds together at least as tightly as `level`."""
        own = self._level(e)
        written = self._bare(e, marked)
        written = written if own >= level else self.fence("(", written, ")")
        return self.mark(written) if e in marked else written

    def _level(self, e: Expression) -> int:
        if e.op in ("matmul", "scale"):
            return OPEN if self._level(e.args[-1]) == OPEN else TOGETHER
        if e.op == "symbol":
            return OPEN if spell(e.detail)[0] else ATOM
        if e.op == "number":
            mantissa, power, _ = _digits(abs(e.detail))
            return SUM if e.detail < 0 else ATOM if not power else POWER if mantissa == "1" else TIMES
        if e.op == "call" and e.detail == "mod":
            return TIMES
        if self.fractions and e.op in ("divide", "where"):
            return TOGETHER if e.op == "divide" else CASES
        return LEVELS.get(e.op, ATOM)

    def _bare(self, e: Expression, marked: Collection[Expression]) -> str:
        def arg(k: int, level: int = CASES) -> str:
            return self.write(e.args[k], level, marked)

        def all_args(level: int = SUM) -> list[str]:
            return [self.write(a, level, marked) for a in e.args]

        if e.op == "symbol":
            return self.symbol(e.detail)
        if e.op == "number":
            digits = self.digits(abs(e.detail))
            return digits if e.detail >= 0 else self.negative(digits)
        if e.op == "add":
            return self._sum(e, marked)
        if e.op == "negate":
            return self.negative(arg(0, TIMES))
        if e.op == "hadamard":  # W x ⊙ U h is right, but only those who know the rule read it so
            return self.join([self.write(a, POWER if _has_product(a) else TOGETHER, marked) for a in e.args], "⊙")
        if e.op == "scale":
            numbers = [self.write(a, POWER if a.op == "matmul" else TOGETHER, marked) for a in e.args[:-1]]
            return self.together([*numbers, arg(-1, OPEN)])
        if e.op == "matmul":
            return self.together([arg(0, TOGETHER), arg(1, POWER if e.args[1].op == "scale" else OPEN)])
        if e.op == "divide" and self.fractions:
            return self.fraction(arg(0), arg(1))
        if e.op == "divide":
            return self.join([arg(0, TOGETHER), arg(1, POWER)], "/")
        if e.op == "power":
            return self.power(arg(0, ATOM), arg(1))
        if e.op == "transpose":
            return self.power(arg(0, ATOM), "⊤")
        if e.op in ("rows", "part"):
            return self.rows(arg(0, ATOM), _rows(e.detail))
        if e.op == "where":
            return self.cases(self._branches(e, marked))
        if e.op == "compare":
            return self.fence("[", self._condition(e, marked), "]")
        if e.op == "root":
            return self.root(arg(0))
        fence = FENCES.get(e.op) or FENCES.get(str(e.detail))
        if fence:
            return self.fence(fence[0], self.join(all_args(), ";"), fence[1])
        if e.op == "ones":
            return self.ones()
        if e.detail == "mod":
            return self.join(all_args(TOGETHER), "mod")
        return self.apply("diag" if e.op == "diag" else FUNCTIONS.get(e.detail, e.detail), all_args())

    def _sum(self, e: Expression, marked: Collection[Expression]) -> str:
        written = self.write(e.args[0], SUM, marked)
        for term in e.args[1:]:
            if term.op == "negate" and term not in marked:
                written = self.join([written, self.write(term.args[0], TIMES, marked)], "−")
            elif term.op == "number" and term.detail < 0:
                written = self.join([written, self.digits(-term.detail)], "−")
            else:
                written = self.join([written, self.write(term, TIMES, marked)], "+")
        return written

    def _branches(self, e: Expression, marked: Collection[Expression]) -> list[tuple[str, str]]:
        """Values and conditions; the last, which holds otherwise, has none."""
        condition, then, otherwise = e.args
        first = self.write(then, CASES, marked), self._condition(condition, marked)
        if otherwise.op == "where":
            return [first, *self._branches(otherwise, marked)]
        return [first, (self.write(otherwise, CASES, marked), "")]

    def _condition(self, e: Expression, marked: Collection[Expression]) -> str:
        """A comparison; one that stands for a number, 0 or 1, is in brackets (Iverson's)."""
        if e.op != "compare":
            return self.write(e, SUM, marked)
        return self.join([self.write(arg, SUM, marked) for arg in e.args], e.detail)

    def symbol(self, symbol: Symbol) -> str:
        before, base, accent, below = spell(symbol)
        below_text = ",".join(below)
        joined = f"_{below_text}" if len(below_text) == 1 else f"_{{{below_text.replace('-', '−')}}}" if below else ""
        version = f"^({symbol.version})" if symbol.version else ""
        return f"{before} {base}{COMBINING.get(accent, accent)}{joined}{version}".strip()

    def digits(self, number: float) -> str:
        """A number of at least zero."""
        mantissa, e, exponent = _digits(number)
        if not e:
            return self.number(mantissa)
        power = self.power(self.number("10"), self.number(exponent))
        return power if mantissa == "1" else self.join([self.number(mantissa), power], "·")

    def number(self, digits: str) -> str:
        return digits

    def negative(self, inside: str) -> str:
        return f"−{inside}"

    def join(self, parts: Sequence[str], sign: str) -> str:
        return f"{'' if sign == ';' else ' '}{sign} ".join(parts)

    def together(self, parts: Sequence[str]) -> str:
        """A product without a sign."""
        written = parts[0]
        for part in parts[1:]:
            written += (self.DOT if self.NUMBER.match(part) else self.SPACE) + part
        return written

    def fence(self, left: str, inside: str, right: str) -> str:
        return f"{left}{inside}{right}"

    def fraction(self, above: str, below: str) -> str:
        raise NotImplementedError

    def power(self, base: str, exponent: str) -> str:
        return f"{base}^({exponent})" if len(exponent) > 1 else f"{base}^{exponent}"

    def rows(self, matrix: str, rows: str) -> str:
        return f"{matrix}[{rows}]"

    def root(self, inside: str) -> str:
        return f"√({inside})"

    def apply(self, function: str, args: Sequence[str]) -> str:
        return f"{function}({', '.join(args)})"

    def cases(self, branches: Sequence[tuple[str, str]]) -> str:
        return "{" + "; ".join(f"{value} if {when}" if when else f"{value} otherwise" for value, when in branches) + "}"

    def ones(self) -> str:
        return "𝟏"

    def mark(self, inside: str) -> str:
        return inside


TEX = {letter: f"\\{name}" for name, letter in GREEK.items()}


class LaTeX(Notation):
    """For papers; needs amsmath and amssymb."""

    fractions = True
    DOT, NUMBER = r" \cdot ", re.compile(r"\{*[0-9]|\\frac\{+[0-9]")
    SIGNS = {  # noqa: RUF012
        "⊙": r"\odot", "−": "-", "·": r"\cdot", "mod": r"\bmod", "≤": r"\le", "≥": r"\ge", "≠": r"\ne", ";": r";\,",
    }  # fmt: skip
    FENCES = {"⌊": r"\lfloor", "⌋": r"\rfloor", "⌈": r"\lceil", "⌉": r"\rceil"}  # noqa: RUF012
    ACCENT = {"~": r"\tilde", "^": r"\hat", "¯": r"\bar"}  # noqa: RUF012

    def symbol(self, symbol: Symbol) -> str:
        before, base, accent, below = spell(symbol)
        letter = f"{self.ACCENT[accent]}{{{self._word(base)}}}" if accent in self.ACCENT else self._word(base)
        joined = ",".join(self._index(part) for part in below)
        version = (
            f"^{{({symbol.version})}}".replace("−", "-") if symbol.version else ""
        )  # TeX wants it right after the prime
        prime = "'" if accent == "′" else ""
        return f"{before and chr(92) + before + ' '}{letter}{prime}{version}{joined and f'_{{{joined}}}'}"

    def _word(self, word: str) -> str:
        if len(word) == 1 or word == "Δt" or word[0] == "(":
            return "".join(f"{TEX[letter]} " if letter in TEX else letter for letter in word).strip()
        return rf"\mathrm{{{word}}}".replace("_", r"\_")

    def _index(self, word: str) -> str:
        if len(word) == 2 and word not in WORDS:
            return " ".join(map(self._word, word))
        return word if word in ("t-1", "t+1") else self._word(word)

    def negative(self, inside: str) -> str:
        return f"-{inside}"

    def join(self, parts: Sequence[str], sign: str) -> str:
        return f" {self.SIGNS.get(sign, sign)} ".join(parts)

    def fence(self, left: str, inside: str, right: str) -> str:
        return rf"\left{self.FENCES.get(left, left)} {inside} \right{self.FENCES.get(right, right)}"

    def fraction(self, above: str, below: str) -> str:
        return rf"\frac{{{above}}}{{{below}}}"

    def power(self, base: str, exponent: str) -> str:
        return f"{{{base}}}^{{{exponent.replace('⊤', chr(92) + 'top').replace('−', '-')}}}"

    def root(self, inside: str) -> str:
        return rf"\sqrt{{{inside}}}"

    def apply(self, function: str, args: Sequence[str]) -> str:
        known = {"σ": r"\sigma", **{name: f"\\{name}" for name in ("tanh", "exp", "log", "sin", "cos", "min", "max")}}
        return known.get(function, rf"\operatorname{{{function}}}") + self.fence("(", ", ".join(args), ")")

    def cases(self, branches: Sequence[tuple[str, str]]) -> str:
        rows = [
            rf"{value} & \text{{if }} {when}" if when else rf"{value} & \text{{otherwise}}" for value, when in branches
        ]
        return rf"\begin{{cases}} {(chr(92) * 2 + ' ').join(rows)} \end{{cases}}"

    def ones(self) -> str:
        return r"\mathbf{1}"


class MathML(Notation):
    """For browsers, which draw it without scripts. Marked parts are of class `differs`."""

    fractions = True
    SPACE, DOT, NUMBER = "<mspace width='0.17em'/>", "<mo>·</mo>", re.compile("(<[^>]*>)+[0-9]")

    def equation(self, equation: Equation, marked: Collection[Expression] = ()) -> str:
        return f'<math display="block">{super().equation(equation, marked)}</math>'

    def symbol(self, symbol: Symbol) -> str:
        before, base, accent, below = spell(symbol)
        letter = _row(f"<mi>{escape(base)}</mi>")
        if accent == "′":
            letter = f"<mrow>{letter}<mo>′</mo></mrow>"
        elif accent:
            letter = f'<mover accent="true">{letter}<mo stretchy="false">{accent}</mo></mover>'
        words = "<mo>,</mo>".join(self._below(part) for part in below)
        version = f"<mo>(</mo><mn>{symbol.version}</mn><mo>)</mo>" if symbol.version else ""
        if words and version:
            letter = f"<msubsup>{letter}{_row(words)}{_row(version)}</msubsup>"
        elif words or version:
            letter = f"<msu{'b' if words else 'p'}>{letter}{_row(words or version)}</msu{'b' if words else 'p'}>"
        return f"<mrow><mi>{before}</mi><mspace width='0.15em'/>{letter}</mrow>" if before else letter

    def _below(self, word: str) -> str:
        if word in ("t-1", "t+1"):
            return f"<mi>t</mi><mo>{'−' if word == 't-1' else '+'}</mo><mn>1</mn>"
        if len(word) == 2 and word not in WORDS:
            return "".join(f"<mn>{c}</mn>" if c.isdigit() else f"<mi>{escape(c)}</mi>" for c in word)
        return f"<mn>{word}</mn>" if word.isdigit() else f"<mi>{escape(word)}</mi>"

    def number(self, digits: str) -> str:
        return f"<mn>{digits}</mn>"

    def negative(self, inside: str) -> str:
        return f'<mrow><mo form="prefix">−</mo>{inside}</mrow>'

    def join(self, parts: Sequence[str], sign: str) -> str:
        kind = ' separator="true"' if sign == ";" else ""
        return f"<mo{kind}>{escape(sign)}</mo>".join(parts)

    def fence(self, left: str, inside: str, right: str) -> str:
        return f'<mrow><mo form="prefix">{left}</mo>{inside}<mo form="postfix">{right}</mo></mrow>'

    def fraction(self, above: str, below: str) -> str:
        return f"<mfrac>{_row(above)}{_row(below)}</mfrac>"

    def power(self, base: str, exponent: str) -> str:
        return f"<msup>{_row(base)}{'<mo>⊤</mo>' if exponent == '⊤' else _row(exponent)}</msup>"

    def rows(self, matrix: str, rows: str) -> str:
        return f'<mrow>{matrix}<mo form="prefix">[</mo><mtext>{rows}</mtext><mo form="postfix">]</mo></mrow>'

    def root(self, inside: str) -> str:
        return f"<msqrt>{inside}</msqrt>"

    def apply(self, function: str, args: Sequence[str]) -> str:
        upright = ' mathvariant="normal"' if len(function) == 1 else ""
        return f"<mi{upright}>{function}</mi><mo>&#x2061;</mo>" + self.fence("(", "<mo>,</mo>".join(args), ")")

    def cases(self, branches: Sequence[tuple[str, str]]) -> str:
        rows = "".join(
            f"<mtr><mtd>{value}</mtd><mtd><mtext>{'if ' if when else 'otherwise'}</mtext>{when}</mtd></mtr>"
            for value, when in branches
        )
        return f'<mrow><mo form="prefix">{{</mo><mtable columnalign="left left">{rows}</mtable></mrow>'

    def ones(self) -> str:
        return self.number(super().ones())

    def mark(self, inside: str) -> str:
        return f'<mrow class="differs">{inside}</mrow>'


def _digits(number: float) -> tuple[str, str, str]:
    """Mantissa, "e" or nothing, and exponent of a number of at least zero."""
    mantissa, e, exponent = f"{number:.6g}".partition("e")
    return mantissa, e, str(int(exponent or 0)).replace("-", "−")


def _has_product(e: Expression) -> bool:
    return e.op == "matmul" or (e.op == "scale" and e.args[-1].op == "matmul")


def _row(inside: str) -> str:
    return f"<mrow>{inside}</mrow>" if inside.count("<m") > 1 else inside


def _rows(detail: int | str | tuple[int, int]) -> str:
    """Rows counted from 1, as papers do."""
    if isinstance(detail, tuple):
        return f"{detail[0] + 1}:{detail[1]}"
    return str(detail + 1) if isinstance(detail, int) else detail
