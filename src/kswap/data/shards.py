"""Sources read in order, shard by shard: WebDataset tar files, table files, streams of `datasets`.

Table files and data sets of the hub are read by the datasets library, one shard after the other, so
that each may have columns of its own beside the two that are used.
"""

from __future__ import annotations

import csv
import glob
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kswap.data.cells import CellKind, StreamCell
from kswap.data.mask_folders import COLOUR_FILES, NAME_FILES
from kswap.data.sources import (
    READERS,
    by_split,
    check_hub,
    is_empty,
    looks_like_path,
    no_data,
    reading,
    table_files,
)
from kswap.data.tar_shards import tar_cells, whole
from kswap.data.text import listed, one_line
from kswap.errors import UserError
from kswap.settings import Role, ScenePaths, SourceConfig, SplitPaths

if TYPE_CHECKING:
    from datasets import IterableDataset

TARS = (".tar", ".tar.gz", ".tgz")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAX_PATTERN = 1_000_000
_NAMES_BESIDE = frozenset({*NAME_FILES, *COLOUR_FILES})
"""Files that say the names of classes, and are no shards."""


@dataclass(frozen=True)
class Shards:
    """One split of a source that streams."""

    where: str
    num_shards: int
    read: Callable[[int], Iterator[StreamCell]]
    """Shard -> its images in order, always the same."""
    identity: str
    """Names and sizes of the shards, where they are known: other ones are other data."""


def open_shards(
    role: Role, settings: SourceConfig, kind: CellKind, in_memory: object = None
) -> tuple[str, dict[str, Shards]]:
    """Open the splits of a source that streams, by the names that they have.

    Args:
        role: of the source.
        settings: of the source.
        kind: what its rows and tar samples become.
        in_memory: stands in for `settings.data`.

    Returns:
        What to call the source, and its splits.

    Raises:
        UserError: there is nothing, or nothing that can be streamed, where the user points.
    """
    if in_memory is not None:
        where = f"{role} dataset"
        return where, _streams(_parts(role, in_memory), kind, where, from_hub=False)
    data = settings.data
    if isinstance(data, SplitPaths):
        found = {}
        for split in ("train", "validation", "test"):
            path = getattr(data, split)
            if path:
                _, parts = _open(role, _text(role, path), settings, kind, one_split=True)
                if len(parts) > 1:
                    raise UserError(
                        f"{role}.data.{split}: {one_line(path)} has splits of its own "
                        f"({listed(parts)}); name the part that is the {split} split"
                    )
                found[split] = next(iter(parts.values()))
        return f"{role}.data", found
    return _open(role, _text(role, data), settings, kind)


def _text(role: Role, data: str | ScenePaths) -> str:
    if isinstance(data, ScenePaths):
        raise UserError(
            f"{role}.data: names folders or files of annotations, which are not streamed; name tar "
            "shards or table files, or take streaming out"
        )
    if not data.strip():
        raise no_data(role)
    return data


def _open(
    role: Role, data: str, settings: SourceConfig, kind: CellKind, *, one_split: bool = False
) -> tuple[str, dict[str, Shards]]:
    where = one_line(data)
    paths = find_files(role, data)
    if paths is None:
        if settings.config_name is None and not Path(data).is_dir() and looks_like_path(data):
            raise UserError(
                f"{role}.data: {where}: there is no such file; name tar shards or table files "
                "(such as shards-{000..010}.tar or *.parquet), or a Hugging Face dataset id"
            )
        return where, _from_hub(role, data, settings, kind)
    if settings.config_name is not None:
        raise UserError(
            f"config_name: {one_line(settings.config_name)!r} is of a Hugging Face data set with "
            f"several configurations, but {where} names files; leave it out"
        )
    splits = {"train": paths} if one_split else by_split(paths[0].parent, paths)
    several = len(splits) > 1
    return where, {
        split: _of_files(own, kind, f"{where} [{split}]" if several else where)
        for split, own in splits.items()
    }


