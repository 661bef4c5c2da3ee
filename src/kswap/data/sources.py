"""What a user may name as data, opened: folders, table files, hub ids, datasets in memory."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

from kswap.data.class_names import with_names
from kswap.data.folders import folder_source
from kswap.data.hf_tables import dataset_table
from kswap.data.table import SPLIT_NAMES, Source, Table, source_of_splits
from kswap.data.text import listed, one_line
from kswap.errors import UserError
from kswap.settings import Role, ScenePaths, SourceConfig, SplitPaths

READERS = {
    ".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".feather": "arrow",
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv",
}  # fmt: skip
"""Suffix of a table file -> reader of the datasets library."""
TableMaker = Callable[..., Table]
"""As `dataset_table`: what becomes of a data set of rows; another for segmentation and
detection."""
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SUFFIX = re.compile(r"\.[A-Za-z]\w{0,7}")


def open_source(role: Role, settings: SourceConfig, in_memory: object = None) -> Source:
    """Open the data of a role; `in_memory` (Dataset, DatasetDict) stands in for the config's.

    Raises:
        UserError: there is nothing, or nothing usable, where the user points.
    """
    return with_names(_opened(role, settings, in_memory), settings)


def _opened(role: Role, settings: SourceConfig, in_memory: object) -> Source:
    if in_memory is not None:
        return memory_source(role, in_memory, settings)
    data = settings.data
    if isinstance(data, SplitPaths):
        parts = {split: getattr(data, split) for split in ("train", "validation", "test")}
        tables = {}
        for split, path in parts.items():
            if _is_path(path, role):
                tables[split] = single_table(role, split, path, _open(role, path, settings))
        return source_of_splits(f"{role}.data", tables)
    if not _is_path(data, role):
        raise no_data(role)
    return _open(role, data, settings)


def no_data(role: Role) -> UserError:
    """Return what to say when a source names nothing."""
    return UserError(
        f"{role}.data: is empty; name a folder, a table file or a Hugging Face dataset id"
    )


def _is_path(data: str | ScenePaths | None, role: Role) -> TypeGuard[str]:
    if isinstance(data, ScenePaths):
        raise UserError(
            f"{role}.data: has annotations, but the model classifies whole images; name a folder "
            "with one folder a class, or a model for segmentation or detection"
        )
    return bool(data and data.strip())


def single_table(role: Role, split: str, path: str, source: Source) -> Table:
    """Return the only table of a source that is named for one split.

    Raises:
        UserError: it has splits of its own.
    """
    if len(source.splits) > 1:
        raise UserError(
            f"{role}.data.{split}: {source.where} has splits of its own ({listed(source.splits)}); "
            f"name the part that is the {split} split, or write data: {one_line(path)}"
        )
    return next(iter(source.splits.values()))


def _open(role: Role, data: str, settings: SourceConfig) -> Source:
    path = local_path(role, data)
    if path is None:
        return hub_source(role, data, settings)
    if path.is_file():
        return file_source(path, settings)
    if settings.config_name is not None:
        return configured_source(path, settings)
    source = table_source(path, settings)
    if source is not None:
        return source
    for key in ("image_column", "label_column"):
        if getattr(settings, key) is not None:
            raise UserError(
                f"{key}: {getattr(settings, key)!r} is a column of a table, but "
                f"{one_line(path)} is an image folder; leave it out, or name a table file"
            )
    return folder_source(path)


def local_path(role: Role, data: str) -> Path | None:
    """Return the folder or file that `data` names; None: it may be the id of a data set.

    Raises:
        UserError: it is written like a path, but there is nothing.
    """
    try:
        path = Path(data).expanduser()
        exists = path.is_dir() or path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, no such user
        raise UserError(
            f"{role}.data: {one_line(data)!r} is not a path ({one_line(error)})"
        ) from None
    if exists:
        return path
    if looks_like_path(data):
        pattern = " (patterns need streaming: true)" if set("*{") & set(data) else ""
        raise UserError(
            f"{role}.data: {one_line(data)}: there is no such folder or file{pattern}; "
            "name an image folder, a table file or a Hugging Face dataset id"
        )
    return None


def file_source(path: Path, settings: SourceConfig, table: TableMaker = dataset_table) -> Source:
    """Open a table file.

    Raises:
        UserError: it is none, or has no usable columns.
    """
    _check_no_config(settings, f"{one_line(path)} is a file")
    return _files_source(path.parent, {"train": [path]}, settings, where=str(path), table=table)


def looks_like_path(data: str) -> bool:
    """Whether a name is written like a path, and not like the id of a data set."""
    first, *rest = data.split("/")
    return (
        data.startswith((".", "/", "~"))
        or len(rest) > 1
        or (len(rest) == 1 and Path(first).is_dir())  # data/brids, beside a folder data
        or bool(_SUFFIX.fullmatch(Path(data).suffix))
        or not _HUB_ID.fullmatch(data)
    )


def table_source(
    path: Path,
    settings: SourceConfig,
    table: TableMaker = dataset_table,
    but: Collection[str] = (),
) -> Source | None:
    """Open a folder with a saved data set or table files; None: it has none.

    Args:
        path: the folder, or one with them in `data` or in a folder for each split.
        settings: of the source.
        table: what makes a table of a data set.
        but: suffixes of files that are something else here.

    Raises:
        UserError: they cannot be read, or have no usable columns.
    """
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        import datasets

        with reading(str(path)):
            saved = datasets.load_from_disk(str(path))
        return _dataset_source(saved, settings, where=str(path), folder=path, table=table)
    for folder in (path, path / "data"):  # the hub keeps the table files of a data set in "data"
        files = [file for file in table_files(folder) if file.suffix.lower() not in but]
        if files:
            splits = by_split(folder, files)
            return _files_source(folder, splits, settings, where=str(path), table=table)
    tables = {}
    for folder in _folders_of_splits(path):  # such as train/metadata.jsonl beside its images
        source = table_source(folder, settings, table, but)
        if source is not None:
            tables[folder.name] = next(iter(source.splits.values()))
    return source_of_splits(str(path), tables) if tables else None


def _folders_of_splits(path: Path) -> list[Path]:
    """Return the folders in a folder, where all are called like a split and hold no others."""
    folders = sorted(one for one in path.iterdir() if one.is_dir() and one.name[0] not in "._")
    if any(folder.name.lower() not in SPLIT_NAMES for folder in folders):
        return []
    try:
        nested = any(one.is_dir() for folder in folders for one in folder.iterdir())
    except OSError:  # told by whoever reads it as an image folder
        return []
    return [] if nested else folders


def table_files(folder: Path) -> list[Path]:
    """Return the table files in a folder, sorted; none where it is no folder.

    Raises:
        UserError: it cannot be read.
    """
    if not folder.is_dir():
        return []
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in READERS)
    except OSError as error:
        raise UserError(
            f"{one_line(folder)}: cannot be read ({one_line(error.strerror)})"
        ) from None
    return [path for path in files if path.is_file() and not path.name.startswith(".")]


def is_empty(path: Path) -> bool:
    """Whether a table file has no rows, which the datasets library reads as damage.

    Of a file that cannot be read its reader tells.
    """
    import pyarrow
    from pyarrow import parquet

    kind = READERS.get(path.suffix.lower())
    try:
        if kind == "parquet":
            return bool(parquet.read_metadata(path).num_rows == 0)
        if kind == "arrow":
            with path.open("rb") as file:
                return not any(batch.num_rows for batch in pyarrow.ipc.open_stream(file))
        with path.open("rb") as file:
            heading = kind == "csv" and bool(next(filter(bytes.strip, file), b""))
            return (kind != "csv" or heading) and not any(map(bytes.strip, file))
    except (OSError, pyarrow.ArrowException):
        return False


def by_split(folder: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Sort table files by the split at the start of their names; without any, all are one table.

    Raises:
        UserError: some have such a name and others have not.
    """
    named: dict[str, list[Path]] = {}
    rest = []
    for path in files:
        word = re.split(r"[^a-z]", path.name.lower(), maxsplit=1)[0]
        if word in SPLIT_NAMES:
            named.setdefault(word, []).append(path)
        else:
            rest.append(path)
    if not named:
        return {"train": files}
    if rest:
        raise UserError(
            f"{one_line(folder)}: cannot tell the split of {listed(path.name for path in rest)}; "
            "start the name with train, validation or test, or move it away"
        )
    return named


