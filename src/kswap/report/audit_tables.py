"""The audits on a terminal: the verdict and warnings first, then the tables of every audit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kswap.errors import printable

_STATUS = {"pass": "green", "fail": "red", "info": "cyan", "not available": "yellow"}


def cell_text(cell: Any) -> str:
    """Return a cell as text: numbers with three digits, intervals in brackets."""
    if cell is None:
        return "–"
    if isinstance(cell, Mapping) and cell["low"] is None:
        return f"{cell['mean']:.3f} (n = {cell['n']}: no interval)"
    if isinstance(cell, Mapping):
        return f"{cell['mean']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"
    if isinstance(cell, float):
        return f"{cell:.3f}" if cell == 0 or abs(cell) >= 1e-3 else f"{cell:.1e}"
    return str(cell)


def _plain(text: str) -> str:
    """Return `text` as rich shows it unchanged, what a terminal would act on as an escape."""
    from rich.markup import escape

    return escape(printable(text))


def show_audit(answer: Mapping[str, Any]) -> None:
    """Print an answer of `kswap.audit`."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    reference, verdict = answer["reference"], answer["verdict"]
    name = reference["model"] or "none"
    console.print(f"[bold]reference {reference['level']}[/]: {_plain(name)}", highlight=False)
    console.print(_plain(reference["note"]), highlight=False)
    for number, found in answer["audits"].items():
        colour = _STATUS[found["status"]]
        console.print(
            f"\n[bold]{number} {_plain(found['title'])}[/]: {_plain(found['question'])} "
            f"[{colour}]{found['status']}[/] {_plain(found['reason'])}",
            highlight=False,
        )
        for table in found["tables"]:
            shown = Table(title=_plain(table["title"]), title_justify="left")
            for column in table["columns"]:
                shown.add_column(_plain(column), overflow="fold")
            for row in table["rows"]:
                shown.add_row(*(_plain(cell_text(cell)) for cell in row))
            console.print(shown)
    for warning in answer["warnings"]:
        console.print(f"[yellow]warning[/] {_plain(warning)}", highlight=False)
    stopped = f", stopped by {_plain(verdict['stopped_by'])}" if verdict["stopped_by"] else ""
    console.print(
        f"[bold]verdict: {_plain(verdict['level'])}[/]{stopped}: {_plain(verdict['reason'])}",
        highlight=False,
    )
