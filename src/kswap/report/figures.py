"""RUN/figures: a sheet of pictures for each role, from the arrays of a run alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kswap.arrays import read_arrays
from kswap.report.pictures import Naming
from kswap.report.sheets import save_png, sheet
from kswap.settings import ROLES, Role

_TITLES: dict[Role, str] = {
    "learn": "Test images of classes to learn",
    "forget": "Test images of classes to forget",
    "retain": "Test images of classes to retain",
}


def draw_figures(run_dir: Path, results: Mapping[str, Any]) -> list[Path]:
    """Draw RUN/figures/ROLE.png of every role that has test images; return what was written.

    Args:
        run_dir: with arrays/.
        results: content of results.json.

    Raises:
        UserError: a file of arrays/ is damaged.
    """
    arrays = read_arrays(run_dir / "arrays", [stage["name"] for stage in results["stages"]])
    if arrays is None:
        return []
    naming = Naming.of(arrays.labels, results["classes"])
    written = []
    for role in ROLES:
        chosen = [n for n, example in enumerate(arrays.examples) if example.role == role]
        if not chosen:
            continue
        page = sheet(
            _TITLES[role],
            [arrays.examples[n] for n in chosen],
            {
                heading(name): [stage.answers[n] for n in chosen]
                for name, stage in arrays.stages.items()
            },
            naming,
        )
        path = run_dir / "figures" / f"{role}.png"
        path.parent.mkdir(exist_ok=True)
        save_png(page, path)
        written.append(path)
    return written


def heading(stage: str) -> str:
    """Return what stands above the answers of a stage."""
    return short(stage) if stage == "base" else f"after {stage}"


def short(stage: str) -> str:
    """Return the heading of a narrow column."""
    return "before" if stage == "base" else stage
