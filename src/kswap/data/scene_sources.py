"""What a user may name as data with masks or boxes, opened.

A table file, a data set of the hub or in memory, `{images: ..., annotations: ...}`, or a folder in
a layout that is found by itself (`layouts.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kswap.data.coco import coco_table, looks_like_coco
from kswap.data.layouts import Layout, find_layout, not_coco, of_pair
from kswap.data.mask_files import voc_reader
from kswap.data.mask_folders import folder_reader, mask_table
from kswap.data.scene_tables import objects_table, pictures_table
from kswap.data.sources import (
    READERS,
    TableMaker,
    configured_source,
    file_source,
    hub_source,
    local_path,
    memory_source,
    no_data,
    single_table,
    table_source,
)
from kswap.data.table import Source, Table, source_of_splits
from kswap.data.text import one_line
from kswap.data.voc import voc_names, voc_table
from kswap.data.yolo import yolo_names, yolo_table
from kswap.errors import UserError
from kswap.settings import Role, ScenePaths, SourceConfig, SplitPaths, TaskName


@dataclass(frozen=True)
class SceneOpener:
    """Opens the data of a role for a task."""

    role: Role
    settings: SourceConfig
    task: TaskName
    id2label: Mapping[int, str]
    """Rows of the model: the names of values that have no others."""
    reduce_zero: bool
    """Whether the model's processor takes 0 as `not labelled`."""
    skip_bad: bool
    """Whether images whose masks cannot be read are left out; they are listed when decoded."""

    @property
    def partial(self) -> bool:
        """Whether only the role's classes are surely annotated."""
        return is_partial(self.role, self.settings)

    def open(self, in_memory: object = None) -> Source:
        """Return the source; `in_memory` (Dataset, DatasetDict) stands in for the config's.

        Raises:
            UserError: there is nothing, or nothing usable, where the user points.
        """
        if in_memory is not None:
            return memory_source(self.role, in_memory, self.settings, self._maker())
        data = self.settings.data
        if not isinstance(data, SplitPaths):
            return self._open(data)
        tables = {}
        for split in ("train", "validation", "test"):
            part = getattr(data, split)
            if part:
                path = part if isinstance(part, str) else part.images
                tables[split] = single_table(self.role, split, path, self._open(part))
        return source_of_splits(f"{self.role}.data", tables)

    def _open(self, data: str | ScenePaths) -> Source:
        if isinstance(data, ScenePaths):
            images, annotations = (self._path(one) for one in (data.images, data.annotations))
            return self._of_layout(images, of_pair(images, annotations, self.task))
        if not data.strip():
            raise no_data(self.role)
        path = local_path(self.role, data)
        if path is None:
            return hub_source(self.role, data, self.settings, self._maker())
        if path.is_file():
            if path.suffix.lower() == ".json" and looks_like_coco(path):
                images_dir = path.parent / "images"
                folder = images_dir if images_dir.is_dir() else path.parent
                return source_of_splits(str(path), {"train": coco_table(path, folder, self.task)})
            return file_source(path, self.settings, self._maker())
        if self.settings.config_name is not None:
            return configured_source(path, self.settings, self._maker())
        layout = find_layout(path, self.task)
        if layout is not None:
            return self._of_layout(path, layout)
        source = table_source(path, self.settings, self._maker(), but=(".json", ".csv"))
        if source is None:
            folders = sorted(one for one in path.iterdir() if one.is_dir())
            why = not_coco(path, *folders)
            raise UserError(
                f"{one_line(path)}: is no layout of {self.task} data that kswap knows "
                f"({_known(self.task)}){why}; {'correct it, or ' if why else ''}name the parts: "
                "data: {images: ..., annotations: ...}"
            )
        return source

    def _path(self, data: str) -> Path:
        path = local_path(self.role, data)
        if path is None:
            raise UserError(
                f"{self.role}.data: {one_line(data)}: there is no such folder or file; name one"
            )
        return path

    def _of_layout(self, root: Path, layout: Layout) -> Source:
        tables = {split: self._table(root, layout, split) for split in layout.parts}
        source = source_of_splits(str(root), tables)
        return Source(source.where, source.splits, (*source.notes, *layout.notes))

    def _table(self, root: Path, layout: Layout, split: str) -> Table:
        images, annotations, only = layout.parts[split]
        if layout.kind == "coco":
            return coco_table(annotations, images, self.task)
        if layout.kind == "voc":
            return voc_table(annotations, images, only=only)
        if layout.kind == "yolo":
            legend = yolo_names(self.settings, layout.names_file, root)
            return yolo_table(images, annotations, legend)
        if layout.kind == "voc-masks" and not self.settings.palette:
            names = voc_names(self.settings, root)
            reader = voc_reader(names, str(root))
        else:
            reader = folder_reader(
                self.settings,
                [
                    *dict.fromkeys(
                        (root, annotations, annotations.parent, annotations.parent.parent)
                    )
                ],
                str(root),
                id2label=self.id2label,
                reduce_zero=self.reduce_zero,
                partial=self.partial,
            )
        return mask_table(images, annotations, reader, only=only, skip_bad=self.skip_bad)

    def _maker(self) -> TableMaker:
        options: dict[str, Any] = {"id2label": self.id2label}
        if self.task == "detection":
            return partial(objects_table, **options)
        options |= {
            "reduce_zero": self.reduce_zero,
            "partial": self.partial,
            "skip_bad": self.skip_bad,
        }
        return partial(pictures_table, **options)


def is_partial(role: Role, settings: SourceConfig) -> bool:
    """Whether only the role's own classes are surely annotated; so for learn by default."""
    return (settings.labels or ("partial" if role == "learn" else "complete")) == "partial"


def _known(task: TaskName) -> str:
    if task == "detection":
        return "COCO JSON, Pascal VOC, YOLO, " + ", ".join(sorted(set(READERS) - {".json", ".csv"}))
    return "images and masks, Pascal VOC, COCO JSON, parquet"
