"""The table of a bench: scores after every stage, joint measures, intervals; three file formats.

H = 2·retain·drop / (retain + drop) with drop = forget before − forget after (GS-LoRA++); H3 = the
harmonic mean of learn, retain and that drop. ToW, "tug of war" (Zhao et al., NeurIPS 2024), =
Π(1 − |score − score of the reference|) and the average gap = the mean of |score − score of the
reference|, both over learn, forget and retain on the test. All stand beside the raw three, never
alone. Time against retraining = seconds of training the reference / seconds of the swap. Intervals
are 95 % t-intervals over seeds. What could not be had says so, and why.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from kswap.settings import ROLES

MEASURES = (*ROLES, "h", "h3", "tow", "gap")
_HEADS: dict[str, str] = {
    **dict(zip(ROLES, ROLES, strict=True)),
    "h": "H",
    "h3": "H3",
    "tow": "ToW",
    "gap": "average gap",
}
_JOINT = ("h", "h3", "tow", "gap")
"""Measures that say nothing of the base."""
_BEST: Mapping[str, int] = {"h3": 1, "tow": 1, "gap": -1}
"""Measures whose best is told -> 1 where more is better, −1 where less is."""
RATIO = "retraining / swap"
NO_REFERENCE = "no reference was given"


@dataclass(frozen=True)
class Yardstick:
    """What the reference of a seed's runs scores on their test images, and what it took."""

    level: str
    """R1 or R2."""
    models: tuple[str, ...]
    """Sources; of several the scores are the mean."""
    scores: Mapping[str, float | None]
    """Role -> score."""
    seconds: float | None = None
    """Of training one; None: it was not trained here."""


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

    def clear_of(self, other: Spread, *, sign: int = 1) -> bool:
        """Whether this is above the other (sign −1: below) by more than both intervals.

        Never without intervals.
        """
        if self.half is None or other.half is None:
            return False
        return sign * (self.mean - other.mean) > self.half + other.half


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


def measures(
    results: Mapping[str, Any], stage: int, yardstick: Yardstick | None = None
) -> dict[str, float | None]:
    """Return all `MEASURES` after a stage (0: the base) of one run; None: could not be had.

    Args:
        results: results.json of the run.
        stage: number of the stage.
        yardstick: of the run's seed; without one there is no ToW and no average gap.
    """
    scores: dict[str, float | None] = dict(results["stages"][stage]["scores"])
    before = results["stages"][0]["scores"]["forget"]
    found: dict[str, float | None] = {role: scores[role] for role in ROLES}
    found |= _against(found, yardstick)
    learn, forget, retain = (found[role] for role in ROLES)
    if before is None or forget is None or retain is None:
        return {**found, "h": None, "h3": None}
    drop = before - forget
    h3 = None if learn is None else harmonic([learn, retain, drop])
    return {**found, "h": harmonic([retain, drop]), "h3": h3}


def _against(
    scores: Mapping[str, float | None], yardstick: Yardstick | None
) -> dict[str, float | None]:
    """Return ToW and average gap over the roles that the run has."""
    theirs = yardstick.scores if yardstick is not None else {}
    pairs = [(own, theirs.get(role)) for role, own in scores.items() if own is not None]
    gaps = [abs(own - other) for own, other in pairs if other is not None]
    if not gaps or len(gaps) < len(pairs):
        return {"tow": None, "gap": None}
    return {"tow": math.prod(1 - gap for gap in gaps), "gap": statistics.mean(gaps)}


def rows(
    found: Mapping[str, Sequence[Mapping[str, Any]]],
    yardsticks: Mapping[int, Yardstick] | None = None,
    *,
    timed: bool = True,
    why: str = NO_REFERENCE,
) -> list[dict[str, Any]]:
    """Return one row per arm and stage.

    Args:
        found: arm -> results.json of its finished runs (seeds), which have the same stages.
        yardsticks: seed -> what its reference scores.
        timed: whether seconds can be compared: of runs side by side they say little.
        why: there is no yardstick.
    """
    yardsticks = yardsticks or {}
    made: list[dict[str, Any]] = []
    for name, runs in found.items():
        own = [yardsticks.get(run.get("seed", -1)) for run in runs]
        for number, stage in enumerate(runs[0]["stages"] if runs else []):
            pairs = zip(runs, own, strict=True)
            values = [measures(run, number, yardstick) for run, yardstick in pairs]
            row: dict[str, Any] = {"run": name, "seeds": len(runs), "stage": stage["name"]}
            row["last"] = number == len(runs[0]["stages"]) - 1
            for measure in MEASURES:
                known = [v for one in values if (v := one[measure]) is not None]
                row[measure] = spread(known) if len(known) == len(runs) else None
            row["seconds"] = statistics.median(run["seconds"]["total"] for run in runs)
            ratio = _ratio(runs, own, timed=timed, why=why)
            row["ratio"] = ratio if isinstance(ratio, Spread) else None
            row["why"] = {"ratio": ratio} if isinstance(ratio, str) else {}
            lacking = why if None in own else "the reference has no score of a role"
            row["why"] |= {m: lacking for m in ("tow", "gap") if row[m] is None}
            verdicts = [(run.get("audit") or {}).get("verdict", {}).get("level") for run in runs]
            row["verdict"] = ", ".join(sorted({v for v in verdicts if v})) or None
            row["reference"] = " and ".join(sorted({y.level for y in own if y is not None})) or None
            made.append(row)
    return made


