"""A run folder as a run leaves it, without a model: numbers, losses, arrays, an audit.

Every word in it that a user chooses would do harm where it was not escaped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tiny_runs import ARABIC, LONG, QUOTES, SCRIPT

from kswap.arrays import NOTHING, Example, Marks, StageArrays, write_examples, write_stage

CLASSES: dict[str, list[str]] = {
    "learn": [QUOTES, "ship"],
    "forget": [SCRIPT, LONG],
    "retain": [ARABIC, "tree", "deer", "automobile"],
}
LABELS = dict(enumerate([*CLASSES["retain"], *CLASSES["forget"], *CLASSES["learn"]]))
ROW = {name: row for row, name in LABELS.items()}
SCORE_NAMES = {"classification": "top1", "segmentation": "miou", "detection": "map"}
UNITS: Any = {"classification": "images", "segmentation": "pixels", "detection": "objects"}
STAGES = ("base", "1-learn", "2-forget")
_SIDE = 64


def write_run(
    folder: Path,
    task: str,
    *,
    classes: dict[str, list[str]] | None = None,
    audit: bool = True,
    analysis: bool = True,
    examples: int = 4,
) -> Path:
    """Write results.json, events.jsonl and arrays/; return the folder."""
    classes = classes or CLASSES
    names = [name for role in ("retain", "forget", "learn") for name in classes[role]]
    labels = dict(enumerate(names))
    folder.mkdir(parents=True, exist_ok=True)
    results = {
        "kswap_version": "0.1.0",
        "task": task,
        "score_name": SCORE_NAMES[task],
        "seed": 0,
        "order": "LF",
        "preset": "default",
        "classes": classes,
        "stages": _stages(classes),
        "seconds": {"load": 3.1, "score": 9.5, "train 1-learn": 40.2, "total": 81.4},
        "peak_memory_bytes": 1_046_417_408,
        "trainable_parameters": 296_496,
        "groups": {"total": 12, "zero": 1},
        "images": {role: {"train": 90, "validation": 10, "test": 60} for role in classes},
        "base": {"model": f"hub/{SCRIPT}", "license": "apache-2.0"},
        "notes": [f"learn: 3 images left out, of {SCRIPT}"],
        "audit": _audit() if audit else {},
    }
    (folder / "results.json").write_text(json.dumps(results, ensure_ascii=False))
    lines = [
        {"stage": stage, "step": step, "total_step": 50 * number + step, "lr": 1e-3, "seconds": 0.1,
         "images_per_s": 9.0, "terms": _terms(stage, 50 * number + step)}
        for number, stage in enumerate(STAGES[1:])
        for step in range(1, 51)
    ]  # fmt: skip
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _write_arrays(folder / "arrays", task, classes, labels, examples)
    if analysis:
        chart = {"title": f"Norm of each block {SCRIPT}", "x_label": "block", "y_label": "norm",
                 "x": list(range(12)), "series": {f"{SCRIPT} up": [0.1 * k for k in range(12)],
                 "down": [None, *[2 - 0.1 * k for k in range(11)]]}}  # fmt: skip
        (folder / "arrays/analysis-groups.json").write_text(json.dumps([chart]))
    return folder


def _stages(classes: dict[str, list[str]]) -> list[dict[str, Any]]:
    by_role = {"learn": (0.0, 0.84, 0.87), "forget": (0.81, 0.6, 0.0), "retain": (0.86, 0.84, 0.82)}
    stages = []
    for number, name in enumerate(STAGES):
        scores = {role: by_role[role][number] for role in classes}
        per_class = {
            one: round(max(0.0, scores[role] - 0.01 * place), 4)
            for role, members in classes.items()
            for place, one in enumerate(members)
        }
        stages.append({"name": name, "scores": scores, "per_class": per_class})
    return stages


def _terms(stage: str, step: int) -> dict[str, float]:
    terms = {"learn": 3 / (1 + 0.1 * step), "retain": 0.4 + 0.1 * np.sin(step / 5)}
    return {**terms, "forget": 2.3 / (1 + 0.05 * step)} if stage == "2-forget" else terms


def _write_arrays(
    folder: Path, task: str, classes: dict[str, list[str]], labels: dict[int, str], count: int
) -> None:
    noise = np.random.default_rng(0)
    row = {name: number for number, name in labels.items()}
    chosen: list[tuple[Any, int]] = [
        (role, row[members[n % len(members)]])
        for role, members in classes.items()
        for n in range(count if members else 0)
    ]
    examples = [Example(role, _picture(noise), _marks(task, [r, 0])) for role, r in chosen]
    write_examples(folder, examples, labels=labels, unit=UNITS[task])
    forget = {row[name] for name in classes["forget"]}
    for number, name in enumerate(STAGES):
        answers, confusion = [], {}
        for _, true in chosen:
            gone = true in forget and number == 2
            answers.append(_marks(task, [1 if gone else true, 0], (0.7, 0.2)))
        for true in row.values():
            gone = true in forget and number == 2
            other = NOTHING if task == "detection" else 2
            confusion[true] = {1: 30, 0: 20, other: 10} if gone else {true: 50, 1 + true // 2: 10}
        write_stage(folder, name, StageArrays(tuple(answers), confusion))


def _picture(noise: np.random.Generator) -> Any:
    small = noise.integers(60, 230, (8, 8, 3)).astype(np.uint8)
    return np.kron(small, np.ones((_SIDE // 8, _SIDE // 8, 1), np.uint8))


def _marks(task: str, rows: Sequence[int], shares: Sequence[float] = (1.0, 1.0)) -> Marks:
    if task == "segmentation":
        mask = np.full((_SIDE, _SIDE), rows[1], np.int16)
        mask[10:50, 8:40] = rows[0]
        return Marks(np.zeros(0, np.int64), np.zeros(0, np.float32), mask=mask)
    if task == "detection":
        boxes = np.array([[0.1, 0.2, 0.6, 0.8], [0.5, 0.1, 0.95, 0.5]], np.float32)
        return Marks(np.array(rows), np.array(shares, np.float32), boxes=boxes)
    kept = 1 if shares[0] == 1 else 2
    return Marks(np.array(rows)[:kept], np.array(shares, np.float32)[:kept])


def _audit() -> dict[str, Any]:
    spread = {"mean": 0.0421, "low": 0.031, "high": 0.055, "n": 3}
    scores = {
        "title": f"Scores beside the reference {SCRIPT}",
        "columns": ["set", "base", "swapped", "reference (R1)"],
        "rows": [["forget, test", 0.815, 0.0, 0.0], [LONG, 0.9, spread, None]],
    }
    probe = {
        "title": "Residual by layer",
        "x_label": "block",
        "y_label": "residual",
        "x": [1, 2, 3, 4, 5],
        "series": {
            "base": [1, 1, 1, 1, 1], "swapped": [0.9, 0.8, 0.7, 0.5, 0.2],
            "reference": [0, 0, None, 0, 0],
        },
    }  # fmt: skip

    def one(title: str, question: str, status: str, **more: Any) -> dict[str, Any]:
        return {"title": title, "question": question, "status": status, "reason": "",
                "tables": [], "curves": [], "values": {}} | more  # fmt: skip

    return {
        "level": "quick",
        "seed": 0,
        "reference": {
            "level": "R1", "model": f"{SCRIPT}", "valid": True, "note": "Trained from scratch.",
        },
        "verdict": {
            "level": "output-consistent", "stopped_by": "A5",
            "reason": f"A linear probe finds {SCRIPT} after block 3 better than in the reference.",
        },
        "warnings": [f"Class {QUOTES} lies near a forgotten one."],
        "seconds": {"total": 42.0, "A1": 3.0},
        "audits": {
            "A1": one("Scores", "What does it answer?", "pass", tables=[scores]),
            "A5": one("Layer probe", "Is it still inside?", "fail", curves=[probe],
                      reason="Above the reference at 3 of 5 blocks."),
            "A4": one("Forgetting quality", "How far from the reference?", "not available",
                      reason="N = 1 model shows no epsilon."),
            "A8": one("Adapter removal", "Is it reversible?", "info"),
        },
    }  # fmt: skip
