"""Where benchmarks keep their runs, and their tables in docs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kswap.benching import table

CACHE = Path(os.environ.get("KSWAP_BENCH", Path.home() / ".cache/kswap-data/bench"))
RESULTS = Path(__file__).parents[1] / "docs/results.md"


def section(
    found: Mapping[str, Sequence[Mapping[str, Any]]],
    yardsticks: Mapping[int, table.Yardstick],
    *,
    timed: bool,
) -> str:
    """Return the table of finished runs, and the references that it compares with."""
    text = table.markdown(table.rows(found, yardsticks, timed=timed), timed=timed)
    if not yardsticks:
        return text
    # The cache folder as the page's commands name it, whoever runs them.
    return f"{text}\n\n{table.describe(yardsticks)}".replace(f"{Path.home()}/", "~/")


def write_section(name: str, text: str, *, page: str = RESULTS.name) -> None:
    """Replace what stands between the markers of `name` in a page of docs."""
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    path = RESULTS.with_name(page)
    before, rest = path.read_text(encoding="utf-8").split(begin)
    path.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}", encoding="utf-8")
    print(f"written to {path}")


def shown(value: table.Spread, factor: float = 1.0, digits: int = 1) -> str:
    """Return a mean with its interval."""
    half = "" if value.half is None else f" ± {value.half * factor:.{digits}f}"
    return f"{value.mean * factor:.{digits}f}{half}"
