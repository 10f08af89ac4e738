"""What equations in plain text say, computed by a reader who knows mathematics and the names, and no code.

    sum      = ["−"] term (("+" | "−") term)*
    term     = product (("⊙" product)+ | "/" factor | "mod" product)?
    product  = factor ((" " | " · ") factor)*                    numbers, matrices and vectors, from left to right
    factor   = atom ("^⊤" | "^" digit | "^(" sum ")" | "[" rows "]")?
    atom     = number | name | function "(" sum ("," sum)* ")" | "(" sum ")" | "|" sum "|" | "√(" sum ")"
             | "⌊" sum "⌋" | "⌈" sum "⌉" | "[" sum (";" sum)* "]" | "[" condition "]" | "𝟏"
             | "{" (sum " if " condition ";")+ sum " otherwise}"

Vectors are columns, [n, 1]. 𝟏 is as long as it has to be.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Ones:
    """A column or, turned, a row of ones, times a number."""

    times: Any = 1.0
    turned: bool = False


def series(a):
    """The exponential of a matrix, by its series; the matrix must be small."""
    term = total = np.eye(len(a))
    for k in range(1, 60):
        term = term @ a / k
        total = total + term
    return total


def normal(a):
    return (a - a.mean()) / np.sqrt(((a - a.mean()) ** 2).mean() + 1e-5)


def elementwise(function: Callable[[float], float]) -> Callable[[Any], Any]:
    return np.vectorize(function, otypes=[float])


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "tanh": np.tanh,
    "σ": lambda a: 1 / (1 + np.exp(-a)),
    "ReLU": lambda a: a * (a > 0),
    "SiLU": lambda a: a / (1 + np.exp(-a)),
    "gelu": elementwise(lambda a: a / 2 * (1 + math.erf(a / math.sqrt(2)))),
    "softplus": lambda a: np.log(1 + np.exp(a)),
    "softmax": lambda a: np.exp(a) / np.exp(a).sum(),
    "exp": np.exp,
    "log": np.log,
    "sin": np.sin,
    "cos": np.cos,
    "sgn": np.sign,
    "abs": np.abs,
    "max": np.maximum,
    "min": np.minimum,
    "clip": lambda a, low, high: np.minimum(np.maximum(a, low), high),
    "roll": lambda a, by: np.concatenate([a[-int(by) :], a[: -int(by)]]),
    "LN": normal,
    "RMS": lambda a: a / np.sqrt((a**2).mean() + 1e-5),
    "expm": series,
    "triu": lambda a, k: a * (np.arange(a.shape[1]) >= np.arange(len(a))[:, None] + k),
    "tril": lambda a, k: a * (np.arange(a.shape[1]) <= np.arange(len(a))[:, None] + k),
    "diag": lambda a: np.eye(len(a)) * a,
}
PAIRS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "(": (")", lambda a: a),
    "|": ("|", np.abs),
    "√(": (")", np.sqrt),
    "⌊": ("⌋", np.floor),
    "⌈": ("⌉", np.ceil),
}
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    " < ": np.less, " ≤ ": np.less_equal, " > ": np.greater, " ≥ ": np.greater_equal, " = ": np.equal,
    " ≠ ": np.not_equal,
}  # fmt: skip
NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")
ROWS = re.compile(r"\[([0-9]+)(:([0-9]+))?\]")


def value_of(text: str, names: dict[str, Any]) -> Any:
    """The value of the right side of an equation; `ValueError` where it is not well formed or a name is unknown."""
    parser = Parser(text, names)
    value = parser.sum()
    if parser.rest():
        raise ValueError(f"cannot read {parser.rest()!r} in {text!r}")
    return value


class Parser:
    def __init__(self, text: str, names: dict[str, Any]) -> None:
        self.text, self.at = text, 0
        self.names = dict(sorted(names.items(), key=lambda item: -len(item[0])))

    def rest(self) -> str:
        return self.text[self.at :]

    def take(self, *wanted: str) -> str:
        """Pass the first of `wanted` that comes next; "" where none does."""
        found = next((w for w in wanted if self.rest().startswith(w)), "")
        self.at += len(found)
        return found

    def need(self, wanted: str) -> None:
        if not self.take(wanted):
            raise ValueError(f"{wanted!r} should stand before {self.rest()!r} in {self.text!r}")

    def sum(self) -> Any:
        total = -self.term() if self.take("−") else self.term()
        while sign := self.take(" + ", " − "):
            total = total + self.term() if sign == " + " else total - self.term()
        return total

    def term(self) -> Any:
        value, sign = self.product(), self.take(" ⊙ ", " / ", " mod ")
        if sign == " / ":
            value = value / self.factor()
        elif sign == " mod ":
            other = self.product()
            value = value - other * np.floor(value / other)
        while sign == " ⊙ ":
            value, sign = value * self.product(), self.take(" ⊙ ")
        return value

    def product(self) -> Any:
        value = self.factor()
        while self.take(" · ") or (self.goes_on() and self.take(" ")):
            value = multiply(value, self.factor())
        return value.times if isinstance(value, Ones) else value

    def goes_on(self) -> bool:
        """Whether a space and a factor come next, and neither a sign nor a word."""
        return bool(re.match(r" (?!([-+−·⊙/<>=≤≥≠]|mod |if |otherwise))", self.rest()))

    def factor(self) -> Any:
        value = self.atom()
        if rows := ROWS.match(self.rest()):
            self.at += rows.end()
            first, several, last = int(rows[1]) - 1, rows[2], rows[3]
            value = value[first : int(last)] if several else value[first]
            return value[:, None] if value.ndim == 1 else value
        if self.take("^⊤"):
            value = Ones(value.times, not value.turned) if isinstance(value, Ones) else value.T
        elif self.take("^("):
            value = value ** self.sum()
            self.need(")")
        elif self.take("^"):
            self.at += 1
            value = value ** (self.names.get(self.text[self.at - 1]) or float(self.text[self.at - 1]))
        if self.rest()[:1] in ("^", "["):
            raise ValueError(f"to what does {self.rest()!r} belong in {self.text!r}")
        return value

    def atom(self) -> Any:
        if number := NUMBER.match(self.rest()):
            self.at += number.end()
            return float(number[0])
        if self.take("𝟏"):
            return Ones()
        if function := self.take(*(f"{name}(" for name in FUNCTIONS)):
            args = [self.sum()]
            while self.take(", "):
                args.append(self.sum())
            self.need(")")
            return FUNCTIONS[function[:-1]](*args)
        for name, value in self.names.items():
            end = self.at + len(name)
            if self.rest().startswith(name) and not re.match(r"[\w′\u0300-\u036f]", self.text[end : end + 1]):
                self.at = end
                if name.startswith("log ") and (re.match(r"\^|\[| [⊙/·]| mod ", self.rest()) or self.goes_on()):
                    raise ValueError(f"how far does the logarithm reach in {self.text!r}")
                return value
        if opening := self.take(*PAIRS):
            closing, meaning = PAIRS[opening]
            value = meaning(self.sum())
            self.need(closing)
            return value
        if self.take("{"):
            return self.cases()
        if self.take("["):
            return self.bracket()
        raise ValueError(f"cannot read {self.rest()!r} in {self.text!r}")

    def bracket(self) -> Any:
        parts = [self.sum()]
        if sign := self.take(*COMPARISONS):
            parts = [COMPARISONS[sign](parts[0], self.sum()) * 1.0]
        while self.take("; "):
            parts.append(self.sum())
        self.need("]")
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def cases(self) -> Any:
        value = self.sum()
        if self.take(" otherwise}"):
            return value
        self.need(" if ")
        condition = self.sum()
        if sign := self.take(*COMPARISONS):
            condition = COMPARISONS[sign](condition, self.sum())
        self.need("; ")
        return np.where(condition, value, self.cases())


def multiply(a: Any, b: Any) -> Any:
    """A product without a sign."""
    if isinstance(a, Ones) and isinstance(b, Ones):
        return a.times * b.times  # 𝟏 𝟏^⊤: the same number everywhere
    if isinstance(b, Ones):
        if np.size(a) == 1:
            return Ones(a * b.times, b.turned)
        return a * b.times if b.turned else a.sum(1, keepdims=True) * b.times
    if isinstance(a, Ones):
        return a.times * (b.sum(0, keepdims=True) if a.turned else b)
    return a * b if np.size(a) == 1 or np.size(b) == 1 else a @ b


TEX = {
    r"\odot": "⊙", r"\cdot": "·", r"\bmod": "mod", r"\le": "≤", r"\ge": "≥", r"\ne": "≠", r"\sigma": "σ",
    r"\lfloor": "⌊", r"\rfloor": "⌋", r"\lceil": "⌈", r"\rceil": "⌉",
}  # fmt: skip
AS_TEXT = [
    *((re.escape(command), sign) for command, sign in TEX.items() if command[-5:] in ("floor", "lceil", "rceil")),
    (r" & \\text\{if \} ", " if "),
    (r" & \\text\{otherwise\}", " otherwise"),
    (r"\\begin\{cases\} ", "{"),
    (r" \\end\{cases\}", "}"),
    (r"\\\\ ", "; "),
    (r" ;\\, ", "; "),
    (r"\\mathbf\{1\}", "𝟏"),
    (r"\\left(\\?[a-z]+|.) ", r"\1"),
    (r" \\right(\\?[a-z]+|.)", r"\1"),
]


def text_of_latex(latex: str) -> str:
    """LaTeX, in which only names are as in text, as text."""
    if re.search(r"\\end\{cases\} (?!\\right|&)", latex):
        raise ValueError(f"where do the cases end in {latex!r}")
    for pattern, text in AS_TEXT:
        latex = re.sub(pattern, text, latex)
    written = ""
    while latex:
        if found := re.match(r"\\operatorname|_", latex):
            inside, latex = braces(latex[found.end() :]) if latex[found.end()] == "{" else ("", latex[found.end() :])
            written += inside if found[0] != "_" else f"_{{{inside.replace('-', '−')}}}" if inside else "_"
        elif latex.startswith(r"\frac"):
            above, latex = braces(latex[5:])
            below, latex = braces(latex)
            written += f"(({text_of_latex(above)}) / ({text_of_latex(below)}))"
        elif latex.startswith(r"\sqrt"):
            inside, latex = braces(latex[5:])
            written += f"√({text_of_latex(inside)})"
        elif latex[0] == "{" and braces(latex)[1].startswith("^"):
            inside, latex = braces(latex)
            exponent, latex = braces(latex[1:])
            written += text_of_latex(inside) + ("^⊤" if exponent == r"\top" else f"^({text_of_latex(exponent)})")
        elif found := re.match(r"\\[a-z]+", latex):
            written, latex = written + TEX.get(found[0], found[0][1:]), latex[found.end() :]
        else:
            written, latex = written + latex[0].replace("-", "−"), latex[1:]
    return written


def braces(latex: str) -> tuple[str, str]:
    """What is in the braces that `latex` begins with, and what follows them."""
    depth = 0
    for k, letter in enumerate(latex):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return latex[1:k], latex[k + 1 :]
    raise ValueError(f"unbalanced braces in {latex!r}")


def text_of_mathml(element: ET.Element) -> str:
    """MathML, in which only names are as in text, as text."""
    inside, text = [text_of_mathml(child) for child in element], element.text or ""
    if element.tag == "mo":
        spaced = {",": ", ", ";": "; ", "\u2061": ""}.get(text, f" {text} ")
        return text if element.get("form") else spaced
    if element.tag == "mspace":
        return " "
    if element.tag == "mfrac":
        return f"(({inside[0]}) / ({inside[1]}))"
    if element.tag == "msup":
        return f"{inside[0]}^⊤" if inside[1].strip() == "⊤" else f"{inside[0]}^({inside[1]})"
    if element.tag == "msqrt":
        return f"√({''.join(inside)})"
    if element.tag == "mtable":
        return "; ".join(inside) + "}"
    if element.tag == "mtext" and text.strip() in ("if", "otherwise"):
        return f" {text}"
    return text + "".join(inside)
