"""From the classes of a source to rows of the extended head, for masks and boxes.

The role belongs to the label, not to the image: where a source is complete, every class that is a
row of the head gets that row, whatever role it has. Where it is partial, only the role's own
classes are to be trusted; everything else is open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kswap.data.boxes import clip_boxes, fit_as_corners
from kswap.data.labels import LabelIndex
from kswap.data.roles import Roles
from kswap.data.scenes import (
    Annotation,
    BadAnnotationError,
    Objects,
    SceneTable,
    Size,
    is_background,
)
from kswap.data.sets import IGNORE, OPEN, Boxes
from kswap.data.table import Source
from kswap.settings import Role

STICKING_OUT = 1e-3
"""Share of the image's side that a box may stick out without being counted as clipped."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF orientation -> what makes the image upright (as `ImageOps.exif_transpose` has it)."""


@dataclass(frozen=True)
class Rows:
    """What the classes of a role's source are to the head."""

    of_class: dict[str, int]
    """Class name as the source has it -> row."""
    own: frozenset[int]
    """Rows of the role itself."""
    covered: tuple[int, ...]
    """Rows that the annotations cover."""
    background: int
    """What is annotated as no class becomes: the row of a class background, or OPEN."""

    def lookup(self, table: SceneTable) -> NDArray[np.int16]:
        """Return rows by index into the table's classes; the last two are IGNORE and OPEN's."""
        rows = [self.of_class.get(name, OPEN) for name in table.classes]
        return np.asarray([*rows, IGNORE, self.background], np.int16)


def rows_of(
    role: Role, source: Source, roles: Roles, rename: Mapping[str, str], *, partial: bool
) -> Rows:
    """Return the rows of a source's classes."""
    own = roles.of_source[role]
    of_class = dict(own)
    background = OPEN
    if not partial:
        labels = LabelIndex(roles.id2label)
        for name in source.classes:
            found = labels.find(rename.get(name, name))
            if name not in own and len(found) == 1:
                of_class[name] = found[0]
        background = next((i for i, n in roles.id2label.items() if is_background(n)), OPEN)
    covered = {*of_class.values(), *([background] if background != OPEN else [])}
    return Rows(of_class, frozenset(own.values()), tuple(sorted(covered)), background)


def upright(annotation: Annotation, size: Size, orientation: int, name: str) -> Annotation:
    """Return the annotation of an image as it is seen; `size` is that of the upright image.

    Raises:
        BadAnnotationError: it is of another size, or it cannot be told whether it was made on the
            image as stored or as seen.
    """
    if annotation.upright:
        return annotation
    stored = (size[1], size[0]) if orientation >= 5 else size
    if orientation == 1 or (annotation.size == size and stored != size):
        if annotation.size not in (None, size):
            height, width = annotation.size or size
            raise BadAnnotationError(
                name,
                f"is {size[1]}x{size[0]}, its annotations are for {width}x{height}",
                "annotations have the size of the image, resize or replace one of them",
            )
        return annotation
    if annotation.size != stored or stored == size:
        known = annotation.size and f"{annotation.size[1]}x{annotation.size[0]}"
        raise BadAnnotationError(
            name,
            f"is turned by its EXIF orientation ({orientation}), and its annotations of "
            f"{known or 'unknown size'} do not tell whether they are turned too",
            "save the image upright, without EXIF orientation",
        )
    turn = _TURNS[orientation]
    if annotation.mask is not None:
        turned = np.asarray(Image.fromarray(annotation.mask).transpose(turn)).astype(np.int32)
        return Annotation(mask=turned, size=size)
    objects = annotation.objects
    assert objects is not None
    return Annotation(objects=_turned(objects, orientation, stored), size=size)


def _turned(objects: Objects, orientation: int, stored: Size) -> Objects:
    height, width = (1, 1) if objects.fractions else stored
    left, top, right, bottom = objects.boxes.T
    flipped = {
        5: (top, left, bottom, right),
        6: (height - bottom, left, height - top, right),
        7: (height - bottom, width - right, height - top, width - left),
        8: (top, width - right, bottom, width - left),
    }[orientation]
    return Objects(np.stack(flipped, 1), objects.labels, objects.crowd, objects.fractions)


def fit_mask(mask: NDArray[np.int32], lookup: NDArray[np.int16], size: Size) -> NDArray[np.int16]:
    """Return a mask as rows at the size of the fitted image: the nearest pixel of each."""
    rows = lookup[mask]  # OPEN and IGNORE are -1 and -2: the last two of the look-up
    if rows.shape == size:
        return rows
    # mode I;16 is unsigned: OPEN and IGNORE come back by the view
    image = Image.fromarray(rows.view(np.uint16))
    fitted = image.resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.ascontiguousarray(fitted, np.uint16).view(np.int16)


@dataclass(frozen=True)
class Fitted:
    """Boxes of an image, and what happened to them."""

    boxes: Boxes
    num_clipped: int
    num_outside: int
    num_corners: int
    """Of both, those that fit the image if they are corners, and not place and size."""


def fit_boxes(objects: Objects, lookup: NDArray[np.int16], size: Size) -> Fitted:
    """Return boxes as fractions of the image; `size` is the upright image's, before fitting.

    Boxes are clipped to the image; those outside as a whole and those of classes that are no row
    are left out.
    """
    sides = 1.0 if objects.fractions else np.asarray([size[1], size[0], size[1], size[0]])
    boxes, beyond, inside = clip_boxes(objects.boxes / sides, STICKING_OUT)
    rows = lookup[objects.labels] if len(objects.labels) else np.zeros(0, np.int16)
    kept = inside & (rows >= 0)
    found = Boxes(boxes[kept].astype(np.float32), rows[kept].astype(np.int64), objects.crowd[kept])
    wanted = rows >= 0
    corners = fit_as_corners(objects.boxes, size) & (beyond | ~inside) & wanted & objects.sides
    counted = (beyond & inside & wanted, ~inside & wanted, corners)
    return Fitted(found, *(int(which.sum()) for which in counted))
