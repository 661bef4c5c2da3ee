"""Hugging Face datasets with masks or boxes: which columns hold them, and what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kswap.data.hf_tables import ImageLike, column_encoded, find_column, image_of
from kswap.data.mask_files import scan
from kswap.data.mask_folders import folder_reader
from kswap.data.scene_objects import ObjectReader, check_unit, object_columns, size_said
from kswap.data.scenes import Annotation, SceneTable, Size, scene_table
from kswap.data.text import count
from kswap.settings import SourceConfig

if TYPE_CHECKING:
    from datasets import Dataset

IMAGE_NAMES = ("image", "img", "pixel_values", "picture", "photo", "file_name", "image_path")
MASK_NAMES = (
    "mask", "annotation", "label", "labels", "segmentation", "semantic_mask", "annotations",
    "segmentation_mask", "masks", "semantic_segmentation", "label_image",
)  # fmt: skip


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
        return reader.annotation(masks(row), f"{name(row)}, {mask}")

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
    columns = object_columns(dataset, settings, where, image)
    values = dataset.select_columns(list(columns.names))[:]
    reader = ObjectReader(columns.keys, settings, id2label, where)
    cells = [
        columns.cell({name: values[name][row] for name in columns.names}, f"{where}, row {row}")
        for row in range(len(dataset))
    ]
    for row, cell in enumerate(cells):
        reader.check(cell, f"{where}, row {row}")
    legend = reader.legend(cells, where)
    objects, empty = [], 0
    for row, cell in enumerate(cells):
        one, num_empty = reader.read(cell, legend, f"{where}, row {row}")
        objects.append(one)
        empty += num_empty
    check_unit([one.boxes for one in objects], settings, where, reader.box_key)
    if empty:
        notes.append(f"{where}: {count(empty, 'empty box')} left out")
    present = [set(one.labels[~one.crowd].tolist()) for one in objects]
    sizes = _sizes(dataset, where)
    return scene_table(
        where,
        legend[0].classes,
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


def _sizes(dataset: Dataset, where: str) -> list[Size | None]:
    if not {"width", "height"} <= set(dataset.column_names):
        return [None] * len(dataset)
    rows = dataset.select_columns(["height", "width"])[:]
    pairs = enumerate(zip(rows["height"], rows["width"], strict=True))
    return [size_said(height, width, f"{where}, row {row}") for row, (height, width) in pairs]
