"""Tables of Hugging Face datasets: which column holds the image and which the class.

Images stay encoded (`Image(decode=False)`), so that every source goes through the same decoder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kswap.data.table import ImageLike, Table
from kswap.data.text import instead, listed
from kswap.errors import UserError
from kswap.settings import SourceConfig

__all__ = [
    "ImageLike",
    "class_of",
    "column_encoded",
    "columns_of",
    "dataset_table",
    "find_column",
    "image_of",
]

if TYPE_CHECKING:
    from datasets import Dataset, Features

IMAGE_NAMES = (
    "image", "img", "images", "picture", "photo", "pixels", "file_name", "filename",
    "file", "image_path", "image_file", "filepath", "path", "image_bytes", "bytes",
)  # fmt: skip
LABEL_NAMES = ("label", "labels", "class", "class_name", "category", "target", "species", "y")
_ON_HUB = re.compile(r"(zip://[^:]*::)?hf://")


def dataset_table(
    dataset: Dataset,
    settings: SourceConfig,
    *,
    where: str,
    folder: Path | None,
    from_hub: bool = False,
) -> Table:
    """Return a dataset as a table; relative paths in its rows are relative to `folder`.

    Raises:
        UserError: there is no image or class column, or not a usable one.
    """
    notes = []
    if dataset.format["type"] is not None:
        notes.append(f"{where}: the format or transform set on the dataset is not applied")
    dataset = dataset.with_format(None)
    image = _image_column(dataset, settings, where)
    label = _label_column(dataset, settings, where, image)
    dataset = column_encoded(dataset, image, where=where, from_hub=from_hub)
    classes, labels, numbered = _classes(dataset, label, where)
    num_without = int((labels < 0).sum())
    if num_without:
        notes.append(f"{where}: {num_without} of {len(labels)} rows left out, they have no class")
    rows = dataset.select_columns([image])

    def read(row: int) -> ImageLike:
        return image_of(rows[row][image], folder, from_hub=from_hub)

    def name(row: int) -> str:
        value = rows[row][image]
        path = value.get("path") if isinstance(value, Mapping) else value
        inner = f" ({path})" if isinstance(path, str) else ""
        return f"{where}, row {row}{inner}"

    return Table(where, classes, labels, read, name, numbered, tuple(notes))


def columns_of(
    features: Features, settings: SourceConfig, *, where: str, from_hub: bool = False
) -> tuple[str, str]:
    """Return the image and the class column of rows with these features.

    Raises:
        UserError: there is no such column, or not a usable one.
    """
    from datasets import Dataset

    empty = Dataset.from_dict({name: [] for name in features}, features=features)
    image = _image_column(empty, settings, where)
    column_encoded(empty, image, where=where, from_hub=from_hub)
    return image, _label_column(empty, settings, where, image)


def class_of(value: Any, feature: Any, *, where: str, column: str) -> str | int | None:
    """Return the class name or class number of one cell; None: it has no class.

    Raises:
        UserError: the cell holds something else.
    """
    names = getattr(feature, "names", None)
    if names:
        return names[value] if value is not None and 0 <= value < len(names) else None
    if isinstance(value, str):
        return value.strip() or None
    number = _whole(value)
    if number is False:
        raise UserError(
            f"{where}: column {column!r} holds {type(value).__name__} {value!r:.80}, not one class "
            "for each image; name another column in label_column"
        )
    return number


def image_of(value: Any, folder: Path | None, *, from_hub: bool) -> ImageLike:
    """Turn a cell into something that can be decoded; empty bytes stand for an empty cell.

    Raises:
        PermissionError: a data set of the hub names a file outside its cache.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, str) and from_hub and _ON_HUB.match(value):  # of a stream
        import fsspec

        with fsspec.open(value, "rb") as file:
            content: bytes = file.read()
        return content
    if isinstance(value, str):
        path = (folder or Path()) / Path(value).expanduser()
        if from_hub and not _in_cache(path):
            raise PermissionError("it lies outside the cache of the datasets library")
        return path
    return b"" if value is None else value


def _in_cache(path: Path) -> bool:
    """Whether a path is where the datasets library puts what it downloads.

    A data set of somebody else's must not choose which of the user's own files are opened.
    """
    from datasets import config
    from huggingface_hub import constants

    folders = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE)
    return any(path.resolve().is_relative_to(Path(folder).resolve()) for folder in folders)


