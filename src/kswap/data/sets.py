"""What the data package hands over: one typed value for head, training, scores and reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kswap.config import Role, Split
from kswap.data.pixels import Pixels


@dataclass(frozen=True)
class ImageSet:
    """Images of one role and one split, decoded and resized once, in order of class and content."""

    images: NDArray[Any]
    """(n, H, W, 3) uint8 after the processor's resize and crop; (n, 3, H, W) float32 where the
    processor's arithmetic cannot be separated from it. A memory map where the images exceed the
    memory limit."""
    class_ids: NDArray[np.int64]
    """(n,) rows of the extended head."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.class_ids)


@dataclass(frozen=True)
class SwapData:
    """The data of a swap."""

    id2label: dict[int, str]
    """The model's labels, then the learned classes, in the order named or as the source sorts
    them."""
    num_base_classes: int
    """Rows of the model's head before it is extended."""
    class_ids: dict[Role, tuple[int, ...]]
    """The classes of each role, also of a role without a source. Retained classes without images
    are in."""
    sets: dict[Role, dict[Split, ImageSet]]
    """Images by role and split, for roles that have a source; a set may be empty (validation)."""
    pixels: Pixels
    """From a batch of `ImageSet.images` to what the model takes."""
    notes: tuple[str, ...]
    """What was left out or settled without being asked, one line each."""
