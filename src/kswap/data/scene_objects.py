"""Objects in rows and in JSON: which keys hold boxes and classes, and what is in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kswap.data.boxes import are_fractions, clean_boxes
from kswap.data.hf_tables import find_column
from kswap.data.scenes import Legend, Objects, check_crowd, make_legend
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

Cells = Mapping[str, list[Any]]
"""The objects of one image: a list for each key."""


@dataclass(frozen=True)
class ObjectColumns:
    """Where the rows of a table hold objects: in one column, or in one for each key."""

    names: tuple[str, ...]
    """Columns that are read."""
    keys: Mapping[str, Any]
    """What is said of the objects -> its feature."""
    is_one: bool

    def cell(self, row: Mapping[str, Any]) -> Cells:
        """Return the objects of a row."""
        if self.is_one:
            return of_lists(row[self.names[0]], self.keys)
        return {key: row[key] or [] for key in self.keys}


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
        keys = [k for k in (*BOX_KEYS, *CLASS_KEYS, *CROWD_KEYS) if k in dataset.column_names]
        features = {key: _inner(dataset.features[key]) for key in keys}
        return ObjectColumns(tuple(keys), features, is_one=False)
    column = find_column(dataset, column, OBJECT_NAMES, where, "objects_column", but=image)
    feature = _inner(dataset.features[column])
    if not isinstance(feature, dict):
        raise UserError(
            f"{where}: column {column!r} holds no boxes with classes (a list of mappings such as "
            "{bbox: [x, y, width, height], category: cat}); name another in objects_column"
        )
    features = {key: _inner(value) for key, value in feature.items()}
    return ObjectColumns((column,), features, is_one=True)


def of_lists(cell: Any, keys: Iterable[str]) -> Cells:
    """Return the objects of an image, a mapping of lists or a list of mappings, as the former."""
    if isinstance(cell, Mapping):
        return {key: cell.get(key) or [] for key in keys}
    return {key: [item[key] for item in cell or []] for key in keys}


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
            if not isinstance(value, str | int | float):
                raise UserError(
                    f"{name}: the {self._class} of a box is {one_line(value, 60)!r}, which is no "
                    "name or number of a class; correct it, or remove the box"
                )

    def legend(self, cells: Sequence[Cells]) -> Names:
        """Return the classes of all these images."""
        values = [value for cell in cells for value in cell[self._class]]
        if values and all(isinstance(value, str) for value in values):
            texts = sorted(set(values))
            legend = make_legend(dict(enumerate(texts)), self._where)
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
        crowd = cell[self._crowd] if self._crowd else [False] * len(boxes)
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
            f"{where}: the objects have no {what} ({listed(feature)}); call them {keys[0]!r}"
        )
    return found