def column_encoded(
    dataset: Dataset, column: str, *, where: str, from_hub: bool, key: str = "image_column"
) -> Dataset:
    """Return the dataset with the images of a column as encoded bytes or paths.

    Raises:
        UserError: the column holds something else.
    """
    from datasets import Image, Value

    feature = dataset.features[column]
    if isinstance(feature, Image):
        return dataset.cast_column(column, Image(decode=False))
    if isinstance(feature, dict) and set(feature) & {"bytes", "path"}:
        return dataset
    if isinstance(feature, Value):
        if "binary" in feature.dtype:
            return dataset
        if "string" in feature.dtype and not from_hub:
            return dataset
    raise UserError(
        f"{where}: column {column!r} holds {_kind(feature)}, not images; "
        f"name another column in {key}, or cast it to datasets.Image()"
    )


def find_column(
    dataset: Dataset,
    given: str | None,
    usual: tuple[str, ...],
    where: str,
    key: str,
    but: str = "",
) -> str:
    """Return the column that is given, or the first with a usual name.

    Raises:
        UserError: there is none.
    """
    if given is not None:
        return _named(dataset, given, where, key)
    return _pick(dataset, [], usual, where, key, key.removesuffix("_column"), but=but)


def _image_column(dataset: Dataset, settings: SourceConfig, where: str) -> str:
    from datasets import Image

    if settings.image_column is not None:
        return _named(dataset, settings.image_column, where, "image_column")
    typed = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
    return _pick(dataset, typed, IMAGE_NAMES, where, "image_column", "images")


def _label_column(dataset: Dataset, settings: SourceConfig, where: str, image: str) -> str:
    from datasets import ClassLabel

    if settings.label_column is not None:
        return _named(dataset, settings.label_column, where, "label_column")
    typed = [name for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)]
    return _pick(dataset, typed, LABEL_NAMES, where, "label_column", "classes", but=image)


def _named(dataset: Dataset, column: str, where: str, key: str) -> str:
    if column not in dataset.column_names:
        known = instead(column, dataset.column_names)
        raise UserError(f"{key}: {where} has no column {column!r}; {known}")
    return column


def _pick(
    dataset: Dataset,
    typed: list[str],
    usual: tuple[str, ...],
    where: str,
    key: str,
    what: str,
    but: str = "",
) -> str:
    """Return the only column of the right type, or the first with a usual name."""
    if len(typed) == 1:
        return typed[0]
    candidates = typed or [name for name in dataset.column_names if name != but]
    by_name = {name.lower(): name for name in candidates}
    for name in usual:
        if name in by_name:
            return by_name[name]
    raise UserError(
        f"{where}: cannot tell which column holds the {what} "
        f"({listed(dataset.column_names) or 'there is none'}); name it in {key}"
    )


def _classes(
    dataset: Dataset, column: str, where: str
) -> tuple[tuple[str, ...], NDArray[np.int64], bool]:
    """Return class names, index of each row into them (-1: none), whether they are numbers."""
    from datasets import ClassLabel, Value

    feature = dataset.features[column]
    values = dataset.select_columns([column])[:][column]
    if isinstance(feature, ClassLabel) and feature.names:
        names = tuple(feature.names)
        codes = [-1 if value is None or not 0 <= value < len(names) else value for value in values]
        return names, np.asarray(codes, dtype=np.int64), False
    if isinstance(feature, Value) and "string" in feature.dtype:
        return (*_coded([None if v is None else v.strip() or None for v in values]), False)
    if isinstance(feature, ClassLabel | Value) and not isinstance(values[0] if values else 0, str):
        numbers = [_whole(value) for value in values]
        if all(number is not False for number in numbers):
            return (*_coded(numbers), True)
    raise UserError(
        f"{where}: column {column!r} holds {_kind(feature)}, not one class for each image; "
        "name another column in label_column"
    )


def _whole(value: Any) -> int | bool | None:
    """Return a class number, None for an empty cell (-1, NaN), False for anything else."""
    if value is None or value != value:  # NaN is what CSV readers make of an empty cell
        return None
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return None if value == -1 else int(value)
    return False


def _coded(values: list[Any]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    known = sorted({value for value in values if value is not None})
    code = {value: index for index, value in enumerate(known)}
    return (
        tuple(str(value) for value in known),
        np.asarray([-1 if value is None else code[value] for value in values], dtype=np.int64),
    )


def _kind(feature: Any) -> str:
    return f"values of type {getattr(feature, 'dtype', type(feature).__name__)}"
