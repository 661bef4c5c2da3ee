"""`class_names` for classification: names of classes that a source has as bare numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from kswap.data.table import Source, Table
from kswap.data.tar_shards import Cell
from kswap.data.text import one_line
from kswap.errors import UserError
from kswap.settings import SourceConfig

Names = Mapping[int, str]


def with_names(source: Source, settings: SourceConfig) -> Source:
    """Return a source whose class numbers have the config's names.

    Raises:
        UserError: a number has none, or the classes are no numbers.
    """
    names = _names(settings)
    if names is None:
        return source
    splits = {split: _with_names(table, names) for split, table in source.splits.items()}
    return Source(source.where, splits, source.notes)


def _with_names(table: Table, names: Names) -> Table:
    used = [name if table.counts[name] else None for name in table.classes]
    classes = tuple(
        old if name is None else named(name, names, table.where)
        for old, name in zip(table.classes, used, strict=True)
    )
    return replace(table, classes=classes, numbered=False)


def named_cells(cells: Iterator[Cell], settings: SourceConfig) -> Iterator[Cell]:
    """Yield cells of a stream under the config's names.

    Raises:
        UserError: as `with_names`.
    """
    names = _names(settings)
    for cell in cells:
        if names is None or cell.label is None:
            yield cell
        else:
            yield cell._replace(label=named(cell.label, names, cell.name))


def named(label: str | int, names: Names, where: str) -> str:
    """Return the name of a class number, which may be written as text.

    Raises:
        UserError: it has none, or is no number.
    """
    if not str(label).isdecimal():
        raise UserError(
            f"{where}: the class {one_line(label, 60)!r} is no number, and class_names names "
            "numbers; take class_names out, or write rename"
        )
    if int(label) not in names:
        raise UserError(
            f"{where}: the class {one_line(label, 60)} has no name; give the names of the numbers "
            "in class_names"
        )
    return names[int(label)]


def _names(settings: SourceConfig) -> Names | None:
    given = settings.class_names
    if given is None:
        return None
    names = dict(given) if isinstance(given, dict) else dict(enumerate(given))
    seen: dict[str, int] = {}
    for number, name in names.items():
        if not name.strip():
            raise UserError(f"class_names: class {number} has an empty name; give it one")
        other = seen.setdefault(name, number)
        if other != number:
            raise UserError(
                f"class_names: {other} and {number} are both called {one_line(name)!r}; a name "
                "stands for one class, give one of them another name"
            )
    return names
