"""Rows of image sets, put together: what one step or one batch of a score looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kswap.data.sets import IGNORE, Boxes, ImageSet


@dataclass(frozen=True)
class Samples:
    """Images with their annotations; rows of all fields belong together. See `ImageSet`."""

    images: NDArray[Any]
    class_ids: NDArray[np.int64]
    complete: NDArray[np.bool_]
    """(n,): whether what is not annotated is known not to be there."""
    masks: NDArray[np.int16] | None = None
    boxes: tuple[Boxes, ...] | None = None
    sizes: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.class_ids)

    def rows(self, chosen: slice | NDArray[np.int64]) -> Samples:
        """Return some of them."""
        every = np.arange(len(self))
        return Samples(
            self.images[chosen],
            self.class_ids[chosen],
            self.complete[chosen],
            None if self.masks is None else self.masks[chosen],
            None if self.boxes is None else tuple(self.boxes[n] for n in every[chosen]),
            None if self.sizes is None else self.sizes[chosen],
        )


def take(images: ImageSet, rows: NDArray[np.int64] | slice) -> Samples:
    """Return rows of one set."""
    class_ids = images.class_ids[rows]
    boxes = images.boxes
    if boxes is not None:
        places = np.arange(len(images))[rows]
        boxes = tuple(boxes[place] for place in places)
    return Samples(
        images.images[rows],
        class_ids,
        np.full(len(class_ids), images.complete),
        None if images.masks is None else images.masks[rows],
        boxes,
        None if images.sizes is None else images.sizes[rows],
    )


def concatenate(parts: Sequence[Samples]) -> Samples:
    """Lay samples end to end; smaller images come into the upper left of the largest size."""
    shapes = {part.images.shape[1:] for part in parts}
    if len(shapes) > 1:
        parts = _of_one_size(parts)
    return Samples(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.class_ids for part in parts]),
        np.concatenate([part.complete for part in parts]),
        _joined([part.masks for part in parts]),
        None if parts[0].boxes is None else tuple(b for part in parts for b in part.boxes or ()),
        _sizes(parts),
    )


def _joined(arrays: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
    there = [array for array in arrays if array is not None]
    return np.concatenate(there) if there else None


def _sizes(parts: Sequence[Samples]) -> NDArray[np.int32] | None:
    if all(part.sizes is None for part in parts):
        return None
    return np.concatenate([_own_sizes(part) for part in parts])


def _own_sizes(part: Samples) -> NDArray[np.int32]:
    if part.sizes is not None:
        return part.sizes
    return np.tile(np.array(_spatial(part), dtype=np.int32), (len(part), 1))


def _spatial(part: Samples) -> tuple[int, int]:
    """Height and width: of (n, H, W, 3) bytes, or of (n, 3, H, W) numbers."""
    shape = part.images.shape
    return (shape[1], shape[2]) if part.images.dtype == np.uint8 else (shape[2], shape[3])


def _of_one_size(parts: Sequence[Samples]) -> list[Samples]:
    height = max(_spatial(part)[0] for part in parts)
    width = max(_spatial(part)[1] for part in parts)
    grown = []
    for part in parts:
        rows, columns = _spatial(part)
        room = [(0, 0), (0, height - rows), (0, width - columns)]
        whole = (0, 0)
        of_images = [*room, whole] if part.images.dtype == np.uint8 else [whole, whole, *room[1:]]
        masks = part.masks
        if masks is not None:
            masks = np.pad(masks, room, constant_values=IGNORE)
        grown.append(
            Samples(
                np.pad(part.images, of_images),
                part.class_ids,
                part.complete,
                masks,
                part.boxes,
                _own_sizes(part),
            )
        )
    return grown
