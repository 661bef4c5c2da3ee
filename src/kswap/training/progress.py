"""Progress on a terminal, by rich; quiet elsewhere.

Stage, epoch, terms, images per second, time left.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from kswap.ranks import rank


class Progress(Protocol):
    """What the run tells of its progress."""

    def __call__(self, done: int, total: int, detail: str = "") -> None:
        """Report `done` of `total` units of the current phase."""


@contextmanager
def progress(phase: str) -> Iterator[Progress]:
    """Show a bar for `phase` on a terminal; do nothing where standard error is not one."""
    if not sys.stderr.isatty() or rank():
        yield lambda done, total, detail="": None
        return
    from rich import progress as bars
    from rich.console import Console
    from rich.markup import escape

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=20),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[detail]}"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(escape(phase), total=None, detail="")

        def report(done: int, total: int, detail: str = "") -> None:
            shown.update(task, completed=done, total=total, detail=escape(detail))

        yield report


def describe(terms: Mapping[str, float], *, epoch: float, images_per_s: float) -> str:
    """One short line of the state of training."""
    values = " ".join(f"{name} {value:.3g}" for name, value in terms.items())
    return f"epoch {epoch:.1f} · {values} · {images_per_s:.0f} images/s"
