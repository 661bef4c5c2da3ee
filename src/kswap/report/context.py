"""From the record of a run to what the page's template shows: plain values, nothing computed there.

Every word of users is passed on as it is; the template escapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kswap.arrays import NOTHING, RunArrays
from kswap.report.card import forgotten_heading
from kswap.report.charts import Chart, boundaries, line_chart
from kswap.report.figures import heading, short
from kswap.report.panels import Strip, strips
from kswap.report.pictures import Naming
from kswap.report.reading import RunRecord
from kswap.settings import ROLES, Role

VERBS: dict[Role, str] = {"learn": "Learned", "forget": "Forgotten", "retain": "Retained"}
SCORES = {
    "top1": "top-1 accuracy",
    "miou": "mean intersection over union",
    "map": "COCO mean average precision",
}
LEVELS = (
    ("known", "the forgotten classes are still answered"),
    ("suppressed", "the answers are gone; nothing more is shown"),
    ("output-consistent", "its outputs are like those of a model that never saw the classes"),
    ("representation-consistent", "so are the features inside"),
    ("durable", "and they come back no sooner than in that model"),
)
"""What an audit can find, from the least; each includes the one before."""
WARNINGS = (
    (
        "The adapter can be taken off.",
        "An unmerged adapter (adapter/) is reversible by design: whoever has it apart from the "
        "base can switch it off, and the base answers as before. Hand out model/, never adapter/.",
    ),
    (
        "The public base undoes it.",
        "Whoever holds the base model can undo a merged swap too: they simply use the base, or "
        "restore it from there. A swap changes your copy, not what is published.",
    ),
)
_MOST_CLASSES = 24
"""Rows that are shown at once; the others can be unfolded."""
_MOST_ANSWERS = 8
_LEAST_SHARE = 0.005
"""Part of a class from which on, at some stage, an answer has a row of its own."""


@dataclass(frozen=True)
class ClassChange:
    """Scores of one class."""

    name: str
    role: Role
    before: float | None
    after: float | None

    @property
    def change(self) -> float:
        """After less before; unknown counts as 0."""
        return (self.after or 0.0) - (self.before or 0.0)


@dataclass(frozen=True)
class Gone:
    """What the units of one class were answered as, stage by stage."""

    name: str
    role: Role
    total: int
    rows: tuple[tuple[str, Role | None, tuple[float, ...]], ...]
    """Answered class, its role (None: no class, or several), and its share at each stage."""


def context_of(record: RunRecord, *, base_name: str) -> dict[str, Any]:
    """Return the variables of templates/report.html.j2."""
    results = record.results
    classes: Mapping[Role, Sequence[str]] = results["classes"]
    names = [stage["name"] for stage in results["stages"]]
    arrays = record.arrays
    naming = None if arrays is None else Naming.of(arrays.labels, classes)
    return {
        "results": results,
        "base_name": base_name,
        "classes": classes,
        "verbs": {**VERBS, "forget": forgotten_heading(str(results["order"]))},
        "score_name": SCORES.get(results["score_name"], results["score_name"]),
        "stages": results["stages"],
        "headings": [heading(name) for name in names],
        "levels": LEVELS,
        "warnings": WARNINGS,
        "audit": results.get("audit") or {},
        "score_chart": _scores(results),
        "changes": {role: _changes(results, role) for role in ROLES},
        "most_classes": _MOST_CLASSES,
        "unit": "" if arrays is None else arrays.unit,
        "gone_stages": [] if arrays is None else [short(name) for name in arrays.stages],
        "gone": [] if arrays is None or naming is None else _gone(arrays, naming, classes),
        "strips": _by_role(() if arrays is None or naming is None else strips(arrays, naming)),
        "losses": _losses(record.events),
        "analyses": [
            (name, [_chart(chart) for chart in charts]) for name, charts in record.analyses
        ],
        "audit_charts": _audit_charts(results.get("audit") or {}),
        "seconds": {k: v for k, v in results["seconds"].items() if k != "total"},
    }


def _scores(results: Mapping[str, Any]) -> Chart:
    stages = results["stages"]
    series = {
        VERBS[role].lower(): [stage["scores"][role] for stage in stages]
        for role in ROLES
        if any(stage["scores"][role] is not None for stage in stages)
    }
    styles = {"learned": 1, "forgotten": 2, "retained": 0}
    return line_chart(
        "Scores before and after each stage",
        [short(stage["name"]) for stage in stages],
        series,
        x_label="stage",
        unit_interval=True,
        styles=styles,
    )


def _changes(results: Mapping[str, Any], role: Role) -> list[ClassChange]:
    """Return the classes of a role; where they are many, the most changed ones first."""
    first, last = results["stages"][0]["per_class"], results["stages"][-1]["per_class"]
    found = [
        ClassChange(name, role, first.get(name), last.get(name))
        for name in results["classes"][role]
    ]
    if len(found) > _MOST_CLASSES:
        found.sort(key=lambda change: -abs(change.change))
    return found


def _gone(arrays: RunArrays, naming: Naming, classes: Mapping[Role, Sequence[str]]) -> list[Gone]:
    order = {"forget": 0, "learn": 1, "retain": 2}
    rows = sorted(
        {row for stage in arrays.stages.values() for row in stage.confusion},
        key=lambda row: (order[naming.role(row)], row),
    )
    return [_gone_of(row, arrays, naming) for row in rows]


def _gone_of(row: int, arrays: RunArrays, naming: Naming) -> Gone:
    counts = [stage.confusion.get(row, {}) for stage in arrays.stages.values()]
    totals = [max(sum(found.values()), 1) for found in counts]
    largest = {
        answer: max(
            found.get(answer, 0) / total for found, total in zip(counts, totals, strict=True)
        )
        for answer in {answer for found in counts for answer in found} | {row}
    }
    ranked = sorted(largest, key=lambda answer: (answer != row, -largest[answer], answer))
    told = [answer for answer in ranked if answer == row or largest[answer] >= _LEAST_SHARE]
    shown = told[:_MOST_ANSWERS]
    others = [answer for answer in ranked if answer not in shown]
    table: list[tuple[str, Role | None, tuple[float, ...]]] = [
        (
            naming.name(answer),
            None if answer == NOTHING else naming.role(answer),
            tuple(f.get(answer, 0) / t for f, t in zip(counts, totals, strict=True)),
        )
        for answer in shown
    ]
    if others:
        rest = tuple(
            sum(f.get(answer, 0) for answer in others) / t
            for f, t in zip(counts, totals, strict=True)
        )
        few = "1 other class" if len(others) == 1 else f"{len(others)} other classes"
        table.append((few, None, rest))
    return Gone(
        naming.name(row),
        naming.role(row),
        max(map(sum, (f.values() for f in counts))),
        tuple(table),
    )


def _by_role(drawn: Sequence[Strip]) -> dict[Role, list[Strip]]:
    found = {role: [strip for strip in drawn if strip.role == role] for role in ROLES}
    return {role: members for role, members in found.items() if members}


def _losses(events: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Return a chart for each term of the loss, over all steps."""
    stages = [str(event["stage"]) for event in events]
    places = [int(event["total_step"]) for event in events]
    terms = dict.fromkeys(name for event in events for name in event["terms"])
    return [
        line_chart(
            name,
            places,
            {name: [event["terms"].get(name) for event in events]},
            x_label="step",
            y_label="loss",
            marks=boundaries(stages, places),
        )
        for name in terms
    ]


def _chart(chart: Mapping[str, Any]) -> Chart:
    styles = {"base": 0, "swapped": 4, "reference": 3}
    known = styles if set(chart["series"]) <= set(styles) else None
    return line_chart(
        str(chart["title"]),
        chart["x"],
        {str(name): line for name, line in chart["series"].items()},
        x_label=str(chart.get("x_label", "")),
        y_label=str(chart.get("y_label", "")),
        styles=known,
    )


def _audit_charts(audit: Mapping[str, Any]) -> dict[str, list[Chart]]:
    return {
        name: [_chart(chart) for chart in found.get("curves", ())]
        for name, found in audit.get("audits", {}).items()
    }
