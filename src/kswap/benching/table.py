"""The table of a bench: scores after every stage, joint measures, intervals; three file formats.

H = 2·retain·drop / (retain + drop) with drop = forget before − forget after (GS-LoRA++); H3 = the
harmonic mean of learn, retain and that drop. Both stand beside the raw three, never alone.
Intervals are 95 % t-intervals over seeds.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from kswap.settings import ROLES

MEASURES = (*ROLES, "h", "h3")
_HEADS = {"learn": "learn", "forget": "forget", "retain": "retain", "h": "H", "h3": "H3"}


@dataclass(frozen=True)
class Spread:
    """Mean and half-width of the 95 % t-interval over runs; None: of one run there is none."""

    mean: float
    half: float | None
    n: int

    def text(self) -> str:
        """Return it in percent."""
        shown = f"{100 * self.mean:.1f}"
        return shown if self.half is None else f"{shown} ± {100 * self.half:.1f}"

    def clear_of(self, other: Spread) -> bool:
        """Whether this is above the other by more than both intervals; never without them."""
        if self.half is None or other.half is None:
            return False
        return self.mean - self.half > other.mean + other.half


def spread(values: Sequence[float]) -> Spread:
    """Return mean and interval of at least one value."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return Spread(mean, None, len(values))
    factor = float(stats.t.ppf(0.975, len(values) - 1)) / len(values) ** 0.5
    return Spread(mean, factor * statistics.stdev(values), len(values))


def harmonic(values: Sequence[float]) -> float:
    """Return the harmonic mean; 0 where a value is not above 0."""
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / value for value in values)


def measures(results: Mapping[str, Any], stage: int) -> dict[str, float | None]:
    """Return learn, forget, retain, H and H3 after a stage (0: the base) of one run."""
    scores: dict[str, float | None] = dict(results["stages"][stage]["scores"])
    before = results["stages"][0]["scores"]["forget"]
    found: dict[str, float | None] = {role: scores[role] for role in ROLES}
    learn, forget, retain = (found[role] for role in ROLES)
    if before is None or forget is None or retain is None:
        return {**found, "h": None, "h3": None}
    drop = before - forget
    h3 = None if learn is None else harmonic([learn, retain, drop])
    return {**found, "h": harmonic([retain, drop]), "h3": h3}


def rows(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return one row per arm and stage.

    Args:
        found: arm -> results.json of its finished runs (seeds), which have the same stages.
    """
    made: list[dict[str, Any]] = []
    for name, runs in found.items():
        for number, stage in enumerate(runs[0]["stages"] if runs else []):
            values = [measures(run, number) for run in runs]
            row: dict[str, Any] = {"run": name, "seeds": len(runs), "stage": stage["name"]}
            row["last"] = number == len(runs[0]["stages"]) - 1
            for measure in MEASURES:
                known = [v for one in values if (v := one[measure]) is not None]
                row[measure] = spread(known) if len(known) == len(runs) else None
            row["seconds"] = statistics.median(run["seconds"]["total"] for run in runs)
            verdicts = [(run.get("audit") or {}).get("verdict", {}).get("level") for run in runs]
            row["verdict"] = ", ".join(sorted({v for v in verdicts if v})) or None
            made.append(row)
    return made


def markdown(table: Sequence[Mapping[str, Any]], *, timed: bool) -> str:
    """Return the table for a page; the best H3 is bold only when clear of the next one's interval.

    Args:
        table: from `rows`.
        timed: whether to show seconds: of runs side by side they say little.
    """
    best = _clear_winner([row for row in table if row["last"]])
    head = ["run", "seeds", "after", *(_HEADS[m] for m in MEASURES), "verdict", "seconds"]
    lines = ["| " + " | ".join(head) + " |", "|---|---:|---|" + "---:|" * 5 + "---|---:|"]
    for row in table:
        first = row["stage"] == "base"
        cells = [f"`{row['run']}`" if first else "", str(row["seeds"]) if first else ""]
        cells.append(row["stage"])
        for measure in MEASURES:
            value: Spread | None = row[measure]
            shown = "" if value is None or (first and measure in ("h", "h3")) else value.text()
            cells.append(f"**{shown}**" if measure == "h3" and row is best else shown)
        cells.append((row["verdict"] or "") if row["last"] else "")
        cells.append(f"{row['seconds']:.0f}" if row["last"] and timed else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _clear_winner(table: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    ranked = sorted(
        (row for row in table if row["h3"] is not None), key=lambda row: -row["h3"].mean
    )
    if len(ranked) < 2 or not ranked[0]["h3"].clear_of(ranked[1]["h3"]):
        return None
    return ranked[0]


def plain(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows as numbers and text, for JSON."""
    made = []
    for row in table:
        values: dict[str, Any] = {
            key: row[key] for key in ("run", "seeds", "stage", "seconds", "verdict")
        }
        for measure in MEASURES:
            value: Spread | None = row[measure]
            values[measure] = None if value is None else round(value.mean, 6)
            half = None if value is None or value.half is None else round(value.half, 6)
            values[f"{measure}_half"] = half
        made.append(values)
    return made


def as_csv(table: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as CSV."""
    values = plain(table)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(values[0]) if values else ["run"])
    writer.writeheader()
    writer.writerows(values)
    return text.getvalue()
