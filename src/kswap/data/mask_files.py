"""Masks as picture files: class numbers as grey or palette values, or colours.

A palette picture ("P") holds numbers, whatever its colours; so Pascal VOC's files are index masks.
JPEG is refused: its values are not those that were saved.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from kswap.data.images import MAX_PIXELS, BadImageError, known_formats, or_skip, skipped
from kswap.data.scenes import Annotation, BadAnnotationError, Legend, codes_in, make_legend
from kswap.data.sets import IGNORE, OPEN
from kswap.data.text import count, listed, one_line
from kswap.errors import UserError

Colours = Mapping[str, tuple[int, int, int]]
_LOSSY = ("JPEG", "MPO")
VOC_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
"""Pascal VOC's classes, values 1 to 20 of its masks."""


def voc_colour(value: int) -> tuple[int, int, int]:
    """Return the colour that Pascal VOC gives to a value of its masks: its bits, spread."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= ((value >> (3 * bit + channel)) & 1) << (7 - bit)
    return channels[0], channels[1], channels[2]


@dataclass(frozen=True)
class MaskReader:
    """How the pixels of mask files become classes; `classes` are those of the table."""

    legend: Legend
    """Of values (after `reduce_zero`); for colours, of the place in `colours`."""
    ignore_index: int = 255
    reduce_zero: bool = False
    zero: int = IGNORE
    """What 0 becomes with `reduce_zero`."""
    colours: tuple[tuple[int, int, int], ...] = ()
    """Colour of each value of the legend; empty: masks hold values."""
    colours_if_rgb: bool = False
    """Palette pictures hold values all the same (Pascal VOC)."""
    fix: str = "add its name to class_names, or correct the mask"

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""
        return self.legend.classes

    def read(self, source: Any, name: str) -> NDArray[np.int32]:
        """Return (height, width) index into `classes`, OPEN or IGNORE.

        Raises:
            BadAnnotationError: it is not a mask, or a value or colour has no class.
        """
        values = self._values(_opened(source, name), name)
        small = not self.colours or not values.size or int(values.max()) < _COLOUR
        # values are few: counting them is much faster than sorting the pixels
        found = np.flatnonzero(np.bincount(values.ravel())) if small else np.unique(values)
        table = np.full(int(found[-1]) + 1 if small and len(found) else len(found), OPEN, np.int32)
        for place, value in enumerate(found.tolist()):
            code = self._code(value)
            if code is None:
                raise BadAnnotationError(name, self._unknown(value), self.fix)
            table[value if small else place] = code
        return table[values if small else np.searchsorted(found, values)]

    def annotation(self, source: Any, name: str) -> Annotation:
        """Return what a mask says of its image.

        Raises:
            BadAnnotationError: as `read`.
        """
        mask = self.read(source, name)
        return Annotation(mask=mask, size=(mask.shape[0], mask.shape[1]))

    def present(self, source: Any, name: str) -> set[int]:
        """Return the classes in a mask, as indices into `classes`."""
        return codes_in(self.read(source, name))

    def _values(self, image: Image.Image, name: str) -> NDArray[Any]:
        colour = image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;")
        if self.colours and (colour or (image.mode == "P" and not self.colours_if_rgb)):
            rgb = np.asarray(image.convert("RGB")).astype(np.int64)
            return (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2] | _COLOUR
        if image.mode == "F":
            raise BadAnnotationError(name, "has floating-point values", "save whole numbers")
        if colour:
            array = np.asarray(image)
            grey = array[..., :3] if image.mode in ("RGB", "RGBA") else array[..., :1]
            if not (grey == grey[..., :1]).all():
                raise BadAnnotationError(
                    name,
                    "is a mask in colour",
                    "give the colours of the classes in palette, such as {road: [128, 64, 128]}",
                )
            return grey[..., 0].astype(np.int32)
        values = np.asarray(image)
        if values.dtype == bool:
            return values.astype(np.int32)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise BadAnnotationError(name, "has values outside 0..65535", "correct the mask")
        return values.astype(np.int32)

    def _code(self, value: int) -> int | None:
        if value & _COLOUR:
            rgb = ((value >> 16) & 255, (value >> 8) & 255, value & 255)
            return self.legend.codes[self.colours.index(rgb)] if rgb in self.colours else None
        if value == self.ignore_index:
            return IGNORE
        if self.reduce_zero:
            if value == 0:
                return self.zero
            value -= 1
        code = self.legend.codes.get(value)
        return OPEN if code is None and value == 0 and not self.reduce_zero else code

    def _unknown(self, value: int) -> str:
        if value & _COLOUR:
            rgb = [(value >> 16) & 255, (value >> 8) & 255, value & 255]
            return f"has the colour {rgb}, which is not in the palette"
        values = sorted(v + self.reduce_zero for v in self.legend.codes)
        known = f"{values[0]}..{values[-1]}" if len(values) > 10 else listed(values)
        reduced = " (0 is `not labelled`: reduce_zero_label)" if self.reduce_zero else ""
        return (
            f"has the value {value}, which has no class; classes have {known or 'no values'}"
            f"{reduced}, {self.ignore_index} is ignored"
        )


_COLOUR = 1 << 24
"""Marks a packed colour, so that black is not the value 0."""


def colour_reader(palette: Colours, where: str, model_labels: Sequence[str] = ()) -> MaskReader:
    """Return a reader of masks in colour.

    Raises:
        UserError: two classes have one colour or one name.
    """
    colours = tuple((int(r), int(g), int(b)) for r, g, b in palette.values())
    twice = [name for name, colour in palette.items() if colours.count(tuple(colour)) > 1]
    if twice:
        raise UserError(f"{where}: palette: {listed(twice)} have one colour; give each its own")
    legend = make_legend(dict(enumerate(palette)), where, model_labels)
    return MaskReader(legend, colours=colours, fix="add it to palette, or correct the mask")


def voc_reader(names: Sequence[str] = VOC_NAMES, where: str = "") -> MaskReader:
    """Return a reader of Pascal VOC's masks: values as palette pictures, or colours."""
    every = {0: "background", **dict(enumerate(names, 1)), len(names) + 1: "void"}
    colours = tuple(voc_colour(255 if value == len(names) + 1 else value) for value in every)
    legend = make_legend(every, where)
    return MaskReader(legend, colours=colours, colours_if_rgb=True)


