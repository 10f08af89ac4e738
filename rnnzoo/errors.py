"""The one exception that means "the input is wrong", and how it suggests what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

FEW = 30
"""Names that fit into a line."""


class UserError(ValueError):
    """Bad input. Its text is the single line a person is shown, so it names the key or file and what to do."""


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint that ends an error about an unknown `name`: the closest of `names`, or all of them if they are few."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=3)
    if close:
        return f"did you mean {' or '.join(close)}?"
    shown = known if len(known) <= FEW else known[: FEW // 4]
    more = f" and {len(known) - len(shown)} more" if len(shown) < len(known) else ""
    return f"known: {', '.join(shown) or 'none'}{more}"
