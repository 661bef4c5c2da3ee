"""What is read of a stream beforehand: a bounded sample, from all its shards alike.

It is a source like any other: its classes get their roles, it is cut into test, validation and
train, and its pictures are known by their content, so that the stream passes over those that are
held out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from kswap.data.cells import CellKind, Sample, StreamCell
from kswap.data.labels import LabelIndex, plain
from kswap.data.roles import Roles
from kswap.data.shards import Shards, open_shards
from kswap.data.stream_makers import PASSED, UNKNOWN
from kswap.data.table import Source, Table, source_of_splits
from kswap.errors import UserError
from kswap.settings import Role, SourceConfig

_MAX_SHARDS = 64
"""Shards that a sample is taken from, while they have enough images."""
_MAX_LOOKED_AT = 50
"""Images that are looked at for each one of the sample, where classes are named."""
_MAX_NAMES = 1 << 16
"""Class names whose rows are kept."""


def open_sources(
    settings: Mapping[Role, SourceConfig],
    in_memory: Mapping[Role, Any],
    *,
    kind_of: Callable[[Role, SourceConfig], CellKind],
    open_whole: Callable[[Role, SourceConfig, Any], Source],
) -> tuple[dict[Role, Source], dict[Role, Shards]]:
    """Return the source of each role, of a stream its sample, and the shards of each stream.

    Args:
        settings: of the roles that have a source.
        in_memory: data sets by role, which stand in for the config's.
        kind_of: what the rows and tar samples of a stream become.
        open_whole: opens a source that does not stream.

    Raises:
        UserError: a source is not as it has to be.
    """
    sources: dict[Role, Source] = {}
    shards: dict[Role, Shards] = {}
    for role, one in settings.items():
        given = in_memory.get(role)
        if one.streaming:
            sources[role], shards[role] = streamed_source(role, one, kind_of(role, one), given)
        else:
            sources[role] = open_whole(role, one, given)
    return sources, shards


def streamed_source(
    role: Role, settings: SourceConfig, kind: CellKind, in_memory: object = None
) -> tuple[Source, Shards]:
    """Return a sample of a stream as a source, and the shards to train on.

    Raises:
        UserError: there is nothing, or nothing usable, where the user points.
    """
    where, splits = open_shards(role, settings, kind, in_memory)
    tables, notes = {}, []
    for name, shards in splits.items():
        sample = _sample_of(shards, settings, kind)
        tables[name] = _table_of(sample, shards, kind)
        what = "is read whole" if sample.is_whole else f"has a sample of {sample.num_read:,} images"
        notes.append(
            f"{role}: {shards.where} streams; beforehand it {what} "
            f"({len(sample.cells):,} kept, {role}.sample_images)"
        )
    source = source_of_splits(where, tables)
    trained = next(name for name, table in tables.items() if table is source.splits["train"])
    if "test" not in source.splits:
        notes.append(f"{role}: its test images are cut from the sample, and left out of training")
    if role == "learn" and settings.classes is None:
        notes.append("learn: classes that are not in the sample are not learned")
    where = source.splits["train"].where
    return Source(where, source.splits, (*source.notes, *notes)), splits[trained]


def row_of(
    role: Role,
    roles: Roles,
    settings: SourceConfig,
    id2label: Mapping[int, str],
    source: Source,
) -> Callable[[str], int]:
    """Return what says the row of a class by its name in the source, PASSED or UNKNOWN.

    Also of classes that are not in the sample, unless they would have to be learned.
    """
    known, class_ids = roles.of_source[role], set(roles.class_ids[role])
    model, sampled = LabelIndex(id2label), frozenset(source.classes)

    @functools.lru_cache(_MAX_NAMES)
    def find(name: str) -> int:
        if name in known:
            return known[name]
        if role == "learn":
            return PASSED if name in sampled else UNKNOWN
        found = model.find(settings.rename.get(name, name))
        if len(found) != 1:
            return UNKNOWN
        return found[0] if found[0] in class_ids else PASSED

    return find


def _sample_of(shards: Shards, settings: SourceConfig, kind: CellKind) -> Sample:
    """Read images until there are enough; of classes that are not named, one each.

    Raises:
        UserError: a shard is damaged, or annotations are.
    """
    most = settings.sample_images
    named = settings.classes and {form for name in settings.classes for form in _forms(name)}
    sample = Sample()
    seen: set[str] = set()
    num_wanted = num_finished = 0
    order = _order(shards.num_shards)
    for place, number in enumerate(order):
        left = max(1, min(len(order), _MAX_SHARDS) - place)
        quota = -(-(most - num_wanted) // left)
        limit = -(-(_MAX_LOOKED_AT * most - sample.num_read) // left)
        found = looked_at = 0
        for cell in _until(shards.read(number), limit):
            looked_at += 1
            names = kind.names(cell)
            sample.num_of.update(names)
            sample.num_without += not names
            is_wanted = not named or any(
                named & _forms(settings.rename.get(name, name)) for name in names
            )
            new = (names or {""}) - seen
            if is_wanted or new:
                sample.cells.append(cell)
                sample.names.append(names)
                seen |= new
            found += is_wanted
            if found >= quota:
                break
        else:
            num_finished += looked_at < limit
        sample.num_read += looked_at
        num_wanted += found
        if num_wanted >= most or sample.num_read >= _MAX_LOOKED_AT * most:
            break
    sample.is_whole = num_finished == shards.num_shards
    return sample


def _until(cells: Iterator[StreamCell], limit: int) -> Iterator[StreamCell]:
    for number, cell in enumerate(cells, start=1):
        yield cell
        if number >= limit:
            return


def _order(number: int) -> list[int]:
    """Return shards, first some evenly spaced ones, then the others."""
    first = sorted({int(place) for place in np.linspace(0, number - 1, min(number, _MAX_SHARDS))})
    return [*first, *sorted(set(range(number)) - set(first))]


def _forms(name: str) -> set[str]:
    return {plain(name), *map(plain, name.split(","))} - {""}


def _table_of(sample: Sample, shards: Shards, kind: CellKind) -> Table:
    """Return the sample as a table.

    Raises:
        UserError: it is empty.
    """
    if not sample.cells:
        raise UserError(f"{shards.where}: has no images; name a source that has some")
    if sample.is_whole:
        return kind.table(sample, shards.where)
    return kind.table(sample, f"a sample of {sample.num_read:,} images of {shards.where}")
