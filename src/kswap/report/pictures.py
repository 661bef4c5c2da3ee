"""Masks and boxes on a picture, drawn by supervision: forgotten red, learned green, others neutral.

Colour is never alone: names of forgotten classes begin with a minus, of learned ones with a plus.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from kswap.arrays import Marks
from kswap.errors import printable
from kswap.report.fonts import font_path, shorten
from kswap.settings import Role

RED, GREEN, NEUTRAL = (200, 16, 32), (0, 122, 51), (84, 96, 120)
"""White text on each has a contrast of 5.7 : 1 and more."""
_COLOURS: dict[Role, tuple[int, int, int]] = {"forget": RED, "learn": GREEN, "retain": NEUTRAL}
_SIGNS: dict[Role, str] = {"forget": "− ", "learn": "+ ", "retain": ""}
_LINE = 2
"""Width of outlines in pixels."""
_FILL: dict[Role, float] = {"forget": 0.35, "learn": 0.35, "retain": 0.12}
_DIRECTIONS = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Marks that would turn round what is written behind a name."""
_LEAST_NAMED = 0.004
"""Part of the picture from which on a region has its name written on it."""


@dataclass(frozen=True)
class Naming:
    """Names and roles of the rows of a head."""

    labels: Mapping[int, str]
    roles: Mapping[int, Role]
    """Rows that are not in it are retained."""

    @classmethod
    def of(cls, labels: Mapping[int, str], classes: Mapping[Role, Sequence[str]]) -> Naming:
        """Take the roles from names: `{"learn": [...], "forget": [...], ...}`."""
        roles: dict[str, Role] = {name: role for role, names in classes.items() for name in names}
        return cls(labels, {row: roles[name] for row, name in labels.items() if name in roles})

    def role(self, row: int) -> Role:
        """Return the role of a row."""
        return self.roles.get(row, "retain")

    def name(self, row: int) -> str:
        """Return the name on one line; of no class: nothing."""
        name = self.labels.get(row, f"class {row}") if row >= 0 else "nothing"
        return printable(_DIRECTIONS.sub("", name))

    def signed(self, row: int) -> str:
        """Return the name behind the sign of its role."""
        return _SIGNS[self.role(row)] + self.name(row)

    def colour(self, row: int) -> tuple[int, int, int]:
        """Return the colour of its role, RGB."""
        return _COLOURS[self.role(row)]


def fit(image: Image.Image, side: int) -> Image.Image:
    """Return a picture whose longer side has `side` pixels."""
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def draw(
    image: NDArray[np.uint8], marks: Marks, naming: Naming, *, side: int, text: int = 12
) -> Image.Image:
    """Return the picture, `side` pixels long, with its masks or boxes; classes are not drawn.

    Args:
        image: (height, width, 3).
        marks: truth or answer.
        naming: names and roles.
        side: the longer side of the result.
        text: height of names.
    """
    picture = fit(Image.fromarray(image), side)
    if marks.mask is not None:
        return _draw_mask(picture, marks.mask, naming, text)
    if marks.boxes is not None:
        return _draw_boxes(picture, marks, naming, text)
    return picture


def _draw_mask(
    picture: Image.Image, mask: NDArray[np.int16], naming: Naming, text: int
) -> Image.Image:
    rows = _in_order({int(row) for row in np.unique(mask) if row >= 0}, naming)
    if not rows:
        return picture
    grown = np.asarray(
        Image.fromarray(mask.astype(np.int32)).resize(picture.size, Image.Resampling.NEAREST)
    )
    regions = np.stack([grown == row for row in rows])
    inner = np.stack([ndimage.binary_erosion(region, iterations=_LINE) for region in regions])
    found, edges = _detections(rows, regions), _detections(rows, regions & ~inner)
    colours = np.arange(len(rows))
    for role, opacity in _FILL.items():
        of_role = np.array([naming.role(row) == role for row in rows])
        if of_role.any():
            annotator = _sv().MaskAnnotator(_palette(rows, naming), opacity=opacity)
            picture = annotator.annotate(
                picture, found[of_role], custom_color_lookup=colours[of_role]
            )
    outline = _sv().MaskAnnotator(_palette(rows, naming), opacity=1.0)
    picture = outline.annotate(picture, edges, custom_color_lookup=colours)
    named = regions.mean((1, 2)) >= _LEAST_NAMED
    places = np.array([_largest(region) for region in regions])
    found.xyxy = places
    names = [naming.signed(row) for row in rows]
    kept = [row for row, shown in zip(rows, named, strict=True) if shown]
    labels = [name for name, shown in zip(names, named, strict=True) if shown]
    return _write_names(picture, found[named], kept, labels, naming, text, inside=True)


