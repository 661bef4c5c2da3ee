"""What the benchmarks share: means with intervals, rows per stage, their place in the page."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from scipy import stats

RESULTS = Path(__file__).parents[1] / "docs/results.md"
ROLES = ("learn", "forget", "retain")


def interval(values: list[float]) -> str:
    """Return mean and half-width of the 95 % t-interval, in percent."""
    mean = 100 * statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    half = 100 * stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.1f} ± {half:.1f}"


def stage_rows(name: str, found: list[dict[str, Any]], *, timed: bool = True) -> list[str]:
    """Return one line of Markdown per stage: mean and interval of every role over runs (seeds).

    Seconds are left out unless `timed`: of runs side by side they say little.
    """
    lines = []
    for number, stage in enumerate(found[0]["stages"] if found else []):
        cells = [interval([r["stages"][number]["scores"][role] for r in found]) for role in ROLES]
        head = ["", "", ""]
        if number == 0:
            seconds = statistics.median(r["seconds"]["total"] for r in found)
            head = [name, str(len(found)), f"{seconds:.0f}" if timed else ""]
        lines.append(
            f"| {head[0]} | {head[1]} | {stage['name']} | {' | '.join(cells)} | {head[2]} |"
        )
    return lines


def stage_table(rows: list[str]) -> str:
    """Return the table of `stage_rows`."""
    head = "| run | seeds | after | learn | forget | retain | seconds |"
    return "\n".join([head, "|---|---:|---|---:|---:|---:|---:|", *rows])


def write_section(name: str, text: str) -> None:
    """Replace what stands between the markers of `name` in docs/results.md."""
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    page = RESULTS.read_text(encoding="utf-8")
    before, rest = page.split(begin)
    RESULTS.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}", encoding="utf-8")
    print(f"written to {RESULTS}")
