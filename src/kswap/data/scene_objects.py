"""Objects in rows and in JSON: which keys hold boxes and classes, and what is in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kswap.data.boxes import are_fractions, clean_boxes
from kswap.data.cells import MAX_TEXT_BYTES
from kswap.data.hf_tables import find_column
from kswap.data.scenes import Legend, Objects, Size, check_crowd, make_legend
from kswap.data.text import count, listed, one_line
from kswap.errors import UserError
from kswap.settings import SourceConfig

if TYPE_CHECKING:
    from datasets import Dataset

OBJECT_NAMES = ("objects", "object", "annotations", "boxes", "labels")
BOX_KEYS = ("bbox", "bboxes", "box", "boxes")
CLASS_KEYS = (
    "category", "categories", "label", "labels", "category_id", "class", "class_id", "classes",
    "name", "category_name",
)  # fmt: skip
CROWD_KEYS = ("iscrowd", "is_crowd", "crowd", "difficult")

KNOWN_KEYS = (*BOX_KEYS, *CLASS_KEYS, *CROWD_KEYS)

Cells = Mapping[str, list[Any]]
"""The objects of one image: a list for each key."""


@dataclass(frozen=True)
class ObjectColumns:
    """Where the rows of a table hold objects: in one column, or in one for each key."""

    names: tuple[str, ...]
    """Columns that are read."""
    keys: Mapping[str, Any]
    """What is said of the objects -> its feature; none where the column holds nothing so far."""
    is_one: bool

    def cell(self, row: Mapping[str, Any], name: str) -> Cells:
        """Return the objects of a row, a list for each of `keys`; `name` is for messages.

        Raises:
            UserError: as `objects_of`.
        """
        found = objects_of(self.value(row), name)
        return {key: found.get(key, []) for key in self.keys}

    def value(self, row: Mapping[str, Any]) -> Any:
        """Return what a row says of objects, for `objects_of`."""
        return row[self.names[0]] if self.is_one else {key: row[key] for key in self.keys}


def object_columns(
    dataset: Dataset, settings: SourceConfig, where: str, image: str
) -> ObjectColumns:
    """Return where the objects lie in a table whose images are in column `image`.

    Raises:
        UserError: it cannot be told.
    """
    column = settings.objects_column
    flat = next((key for key in BOX_KEYS if key in dataset.column_names), None)
    if column is None and flat is not None and not isinstance(_inner(dataset.features[flat]), dict):
        keys = [k for k in KNOWN_KEYS if k in dataset.column_names]
        features = {key: _inner(dataset.features[key]) for key in keys}
        return ObjectColumns(tuple(keys), features, is_one=False)
    column = find_column(dataset, column, OBJECT_NAMES, where, "objects_column", but=image)
    feature = _inner(dataset.features[column])
    is_empty = getattr(feature, "dtype", None) == "null"
    if not isinstance(feature, dict) and not is_empty:
        raise UserError(
            f"{where}: column {column!r} holds no boxes with classes (a list of mappings such as "
            "{bbox: [x, y, width, height], category: cat}); name another in objects_column"
        )
    features = {} if is_empty else {key: _inner(value) for key, value in feature.items()}
    return ObjectColumns((column,), features, is_one=True)


def objects_of(value: Any, name: str) -> Cells:
    """Return the objects of one image; nothing where there are none.

    Args:
        value: a list of mappings, a mapping of lists, or None, as a row or JSON has it.
        name: of the image, for messages.

    Raises:
        UserError: it is something else.
    """
    cells: dict[str, list[Any]]
    if isinstance(value, Mapping):
        lists = {key: [] if one is None else _as_list(one) for key, one in value.items()}
        cells = {key: one for key, one in lists.items() if one is not None}
        is_strange = any(key in lists and key not in cells for key in KNOWN_KEYS)
    else:
        items = [] if value is None else _as_list(value)
        is_strange = items is None or not all(isinstance(one, Mapping) for one in items)
        items = [] if is_strange or items is None else items
        keys = {key: None for one in items for key in one}
        cells = {key: [one.get(key) for one in items] for key in keys}
    if is_strange or (value is not None and len(value) and not cells):
        raise not_objects(name)
    is_empty = not any(cells.values()) and not cells.keys().isdisjoint(BOX_KEYS)
    return {} if is_empty else cells


def objects_in_json(text: bytes, settings: SourceConfig, name: str) -> tuple[Any, Size | None]:
    """Return what JSON says of the objects of one image (for `objects_of`), and of its size.

    Raises:
        UserError: it is not JSON, or says nothing of objects.
    """
    if not text:
        raise UserError(f"{name}: is empty, or more than {MAX_TEXT_BYTES >> 20} MiB; correct it")
    try:
        value = json.loads(text)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{name}: is no JSON ({one_line(error)}); correct it") from None
    if not isinstance(value, Mapping):
        return value, None
    size = size_said(value.get("height"), value.get("width"), name)
    column = settings.objects_column
    if column is None and any(_is_list_of_boxes(value.get(key)) for key in BOX_KEYS):
        return {key: value[key] for key in KNOWN_KEYS if key in value}, size
    keys = OBJECT_NAMES if column is None else (column,)
    found = next((key for key in keys if key in value), None)
    if found is None:
        raise not_objects(name)
    return value[found], size


def size_said(height: Any, width: Any, name: str) -> Size | None:
    """Return the size of an image as its annotations have it; None: they do not say.

    Raises:
        UserError: it is no size.
    """
    if not height or not width:
        return None
    try:
        return int(height), int(width)
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"{name}: height and width are {one_line(height, 60)!r} and {one_line(width, 60)!r}, "
            "which are no numbers of pixels; correct them"
        ) from None


def not_objects(name: str) -> UserError:
    """Return what to say of something else than objects."""
    return UserError(
        f"{name}: holds no boxes with classes (a list of mappings such as {{bbox: [x, y, width, "
        "height], category: cat}); name their field in objects_column, or correct it"
    )


def _is_list_of_boxes(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(one, Mapping) for one in value)


def _as_list(value: Any) -> list[Any] | None:
    """Return a list, a tuple or an array as a list; None: it is none of these."""
    if isinstance(value, np.ndarray):
        found = value.tolist()
        return found if isinstance(found, list) else None
    return list(value) if isinstance(value, list | tuple) else None


def _inner(feature: Any) -> Any:
    """Return what a list holds; a mapping or a value as it is."""
    if isinstance(feature, list):
        return feature[0]
    inner = getattr(feature, "feature", None)
    return feature if inner is None else inner


def check_unit(boxes: Sequence[Any], settings: SourceConfig, where: str, key: str = "") -> None:
    """Refuse boxes that are read as pixels and are surely fractions.

    Raises:
        UserError: they are.
    """
    if settings.box_unit == "pixels" and are_fractions(list(boxes)):
        raise UserError(
            f"{where}: all boxes{f' in {key!r}' if key else ''} are fractions, none has a number "
            "above 1; write box_unit: fractions"
        )


Names = tuple[Legend, dict[str, int] | None]
"""The legend, and for classes written as text the number of each."""


class ObjectReader:
    """Reads the objects of images, whose boxes and classes are under known keys."""

    def __init__(
        self,
        keys: Mapping[str, Any],
        settings: SourceConfig,
        id2label: Mapping[int, str],
        where: str,
    ) -> None:
        """Find the keys.

        Args:
            keys: what is said of objects -> its feature (of the datasets library), or None.
            settings: of the source.
            id2label: the model's labels, which name numbers that nothing else names.
            where: the source, for messages.

        Raises:
            UserError: there are no boxes, or no classes.
        """
        self._settings, self._id2label, self._where = settings, id2label, where
        self.box_key = _key(keys, BOX_KEYS, where, "boxes")
        self._class = _key(keys, CLASS_KEYS, where, "classes")
        self._crowd = next((key for key in CROWD_KEYS if key in keys), None)
        inner = keys[self._class]
        self._named = getattr(inner, "names", None) or getattr(_inner(inner), "names", None)
        self._of_numbers: Legend | None = None

    def check(self, cell: Cells, name: str) -> None:
        """Refuse a class that is neither a name nor a number; before `legend`, which takes either.

        Raises:
            UserError: there is such a one.
        """
        for value in cell[self._class]:
            if not isinstance(value, str | int | float | np.integer):
                raise UserError(
                    f"{name}: the {self._class} of a box is {one_line(value, 60)!r}, which is no "
                    "name or number of a class; correct it, or remove the box"
                )

    def legend(self, cells: Sequence[Cells], where: str) -> Names:
        """Return the classes of all these images; `where` they are is for messages."""
        values = [value for cell in cells for value in cell[self._class]]
        if values and all(isinstance(value, str) for value in values):
            texts = sorted(set(values))
            legend = make_legend(dict(enumerate(texts)), where)
            return legend, {text: number for number, text in enumerate(texts)}
        if self._of_numbers is None:
            self._of_numbers = self._numbered()
        return self._of_numbers, None

    def _numbered(self) -> Legend:
        given = self._settings.class_names
        if given is not None:
            names = dict(given) if isinstance(given, dict) else dict(enumerate(given))
            return make_legend(names, f"{self._where}: class_names")
        if self._named:
            return make_legend(dict(enumerate(self._named)), self._where)
        labels = self._id2label
        return make_legend(dict(labels), f"{self._where}: the model's labels", [*labels.values()])

    def read(self, cell: Cells, names: Names, name: str) -> tuple[Objects, int]:
        """Return the objects of one image, and how many empty boxes were left out."""
        legend, numbers = names
        boxes, classes = cell[self.box_key], cell[self._class]
        crowd = (self._crowd and cell[self._crowd]) or [False] * len(boxes)  # null: nothing is one
        if not len(boxes) == len(classes) == len(crowd):
            raise UserError(
                f"{name}: has {count(len(boxes), 'box')} and {count(len(classes), 'class')}; each "
                "box has one class"
            )
        for value in crowd:
            check_crowd(value, f"{name}: {self._crowd}")
        codes = []
        for value in classes:
            number = value if numbers is None else numbers[value]
            if number not in legend.codes:
                raise UserError(
                    f"{name}: the class {one_line(value, 60)!r} has no name; give the names of the "
                    "numbers in class_names"
                )
            codes.append(legend.codes[int(number)])
        clean, kept = clean_boxes(boxes, self._settings.box_format, name)
        labels = np.asarray(codes, np.int64)[kept]
        flags = np.asarray(crowd, bool)[kept]
        real = labels >= 0
        fractions = self._settings.box_unit == "fractions"
        sides = self._settings.box_format == "xywh" and not fractions
        found = Objects(clean[real], labels[real], flags[real], fractions, sides)
        return found, int((~kept).sum())


def _key(feature: Mapping[str, Any], keys: tuple[str, ...], where: str, what: str) -> str:
    found = next((key for key in keys if key in feature), None)
    if found is None:
        raise UserError(
            f"{where}: the objects have no {what} ({listed(feature) or 'there are none'}); call "
            f"them {keys[0]!r}"
        )
    return found
