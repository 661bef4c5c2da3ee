"""A source as the rest of the package sees it: for each split a table of images not yet read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kswap.data.text import listed, one_line
from kswap.errors import UserError
from kswap.settings import Split

ImageLike = str | Path | bytes | Image.Image

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""How people name splits (lower case) -> how kswap does."""


@dataclass(frozen=True)
class Table:
    """Images of one split, with their classes."""

    where: str
    """Path, id or description, for messages."""
    classes: tuple[str, ...]
    """Class names, in the order of the source."""
    labels: NDArray[np.int64]
    """(n,) index into `classes`; -1: the image has no class."""
    read: Callable[[int], ImageLike]
    """Row -> encoded image, or where it lies."""
    name: Callable[[int], str]
    """Row -> what to call the image in a message."""
    numbered: bool = False
    """The classes are bare numbers, without names."""
    notes: tuple[str, ...] = ()
    several: bool = False
    """An image may hold objects of several classes."""
    why_empty: str = ""
    """Where no image has a class: which file, for what reason, and the fix, if it is known."""

    num_of: Mapping[str, int] | None = None
    """Where these are a sample: images of each class among all that were read."""

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of images of each class; of a sample among all that were read."""
        if self.num_of is not None:
            return {name: self.num_of.get(name, 0) for name in self.classes}
        return dict(zip(self.classes, self._count(), strict=True))

    def _count(self) -> list[int]:
        """Return the number of images of each class in the table."""
        counted = np.bincount(self.labels[self.labels >= 0], minlength=len(self.classes))
        return [int(number) for number in counted]


@dataclass(frozen=True)
class Source:
    """Where the images of a role come from; without splits of its own it has only train."""

    where: str
    splits: dict[Split, Table]
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names over all splits, in the order of the source."""
        return tuple(
            dict.fromkeys(name for table in self.splits.values() for name in table.classes)
        )

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of images of each class over all splits."""
        total = dict.fromkeys(self.classes, 0)
        for table in self.splits.values():
            for name, number in table.counts.items():
                total[name] += number
        return total

    @property
    def several(self) -> bool:
        """Whether an image may hold objects of several classes."""
        return any(table.several for table in self.splits.values())

    @property
    def numbered(self) -> bool:
        """Whether the classes are bare numbers, without names."""
        return any(table.numbered for table in self.splits.values())


def source_of_splits(where: str, tables: Mapping[str, Table]) -> Source:
    """Make a source of tables by split name, as the user wrote the names.

    Raises:
        UserError: no table, two for one split, or several but none to train.
    """
    notes = []
    splits: dict[Split, Table] = {}
    unknown: dict[str, Table] = {}
    for name, table in tables.items():
        split = SPLIT_NAMES.get(name.lower())
        if split is None:
            unknown[name] = table
        elif split in splits:
            raise UserError(
                f"{where}: has two {split} splits ({listed(tables)}); leave one of them"
            )
        elif split != "train" and len(table.labels) and not (table.labels >= 0).any():
            notes.append(f"{where}: split {name!r} left out, its images have no classes")
        else:
            splits[split] = table
    if not splits and len(unknown) == 1:
        (name, table), *_ = unknown.items()
        notes.append(f"{where}: its only split {name!r} is cut into train, validation and test")
        splits, unknown = {"train": table}, {}
    elif len(splits) == 1 and "train" not in splits and not unknown:
        ((split, table),) = splits.items()
        notes.append(f"{where}: its only split {split!r} is cut into train, validation and test")
        splits = {"train": table}
    if "train" not in splits:
        raise UserError(
            f"{where}: has no train split (it has {listed(tables) or 'none'}); "
            "name the parts: data: {train: ..., test: ...}"
        )
    if unknown:
        notes.append(
            f"{where}: splits left out, neither train, validation nor test: {listed(unknown)}"
        )
    if any(len(table.labels) == 0 for table in splits.values()):
        empty = [split for split, table in splits.items() if not len(table.labels)]
        raise UserError(f"{where}: has no images in {listed(empty)}; name a source that has some")
    notes += [note for table in splits.values() for note in table.notes]
    return Source(one_line(where), splits, tuple(notes))
