"""What goes wrong, in the user's words.

A `UserError` is a mistake that the user can mend: its message is one line that names the value, the
rule and the fix. The command line prints it and leaves with status 2; every other exception is a
bug.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, and what Python makes of bytes in file names that are not UTF-8."""


_DIRECTIONS = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_MISLEADING = re.compile(f"{_UNPRINTABLE.pattern[:-1]}{_DIRECTIONS}]")
"""These, and marks that would turn round what is written behind them; names may have such marks."""


def is_printable(text: str) -> bool:
    """Whether `text` is one line without control characters, and can be written as UTF-8."""
    return not _UNPRINTABLE.search(text)


def printable(text: str) -> str:
    """Return `text` on one line, what a terminal would act on or cannot show as an escape."""
    line = " ".join(text.split())
    return _MISLEADING.sub(lambda found: found[0].encode("unicode_escape").decode(), line)


class UserError(ValueError):
    """A mistake of the user's: one line with the value, the rule and the fix."""


class DiskFullError(UserError):
    """The disk is full; what was written before is intact."""


class NonFiniteLossError(UserError):
    """A term of the loss is not finite; the last good state is kept."""


class Terminated(SystemExit):
    """SIGTERM was received and the state is saved; leaves with status 143."""

    def __init__(self) -> None:
        super().__init__(143)


NONE_IS_CLOSE = "none is close"


def closest(name: str, known: Iterable[str], *, limit: int = 3) -> str:
    """Return the known names nearest to `name`, quoted and joined, to end an error message."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=limit, cutoff=0.4)
    return ", ".join(repr(by_lower[key]) for key in near) or NONE_IS_CLOSE


def brief(error: object) -> str:
    """Return an error's text as one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:159] + "…"
