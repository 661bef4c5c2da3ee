"""Image folders: one folder per class, or train, validation and test folders of such.

A folder is a split only when it holds class folders itself, so that a class may be called `train`.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np

from kswap.data.images import SUFFIXES
from kswap.data.table import SPLIT_NAMES, Source, Table, source_of_splits
from kswap.data.text import count, listed, one_line
from kswap.errors import UserError

_NOT_CLASSES = frozenset({"__MACOSX", "__pycache__"})


def folder_source(folder: Path) -> Source:
    """Open an image folder, with or without split folders.

    Raises:
        UserError: it cannot be read, is empty or has no class folders.
    """
    splits = split_folders(folder)
    if not splits:
        return source_of_splits(str(folder), {"train": class_folders(folder)})
    source = source_of_splits(str(folder), {path.name: class_folders(path) for path in splits})
    ignored = [path.name for path in _subfolders(folder) if path not in splits]
    if not ignored:
        return source
    note = f"{folder}: folders left out beside the splits: {listed(ignored)}"
    return Source(source.where, source.splits, (*source.notes, note))


def split_folders(folder: Path) -> list[Path]:
    """Return the split folders of `folder`: named like a split, with folders but no images."""
    named = [path for path in _subfolders(folder) if path.name.lower() in SPLIT_NAMES]
    splits = [path for path in named if _subfolders(path) and not _has_images(path)]
    flat = [path for path in named if path not in splits]
    if len(named) > 1 and len(flat) == len(named) == len(_subfolders(folder)):
        raise UserError(
            f"{one_line(folder)}: {listed(path.name for path in flat)} have no class folders; "
            "put the images into one folder per class, such as train/cat/1.jpg"
        )
    return splits


def class_folders(folder: Path) -> Table:
    """Return the images of the class folders in `folder`.

    Raises:
        UserError: there are no class folders, or no images in them.
    """
    folders = _subfolders(folder)
    if not folders:
        found = "images, but no class folders" if _has_images(folder) else "no class folders"
        raise UserError(
            f"{one_line(folder)}: has {found}; put the images into one folder per class, such as "
            "cat/1.jpg"
        )
    paths: list[Path] = []
    labels: list[int] = []
    other: Counter[str] = Counter()
    num_nested = 0
    for label, class_folder in enumerate(folders):
        found_paths, found_other = _files(class_folder)
        paths += found_paths
        labels += [label] * len(found_paths)
        num_nested += sum(path.parent != class_folder for path in found_paths)
        other.update(found_other)
    if not paths:
        raise UserError(
            f"{one_line(folder)}: has class folders ({listed(path.name for path in folders)}), but "
            f"no images in them; put some there ({' '.join(sorted(SUFFIXES))})"
        )
    notes = _notes(folder, other, num_nested)
    return Table(
        where=str(folder),
        classes=tuple(path.name for path in folders),
        labels=np.asarray(labels, dtype=np.int64),
        read=paths.__getitem__,
        name=lambda row: str(paths[row]),
        notes=notes,
    )


def _notes(folder: Path, other: Counter[str], num_nested: int) -> tuple[str, ...]:
    notes = []
    if other:
        kinds = listed(
            f"{number} {suffix or 'without suffix'}" for suffix, number in other.most_common()
        )
        notes.append(
            f"{folder}: {count(other.total(), 'file')} left out, not images by suffix: {kinds}"
        )
    if num_nested:
        notes.append(
            f"{folder}: {count(num_nested, 'image')} in deeper folders counted to the class "
            "folder above"
        )
    return tuple(notes)


def _files(class_folder: Path) -> tuple[list[Path], Counter[str]]:
    """Return the image files below a class folder, sorted, and the suffixes of the other files."""
    images: list[Path] = []
    other: Counter[str] = Counter()
    for parent, subfolders, names in os.walk(class_folder, onerror=_refuse_unreadable):
        subfolders[:] = sorted(name for name in subfolders if not _hidden(name))
        for name in names:
            suffix = Path(name).suffix.lower()
            if _hidden(name):
                continue
            if suffix in SUFFIXES:
                images.append(Path(parent, name))
            else:
                other[suffix] += 1
    return sorted(images), other


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not _hidden(path.name))
    except OSError as error:
        _refuse_unreadable(error)
        raise


def _refuse_unreadable(error: OSError) -> None:
    raise UserError(
        f"{one_line(error.filename)}: cannot be read ({one_line(error.strerror)}); correct its "
        "permissions"
    ) from None


def _has_images(folder: Path) -> bool:
    return any(
        path.suffix.lower() in SUFFIXES and not _hidden(path.name) and not path.is_dir()
        for path in folder.iterdir()
    )


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in _NOT_CLASSES
