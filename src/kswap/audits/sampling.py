"""Which images an audit level reads: the same ones of every model, spread over the classes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from kswap.audits.findings import Level
from kswap.data import ImageSet, SwapData
from kswap.data.sets import subset
from kswap.settings import Role, Split

_LIMITS: dict[tuple[Role, Split], int] = {
    ("forget", "train"): 120,
    ("forget", "validation"): 40,
    ("forget", "test"): 200,
    ("retain", "train"): 150,
    ("retain", "validation"): 50,
    ("retain", "test"): 200,
    ("learn", "test"): 60,
}
"""Images of a role and split; the control without a reference also needs train images of learn."""
_WITHOUT_REFERENCE: dict[tuple[Role, Split], int] = {
    ("learn", "train"): 90,
    ("learn", "validation"): 30,
}
_STRICT_FACTOR = 10
_LEAST_PER_CLASS = 8
_MOST_CLASSES = 20
"""Retained classes that probes tell apart, besides the forgotten ones."""


def chosen_sets(
    data: SwapData, level: Level, *, reference: bool, seed: int
) -> dict[Role, dict[Split, ImageSet]]:
    """Return the images that a level reads.

    Args:
        data: of the run.
        level: of the audit; strict reads ten times as many.
        reference: whether there is a reference.
        seed: of the choice within a class.
    """
    limits = {**_LIMITS, **({} if reference else _WITHOUT_REFERENCE)}
    factor = _STRICT_FACTOR if level == "strict" else 1
    sets: dict[Role, dict[Split, ImageSet]] = {}
    for (role, split), limit in limits.items():
        images = data.sets.get(role, {}).get(split)
        if images is None or not len(images):
            continue
        probed = role == "retain" and split != "test"
        rows = spread(
            images.class_ids,
            limit * factor,
            max_classes=_MOST_CLASSES if probed else None,
            seed=seed,
        )
        sets.setdefault(role, {})[split] = subset(images, rows)
    return sets


def spread(
    class_ids: NDArray[np.int64], limit: int, *, max_classes: int | None, seed: int
) -> NDArray[np.int64]:
    """Return about `limit` rows, as many of each class as can be, at least 8 where there are.

    Args:
        class_ids: (n,).
        limit: rows in all.
        max_classes: take so many classes at most, evenly from those there are.
        seed: of the choice within a class.
    """
    classes = np.unique(class_ids)
    if max_classes is not None and len(classes) > max_classes:
        classes = classes[np.linspace(0, len(classes) - 1, max_classes).astype(int)]
    each = max(limit // max(len(classes), 1), _LEAST_PER_CLASS)
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(class_ids == c))[:each] for c in classes]
    return np.sort(np.concatenate(rows)) if rows else np.zeros(0, np.int64)


def num_images(sets: Mapping[Role, Mapping[Split, ImageSet]]) -> int:
    """Return the number of images of all sets."""
    return sum(len(images) for splits in sets.values() for images in splits.values())
