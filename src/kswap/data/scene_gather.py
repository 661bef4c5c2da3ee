"""Decoded scenes, put into one array for each role and split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kswap.data.decode import class_array, store_for
from kswap.data.scene_decode import Arrays, Scene, SceneReader, Scenes, padded, padded_mask
from kswap.data.scene_rows import Rows
from kswap.data.sets import ImageSet
from kswap.data.store import FileStore
from kswap.data.table import Source
from kswap.data.text import one_line
from kswap.errors import UserError
from kswap.settings import SPLITS, DataConfig, Role, Split, TaskName


class SceneGatherer:
    """Puts decoded images into one array for each role and split."""

    def __init__(
        self,
        reader: SceneReader,
        decoded: Scenes,
        splits: Mapping[int, Split | None],
        class_ids: Mapping[int, int],
        data: DataConfig,
        cache_dir: Path | None,
        task: TaskName,
    ) -> None:
        """Find the size that all fit into.

        Args:
            reader: of the items; reads those again that were not kept.
            decoded: the items, decoded.
            splits: item -> its split; None: it is left out.
            class_ids: item -> the class that it stands for.
            data: the memory limit.
            cache_dir: where arrays lie that exceed it.
            task: segmentation has masks, detection boxes.
        """
        self.task = task
        self.reader, self.decoded, self.class_ids = reader, decoded, class_ids
        self.members: dict[tuple[Role, Split], list[int]] = {}
        for i, split in splits.items():
            if split is not None:
                self.members.setdefault((reader.items[i].role, split), []).append(i)
        used = [i for members in self.members.values() for i in members]
        self.size = reader.fitter.array_size(self._scene(i).size for i in used)
        example = decoded.example
        last = example.dtype == np.uint8  # the axis of the channels
        shape = (*self.size, 3) if last else (3, *self.size)
        self.like = np.empty(shape, example.dtype)
        self.mask_like = np.empty(self.size, np.int16)
        num_bytes = len(used) * (self.like.nbytes + self.mask_like.nbytes)
        self.store = decoded.store
        if not isinstance(self.store, FileStore):  # padded, they may be more than was thought
            self.store = store_for(num_bytes, data, cache_dir)

    def sets(
        self, sources: Mapping[Role, Source], rows: Mapping[Role, Rows], *, complete: set[Role]
    ) -> dict[Role, dict[Split, ImageSet]]:
        """Return the images of every role; `complete`: roles whose labels leave nothing out."""
        found: dict[Role, dict[Split, ImageSet]] = {}
        with self.store:
            for role in sources:
                found[role] = {
                    split: self._set(role, split, rows[role], complete=role in complete)
                    for split in SPLITS
                }
        return found

    def _scene(self, i: int) -> Scene:
        scene = self.decoded.scenes[i]
        assert scene is not None
        return scene

    def _set(self, role: Role, split: Split, rows: Rows, *, complete: bool) -> ImageSet:
        chosen = self.members.get((role, split), [])
        chosen.sort(key=lambda i: (self.class_ids[i], self._scene(i).digest))
        scenes = [self._scene(i) for i in chosen]
        images = self.store.gather(f"{role}-{split}", chosen, self._image, self.like)
        boxes = tuple(scene.boxes for scene in scenes if scene.boxes is not None)
        masks = None
        if self.task == "segmentation":
            masks = self.store.gather(f"{role}-{split}-masks", chosen, self._mask, self.mask_like)
        whole = all(scene.size == self.size for scene in scenes)
        return ImageSet(
            images=images,
            class_ids=class_array([self.class_ids[i] for i in chosen]),
            masks=masks,
            boxes=None if masks is not None else boxes,
            sizes=None if whole else np.asarray([scene.size for scene in scenes], np.int32),
            original_sizes=np.asarray([s.original for s in scenes], np.int32).reshape(-1, 2),
            complete=complete,
            covered=rows.covered,
        )

    def _image(self, i: int) -> NDArray[Any]:
        image = self.decoded.store.take(i)
        if image is None:
            image = self._read_again(i)[0]
        return padded(image, self.size)

    def _mask(self, i: int) -> NDArray[np.int16]:
        mask = self.decoded.store.take(~i)
        if mask is None:
            mask = self._read_again(i)[1]
        assert mask is not None
        return padded_mask(mask, self.size)

    def _read_again(self, i: int) -> Arrays:
        """Read an image that was not kept; rare: see decode.may_be_used."""
        scene, arrays = self.reader(i)
        if scene.digest != self._scene(i).digest:
            item = self.reader.items[i]
            name = one_line(item.table.name(item.row))
            raise UserError(f"{name}: has changed while the data was read; run again")
        return arrays