def find_files(role: Role, data: str) -> list[Path] | None:
    """Return the files that a path, a pattern or a folder names; None: it names none.

    Raises:
        UserError: it is a folder without files that can be streamed, or a part of it is missing.
    """
    try:
        path = Path(data).expanduser()
        if path.is_dir():
            return _in_folder(role, path)
        if path.is_file():
            return [path]
        found: list[Path] = []
        for pattern in expand(str(path)):
            if glob.has_magic(pattern):
                names = sorted(glob.glob(pattern))  # noqa: PTH207 - Path's has no absolute patterns
                found += [Path(name) for name in names if Path(name).is_file()]
            elif Path(pattern).is_file():
                found.append(Path(pattern))
            elif _RANGE.search(data):
                raise UserError(
                    f"{role}.data: {one_line(pattern)}: there is no such file, and "
                    f"{one_line(data)} names it; restore it, or name those that are there"
                )
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, no such user
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{role}.data: {one_line(data)!r} is not a path ({one_line(error)})"
        ) from None
    return found or None


def expand(pattern: str) -> Iterator[str]:
    """Yield `a-00.tar` to `a-10.tar` of `a-{00..10}.tar`, as WebDataset writes it.

    Raises:
        UserError: more than a million names.
    """
    found = _RANGE.search(pattern)
    if found is None:
        yield pattern
        return
    first, last = found.groups()
    if abs(int(last) - int(first)) >= _MAX_PATTERN:
        raise UserError(
            f"{one_line(pattern)}: names more than {_MAX_PATTERN:,} files; name fewer, or use *"
        )
    step = 1 if int(first) <= int(last) else -1
    for number in range(int(first), int(last) + step, step):
        name = f"{number:0{len(first)}d}"
        yield from expand(pattern[: found.start()] + name + pattern[found.end() :])


def _in_folder(role: Role, folder: Path) -> list[Path]:
    for place in (folder, folder / "data"):
        if not place.is_dir():
            continue
        tars = sorted(p for p in place.iterdir() if _is_tar(p) and p.is_file())
        files = tars or [p for p in table_files(place) if p.name not in _NAMES_BESIDE]
        if files:
            return files
    raise UserError(
        f"{role}.data: {one_line(folder)}: has no tar shards and no table files, and folders of "
        "single images are not streamed; take streaming out, or pack the images into shards"
    )


def _is_tar(path: Path) -> bool:
    return path.name.lower().endswith(TARS) and not path.name.startswith(".")


def _of_files(paths: list[Path], kind: CellKind, where: str) -> Shards:
    formats = {"tar" if _is_tar(path) else READERS.get(path.suffix.lower()) for path in paths}
    if len(formats) != 1 or None in formats:
        names = listed(path.name for path in paths)
        raise UserError(
            f"{one_line(where)}: {names}: not shards of one known kind; name files of one of "
            f"{listed([*TARS, *READERS], 20)}"
        )
    is_tar = formats == {"tar"}

    def read(number: int) -> Iterator[StreamCell]:
        path = paths[number]
        with whole(path):
            if not path.stat().st_size:
                return iter(())
        return tar_cells(path, kind) if is_tar else _table_cells(path, kind)

    sizes = "\n".join(f"{path.name} {path.stat().st_size}" for path in paths)
    return Shards(one_line(where), len(paths), read, sizes)


def _table_cells(path: Path, kind: CellKind) -> Iterator[StreamCell]:
    import datasets

    reader = READERS[path.suffix.lower()]
    if reader == "csv":
        yield from _csv_cells(path, kind)
        return
    if is_empty(path):
        return
    with whole(path):
        rows = datasets.load_dataset(
            reader,
            data_files={"train": [glob.escape(str(path.absolute()))]},
            split="train",
            streaming=True,
        )
    yield from _dataset_cells(rows, kind, where=str(path), folder=path.parent, from_hub=False)


