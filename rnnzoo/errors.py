"""The one exception that means "the input is wrong", how it suggests what was meant, and what is too large."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

FEW = 30
"""Names that fit into a line."""


NO_ROOM = re.compile(
    r"DefaultCPUAllocator|not enough memory|out of memory|size calculation overflowed|multiplication overflow|"
    r"possible overflow|Overflow when unpacking long|int too (large|big) to convert"
)
"""What torch and Python say of sizes that no machine holds, without a class of its own for it."""


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


def no_room(error: BaseException) -> bool:
    """Whether something was to be made that is larger than the memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, (RuntimeError, OverflowError, TypeError)) and NO_ROOM.search(str(error)) is not None
    )


def at_once(error: BaseException) -> str:
    """How much was asked for in one piece, to follow the words of a line; empty if the error does not say."""
    wanted = re.search(r"tried to allocate (\d[\d.]* \w+)", str(error), re.IGNORECASE)
    return f", {wanted[1]} at once" if wanted else ""
