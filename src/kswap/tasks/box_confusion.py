"""What the objects of a set are answered as: the class of the box that fits best, or nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kswap.arrays import NOTHING, Confusion, Marks
from kswap.data import ImageSet
from kswap.tasks.answers import Detections
from kswap.tasks.boxes import box_iou

SURE = 0.3
"""Score from which on an answer is shown, and counts as one."""
_FITS = 0.5
"""Intersection over union from which on a box is that of an object, as in AP50."""
_MOST = 30
"""Answers of an image that are shown."""


def surely_seen(answer: Detections) -> Marks:
    """Return the answers with a score of SURE or more, best first."""
    shares = answer.scores.float().cpu().numpy()
    shown = np.flatnonzero(shares >= SURE)[:_MOST]
    return Marks(
        answer.class_ids.cpu().numpy().astype(np.int64)[shown],
        shares[shown],
        boxes=answer.boxes.float().cpu().numpy()[shown],
    )


def box_confusion(
    found: Sequence[Detections], images: ImageSet, *, class_ids: Sequence[int]
) -> Confusion:
    """Count, for each object of `class_ids` that is no crowd, the class of its best sure answer.

    Args:
        found: answers on each image of the set, best first.
        images: with boxes.
        class_ids: of the role.
    """
    assert images.boxes is not None
    wanted = set(map(int, class_ids))
    confusion: Confusion = {}
    for truth, answer in zip(images.boxes, found, strict=True):
        chosen = ~truth.crowd & np.isin(truth.class_ids, list(wanted))
        given = surely_seen(answer)
        assert given.boxes is not None
        overlap = box_iou(torch.from_numpy(truth.boxes[chosen]), torch.from_numpy(given.boxes))
        for class_id, row in zip(truth.class_ids[chosen].tolist(), overlap.numpy(), strict=True):
            best = int(row.argmax()) if row.size else 0  # of equal boxes the surer one
            fits = row.size > 0 and row[best] >= _FITS
            answered = int(given.class_ids[best]) if fits else NOTHING
            counts = confusion.setdefault(class_id, {})
            counts[answered] = counts.get(answered, 0) + 1
    return confusion
