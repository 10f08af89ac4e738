"""What there is to keep track of in a text, and which units of a model go with it.

Shapes: N characters, H units, P properties.
"""

from __future__ import annotations

import torch
from torch import Tensor


def properties(text: str) -> dict[str, Tensor]:
    """What a reader keeps track of, after each character: [N] each.

    Quotes: 1 inside double quotes. Brackets: how many of ( [ { are open. Column: characters since the line began.
    Indentation: blanks before the line's first other character, so far. A blank line closes all quotes and brackets:
    one that is never closed must not turn the rest of the text inside out.
    """
    quoted = depth = column = indentation = 0
    rows = []
    for before, character in zip("\n" + text, text):
        if character == "\n":
            column = indentation = 0
            if before == "\n":
                quoted = depth = 0
        else:
            if character in " \t" and column == indentation:
                indentation += 1
            column += 1
            quoted = 1 - quoted if character == '"' else 1 if character == "“" else 0 if character == "”" else quoted
            depth = max(0, depth + (character in "([{") - (character in ")]}"))
        rows.append((quoted, depth, column, indentation))
    names = ("quotes", "brackets", "column", "indentation")
    return dict(zip(names, torch.tensor(rows, dtype=torch.float32).unbind(1)))


def correlations(units: Tensor, properties: Tensor) -> Tensor:
    """Pearson's correlations of units [N, H] with properties [N, P], as [P, H]: 0 for what is constant."""
    x, y = (values.double() - values.double().mean(0) for values in (units, properties))
    scale = y.norm(dim=0)[:, None] * x.norm(dim=0)
    return torch.where(scale > 1e-9 * len(x), (y.T @ x) / scale, 0.0)