def _draw_boxes(picture: Image.Image, marks: Marks, naming: Naming, text: int) -> Image.Image:
    assert marks.boxes is not None
    marks = _without_copies(marks)
    assert marks.boxes is not None
    # the surest answer of a role last, on top
    roles = {"retain": 0, "learn": 1, "forget": 2}
    keys = [
        (roles[naming.role(int(c))], s) for c, s in zip(marks.class_ids, marks.shares, strict=True)
    ]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    if not order:
        return picture
    rows = [int(marks.class_ids[place]) for place in order]
    width, height = picture.size
    scale = np.array([width - 1, height - 1, width - 1, height - 1], np.float32)
    boxes = marks.boxes[order].clip(0, 1) * scale
    found = _sv().Detections(xyxy=boxes, class_id=np.array(rows))
    annotator = _sv().BoxAnnotator(_palette(rows, naming), thickness=_LINE)
    picture = annotator.annotate(picture, found, custom_color_lookup=np.arange(len(rows)))
    labels = [
        naming.signed(row)
        + ("" if marks.shares[place] == 1 else f" {100 * marks.shares[place]:.0f}")
        for row, place in zip(rows, order, strict=True)
    ]
    return _write_names(picture, found, rows, labels, naming, text, inside=False)


def _without_copies(marks: Marks) -> Marks:
    """Leave out answers of a class that a surer one of the class overlaps by half."""
    found = _sv().Detections(
        xyxy=marks.boxes, confidence=marks.shares, class_id=marks.class_ids.astype(np.int64)
    )
    kept = found if bool((marks.shares == 1).all()) else found.with_nms(threshold=0.5)
    return Marks(kept.class_id, kept.confidence, boxes=kept.xyxy)


def _write_names(
    picture: Image.Image,
    found: Any,
    rows: Sequence[int],
    labels: Sequence[str],
    naming: Naming,
    text: int,
    *,
    inside: bool,
) -> Image.Image:
    """Write each name on its colour; names that would overlap are moved apart, within the frame."""
    if not rows:
        return picture
    sv = _sv()
    shown = [shorten(label, 0.75 * picture.width, text) for label in labels]
    annotator = sv.RichLabelAnnotator(
        _palette(rows, naming),
        text_color=sv.Color.WHITE,
        font_path=font_path("".join(shown)),
        font_size=text,
        text_padding=max(1, text // 5),
        text_position=sv.Position.CENTER if inside else sv.Position.TOP_LEFT,
        smart_position=True,
    )
    drawn: Image.Image = annotator.annotate(
        picture, found, labels=shown, custom_color_lookup=np.arange(len(rows))
    )
    return drawn


def _in_order(rows: set[int], naming: Naming) -> list[int]:
    """Return retained classes first, so that forgotten and learned ones are drawn over them."""
    return sorted(rows, key=lambda row: (naming.role(row) != "retain", row))


def _largest(region: NDArray[np.bool_]) -> list[float]:
    """Return left, top, right, bottom of the largest connected part."""
    parts, count = ndimage.label(region)
    if not count:
        return [0.0, 0.0, 0.0, 0.0]
    largest = int(np.bincount(parts.ravel())[1:].argmax())
    rows, columns = ndimage.find_objects(parts)[largest]
    return [float(v) for v in (columns.start, rows.start, columns.stop - 1, rows.stop - 1)]


def _detections(rows: Sequence[int], regions: NDArray[np.bool_]) -> Any:
    sv = _sv()
    boxes = sv.mask_to_xyxy(regions).astype(np.float32)
    return sv.Detections(xyxy=boxes, mask=regions, class_id=np.array(rows))


def _palette(rows: Sequence[int], naming: Naming) -> Any:
    sv = _sv()
    return sv.ColorPalette([sv.Color(*naming.colour(row)) for row in rows])


@functools.cache
def _sv() -> Any:
    """Import supervision without its notice that OpenCV is missing: its NumPy fallback serves."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="OpenCV .* is not installed", category=UserWarning
        )
        import supervision

    return supervision
