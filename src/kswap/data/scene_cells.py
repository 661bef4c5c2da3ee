"""What is read of shards of scenes: images that are not decoded, with a mask or boxes each.

Rows have the columns that tables have that are not streamed. A tar sample has the picture beside
its mask (`KEY.jpg`, `KEY.png`, or `KEY.mask.png` and the like), or beside its objects in
`KEY.json`, as a row has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kswap.data.cells import RowCells, Sample, StreamCell, TarCells, only_picture
from kswap.data.hf_tables import ImageLike, column_encoded, find_column, image_of
from kswap.data.images import SUFFIXES, BadImageError, or_skip
from kswap.data.mask_files import MaskReader
from kswap.data.mask_folders import folder_reader
from kswap.data.scene_objects import (
    KNOWN_KEYS,
    ObjectReader,
    check_unit,
    object_columns,
    objects_in_json,
    objects_of,
    size_said,
)
from kswap.data.scene_tables import IMAGE_NAMES, MASK_NAMES
from kswap.data.scenes import (
    NO_OBJECTS,
    Annotation,
    BadAnnotationError,
    SceneTable,
    Size,
    codes_in,
    recoded,
    scene_table,
)
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

        if {"images", "annotations"} <= set(features):
            raise UserError(
                f"{where}: is COCO JSON, which is not streamed; take streaming out, or pack images "
                "and objects into shards"
            )
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
        boxed = _BoxedCells(self.settings, self.id2label, columns.keys)
        sides = ("height", "width") if {"height", "width"} <= set(empty.column_names) else ()

        def make(row: Mapping[str, Any], name: str) -> SceneCell:
            size = size_said(row["height"], row["width"], name) if sides else None
            return boxed.make(picture(row), columns.value(row), size, name)

        return RowCells((image, *columns.names, *sides), (image,), make)

    def of_tar(self, path: Path) -> TarCells:
        """Return how the samples of a tar file are read."""
        if self.task == "detection":
            return self._objects_of_tar()
        reader = self._reader([path.parent], one_line(path))

        def make(name: str, members: Mapping[str, bytes]) -> SceneCell:
            pictures = [extension for extension in members if self._is_picture(extension)]
            mask = self._mask_of(name, pictures)
            rest = [one for one in pictures if one != mask and self._may_be_image(one)]
            image = only_picture(name, rest, members)
            content = members.get(mask) if mask else None
            return _masked(image, content, reader, name, f"{name}.{mask}")

        return TarCells(self._is_picture, make)

    def _objects_of_tar(self) -> TarCells:
        boxed = _BoxedCells(self.settings, self.id2label)

        def make(name: str, members: Mapping[str, bytes]) -> SceneCell:
            pictures = [one for one in members if self._is_picture(one) and self._may_be_image(one)]
            image = only_picture(name, pictures, members)
            found, size = None, None
            if "json" in members:
                found, size = objects_in_json(members["json"], self.settings, f"{name}.json")
            return boxed.make(image, found, size, name)

        return TarCells(self._is_picture, make)

    def _mask_of(self, name: str, pictures: Sequence[str]) -> str | None:
        """Return the member that is the mask; None: there is none.

        Raises:
            UserError: it cannot be told.
        """
        given = self.settings.mask_column
        if given is not None:
            return given.lower()
        is_image_named = self.settings.image_column is not None
        others = [one for one in pictures if not (is_image_named and self._may_be_image(one))]
        said = [one for one in others if one.partition(".")[0] in _MASK_PARTS and "." in one]
        found = said or [one for one in others if one == "png" and len(pictures) > 1]
        if is_image_named and not found and len(others) == 1:
            found = others
        if len(found) > 1 or (not found and len(others) > 1):
            raise UserError(
                f"{name}: cannot tell which of its pictures is the mask ({listed(pictures)}); name "
                "the member in mask_column"
            )
        return found[0] if found else None

    def _is_picture(self, extension: str) -> bool:
        given = (self.settings.image_column, self.settings.mask_column)
        if extension in {one.lower() for one in given if one is not None}:
            return True
        return f".{extension.rpartition('.')[2]}" in SUFFIXES

    def _may_be_image(self, extension: str) -> bool:
        given = self.settings.image_column
        return given is None or extension == given.lower()

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
        legends = dict.fromkeys(cell.classes for cell in cells if cell.classes)
        classes = tuple(dict.fromkeys(name for legend in legends for name in legend))
        if len(legends) > 1:  # texts: each image has its own, and a source read whole sorts them
            classes = tuple(sorted(classes))
        codes = {name: code for code, name in enumerate(classes)}
        if self.task == "detection":
            found = [cell.annotate().objects for cell in cells]
            check_unit([one.boxes for one in found if one is not None], self.settings, where)

        def annotate(row: int, size: Size) -> Annotation:
            cell = cells[row]
            return recoded(cell.annotate(), [codes[name] for name in cell.classes])

        without = f"{where}: {count(sample.num_without, 'image')} without objects"
        return scene_table(
            where,
            classes,
            [{codes[name] for name in names} for names in sample.names],
            read=lambda row: cells[row].image,
            name=lambda row: cells[row].name,
            annotate=annotate,
            notes=[without] if sample.num_without else [],
            num_of=sample.num_of,
        )

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
        return frozenset(codes_in(annotation.mask))
    assert annotation.objects is not None
    return frozenset(annotation.objects.labels[~annotation.objects.crowd].tolist())


def _masked(
    image: ImageLike, mask: ImageLike | None, reader: MaskReader, name: str, mask_name: str
) -> SceneCell:
    def annotate() -> Annotation:
        if mask is None:
            fix = "add KEY.png or KEY.mask.png, or name the member in mask_column"
            raise BadAnnotationError(name, "has no mask", fix)
        return reader.annotation(mask, mask_name)

    return SceneCell(image, name, reader.classes, annotate, None)


@dataclass(frozen=True)
class _BoxedCells:
    """Makes cells of images with what rows or JSON say of their objects."""

    settings: SourceConfig
    id2label: Mapping[int, str]
    features: Mapping[str, Any] = field(default_factory=dict)
    """Of what is said of objects, where a table has them."""
    _readers: dict[tuple[str, ...], ObjectReader] = field(default_factory=dict)
    """By the keys of objects: one is made for many images, as names of classes may be many."""

    def make(self, image: ImageLike, found: Any, size: Size | None, name: str) -> SceneCell:
        cells = objects_of(found, name)
        if not cells:
            nothing = Annotation(objects=NO_OBJECTS, size=size)
            return SceneCell(image, name, (), lambda: nothing, frozenset())
        keys = tuple(key for key in KNOWN_KEYS if key in cells)
        reader = self._readers.get(keys)
        if reader is None:
            features = {key: self.features.get(key) for key in cells}
            reader = ObjectReader(features, self.settings, self.id2label, name)
            self._readers[keys] = reader
        reader.check(cells, name)
        legend = reader.legend([cells], name)
        objects, _ = reader.read(cells, legend, name)
        annotation = Annotation(objects=objects, size=size)
        present = classes_in(annotation)
        return SceneCell(image, name, legend[0].classes, lambda: annotation, present)
