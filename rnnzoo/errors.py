"""The one exception that means "the input is wrong", and how it suggests what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. Its text is the single line a person is shown, so it names the key or file and what to do."""


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint that ends an error about an unknown `name`: the closest of `names`, or all of them."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known) or 'none'}"