def _ratio(
    runs: Sequence[Mapping[str, Any]],
    yardsticks: Sequence[Yardstick | None],
    *,
    timed: bool,
    why: str,
) -> Spread | str:
    """Return seconds of retraining / seconds of the swap, or why there is none."""
    if any(y is None for y in yardsticks):
        return why
    seconds = [y.seconds for y in yardsticks if y is not None and y.seconds is not None]
    if len(seconds) < len(runs):
        return "the reference was not trained here, so its seconds are not known"
    if not timed:
        return "seconds of runs side by side cannot be compared"
    taken = [run["seconds"]["total"] for run in runs]
    return spread([retraining / swap for retraining, swap in zip(seconds, taken, strict=True)])


def markdown(table: Sequence[Mapping[str, Any]], *, timed: bool) -> str:
    """Return the table for a page; the best is bold only when clear of the next one's interval.

    Args:
        table: from `rows`.
        timed: whether to show seconds: of runs side by side they say little.
    """
    last = [row for row in table if row["last"]]
    best = {measure: _clear_winner(last, measure) for measure in _BEST}
    heads = _heads(table)
    head = ["run", "seeds", "after", *heads.values(), "verdict", "seconds", RATIO]
    lines = ["| " + " | ".join(head) + " |"]
    lines += ["|---|---:|---|" + "---:|" * len(MEASURES) + "---|---:|---:|"]
    for row in table:
        first = row["stage"] == "base"
        cells = [f"`{row['run']}`" if first else "", str(row["seeds"]) if first else ""]
        cells.append(row["stage"])
        for measure in MEASURES:
            shown = "" if first and measure in _JOINT else _shown(row, measure)
            cells.append(f"**{shown}**" if row is best.get(measure) else shown)
        cells.append((row["verdict"] or "") if row["last"] else "")
        cells.append(f"{row['seconds']:.0f}" if row["last"] and timed else "")
        cells.append(_shown(row, "ratio") if row["last"] else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *_notes(last)])


def _heads(table: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the headings; those of comparisons name the reference's level."""
    levels = " and ".join(sorted({row["reference"] for row in table if row["reference"]}))
    against = f" ({levels})" if levels else ""
    return {m: text + (against if m in ("tow", "gap") else "") for m, text in _HEADS.items()}


def _shown(row: Mapping[str, Any], measure: str) -> str:
    value: Spread | None = row[measure]
    if value is None:
        return "not available" if row["last"] and measure in row["why"] else ""
    if measure != "ratio":
        return value.text()
    return f"{value.mean:.2f}" if value.half is None else f"{value.mean:.2f} ± {value.half:.2f}"


def _notes(last: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return below the table why cells are not available, each reason once."""
    reasons: dict[str, list[str]] = {}
    names = {**_HEADS, "ratio": RATIO}
    for row in last:
        for measure, why in row["why"].items():
            reasons.setdefault(why, []).append(names[measure])
    lines = [f"{', '.join(dict.fromkeys(m))}: not available: {why}." for why, m in reasons.items()]
    return ["", *lines] if lines else []


def describe(yardsticks: Mapping[int, Yardstick]) -> str:
    """Return what the references are and what they score, for below a table."""
    lines = []
    for seed, yardstick in sorted(yardsticks.items()):
        scores = ", ".join(
            f"{role} {'–' if value is None else f'{100 * value:.1f}'}"
            for role, value in yardstick.scores.items()
        )
        names = ", ".join(f"`{name}`" for name in yardstick.models)
        took = "" if yardstick.seconds is None else f"; trained in {yardstick.seconds:.0f} s"
        lines.append(f"seed {seed}: {yardstick.level} {names}: {scores}{took}")
    return "\n".join(["References, measured on the test images:", "", *(f"* {x}" for x in lines)])


def _clear_winner(table: Sequence[Mapping[str, Any]], measure: str) -> Mapping[str, Any] | None:
    """Return the row whose measure is best by more than its interval and the next one's."""
    sign = _BEST[measure]
    known = [row for row in table if row[measure] is not None]
    ranked = sorted(known, key=lambda row: -sign * row[measure].mean)
    if len(ranked) < 2:
        return None
    first, second = (row[measure] for row in ranked[:2])
    return ranked[0] if first.clear_of(second, sign=sign) else None


def plain(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows as numbers and text, for JSON.

    In the place of a comparison that could not be had stands "not available: why".
    """
    made = []
    for row in table:
        values: dict[str, Any] = {
            key: row[key] for key in ("run", "seeds", "stage", "seconds", "verdict", "reference")
        }
        for measure in (*MEASURES, "ratio"):
            value: Spread | None = row[measure]
            why = row["why"].get(measure)
            lacking = None if why is None else f"not available: {why}"
            values[measure] = lacking if value is None else round(value.mean, 6)
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
