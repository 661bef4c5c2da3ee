"""Decode images with masks or boxes once: pixels, hash, size, and annotations as rows of the head.

Images are kept as large as the processor makes them, one by one; they are padded to one size when
they are gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kswap.data import decode
from kswap.data.decode import (
    Item,
    Progress,
    content_hash,
    in_order,
    no_image,
    read_item,
    refuse,
    store_for,
)
from kswap.data.images import BadImageError, exif_orientation, known_formats
from kswap.data.pixels import Fitter, size_of
from kswap.data.scene_rows import Rows, fit_boxes, fit_mask, upright
from kswap.data.scenes import Annotation, SceneTable, Size
from kswap.data.sets import IGNORE, Boxes
from kswap.data.splits import Cut
from kswap.data.store import FileStore, MemoryStore
from kswap.data.table import ImageLike
from kswap.settings import DataConfig, Role


@dataclass(frozen=True)
class Scene:
    """An image, decoded; its pixels are in the store where they may be used."""

    digest: bytes
    own: tuple[int, ...]
    """Rows of its role that it holds, after fitting."""
    size: Size
    """Of the fitted image."""
    original: Size
    boxes: Boxes | None
    num_clipped: int = 0
    num_outside: int = 0
    num_corners: int = 0


@dataclass
class Scenes:
    """All items, decoded: None where one is bad."""

    store: MemoryStore | FileStore
    """Images under their index i, masks under ~i."""
    scenes: list[Scene | None]
    example: NDArray[Any]
    """A fitted image, for its type and axes."""
    bad: list[BadImageError] = field(default_factory=list)


Arrays = tuple[NDArray[Any], NDArray[np.int16] | None]
"""A fitted image and its mask."""


class SceneReader:
    """Reads items: what `decode_scenes` does for all, and for the few that are read again."""

    def __init__(self, items: Sequence[Item], fitter: Fitter, rows: Mapping[Role, Rows]) -> None:
        self.items, self.fitter, self.rows = items, fitter, rows
        self._lookups: dict[tuple[Role, int], NDArray[np.int16]] = {}
        for item in items:
            key = (item.role, id(item.table))
            if key not in self._lookups:
                assert isinstance(item.table, SceneTable)
                self._lookups[key] = rows[item.role].lookup(item.table)

    def __call__(self, index: int) -> tuple[Scene, Arrays]:
        """Return an item, decoded and fitted.

        Raises:
            BadImageError: the image or its annotations cannot be used.
        """
        item = self.items[index]
        table = item.table
        assert isinstance(table, SceneTable)
        image = read_item(item)
        return fit_scene(
            image,
            content_hash(image),
            table.annotate(item.row, (image.height, image.width)),
            lambda: table.read(item.row),
            self.fitter,
            self._lookups[item.role, id(table)],
            self.rows[item.role].own,
            table.name(item.row),
        )


def fit_scene(
    image: Image.Image,
    digest: bytes,
    annotation: Annotation,
    encoded: Callable[[], ImageLike],
    fitter: Fitter,
    lookup: NDArray[np.int16],
    own: frozenset[int],
    name: str,
) -> tuple[Scene, Arrays]:
    """Return a decoded image with its annotations, at the model's size.

    Args:
        image: upright.
        digest: of its content.
        annotation: of it.
        encoded: the image as it was read, for its orientation.
        fitter: of the model.
        lookup: from the annotation's classes to rows of the head (`Rows.lookup`).
        own: rows of the role.
        name: of the image, for messages.

    Raises:
        BadImageError: the image or its annotations cannot be used.
    """
    original = (image.height, image.width)
    orientation = 1 if annotation.upright else _orientation(encoded())
    annotation = upright(annotation, original, orientation, name)
    fitted = decode.fit(image, fitter, lambda: name)
    size = size_of(fitted)
    if annotation.mask is not None:
        mask = fit_mask(annotation.mask, lookup, size)
        found = own & set(np.unique(mask).tolist())
        return Scene(digest, tuple(sorted(found)), size, original, None), (fitted, mask)
    assert annotation.objects is not None
    kept = fit_boxes(annotation.objects, lookup, original)
    found = own & set(kept.boxes.class_ids[~kept.boxes.crowd].tolist())
    counted = (kept.num_clipped, kept.num_outside, kept.num_corners)
    scene = Scene(digest, tuple(sorted(found)), size, original, kept.boxes, *counted)
    return scene, (fitted, None)


def _orientation(source: ImageLike) -> int:
    return exif_orientation(source if not isinstance(source, str) else Path(source))


def padded(image: NDArray[Any], size: Size) -> NDArray[Any]:
    """Return a fitted image in the upper left of an array of this size, zero elsewhere."""
    height, width = size_of(image)
    if (height, width) == size:
        return image
    last = image.dtype == np.uint8  # the axis of the channels
    array = np.zeros((*size, 3) if last else (3, *size), image.dtype)
    place = (slice(height), slice(width))
    array[place if last else (slice(None), *place)] = image
    return array


def padded_mask(mask: NDArray[np.int16], size: Size) -> NDArray[np.int16]:
    """Return a mask in the upper left of an array of this size, IGNORE elsewhere."""
    array = np.full(size, IGNORE, np.int16)
    array[: mask.shape[0], : mask.shape[1]] = mask
    return array


def decode_scenes(
    read: SceneReader,
    cuts: Mapping[Role, Cut],
    *,
    seed: int,
    data: DataConfig,
    cache_dir: Path | None,
    on_progress: Progress | None = None,
) -> Scenes:
    """Decode all items; the pixels of those that `cuts` will surely leave out are not kept.

    Raises:
        UserError: an image or its annotations are bad (unless these are skipped).
    """
    items = read.items
    shares = [cuts[item.role].share if item.split == "train" else 1.0 for item in items]
    found: Scenes | None = None
    scenes: list[Scene | None] = []
    bad: list[BadImageError] = []
    known_formats()  # Pillow loads its plugins here, once

    def prepare(index: int) -> tuple[Scene, Arrays] | BadImageError:
        try:
            return read(index)
        except BadImageError as error:
            return error

    try:
        with closing(in_order(prepare, len(items), on_progress)) as results:
            for index, result in enumerate(results):
                if isinstance(result, BadImageError):
                    refuse(result, data)
                    bad.append(result)
                    scenes.append(None)
                    continue
                scene, (fitted, mask) = result
                scenes.append(scene)
                if found is None:
                    largest = max(scene.size) ** 2 * (fitted.nbytes / np.prod(scene.size) + 2)
                    store = store_for(sum(shares) * largest, data, cache_dir)
                    found = Scenes(store, scenes, fitted, bad)
                if scene.own and decode.may_be_used(scene.digest, shares[index], seed):
                    found.store.put(index, fitted)
                    if mask is not None:
                        found.store.put(~index, mask)
    except BaseException as error:
        if found is not None:
            found.store.__exit__(type(error), error, None)
        raise
    if found is None:
        raise no_image(bad)
    return found
