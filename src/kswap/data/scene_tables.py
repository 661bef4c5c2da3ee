"""Hugging Face datasets with masks or boxes: which columns hold them, and what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kswap.data.boxes import are_fractions, clean_boxes
from kswap.data.hf_tables import ImageLike, column_encoded, find_column, image_of
from kswap.data.mask_files import scan
from kswap.data.mask_folders import folder_reader
from kswap.data.scenes import (
    Annotation,
    Legend,
    Objects,
    SceneTable,
    Size,
    check_crowd,
    make_legend,
    scene_table,
)
from kswap.data.text import count, listed, one_line
from kswap.errors import UserError
from kswap.settings import SourceConfig

if TYPE_CHECKING:
    from datasets import Dataset

IMAGE_NAMES = ("image", "img", "pixel_values", "picture", "photo", "file_name", "image_path")
MASK_NAMES = (
    "mask", "annotation", "label", "labels", "segmentation", "semantic_mask", "annotations",
    "segmentation_mask", "masks", "semantic_segmentation", "label_image",
)  # fmt: skip
OBJECT_NAMES = ("objects", "object", "annotations", "boxes", "labels")
BOX_KEYS = ("bbox", "bboxes", "box", "boxes")
CLASS_KEYS = (
    "category", "categories", "label", "labels", "category_id", "class", "class_id", "classes",
    "name", "category_name",
)  # fmt: skip
CROWD_KEYS = ("iscrowd", "is_crowd", "crowd", "difficult")


def pictures_table(
    dataset: Dataset,
    settings: SourceConfig,
    *,
    where: str,
    folder: Path | None,
    from_hub: bool = False,
    id2label: Mapping[int, str],
    reduce_zero: bool,
    partial: bool,
    skip_bad: bool,
) -> SceneTable:
    """Return a dataset of images and masks.

    Raises:
        UserError: columns cannot be told, or a mask is not as it has to be.
    """
    dataset, notes = _plain(dataset, where)
    image = find_column(dataset, settings.image_column, IMAGE_NAMES, where, "image_column")
    mask = find_column(dataset, settings.mask_column, MASK_NAMES, where, "mask_column", but=image)
    images = _column(dataset, image, "image_column", where, folder, from_hub)
    masks = _column(dataset, mask, "mask_column", where, folder, from_hub)
    reader = folder_reader(
        settings, [folder] if folder else [], where, id2label=id2label, reduce_zero=reduce_zero,
        partial=partial,
    )  # fmt: skip

    def name(row: int) -> str:
        return f"{where}, row {row}"

    def annotate(row: int, size: Size) -> Annotation:
        read = reader.read(masks(row), f"{name(row)}, {mask}")
        return Annotation(mask=read, size=(read.shape[0], read.shape[1]))

    present, scanned = scan(
        len(dataset),
        lambda row: reader.present(masks(row), f"{name(row)}, {mask}"),
        where,
        skip_bad=skip_bad,
    )
    return scene_table(
        where, reader.classes, present, read=images, name=name, annotate=annotate,
        notes=[*notes, *scanned],
    )  # fmt: skip


def objects_table(
    dataset: Dataset,
    settings: SourceConfig,
    *,
    where: str,
    folder: Path | None,
    from_hub: bool = False,
    id2label: Mapping[int, str],
) -> SceneTable:
    """Return a dataset of images and boxes.

    Boxes and classes lie in one column (a mapping of lists, or a list of mappings) or in two.

    Raises:
        UserError: columns cannot be told, or a box or class is not as it has to be.
    """
    dataset, notes = _plain(dataset, where)
    image = find_column(dataset, settings.image_column, IMAGE_NAMES, where, "image_column")
    cells, feature = _object_cells(dataset, settings, where, image)
    box_key = _key(feature, BOX_KEYS, where, "boxes")
    class_key = _key(feature, CLASS_KEYS, where, "classes")
    crowd_key = next((key for key in CROWD_KEYS if key in feature), None)
    _check_classes(cells, class_key, where)
    names = _legend(cells, class_key, feature, settings, where, id2label)
    objects, empty = [], 0
    for row, cell in enumerate(cells):
        one, num_empty = _objects(
            cell, (box_key, class_key, crowd_key), names, settings, f"{where}, row {row}"
        )
        objects.append(one)
        empty += num_empty
    if settings.box_unit == "pixels" and are_fractions([one.boxes for one in objects]):
        raise UserError(
            f"{where}: all boxes in {box_key!r} are fractions, none has a number above 1; write "
            "box_unit: fractions"
        )
    if empty:
        notes.append(f"{where}: {count(empty, 'empty box')} left out")
    present = [set(one.labels[~one.crowd].tolist()) for one in objects]
    sizes = _sizes(dataset)
    return scene_table(
        where,
        names[0].classes,
        present,
        read=_column(dataset, image, "image_column", where, folder, from_hub),
        name=lambda row: f"{where}, row {row}",
        annotate=lambda row, size: Annotation(objects=objects[row], size=sizes[row]),
        notes=[*notes, *_without(present, where)],
    )


def _plain(dataset: Dataset, where: str) -> tuple[Dataset, list[str]]:
    notes = []
    if dataset.format["type"] is not None:
        notes.append(f"{where}: the format or transform set on the dataset is not applied")
    return dataset.with_format(None), notes


def _column(
    dataset: Dataset, column: str, key: str, where: str, folder: Path | None, from_hub: bool
) -> Any:
    encoded = column_encoded(dataset, column, where=where, from_hub=from_hub, key=key)
    rows = encoded.select_columns([column])

    def read(row: int) -> ImageLike:
        return image_of(rows[row][column], folder, from_hub=from_hub)

    return read


def _without(present: list[set[int]], where: str) -> list[str]:
    empty = sum(not classes for classes in present)
    return [f"{where}: {count(empty, 'image')} without objects"] if empty else []


def _sizes(dataset: Dataset) -> list[Size | None]:
    if not {"width", "height"} <= set(dataset.column_names):
        return [None] * len(dataset)
    rows = dataset.select_columns(["height", "width"])[:]
    pairs = zip(rows["height"], rows["width"], strict=True)
    return [(int(h), int(w)) if h and w else None for h, w in pairs]


def _object_cells(
    dataset: Dataset, settings: SourceConfig, where: str, image: str
) -> tuple[list[dict[str, list[Any]]], dict[str, Any]]:
    """Return for each row a mapping of lists, and the features by key."""
    column = settings.objects_column
    flat = next((key for key in BOX_KEYS if key in dataset.column_names), None)
    if column is None and flat is not None and not isinstance(_inner(dataset.features[flat]), dict):
        keys = [k for k in (*BOX_KEYS, *CLASS_KEYS, *CROWD_KEYS) if k in dataset.column_names]
        values = dataset.select_columns(keys)[:]
        cells = [{key: values[key][row] or [] for key in keys} for row in range(len(dataset))]
        return cells, {key: _inner(dataset.features[key]) for key in keys}
    column = find_column(dataset, column, OBJECT_NAMES, where, "objects_column", but=image)
    feature = _inner(dataset.features[column])
    if not isinstance(feature, dict):
        raise UserError(
            f"{where}: column {column!r} holds no boxes with classes (a list of mappings such as "
            "{bbox: [x, y, width, height], category: cat}); name another in objects_column"
        )
    cells = [_of_lists(cell, feature) for cell in dataset.select_columns([column])[:][column]]
    return cells, {key: _inner(value) for key, value in feature.items()}


def _of_lists(cell: Any, keys: Mapping[str, Any]) -> dict[str, list[Any]]:
    if isinstance(cell, Mapping):
        return {key: cell.get(key) or [] for key in keys}
    return {key: [item[key] for item in cell or []] for key in keys}


def _inner(feature: Any) -> Any:
    """Return what a list holds; a mapping or a value as it is."""
    if isinstance(feature, list):
        return feature[0]
    inner = getattr(feature, "feature", None)
    return feature if inner is None else inner


def _key(feature: Mapping[str, Any], keys: tuple[str, ...], where: str, what: str) -> str:
    found = next((key for key in keys if key in feature), None)
    if found is None:
        raise UserError(
            f"{where}: the objects have no {what} ({listed(feature)}); call them {keys[0]!r}"
        )
    return found


def _check_classes(cells: list[dict[str, list[Any]]], key: str, where: str) -> None:
    for row, cell in enumerate(cells):
        for value in cell[key]:
            if not isinstance(value, str | int | float):
                raise UserError(
                    f"{where}, row {row}: the {key} of a box is {one_line(value, 60)!r}, which is "
                    "no name or number of a class; correct it, or remove the box"
                )


Names = tuple[Legend, dict[str, int] | None]
"""The legend, and for classes written as text the number of each."""


def _legend(
    cells: list[dict[str, list[Any]]],
    key: str,
    feature: Mapping[str, Any],
    settings: SourceConfig,
    where: str,
    id2label: Mapping[int, str],
) -> Names:
    values = {value for cell in cells for value in cell[key]}
    inner = feature[key]
    named = getattr(inner, "names", None) or getattr(_inner(inner), "names", None)
    if values and all(isinstance(value, str) for value in values):
        texts = sorted(values)
        return make_legend(dict(enumerate(texts)), where), {t: i for i, t in enumerate(texts)}
    given = settings.class_names
    if given is not None:
        names = dict(given) if isinstance(given, dict) else dict(enumerate(given))
        return make_legend(names, f"{where}: class_names"), None
    if named:
        return make_legend(dict(enumerate(named)), where), None
    return make_legend(dict(id2label), f"{where}: the model's labels", [*id2label.values()]), None


def _objects(
    cell: Mapping[str, list[Any]],
    keys: tuple[str, str, str | None],
    names: Names,
    settings: SourceConfig,
    where: str,
) -> tuple[Objects, int]:
    box_key, class_key, crowd_key = keys
    legend, numbers = names
    boxes, classes = cell[box_key], cell[class_key]
    crowd = cell[crowd_key] if crowd_key else [False] * len(boxes)
    if not len(boxes) == len(classes) == len(crowd):
        raise UserError(
            f"{where}: has {count(len(boxes), 'box')} and {count(len(classes), 'class')}; each box "
            "has one class"
        )
    for value in crowd:
        check_crowd(value, f"{where}: {crowd_key}")
    codes = []
    for value in classes:
        number = numbers[value] if numbers is not None else value
        if number not in legend.codes:
            raise UserError(
                f"{where}: the class {one_line(value, 60)!r} has no name; give the names of the "
                "numbers in class_names"
            )
        codes.append(legend.codes[number])
    clean, kept = clean_boxes(boxes, settings.box_format, where)
    labels = np.asarray(codes, np.int64)[kept]
    flags = np.asarray(crowd, bool)[kept]
    real = labels >= 0
    fractions = settings.box_unit == "fractions"
    sides = settings.box_format == "xywh" and not fractions
    found = Objects(clean[real], labels[real], flags[real], fractions, sides)
    return found, int((~kept).sum())