def _files_source(
    folder: Path,
    files: Mapping[str, list[Path]],
    settings: SourceConfig,
    *,
    where: str,
    table: TableMaker,
) -> Source:
    import datasets

    kinds = {READERS.get(path.suffix.lower()) for paths in files.values() for path in paths}
    if len(kinds) != 1 or None in kinds:
        names = listed(path.name for paths in files.values() for path in paths)
        is_tar = any(path.suffix.lower() == ".tar" for paths in files.values() for path in paths)
        shards = "; tar shards need streaming: true" if is_tar else ""
        raise UserError(
            f"{one_line(where)}: {names}: not table files of one known kind; name files of one of "
            f"{listed(READERS)}{shards}"
        )
    (kind,) = kinds
    is_tsv = any(path.suffix.lower() == ".tsv" for paths in files.values() for path in paths)
    options = {"sep": "\t"} if is_tsv else {}
    full = {split: [p for p in paths if not is_empty(p)] for split, paths in files.items()}
    empty = [split for split, paths in full.items() if not paths]
    if empty:
        place = where if len(full) == 1 else f"{where} [{empty[0]}]"
        raise UserError(f"{one_line(place)}: has no images; name a source that has some")
    patterns = {
        split: [glob.escape(str(path.absolute())) for path in paths]
        for split, paths in full.items()
    }
    with reading(where):
        loaded = datasets.load_dataset(kind, data_files=patterns, **options)
    return _dataset_source(loaded, settings, where=where, folder=folder, table=table)


