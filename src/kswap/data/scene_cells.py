"""What is read of shards of scenes: images that are not decoded, with a mask or boxes each.

Rows have the columns that tables have that are not streamed. A tar sample has the picture beside
its mask (`KEY.jpg`, `KEY.png`, or `KEY.mask.png` and the like), or beside its objects in
`KEY.json`, as a row has them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kswap.data.cells import RowCells, Sample, StreamCell, TarCells, only_picture
from kswap.data.hf_tables import ImageLike, column_encoded, find_column, image_of
from kswap.data.images import SUFFIXES, BadImageError, or_skip
from kswap.data.mask_files import MaskReader
from kswap.data.mask_folders import folder_reader
from kswap.data.scene_objects import (
    BOX_KEYS,
    CLASS_KEYS,
    CROWD_KEYS,
    OBJECT_NAMES,
    ObjectReader,
    check_unit,
    object_columns,
    of_lists,
)
from kswap.data.scene_tables import IMAGE_NAMES, MASK_NAMES
from kswap.data.scenes import NO_OBJECTS, Annotation, SceneTable, Size, recoded, scene_table
from kswap.data.text import count, listed, one_line
from kswap.errors import UserError
from kswap.settings import SourceConfig, TaskName

if TYPE_CHECKING:
    from datasets import Dataset, Features

_MASK_PARTS = frozenset({*MASK_NAMES, "seg", "semseg", "gt"})
"""What an extension of a mask begins with, where it has two parts: KEY.mask.png."""


class SceneCell(NamedTuple):
    """One image with its annotations, neither decoded."""

    image: ImageLike
    name: str
    classes: tuple[str, ...]
    """What the annotations count."""
    annotate: Callable[[], Annotation]
    """Raises BadAnnotationError."""
    present: frozenset[int] | None
    """Index into `classes` of those that are there; None: the mask has to be read for that."""


@dataclass(frozen=True)
class _SampleTable(SceneTable):
    """The images of a sample that are kept; its counts are of all that were read."""

    num_of: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of images that hold each class."""
        return {name: self.num_of[name] for name in self.classes}