def _csv_cells(path: Path, kind: CellKind) -> Iterator[StreamCell]:
    """Yield rows as Python's own reader has them: the library's leaves the file open."""
    import datasets

    where = one_line(path)
    with whole(path), path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        columns = list(rows.fieldnames or ())
        features = datasets.Features(dict.fromkeys(columns, datasets.Value("string")))
        cells = kind.of_rows(features, where=where, folder=path.parent, from_hub=False)
        for number, row in enumerate(rows):
            if None in row:
                raise UserError(
                    f"{where}, line {rows.line_num}: has {len(columns) + len(row[None])} fields, "
                    f"and the heading {len(columns)}; quote a field with a separator in it, or "
                    "correct the line"
                )
            values = {
                name: (row[name] or None) if name in cells.pictures else _value(row[name])
                for name in cells.columns
            }
            yield cells.make(values, f"{where}, row {number}")


def _value(text: str | None) -> str | int | None:
    """Return what a field of a CSV file stands for: a whole number, text or nothing."""
    text = (text or "").strip()
    return int(text) if text.isdecimal() else text or None


def _dataset_cells(
    dataset: IterableDataset,
    kind: CellKind,
    *,
    where: str,
    folder: Path | None,
    from_hub: bool,
) -> Iterator[StreamCell]:
    import datasets

    where = one_line(where)
    with whole(where):
        rows = None if dataset.features is not None else iter(dataset)
        if rows is None:
            features = dataset.features
        else:  # what the first row holds
            first = next(rows, None)
            if first is None:
                return
            rows = itertools.chain([first], rows)
            features = datasets.Dataset.from_list([first]).features
        cells = kind.of_rows(features, where=where, folder=folder, from_hub=from_hub)
        if rows is None:
            dataset = dataset.select_columns(list(cells.columns))
            for picture in cells.pictures:
                if isinstance(features[picture], datasets.Image):
                    dataset = dataset.cast_column(picture, datasets.Image(decode=False))
        for number, row in enumerate(dataset if rows is None else rows):
            name = f"{where}, row {number}"
            lost = next((column for column in cells.columns if column not in row), None)
            if lost is not None:
                raise UserError(f"{name}: has no {lost!r} ({listed(row)}); add it")
            yield cells.make(row, name)


def _from_hub(role: Role, name: str, settings: SourceConfig, kind: CellKind) -> dict[str, Shards]:
    import datasets

    missing = f"{role}.data: {name!r} names no files here; the Hugging Face dataset of this name"
    with reading(missing):
        check_hub(name)
        own = () if settings.config_name is None else (settings.config_name,)
        loaded = datasets.load_dataset(name, *own, streaming=True)
    parts = dict(loaded) if isinstance(loaded, Mapping) else {"train": loaded}
    return _streams(parts, kind, name, from_hub=True)


def _parts(role: Role, value: object) -> dict[str, IterableDataset]:
    import datasets

    parts = dict(value) if isinstance(value, Mapping) else {"train": value}
    kinds = {
        type(p).__name__
        for p in parts.values()
        if not isinstance(p, datasets.Dataset | datasets.IterableDataset)
    }
    if kinds or not parts:
        raise UserError(
            f"{role}: data in memory of type {listed(kinds) or type(value).__name__}; give a "
            "datasets.IterableDataset, or a mapping of splits to such"
        )
    return {
        str(name): part.to_iterable_dataset() if isinstance(part, datasets.Dataset) else part
        for name, part in parts.items()
    }


def _streams(
    parts: Mapping[str, IterableDataset], kind: CellKind, where: str, *, from_hub: bool
) -> dict[str, Shards]:
    def of_part(dataset: IterableDataset, where: str) -> Shards:
        total = dataset.num_shards

        def read(number: int) -> Iterator[StreamCell]:
            shard = dataset.shard(num_shards=total, index=number)
            place = where if total == 1 else f"{where}, shard {number}"
            return _dataset_cells(shard, kind, where=place, folder=None, from_hub=from_hub)

        return Shards(one_line(where), total, read, f"{where} {total}")

    several = len(parts) > 1
    return {
        name: of_part(part, f"{where} [{name}]" if several else where)
        for name, part in parts.items()
    }