def configured_source(
    path: Path, settings: SourceConfig, table: TableMaker = dataset_table
) -> Source:
    """Open one configuration of a folder that is laid out like a data set of the hub.

    Raises:
        UserError: it has no such configuration, or no usable columns.
    """
    import datasets

    where = f"{path} [{settings.config_name}]"
    with reading(where):
        loaded = datasets.load_dataset(str(path.absolute()), settings.config_name)
    return _dataset_source(loaded, settings, where=where, folder=path, table=table)


def _check_no_config(settings: SourceConfig, what: str) -> None:
    if settings.config_name is not None:
        raise UserError(
            f"config_name: {one_line(settings.config_name)!r} is of a Hugging Face data set with "
            f"several configurations, but {what}; leave it out, or name the data set's id or folder"
        )


def hub_source(
    role: Role, name: str, settings: SourceConfig, table: TableMaker = dataset_table
) -> Source:
    """Open a data set of the Hugging Face hub.

    Raises:
        UserError: there is none, it cannot be reached, or it has no usable columns.
    """
    import datasets

    missing = (
        f"{role}.data: {name!r} is no folder or file here; the Hugging Face dataset of this name"
    )
    with reading(missing):
        check_hub(name)
        own = () if settings.config_name is None else (settings.config_name,)
        loaded = datasets.load_dataset(name, *own)
    return _dataset_source(loaded, settings, where=name, folder=None, from_hub=True, table=table)


def check_hub(name: str) -> None:
    """Ask once whether the hub has a data set, unless it was loaded before.

    Without a network, or with a wrong name, `load_dataset` would try again for half a minute.
    """
    from datasets import config
    from huggingface_hub import HfApi, constants

    loaded = Path(config.HF_DATASETS_CACHE, name.replace("/", "___"))
    downloaded = Path(constants.HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}")
    if not loaded.exists() and not downloaded.exists():
        HfApi().dataset_info(name, timeout=10)


def memory_source(
    role: Role, value: object, settings: SourceConfig, table: TableMaker = dataset_table
) -> Source:
    """Open a Dataset or DatasetDict.

    Raises:
        UserError: it is neither, or has no usable columns.
    """
    import datasets

    _check_no_config(settings, f"the data of {role} is given in memory")
    parts = value.values() if isinstance(value, Mapping) else [value]
    kinds = {type(part).__name__ for part in parts if not isinstance(part, datasets.Dataset)}
    if kinds or not parts:
        raise UserError(
            f"{role}: data in memory of type {listed(kinds) or type(value).__name__}; "
            "give a datasets.Dataset or a DatasetDict (a stream needs "
            f"{role}.streaming: true)"
        )
    return _dataset_source(value, settings, where=f"{role} dataset", folder=None, table=table)


def _dataset_source(
    loaded: Any,
    settings: SourceConfig,
    *,
    where: str,
    folder: Path | None,
    from_hub: bool = False,
    table: TableMaker,
) -> Source:
    where = one_line(where)
    if not isinstance(loaded, Mapping):
        loaded = {"train": loaded}
    tables = {}
    for split, dataset in loaded.items():
        place = where if len(loaded) == 1 else f"{where} [{split}]"
        tables[str(split)] = table(dataset, settings, where=place, folder=folder, from_hub=from_hub)
    return source_of_splits(where, tables)


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Load quietly; every failure of the datasets library becomes one line."""
    from datasets import logging
    from datasets.utils import (
        disable_progress_bars,
        enable_progress_bars,
        is_progress_bar_enabled,
    )

    restore: Callable[[], None] = (
        enable_progress_bars if is_progress_bar_enabled() else disable_progress_bars
    )
    level = logging.get_verbosity()
    disable_progress_bars()
    logging.set_verbosity(logging.CRITICAL)  # it logs what it raises
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # not found, offline, gated, damaged, needs a script of its own …
        cause = error.__cause__ or error
        if "Config name is missing" in str(error):
            names = re.search(r"available configs: (\[.*?\])", str(error))
            raise UserError(
                f"{one_line(where)}: has several configurations "
                f"({one_line(names.group(1)) if names else 'see its page'}); "
                "name one in config_name"
            ) from None
        raise UserError(
            f"{one_line(where)}: cannot be loaded ({type(cause).__name__}: {one_line(cause)}); "
            "check the name, the file and the network"
        ) from None
    finally:
        logging.set_verbosity(level)
        restore()
