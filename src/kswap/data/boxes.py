"""Boxes as people write them, checked: numbers, order of the corners, place in the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kswap.data.text import one_line
from kswap.errors import UserError

BoxFormat = Literal["xywh", "xyxy", "cxcywh"]
_WORDS: dict[str, str] = {
    "xywh": "left, top, width, height",
    "xyxy": "left, top, right, bottom",
    "cxcywh": "centre x, centre y, width, height",
}


_OVERFLOWS = 1e300
"""Sums of numbers from here on may not be finite."""


def clean_boxes(
    raw: Sequence[Any], kind: BoxFormat, where: str, *, of_pixels: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return boxes as (kept, 4) left, top, right, bottom, and (n,) which of `raw` they are.

    Boxes without width or height are left out (annotation tools write some); whoever calls counts
    them. With `of_pixels` corners are the first and the last pixel inside, counted from 1, so that
    a box whose corners are equal is one pixel.

    Raises:
        UserError: a box is not four finite numbers, or is inverted: then the format is another.
    """
    boxes = np.zeros((len(raw), 4), np.float64)
    for row, box in enumerate(raw):
        try:
            values = np.asarray(box, np.float64)
        except (TypeError, ValueError, OverflowError):  # of a whole number of hundreds of digits
            values = np.zeros(0)
        if values.shape != (4,) or not (np.abs(values) < _OVERFLOWS).all():
            raise UserError(
                f"{where}: a box is {one_line(box, 60)}, not four numbers ({_WORDS[kind]}); "
                "correct or remove it"
            )
        boxes[row] = values
    if kind == "cxcywh":
        boxes[:, :2] -= boxes[:, 2:] / 2
    if kind != "xyxy":
        boxes[:, 2:] += boxes[:, :2]
    inverted = np.any(boxes[:, 2:] < boxes[:, :2], axis=1)
    if inverted.any():
        box = raw[int(np.flatnonzero(inverted)[0])]
        raise UserError(
            f"{where}: the box {one_line(box, 60)} is inverted, its width or height is negative "
            f"when read as {_WORDS[kind]}; correct it, or the format of the boxes"
        )
    if of_pixels:
        boxes[:, :2] -= boxes[:, :2] != 0  # counted from 0 all the same: no matter
    kept = np.asarray((boxes[:, 2:] > boxes[:, :2]).all(axis=1), bool)
    return boxes[kept], kept


def are_fractions(boxes: Sequence[NDArray[np.float64]]) -> bool:
    """Whether place and size of every box (left, top, right, bottom) are at most 1.

    In pixels that would be a source of objects that are all one pixel in the corner.
    """
    every = np.concatenate([np.zeros((0, 4)), *boxes])
    sides = every[:, 2:] - every[:, :2]
    return bool(len(every) and (np.abs(every[:, :2]) <= 1).all() and (sides <= _ONE).all())


_ONE = 1 + 1e-6
"""A side that was computed from two corners may exceed 1 by rounding."""


def fit_as_corners(boxes: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Whether boxes that were read as left, top, width, height fit an image as corners instead.

    Args:
        boxes: (n, 4): left, top, right, bottom, as they were read, in pixels.
        size: height and width of the image.
    """
    width, height = (boxes[:, 2:] - boxes[:, :2]).T  # as they are written
    left, top = boxes[:, :2].T
    fits: NDArray[np.bool_] = (
        (left >= 0) & (top >= 0) & (left < width) & (top < height)
        & (width <= size[1]) & (height <= size[0])
    )  # fmt: skip
    return fits


def clip_boxes(
    boxes: NDArray[np.float64], tolerance: float = 0.0
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Clip boxes (n, 4) in fractions to the image; return them, which were clipped, which are in.

    A box that lies outside as a whole is not in. `tolerance` is what may stick out uncounted.
    """
    clipped = boxes.clip(0, 1)
    beyond = np.asarray((np.abs(clipped - boxes) > tolerance).any(axis=1), bool)
    inside = np.asarray((clipped[:, 2:] > clipped[:, :2]).all(axis=1), bool)
    return clipped, beyond, inside
