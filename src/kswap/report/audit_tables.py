"""The audits on a terminal: the verdict and warnings first, then the tables of every audit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_STATUS = {"pass": "green", "fail": "red", "info": "cyan", "not available": "yellow"}


def cell_text(cell: Any) -> str:
    """Return a cell as text: numbers with three digits, intervals in brackets."""
    if cell is None:
        return "–"
    if isinstance(cell, Mapping):
        return f"{cell['mean']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"
    if isinstance(cell, float):
        return f"{cell:.3f}" if cell == 0 or abs(cell) >= 1e-3 else f"{cell:.1e}"
    return str(cell)


def show_audit(answer: Mapping[str, Any]) -> None:
    """Print an answer of `kswap.audit`."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    reference, verdict = answer["reference"], answer["verdict"]
    name = reference["model"] or "none"
    console.print(f"[bold]reference {reference['level']}[/]: {escape(name)}", highlight=False)
    console.print(escape(reference["note"]), highlight=False)
    for number, found in answer["audits"].items():
        colour = _STATUS[found["status"]]
        console.print(
            f"\n[bold]{number} {escape(found['title'])}[/]: {escape(found['question'])} "
            f"[{colour}]{found['status']}[/] {escape(found['reason'])}",
            highlight=False,
        )
        for table in found["tables"]:
            shown = Table(title=escape(table["title"]), title_justify="left")
            for column in table["columns"]:
                shown.add_column(escape(column), overflow="fold")
            for row in table["rows"]:
                shown.add_row(*(escape(cell_text(cell)) for cell in row))
            console.print(shown)
    for warning in answer["warnings"]:
        console.print(f"[yellow]warning[/] {escape(warning)}", highlight=False)
    stopped = f", stopped by {verdict['stopped_by']}" if verdict["stopped_by"] else ""
    console.print(
        f"[bold]verdict: {escape(verdict['level'])}[/]{stopped}: {escape(verdict['reason'])}",
        highlight=False,
    )
