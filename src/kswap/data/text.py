"""Words for messages: what a user named may hold line breaks or be very long, a message may not."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from kswap.errors import NONE_IS_CLOSE, closest, printable

NAME_LIMIT = 10
TEXT_LIMIT = 240


def one_line(text: object, limit: int = TEXT_LIMIT) -> str:
    """Return `text` on one line, cut in the middle beyond `limit` characters."""
    line = printable(str(text))
    if len(line) <= limit:
        return line
    return f"{line[: limit // 2]}…{line[-(limit // 2) :]}"


def listed(names: Iterable[object], limit: int = NAME_LIMIT, *, width: int = 100) -> str:
    """Return the first `limit` names, joined, and how many more there are.

    Args:
        names: what is listed.
        limit: names at most.
        width: characters of a name at most.
    """
    words = [one_line(name, width) for name in names]
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more


def instead(name: str, known: Collection[str]) -> str:
    """Return what may be written for `name`, to end a message: known names like it, else any."""
    near = closest(name, known)
    if near == NONE_IS_CLOSE:
        return f"name one of {listed(map(repr, known))}"
    return f"closest: {near}"


def count(number: int, noun: str) -> str:
    """Return `1 image`, `2 images`, `2 classes`, `2 boxes`, `2 copies`."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith(("s", "x")):
        return f"{number} {noun}es"
    return f"{number} {noun[:-1]}ies" if noun.endswith("y") else f"{number} {noun}s"
