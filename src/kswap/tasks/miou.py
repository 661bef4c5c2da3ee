"""Mean intersection over union of the classes of a role, image by image.

No image is scored against classes that its annotations do not cover: an answer of such a class is
no error. Where annotations say nothing (OPEN), none of the classes they cover is there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kswap.arrays import Confusion
from kswap.data.sets import IGNORE
from kswap.tasks import Scores


class IoU:
    """Counts over a set: of each class its pixels in truth, in answers, and in both."""

    def __init__(self, class_ids: Sequence[int], covered: Sequence[int]) -> None:
        """Score `class_ids`; `covered` are the classes that the annotations are exhaustive for."""
        self._class_ids = [int(c) for c in class_ids if int(c) in set(map(int, covered))]
        self._truth: dict[int, int] = dict.fromkeys(self._class_ids, 0)
        self._answered = dict(self._truth)
        self._common = dict(self._truth)
        self._confusion: Confusion = {}

    def update(self, answer: NDArray[np.integer], truth: NDArray[np.integer]) -> None:
        """Count one image: (height, width) rows of the head; truth may be OPEN or IGNORE."""
        known = truth != IGNORE
        answer, truth = answer[known], truth[known]
        for class_id in self._class_ids:
            wanted, given = truth == class_id, answer == class_id
            self._truth[class_id] += int(wanted.sum())
            self._answered[class_id] += int(given.sum())
            self._common[class_id] += int((wanted & given).sum())
            answered = self._confusion.setdefault(class_id, {}) if wanted.any() else {}
            for other, count in zip(*np.unique(answer[wanted], return_counts=True), strict=True):
                answered[int(other)] = answered.get(int(other), 0) + int(count)

    @classmethod
    def together(cls, parts: Sequence[IoU]) -> IoU:
        """Return the counts of all parts of one set, which count the same classes."""
        whole = parts[0]
        for part in parts[1:]:
            for ours, theirs in (
                (whole._truth, part._truth),
                (whole._answered, part._answered),
                (whole._common, part._common),
            ):
                for class_id, count in theirs.items():
                    ours[class_id] += count
            for class_id, answers in part._confusion.items():
                answered = whole._confusion.setdefault(class_id, {})
                for other, count in answers.items():
                    answered[other] = answered.get(other, 0) + count
        return whole

    def scores(self) -> Scores:
        """Return the IoU of each class that occurs in the truth, and their mean."""
        per_class = {
            c: self._common[c] / (self._truth[c] + self._answered[c] - self._common[c])
            for c in self._class_ids
            if self._truth[c]
        }
        total = sum(per_class.values()) / len(per_class) if per_class else 0.0
        return Scores(total, per_class, confusion=self._confusion)
