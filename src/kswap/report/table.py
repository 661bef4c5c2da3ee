"""The table of a run: learn, forget, retain, before and after every stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kswap.settings import ROLES

_WIDEST = 1000


def percent(score: float | None) -> str:
    """Return a score as a percentage; a dash where a role has no images."""
    return "–" if score is None else f"{100 * score:.1f}"


def rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the header and one row per stage, as text."""
    header = ("after stage", *ROLES)
    return [
        header,
        *(
            (stage["name"], *(percent(stage["scores"][role]) for role in ROLES))
            for stage in results["stages"]
        ),
    ]


def markdown(table: Sequence[Sequence[str]]) -> str:
    """Return a GitHub table: first column to the left, numbers to the right."""
    head, *body = table
    rule = [":---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *body))


def show(results: Mapping[str, Any]) -> None:
    """Print the table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    head, *body = rows(results)
    shown = Table(title=f"{results['score_name']} on the test split, %")
    for column in head:
        shown.add_column(column, justify="left" if column == head[0] else "right")
    for cells in body:
        shown.add_row(*cells)
    console = Console()
    # A narrow terminal breaks the lines, where rich would leave out digits or the whole table.
    needed = console.measure(shown, options=console.options.update(width=_WIDEST)).maximum
    console.width = max(console.width, needed)
    console.print(shown)
