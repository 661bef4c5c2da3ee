"""Images with masks or boxes as the sources give them: classes by name, not yet rows of a head.

A `SceneTable` is a `Table` whose images each hold several classes. What readers share is here too:
which names mean background, and that a file an annotation names lies below the folder of images.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kswap.data.images import BadImageError
from kswap.data.labels import plain
from kswap.data.sets import IGNORE, OPEN
from kswap.data.table import Table
from kswap.data.text import one_line
from kswap.errors import UserError

BACKGROUND_NAMES = frozenset({"background", "bg", "unlabeled", "unlabelled", "nothing"})
"""Names (as `labels.plain` has them) of what is none of the classes."""
IGNORE_NAMES = frozenset({"ignore", "ignored", "void", "unknown"})
"""Names of what is not known."""
Size = tuple[int, int]
"""Height and width."""


class BadAnnotationError(BadImageError):
    """Annotations of one image that cannot be used; the image is skipped where bad images are."""

    def __init__(self, name: str, reason: str, fix: str) -> None:
        self.name = one_line(name)
        self.reason = one_line(reason)
        UserError.__init__(self, f"{self.name}: {self.reason}; {fix}")


@dataclass(frozen=True)
class Objects:
    """Boxes of one image; rows of all fields belong together."""

    boxes: NDArray[np.float64]
    """(objects, 4): left, top, right, bottom; pixels, or fractions of the image."""
    labels: NDArray[np.int64]
    """(objects,) index into the table's classes."""
    crowd: NDArray[np.bool_]
    """(objects,)."""
    fractions: bool = False
    sides: bool = False
    """They were written as left, top, width, height, in pixels."""


NO_OBJECTS = Objects(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool))


@dataclass(frozen=True)
class Annotation:
    """What is known of one image."""

    mask: NDArray[np.int32] | None = None
    """(height, width) index into the table's classes, OPEN or IGNORE."""
    objects: Objects | None = None
    size: Size | None = None
    """Of the image that the annotations were made on, where they say it."""
    upright: bool = False
    """The format refers to the image as it is seen, after its EXIF orientation is applied."""


def recoded(annotation: Annotation, codes: Sequence[int]) -> Annotation:
    """Return annotations whose class `n` is called `codes[n]`."""
    if annotation.mask is not None:
        # OPEN and IGNORE are -1 and -2: the last two
        table = np.asarray([*codes, IGNORE, OPEN], np.int32)
        return replace(annotation, mask=table[annotation.mask])
    assert annotation.objects is not None
    labels = np.asarray(codes, np.int64)[annotation.objects.labels]
    return replace(annotation, objects=replace(annotation.objects, labels=labels))


def codes_in(mask: NDArray[np.int32]) -> set[int]:
    """Return the classes in a mask: counted, as sorting its pixels takes longer than reading it."""
    found = np.flatnonzero(np.bincount(mask.ravel() - IGNORE)) + IGNORE  # the least value
    return set(found[found >= 0].tolist())


def _no_annotation(row: int, size: Size) -> Annotation:
    raise NotImplementedError


@dataclass(frozen=True)
class SceneTable(Table):
    """Images of one split, with annotations. `labels` is 0 where an image has any object."""

    present: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0), bool))
    """(n, classes): which classes each image has."""
    annotate: Callable[[int, Size], Annotation] = _no_annotation
    """Row and size of the upright image -> its annotations. Raises BadAnnotationError."""

    def _count(self) -> list[int]:
        """Return the number of images that hold each class."""
        counted: list[int] = self.present.sum(0).tolist()
        return counted


def scene_table(
    where: str,
    classes: Sequence[str],
    present: Sequence[set[int]] | Sequence[frozenset[int]],
    *,
    read: Callable[[int], object],
    name: Callable[[int], str],
    annotate: Callable[[int, Size], Annotation],
    notes: Sequence[str] = (),
    num_of: Mapping[str, int] | None = None,
) -> SceneTable:
    """Return a table; `present` holds the classes of each image as indices into `classes`."""
    matrix = np.zeros((len(present), len(classes)), bool)
    for row, labels in enumerate(present):
        matrix[row, list(labels)] = True
    return SceneTable(
        where=one_line(where),
        classes=tuple(classes),
        labels=np.where(matrix.any(1), 0, -1) if len(classes) else np.full(len(present), -1),
        read=read,  # type: ignore[arg-type]  # paths, bytes or PIL images
        name=name,
        notes=tuple(one_line(note, 2000) for note in notes),
        several=True,
        num_of=num_of,
        present=matrix,
        annotate=annotate,
    )


def check_crowd(value: object, what: str) -> None:
    """Refuse a flag that is none: a text "0" would be true.

    Raises:
        UserError: it is not 0, 1 or empty.
    """
    if value not in (0, 1, None):
        raise UserError(
            f"{what} is {one_line(value, 60)!r}; it is the number 1 for a crowd and 0 for a single "
            "object, correct it"
        )


def is_background(name: str) -> bool:
    """Whether a class of this name is the absence of every class."""
    return plain(name) in BACKGROUND_NAMES


def is_ignored(name: str) -> bool:
    """Whether a class of this name says that the class is not known."""
    return plain(name) in IGNORE_NAMES


@dataclass(frozen=True)
class Legend:
    """From the values of masks (or class numbers) to classes."""

    classes: tuple[str, ...]
    """Names without background and what is to be ignored."""
    codes: dict[int, int]
    """Value -> index into `classes`, OPEN or IGNORE."""


def make_legend(names: dict[int, str], where: str, model_labels: Sequence[str] = ()) -> Legend:
    """Return the legend of `{value: name}`; the model's own labels are classes whatever they say.

    Raises:
        UserError: a name is empty or given to two values.
    """
    known = {plain(label) for label in model_labels}
    classes: dict[str, int] = {}
    codes = {}
    for value in sorted(names):
        name = names[value].strip()
        if not name:
            raise UserError(f"{where}: class {value} has an empty name; give it one")
        if is_background(name):
            codes[value] = OPEN
        elif is_ignored(name) and plain(name) not in known:
            codes[value] = IGNORE
        elif name in classes:
            raise UserError(
                f"{where}: two classes are called {one_line(name)!r}; a name stands for one class, "
                "give the other another name"
            )
        else:
            codes[value] = classes[name] = len(classes)
    return Legend(tuple(classes), codes)


def below(folder: Path, name: str, where: str) -> Path:
    """Return the path of a file that annotations name, below `folder`.

    Raises:
        UserError: it lies elsewhere: annotations of somebody else's must not choose which of the
            user's own files are opened.
    """
    inner = posixpath.normpath(name.replace("\\", "/"))
    if not name.strip() or "\0" in name or inner.startswith(("/", "../")) or inner in ("..", "."):
        raise UserError(
            f"{one_line(where)}: the image {one_line(name)!r} lies outside {one_line(folder)}; "
            "annotations name images below their folder, correct file_name"
        )
    if len(inner) > 1 and inner[1] == ":":
        raise UserError(
            f"{one_line(where)}: the image {one_line(name)!r} is an absolute path; "
            "annotations name images below their folder, correct file_name"
        )
    return folder / inner
