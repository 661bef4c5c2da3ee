"""What the data package hands over: one typed value for head, training, scores and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kswap.data.pixels import Pixels
from kswap.settings import ROLES, Role, Split

if TYPE_CHECKING:
    from kswap.data.streaming import StreamedImages

OPEN = -1
"""In a mask: none of the classes that the annotations cover; background, or not labelled."""
IGNORE = -2
"""In a mask: not known (ignore index, crowd, padding); neither trained nor scored."""


@dataclass(frozen=True)
class Boxes:
    """The annotated objects of one image; rows of all fields belong together."""

    boxes: NDArray[np.float32]
    """(objects, 4): left, top, right, bottom, as fractions of the image's width and height."""
    class_ids: NDArray[np.int64]
    """(objects,) rows of the extended head."""
    crowd: NDArray[np.bool_]
    """(objects,) regions that hold an uncounted number of objects: neither trained nor scored as a
    miss."""


@dataclass(frozen=True)
class ImageSet:
    """Images of one role and one split, decoded and resized once, in order of class and content.

    Segmentation has `masks`, detection `boxes`; both may have images of several sizes, which lie in
    the upper left of arrays of one size.
    """

    images: NDArray[Any]
    """(n, H, W, 3) uint8 after the processor's resize and crop; (n, 3, H, W) float32 where the
    processor's arithmetic cannot be separated from it. A memory map where the images exceed the
    memory limit."""
    class_ids: NDArray[np.int64]
    """(n,) rows of the extended head. Of an image with several: the rarest one of the role."""
    masks: NDArray[np.int16] | None = None
    """(n, H, W) rows of the extended head, OPEN or IGNORE, at the size of `images`."""
    boxes: tuple[Boxes, ...] | None = None
    """The objects of each image."""
    sizes: NDArray[np.int32] | None = None
    """(n, 2) height and width of each image within `images`; None: all are whole."""
    complete: bool = True
    """Whether every object of a covered class is annotated and nothing else is there to be known:
    config's `labels: complete`. Otherwise what is not annotated is open."""
    original_sizes: NDArray[np.int32] | None = None
    """(n, 2) height and width of each image before it was fitted; None in classification."""
    covered: tuple[int, ...] = ()
    """Rows that the annotations cover: where such a class is not annotated, it is not there."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.class_ids)


def subset(images: ImageSet, rows: NDArray[np.int64]) -> ImageSet:
    """Return some images of a set, in memory."""
    return replace(
        images,
        images=images.images[rows],
        class_ids=images.class_ids[rows],
        masks=None if images.masks is None else images.masks[rows],
        boxes=None if images.boxes is None else tuple(images.boxes[row] for row in rows),
        sizes=None if images.sizes is None else images.sizes[rows],
        original_sizes=None if images.original_sizes is None else images.original_sizes[rows],
    )


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
    """Images by role and split, for roles that have a source; a set may be empty (validation). The
    train images of a role that streams are a sample."""
    pixels: Pixels
    """From a batch of `ImageSet.images` to what the model takes."""
    notes: tuple[str, ...]
    """What was left out or settled without being asked, one line each."""
    streamed: Mapping[Role, StreamedImages] = field(default_factory=dict)
    """The train images of roles that stream."""
    in_memory: tuple[Role, ...] = ()
    """Roles whose images were given as data sets, whatever the config names."""

    @property
    def names(self) -> dict[Role, list[str]]:
        """The names of the classes of every role, as results.json has them."""
        return {role: [self.id2label[c] for c in self.class_ids.get(role, ())] for role in ROLES}
