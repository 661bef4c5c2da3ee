"""What a report is made of, read from a run folder: numbers, losses, arrays, analyses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kswap.arrays import RunArrays, damaged, read_arrays
from kswap.errors import UserError


@dataclass(frozen=True)
class RunRecord:
    """All that is drawn of a run."""

    results: Mapping[str, Any]
    """Content of results.json."""
    events: tuple[Mapping[str, Any], ...]
    """Lines of events.jsonl; none where the file is not there."""
    arrays: RunArrays | None
    analyses: tuple[tuple[str, list[Mapping[str, Any]]], ...]
    """Of each arrays/analysis-NAME.json its name and its charts: title, x_label, y_label, x,
    series."""


def read_record(run_dir: Path, results: Mapping[str, Any]) -> RunRecord:
    """Read what lies beside results.json.

    Raises:
        UserError: a file is damaged.
    """
    names = [stage["name"] for stage in results["stages"]]
    return RunRecord(
        results,
        read_events(run_dir / "events.jsonl"),
        read_arrays(run_dir / "arrays", names),
        tuple(
            (path.stem.removeprefix("analysis-"), read_charts(path))
            for path in _analysis_paths(run_dir)
        ),
    )


def read_events(path: Path) -> tuple[Mapping[str, Any], ...]:
    """Return the lines of events.jsonl.

    Raises:
        UserError: a line is damaged; its number is named.
    """
    if not path.is_file():
        return ()
    lines = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            event = json.loads(line)
            {name: float(value) for name, value in event["terms"].items()}
            str(event["stage"]), int(event["total_step"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: line {number} cannot be read ({type(error).__name__}: {error}); restore "
                "the file, or delete it: the report is then without the losses"
            ) from None
        lines.append(event)
    return tuple(lines)


def read_charts(path: Path) -> list[Mapping[str, Any]]:
    """Return the charts of one analysis file.

    Raises:
        UserError: it is not a list of charts.
    """
    try:
        charts = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(charts, list):
            raise TypeError("not a list")
        for chart in charts:
            lengths = {len(line) for line in chart["series"].values()}
            if lengths - {len(chart["x"])}:
                raise ValueError("a series is not as long as x")
            str(chart["title"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, error) from None
    return charts


def _analysis_paths(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "arrays").glob("analysis-*.json"))