def scan(
    number: int, read: Callable[[int], set[int]], where: str, *, skip_bad: bool
) -> tuple[list[set[int]], list[str]]:
    """Return the classes of every mask, none of those that are skipped, and what to tell of them.

    Raises:
        UserError: a mask is bad and bad ones are not skipped, or all are.
    """

    def one(row: int) -> set[int] | BadImageError:
        try:
            return read(row)
        except BadImageError as error:
            return error

    known_formats()  # Pillow loads its plugins in one thread
    present: list[set[int]] = []
    bad, empty = [], 0
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(one, range(number)):
            if isinstance(found, BadImageError):
                if not skip_bad:
                    pool.shutdown(cancel_futures=True)
                    raise or_skip(found)
                bad.append(found)
                present.append(set())
            else:
                empty += not found
                present.append(found)
    if bad and len(bad) == number:
        raise UserError(f"{bad[0]}; it is one of {number}, and there is no other mask")
    notes = []
    if bad:
        notes.append(f"{where}: {skipped(bad, 'bad mask')}")
    if empty:
        notes.append(f"{where}: {count(empty, 'image')} without objects")
    return present, notes


def _opened(source: Any, name: str) -> Image.Image:
    try:
        if isinstance(source, Path):
            source = source.read_bytes()
        if isinstance(source, bytes | bytearray | memoryview):
            if not len(source):
                raise ValueError("it is empty")
            image = Image.open(io.BytesIO(source), formats=known_formats())
        else:
            image = source
        width, height = image.size
        if width * height > MAX_PIXELS or not width * height:
            raise ValueError(f"{width}x{height} pixels")
        if getattr(image, "n_frames", 1) > 1:
            raise ValueError("it is an animation")
        if image.format in _LOSSY:
            raise ValueError("JPEG changes the values of a mask, save it as PNG")
        image.load()
    except FileNotFoundError:
        raise BadAnnotationError(name, "there is no such mask", "add or remove it") from None
    except UnidentifiedImageError:
        reason = "is not a mask that can be read (no image format that is known)"
        raise BadAnnotationError(name, reason, "replace or remove it") from None
    except Exception as error:  # decoders of damaged files raise nearly anything
        reason = f"is not a mask that can be read ({one_line(error) or type(error).__name__})"
        raise BadAnnotationError(name, reason, "replace or remove it") from None
    return image