@dataclass(frozen=True)
class SceneCells:
    """Images with masks or boxes. Fields as in `SceneOpener`."""

    settings: SourceConfig
    task: TaskName
    id2label: Mapping[int, str]
    reduce_zero: bool
    partial: bool
    skip_bad: bool

    def of_rows(
        self, features: Features, *, where: str, folder: Path | None, from_hub: bool
    ) -> RowCells:
        """Return how rows with these features are read."""
        from datasets import Dataset

        empty = Dataset.from_dict({name: [] for name in features}, features=features)
        image = find_column(empty, self.settings.image_column, IMAGE_NAMES, where, "image_column")
        column_encoded(empty, image, where=where, from_hub=from_hub)

        def picture(row: Mapping[str, Any], column: str = image) -> ImageLike:
            return image_of(row[column], folder, from_hub=from_hub)

        if self.task == "detection":
            return self._objects_of_rows(empty, image, picture, where)
        given = self.settings.mask_column
        mask = find_column(empty, given, MASK_NAMES, where, "mask_column", but=image)
        column_encoded(empty, mask, where=where, from_hub=from_hub, key="mask_column")
        reader = self._reader([folder] if folder else [], where)

        def make(row: Mapping[str, Any], name: str) -> SceneCell:
            return _masked(picture(row), picture(row, mask), reader, name, f"{name}, {mask}")

        return RowCells((image, mask), (image, mask), make)

    def _objects_of_rows(
        self,
        empty: Dataset,
        image: str,
        picture: Callable[[Mapping[str, Any]], ImageLike],
        where: str,
    ) -> RowCells:
        columns = object_columns(empty, self.settings, where, image)
        reader = ObjectReader(columns.keys, self.settings, self.id2label, where)
        sides = ("height", "width") if {"height", "width"} <= set(empty.column_names) else ()

        def make(row: Mapping[str, Any], name: str) -> SceneCell:
            size = _size(*(row[side] for side in sides)) if sides else None
            return _boxed(picture(row), columns.cell(row), reader, size, name)

        return RowCells((image, *columns.names, *sides), (image,), make)

    def of_tar(self, path: Path) -> TarCells:
        """Return how the samples of a tar file are read."""
        if self.task == "detection":
            return TarCells(_is_picture, self._boxed_member)
        reader = self._reader([path.parent], one_line(path))

        def make(name: str, members: Mapping[str, bytes]) -> SceneCell:
            pictures = [extension for extension in members if _is_picture(extension)]
            mask = self._mask_of(name, pictures)
            rest = [one for one in pictures if one != mask and self._may_be_image(one)]
            content = members.get(mask, b"") if mask else b""
            image = only_picture(name, rest, members)
            return _masked(image, content, reader, name, f"{name}.{mask or 'png'}")

        return TarCells(_is_picture, make)

    def _mask_of(self, name: str, pictures: Sequence[str]) -> str | None:
        """Return the member that is the mask; None: there is none.

        Raises:
            UserError: it cannot be told.
        """
        given = self.settings.mask_column
        if given is not None:
            return given.lower()
        said = [one for one in pictures if one.partition(".")[0] in _MASK_PARTS and "." in one]
        found = said or [one for one in pictures if one == "png" and len(pictures) > 1]
        if len(found) > 1 or (not found and len(pictures) > 1):
            raise UserError(
                f"{name}: cannot tell which of its pictures is the mask ({listed(pictures)}); name "
                "the member in mask_column"
            )
        return found[0] if found else None

    def _may_be_image(self, extension: str) -> bool:
        given = self.settings.image_column
        return given is None or extension == given.lower()

    def _boxed_member(self, name: str, members: Mapping[str, bytes]) -> SceneCell:
        pictures = [one for one in members if _is_picture(one) and self._may_be_image(one)]
        image = only_picture(name, pictures, members)
        found, size = self._objects_in(f"{name}.json", members.get("json"))
        items = [found] if isinstance(found, Mapping) else found
        keys = {key: None for one in items for key in one}
        if not keys:
            nothing = Annotation(objects=NO_OBJECTS, size=size)
            return SceneCell(image, name, (), lambda: nothing, frozenset())
        reader = ObjectReader(keys, self.settings, self.id2label, name)
        if isinstance(found, list):  # what one of them lacks is said where it is read
            found = [
                {key: one.get(key, key not in CROWD_KEYS and None) for key in keys} for one in found
            ]
        return _boxed(image, of_lists(found, keys), reader, size, name)

    def _objects_in(self, name: str, text: bytes | None) -> tuple[Any, Size | None]:
        """Return what a JSON member says of objects, and the size of the image."""
        if text is None:
            return [], None
        try:
            value = json.loads(text)
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            raise UserError(f"{name}: is no JSON ({one_line(error)}); correct it") from None
        size = None
        if isinstance(value, Mapping):
            size = _size(value.get("height"), value.get("width"))
            given = self.settings.objects_column
            keys = OBJECT_NAMES if given is None else (given,)
            is_flat = given is None and any(_is_list_of_boxes(value.get(key)) for key in BOX_KEYS)
            found = None if is_flat else next((key for key in keys if key in value), None)
            if found is None and not is_flat:
                raise _not_objects(name)
            every = (*BOX_KEYS, *CLASS_KEYS, *CROWD_KEYS)
            value = {k: value[k] for k in every if k in value} if found is None else value[found]
        if not (
            (isinstance(value, Mapping) and all(isinstance(one, list) for one in value.values()))
            or (isinstance(value, list) and all(isinstance(one, Mapping) for one in value))
        ):
            raise _not_objects(name)
        return value, size

    def names(self, cell: StreamCell) -> frozenset[str]:
        """Return the classes of an image; none of one whose mask is skipped."""
        assert isinstance(cell, SceneCell)
        present = cell.present
        if present is None:
            try:
                present = classes_in(cell.annotate())
            except BadImageError as error:
                if not self.skip_bad:
                    raise or_skip(error) from None
                present = frozenset()
        return frozenset(cell.classes[code] for code in present)

    def table(self, sample: Sample, where: str) -> SceneTable:
        """Return the cells of a sample as a table."""
        cells = [cell for cell in sample.cells if isinstance(cell, SceneCell)]
        classes = tuple(dict.fromkeys(name for cell in cells for name in cell.classes))
        codes = {name: code for code, name in enumerate(classes)}
        if self.task == "detection":
            found = [cell.annotate().objects for cell in cells]
            check_unit([one.boxes for one in found if one is not None], self.settings, where)

        def annotate(row: int, size: Size) -> Annotation:
            cell = cells[row]
            return recoded(cell.annotate(), [codes[name] for name in cell.classes])

        without = f"{where}: {count(sample.num_without, 'image')} without objects"
        table = scene_table(
            where,
            classes,
            [{codes[name] for name in names} for names in sample.names],
            read=lambda row: cells[row].image,
            name=lambda row: cells[row].name,
            annotate=annotate,
            notes=[without] if sample.num_without else [],
        )
        own = {one.name: getattr(table, one.name) for one in fields(table)}
        return _SampleTable(**own, num_of=sample.num_of)

    def _reader(self, folders: list[Path], where: str) -> MaskReader:
        return folder_reader(
            self.settings,
            folders,
            where,
            id2label=self.id2label,
            reduce_zero=self.reduce_zero,
            partial=self.partial,
        )


def classes_in(annotation: Annotation) -> frozenset[int]:
    """Return the classes that annotations have, as indices into their classes."""
    if annotation.mask is not None:
        return frozenset(code for code in np.unique(annotation.mask).tolist() if code >= 0)
    assert annotation.objects is not None
    return frozenset(annotation.objects.labels[~annotation.objects.crowd].tolist())


def _masked(
    image: ImageLike, mask: ImageLike, reader: MaskReader, name: str, mask_name: str
) -> SceneCell:
    def annotate() -> Annotation:
        read = reader.read(mask, mask_name)
        return Annotation(mask=read, size=(read.shape[0], read.shape[1]))

    return SceneCell(image, name, reader.classes, annotate, None)


def _boxed(
    image: ImageLike,
    cell: Mapping[str, list[Any]],
    reader: ObjectReader,
    size: Size | None,
    name: str,
) -> SceneCell:
    reader.check(cell, name)
    legend = reader.legend([cell])
    objects, _ = reader.read(cell, legend, name)
    annotation = Annotation(objects=objects, size=size)
    return SceneCell(image, name, legend[0].classes, lambda: annotation, classes_in(annotation))


def _size(height: Any, width: Any) -> Size | None:
    return (int(height), int(width)) if height and width else None


def _is_picture(extension: str) -> bool:
    return f".{extension.rpartition('.')[2]}" in SUFFIXES


def _is_list_of_boxes(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(one, Mapping) for one in value)


def _not_objects(name: str) -> UserError:
    return UserError(
        f"{name}: holds no boxes with classes (a list of mappings such as {{bbox: [x, y, width, "
        "height], category: cat}); name their field in objects_column, or correct it"
    )
