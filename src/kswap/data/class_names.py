"""`class_names` for classification: names of classes that a source has as bare numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kswap.data.table import Source, Table
from kswap.data.text import one_line
from kswap.errors import UserError
from kswap.settings import SourceConfig

Names = Mapping[int, str]


def with_names(source: Source, settings: SourceConfig) -> Source:
    """Return a source whose class numbers have the config's names.

    Raises:
        UserError: a number has none, or the classes are no numbers.
    """
    names = names_of(settings)
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


def names_of(settings: SourceConfig) -> Names | None:
    """Return the config's names of class numbers; None: it has none.

    Raises:
        UserError: a name is empty or given to two numbers.
    """
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
