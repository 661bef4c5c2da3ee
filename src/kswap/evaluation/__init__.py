"""Scores of every role, before the first stage and after each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from kswap.data import SwapData
from kswap.settings import ROLES, Role, Split
from kswap.tasks import Pixels, Scores, Task


def score_roles(
    model: nn.Module,
    task: Task,
    data: SwapData,
    *,
    split: Split,
    num_rows: int,
    batch_size: int,
    pixels: Pixels | None = None,
) -> dict[str, Any]:
    """Return `{"scores": {role: float | None}, "per_class": {class name: float}}` on one split.

    A task with other numbers adds `"more": {name: {role: float}}`.

    Args:
        model: answers with logits.
        task: how it is scored.
        data: the sets of all roles. A role without images has the score None.
        split: which split.
        num_rows: classes that the model may answer; classes behind them score 0.
        batch_size: images in a forward.
        pixels: in place of `data.pixels` (another device).
    """
    scored = score_sets(
        model, task, data, split=split, num_rows=num_rows, batch_size=batch_size, pixels=pixels
    )
    return summary(scored, data)


def score_sets(
    model: nn.Module,
    task: Task,
    data: SwapData,
    *,
    split: Split,
    num_rows: int,
    batch_size: int,
    pixels: Pixels | None = None,
    keep: Mapping[Role, Sequence[int]] | None = None,
) -> dict[Role, Scores]:
    """Return the scores of each role that has images; arguments as in `score_roles`.

    `keep` are rows of each role's images whose answers are kept.
    """
    scored = {}
    for role in ROLES:
        images = data.sets.get(role, {}).get(split)
        if images is None or not len(images):
            continue
        scored[role] = task.score(
            model,
            images,
            pixels=pixels or data.pixels,
            class_ids=data.class_ids.get(role, ()),
            num_rows=num_rows,
            batch_size=batch_size,
            keep=(keep or {}).get(role, ()),
        )
    return scored


def summary(scored: Mapping[Role, Scores], data: SwapData) -> dict[str, Any]:
    """Return what `score_roles` returns."""
    scores: dict[Role, float | None] = dict.fromkeys(ROLES)
    per_class: dict[str, float] = {}
    more: dict[str, dict[Role, float]] = {}
    for role, found in scored.items():
        scores[role] = round(found.total, 6)
        per_class |= {data.id2label[c]: round(v, 6) for c, v in found.per_class.items()}
        more |= {
            name: {**more.get(name, {}), role: round(value, 6)}
            for name, value in found.more.items()
        }
    return {"scores": scores, "per_class": per_class, **({"more": more} if more else {})}


def same_scores(one: Mapping[str, Any], other: Mapping[str, Any], tolerance: float = 1e-4) -> bool:
    """Whether two `scores` mappings agree."""
    return all(
        (one[role] is None) == (other[role] is None)
        and abs((one[role] or 0.0) - (other[role] or 0.0)) <= tolerance
        for role in ROLES
    )
