"""What is read of shards: images that are not decoded, each with what is said of it.

A kind of cells is made for a task: `WholeCells` here have one class for each image, those of
`scene_cells.py` masks or boxes. It says which columns of a table and which members of a tar sample
it reads, and what becomes of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from kswap.data.class_names import named, names_of
from kswap.data.hf_tables import LABEL_NAMES, ImageLike, class_of, columns_of, image_of
from kswap.data.images import SUFFIXES
from kswap.data.table import Table
from kswap.data.text import listed, one_line
from kswap.errors import UserError
from kswap.settings import SourceConfig

if TYPE_CHECKING:
    from datasets import Features

_LABELS = ("cls", "txt", "text", "json")
"""Members that say the class of a sample, the first that is there."""
MAX_TEXT_BYTES = 1 << 24
"""Of a member that is no picture: larger ones are not read, and are as if empty."""


class StreamCell(Protocol):
    """One image of a shard, not decoded."""

    @property
    def image(self) -> ImageLike:
        """The encoded image."""

    @property
    def name(self) -> str:
        """What to call it in a message."""


class RowCells(NamedTuple):
    """How the rows of one table become cells."""

    columns: tuple[str, ...]
    """Those that are read."""
    pictures: tuple[str, ...]
    """Of these, those that hold pictures."""
    make: Callable[[Mapping[str, Any], str], StreamCell]
    """Row and its name -> cell."""


class TarCells(NamedTuple):
    """How the samples of one tar file become cells."""

    is_picture: Callable[[str], bool]
    """Whether a member with this extension is a picture; of others see MAX_TEXT_BYTES."""
    make: Callable[[str, Mapping[str, bytes]], StreamCell]
    """Name and members by extension -> cell."""


class CellKind(Protocol):
    """What a task makes of shards. Everything raises UserError where a source is not as it must."""

    def of_rows(
        self, features: Features, *, where: str, folder: Path | None, from_hub: bool
    ) -> RowCells:
        """Return how rows with these features are read."""

    def of_tar(self, path: Path) -> TarCells:
        """Return how the samples of a tar file are read."""

    def names(self, cell: StreamCell) -> frozenset[str]:
        """Return the classes of an image, as the source names them.

        Raises:
            BadImageError: its annotations cannot be read.
        """

    def table(self, sample: Sample, where: str) -> Table:
        """Return the cells of a sample as a table."""


@dataclass
class Sample:
    """Cells that are read beforehand."""

    cells: list[StreamCell] = field(default_factory=list)
    names: list[frozenset[str]] = field(default_factory=list)
    """The classes of each."""
    num_read: int = 0
    num_of: Counter[str] = field(default_factory=Counter)
    """Images that were read of each class, also of those that are not kept."""
    num_without: int = 0
    """Images without a class."""
    is_whole: bool = False
    """Whether there is nothing else in the source."""


class Cell(NamedTuple):
    """One image with its class."""

    image: ImageLike
    label: str | int | None
    """Class name, or class number; None: it has no class."""
    name: str


@dataclass(frozen=True)
class WholeCells:
    """Images of one class each."""

    settings: SourceConfig

    def of_rows(
        self, features: Features, *, where: str, folder: Path | None, from_hub: bool
    ) -> RowCells:
        """Return how rows with these features are read."""
        image, label = columns_of(features, self.settings, where=where, from_hub=from_hub)

        def make(row: Mapping[str, Any], name: str) -> Cell:
            value = class_of(row[label], features[label], where=name, column=label)
            return self._named(Cell(image_of(row[image], folder, from_hub=from_hub), value, name))

        return RowCells((image, label), (image,), make)

    def of_tar(self, path: Path) -> TarCells:
        """Return how the samples of a tar file are read."""
        return TarCells(self._is_picture, self._of_members)

    def names(self, cell: StreamCell) -> frozenset[str]:
        """Return its class."""
        assert isinstance(cell, Cell)
        return frozenset() if cell.label is None else frozenset([str(cell.label)])

    def table(self, sample: Sample, where: str) -> Table:
        """Return the cells of a sample as a table; classes are sorted, numbers by value."""
        cells = [cell for cell in sample.cells if isinstance(cell, Cell)]
        labels = {cell.label for cell in cells} - {None}
        numbers = sorted(label for label in labels if isinstance(label, int))
        texts = sorted(label for label in labels if isinstance(label, str))
        names = list(dict.fromkeys([*map(str, numbers), *texts]))
        rows = {name: row for row, name in enumerate(names)}
        without = (
            f"{where}: {sample.num_without} of {sample.num_read:,} images left out, they have no "
            "class"
        )
        return Table(
            where,
            tuple(names),
            np.asarray([rows.get(str(cell.label), -1) for cell in cells], dtype=np.int64),
            lambda row: cells[row].image,
            lambda row: cells[row].name,
            bool(numbers),
            (without,) if sample.num_without else (),
            num_of=sample.num_of,
        )

    @cached_property
    def _names(self) -> Mapping[int, str] | None:
        return names_of(self.settings)

    def _named(self, cell: Cell) -> Cell:
        """Return a cell under the config's name of its class."""
        if self._names is None or cell.label is None:
            return cell
        return cell._replace(label=named(cell.label, self._names, cell.name))

    def _is_picture(self, extension: str) -> bool:
        if self.settings.image_column is not None:
            return extension == self.settings.image_column.lower()
        return f".{extension}" in SUFFIXES

    def _of_members(self, name: str, members: Mapping[str, bytes]) -> Cell:
        images = [extension for extension in members if self._is_picture(extension)]
        return self._named(
            Cell(only_picture(name, images, members), self._label(name, members), name)
        )

    def _label(self, name: str, members: Mapping[str, bytes]) -> str | int | None:
        """Return the class that a member says: text, a number, or a field of JSON.

        Raises:
            UserError: it is not one class.
        """
        column = self.settings.label_column
        names = _LABELS if column is None else (column, "json")  # a member, or a field of JSON
        found = next((extension for extension in names if extension in members), None)
        if found is None:
            return None
        try:
            text = members[found].decode("utf-8").strip()
            value = json.loads(text) if found == "json" else text
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            raise UserError(
                f"{name}.{found}: is not the class of an image ({one_line(error)}); correct it"
            ) from None
        if isinstance(value, Mapping):
            keys = LABEL_NAMES if column is None or column == "json" else (column,)
            key = next((key for key in keys if key in value), None)
            if key is None:
                raise UserError(
                    f"{name}.json: has no class ({listed(value) or 'it is empty'}); name its field "
                    "in label_column"
                )
            value = value[key]
        if isinstance(value, str) and value.isdecimal():  # as `cls` members are numbers
            value = int(value)
        return class_of(value, None, where=f"{name}.{found}", column=column or found)


def only_picture(name: str, pictures: Sequence[str], members: Mapping[str, bytes]) -> bytes:
    """Return the one picture among the members of a sample; empty where there is none.

    Raises:
        UserError: there are several.
    """
    if len(pictures) > 1:
        raise UserError(
            f"{name}: has several images ({listed(pictures)}); name the member in image_column"
        )
    return members[pictures[0]] if pictures else b""  # said like any image that cannot be decoded
