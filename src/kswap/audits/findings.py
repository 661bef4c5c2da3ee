"""What an audit hands over: a status with its reason, tables, curves and machine-readable values.

A number that could not be had is the text "not available: why", never a blank. The mapping that
`Finding.to_mapping` returns is what results.json holds and reports read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["quick", "standard", "strict"]
LEVELS: tuple[Level, ...] = ("quick", "standard", "strict")
Status = Literal["pass", "fail", "info", "not available"]
Cell = str | int | float | dict[str, Any] | None


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval and what it was counted over."""

    mean: float
    low: float
    high: float
    n: int
    """Images or units of a share; repetitions where something was trained or drawn."""

    def above(self, margin: float) -> bool:
        """Whether it is more than 0 beyond chance, and by more than `margin`."""
        return self.low > 0 and self.mean > margin

    def to_mapping(self) -> dict[str, Any]:
        """Return the cell of a table; ends that one unit leaves open are None."""
        values = {"mean": self.mean, "low": self.low, "high": self.high}
        return {**{key: plain_value(value) for key, value in values.items()}, "n": self.n}


@dataclass(frozen=True)
class Table:
    """A table; scores are fractions from 0 to 1."""

    title: str
    columns: tuple[str, ...]
    rows: list[list[Cell | Interval]] = field(default_factory=list)

    def to_mapping(self) -> dict[str, Any]:
        """Return plain values."""
        rows = [[plain_value(cell) for cell in row] for row in self.rows]
        return {"title": self.title, "columns": list(self.columns), "rows": rows}


@dataclass(frozen=True)
class Curve:
    """Numbers along an axis, one series for each model."""

    title: str
    x_label: str
    y_label: str
    x: Sequence[float | str]
    series: Mapping[str, Sequence[float | None]]

    def to_mapping(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "title": self.title,
            "x_label": self.x_label,
            "y_label": self.y_label,
            "x": [plain_value(value) for value in self.x],
            "series": {name: [plain_value(v) for v in ys] for name, ys in self.series.items()},
        }


@dataclass(frozen=True)
class Finding:
    """The answer of one audit."""

    title: str
    question: str
    status: Status
    reason: str
    tables: tuple[Table, ...] = ()
    curves: tuple[Curve, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    """What a person should see besides, whatever the status."""

    def to_mapping(self) -> dict[str, Any]:
        """Return what results.json holds; warnings are gathered elsewhere."""
        return {
            "title": self.title,
            "question": self.question,
            "status": self.status,
            "reason": self.reason,
            "tables": [table.to_mapping() for table in self.tables],
            "curves": [curve.to_mapping() for curve in self.curves],
            "values": plain_value(self.values),
        }


def not_available(why: str) -> str:
    """Return the text that stands where a number could not be had."""
    return f"not available: {why}"


def missing(title: str, question: str, why: str) -> Finding:
    """Return the finding of an audit that could not be done."""
    return Finding(title, question, "not available", why)


def plain_value(value: Any) -> Any:
    """Return `value` as JSON has it: no arrays, no infinities, intervals as mappings."""
    if isinstance(value, Interval):
        return value.to_mapping()
    if isinstance(value, Mapping):
        return {str(key): plain_value(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(below) for below in value]
    if hasattr(value, "item") and not hasattr(value, "__len__"):
        value = value.item()
    elif hasattr(value, "tolist"):
        return plain_value(value.tolist())
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
