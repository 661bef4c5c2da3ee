"""Where a benchmark's table stands in docs/results.md."""

from __future__ import annotations

from pathlib import Path

RESULTS = Path(__file__).parents[1] / "docs/results.md"


def write_section(name: str, text: str) -> None:
    """Replace what stands between the markers of `name` in docs/results.md."""
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    page = RESULTS.read_text(encoding="utf-8")
    before, rest = page.split(begin)
    RESULTS.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}", encoding="utf-8")
    print(f"written to {RESULTS}")
