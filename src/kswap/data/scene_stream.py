"""Training scenes that are read as they are needed: masks and boxes as rows of the head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from kswap.data.cells import StreamCell
from kswap.data.decode import class_array
from kswap.data.labels import LabelIndex
from kswap.data.pixels import Fitter
from kswap.data.roles import Roles
from kswap.data.scene_cells import SceneCell, classes_in
from kswap.data.scene_decode import Arrays, Scene, fit_scene, padded, padded_mask
from kswap.data.scene_rows import Rows
from kswap.data.scenes import Annotation
from kswap.data.sets import IGNORE, OPEN, ImageSet
from kswap.data.stream_makers import PASSED
from kswap.settings import Role

_MAX_NAMES = 1 << 16
"""Class names whose rows are kept."""


class _Made(NamedTuple):
    scene: Scene
    arrays: Arrays


@dataclass(frozen=True)
class SceneMaker:
    """Makes scenes of one role."""

    find: Callable[[str], int]
    """Class name of the source -> row of the extended head, or OPEN."""
    own: frozenset[int]
    """Rows of the role."""
    rows: Rows
    """Of the sample."""
    fitter: Fitter
    complete: bool
    num_of: Mapping[int, int]
    """Images of the sample that hold each row of the role: the rarest one stands for an image."""

    def row_of(self, cell: StreamCell) -> int:
        """Return 0 where the role has an object, or may have one in a mask that is not read."""
        assert isinstance(cell, SceneCell)
        return 0 if cell.present is None or self._holds_own(cell, cell.present) else PASSED

    def unknown(self, cell: StreamCell) -> None:
        """Return nothing: a scene is passed over where it has nothing of the role."""

    def said(self, cell: StreamCell, row: int) -> Annotation | None:
        """Return its annotations, where one is of the role."""
        assert isinstance(cell, SceneCell)
        annotation = cell.annotate()
        return annotation if self._holds_own(cell, classes_in(annotation)) else None

    def make(self, cell: StreamCell, said: Annotation, image: Image.Image) -> _Made | None:
        """Return the scene at the model's size."""
        assert isinstance(cell, SceneCell)
        rows = [self.find(name) for name in cell.classes]
        lookup = np.asarray([*rows, IGNORE, self.rows.background], np.int16)  # as `Rows.lookup`
        digest = b""  # the stream has looked at the content, and nobody else asks for it
        scene, arrays = fit_scene(
            image, digest, said, lambda: cell.image, self.fitter, lookup, self.own, cell.name
        )
        return _Made(scene, arrays) if scene.own else None

    def together(self, made: Sequence[_Made]) -> ImageSet:
        """Return scenes as one set, padded to one size."""
        scenes = [one.scene for one in made]
        size = self.fitter.array_size(scene.size for scene in scenes)
        masks = [one.arrays[1] for one in made]
        is_masked = scenes[0].boxes is None
        boxes = tuple(scene.boxes for scene in scenes if scene.boxes is not None)
        whole = all(scene.size == size for scene in scenes)
        return ImageSet(
            np.stack([padded(one.arrays[0], size) for one in made]),
            class_array([min(scene.own, key=self._rarity) for scene in scenes]),
            masks=np.stack([padded_mask(m, size) for m in masks if m is not None])
            if is_masked
            else None,
            boxes=None if is_masked else boxes,
            sizes=None if whole else np.asarray([scene.size for scene in scenes], np.int32),
            complete=self.complete,
            original_sizes=np.asarray([scene.original for scene in scenes], np.int32),
            covered=self.rows.covered,
        )

    def _holds_own(self, cell: SceneCell, codes: Iterable[int]) -> bool:
        return any(self.find(cell.classes[code]) in self.own for code in codes)

    def _rarity(self, row: int) -> tuple[int, int]:
        return self.num_of.get(row, 0), row


def scene_row_of(
    role: Role, roles: Roles, rows: Rows, rename: Mapping[str, str], *, partial: bool
) -> Callable[[str], int]:
    """Return what says the row of a class by its name in the source, or OPEN.

    Also of classes that are not in the sample, unless they would have to be learned.
    """
    labels, own = LabelIndex(roles.id2label), set(roles.class_ids[role])

    @lru_cache(_MAX_NAMES)
    def find(name: str) -> int:
        if name in rows.of_class:
            return rows.of_class[name]
        found = labels.find(rename.get(name, name))
        if len(found) != 1:
            return OPEN
        is_own = found[0] in own
        if (partial and not is_own) or (role == "learn" and is_own):
            return OPEN
        return found[0]

    return find
