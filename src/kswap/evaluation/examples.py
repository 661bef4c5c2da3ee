"""A few test images of every role that are kept with their answers, to be looked at.

They are chosen by the seed and the classes alone, never by what a model answers on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kswap.arrays import Example, Marks
from kswap.data import ImageSet, SwapData
from kswap.settings import ROLES, Role

LEAST, MOST = 4, 8
"""Images of a role; between the two, one for each class."""
SIDE = 320
"""The longer side of a kept image is at most so long, in pixels."""


def choose(data: SwapData, *, seed: int) -> dict[Role, tuple[int, ...]]:
    """Return rows of each role's test images, class by class in turn, in a random order."""
    chosen = {}
    for number, role in enumerate(ROLES):
        images = data.sets.get(role, {}).get("test")
        if images is None or not len(images):
            continue
        generator = np.random.default_rng([seed, number])
        rows = generator.permutation(len(images))
        turn = np.zeros(len(images), np.int64)  # how many of its class come before it
        seen: dict[int, int] = {}
        for row in rows:
            class_id = int(images.class_ids[row])
            turn[row] = seen.get(class_id, 0)
            seen[class_id] = turn[row] + 1
        in_turn = rows[np.argsort(turn[rows], kind="stable")]
        first = in_turn[: min(max(LEAST, len(seen)), MOST)]
        chosen[role] = tuple(sorted(int(row) for row in first))  # sets lie in order of class
    return chosen


def examples_of(data: SwapData, chosen: Mapping[Role, Sequence[int]]) -> tuple[Example, ...]:
    """Return the images with their truth, at most SIDE pixels on the longer side."""
    return tuple(
        _example(role, data.sets[role]["test"], row)
        for role, rows in chosen.items()
        for row in rows
    )


def fit_answer(answer: Marks, example: Example) -> Marks:
    """Return an answer with its mask, if any, at the size of the kept image."""
    if answer.mask is None:
        return answer
    height, width = example.image.shape[:2]
    return Marks(answer.class_ids, answer.shares, _nearest(answer.mask, (height, width)))


def _example(role: Role, images: ImageSet, row: int) -> Example:
    picture = _picture(images.images[row])
    height, width = picture.shape[:2]
    if images.sizes is not None:
        height, width = (int(side) for side in images.sizes[row])
    # Processors may squash images: they are shown in the shape of their files.
    shape = (height, width) if images.original_sizes is None else images.original_sizes[row]
    scale = min(SIDE, max(height, width)) / max(int(side) for side in shape)
    size = tuple(max(1, round(int(side) * scale)) for side in shape)
    image = Image.fromarray(np.ascontiguousarray(picture[:height, :width]))
    fitted = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return Example(role, fitted, _truth(images, row, (height, width), (size[0], size[1])))


def _picture(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Return (H, W, 3) bytes; of a finished float image, spread over the whole range."""
    if image.dtype == np.uint8:
        return np.asarray(image)
    finite = np.nan_to_num(np.moveaxis(np.asarray(image, np.float32), 0, -1))
    low, high = float(finite.min()), float(finite.max())
    return ((finite - low) / max(high - low, 1e-6) * 255).round().astype(np.uint8)


def _truth(images: ImageSet, row: int, inside: tuple[int, int], size: tuple[int, int]) -> Marks:
    if images.masks is not None:
        mask = images.masks[row][: inside[0], : inside[1]]
        return Marks.of_mask(_nearest(mask, size))
    if images.boxes is not None:
        found = images.boxes[row]
        kept = ~found.crowd
        class_ids = found.class_ids[kept]
        ones = np.ones(len(class_ids), np.float32)
        return Marks(class_ids, ones, boxes=found.boxes[kept].astype(np.float32))
    return Marks(images.class_ids[row : row + 1].astype(np.int64), np.ones(1, np.float32))


def _nearest(mask: NDArray[Any], size: tuple[int, int]) -> NDArray[np.int16]:
    """Return a mask at another size; every place takes the value that lies at its centre."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for new, old in zip(size, mask.shape, strict=True)
    )
    return np.ascontiguousarray(mask[rows[:, None], columns[None]].astype(np.int16))
