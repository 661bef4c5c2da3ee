"""From a config to the data of a swap: open, name, decode, split, gather.

Everything that a user may want to know but need not decide is collected in `SwapData.notes`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kswap.config import SwapConfig
from kswap.data.cells import WholeCells
from kswap.data.decode import (
    Decoded,
    Item,
    Progress,
    check_size,
    class_array,
    content_hash,
    decode_all,
    read_item,
)
from kswap.data.images import skipped
from kswap.data.left_out import notes_on_gaps, notes_on_splits
from kswap.data.pixels import Fitter
from kswap.data.roles import Roles, assign_roles
from kswap.data.sets import ImageSet, SwapData
from kswap.data.sources import open_source
from kswap.data.splits import Arrangement, Cut, Picture, arrange
from kswap.data.stream_makers import WholeMaker
from kswap.data.stream_sample import open_sources, row_of
from kswap.data.streaming import StreamedImages
from kswap.data.table import Source
from kswap.data.text import listed, one_line
from kswap.errors import UserError
from kswap.settings import ROLES, SPLITS, Role, SourceConfig, Split, TaskName, forgets, learns

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def build_data(
    config: SwapConfig,
    *,
    task: TaskName = "classification",
    id2label: Mapping[int, str],
    processor: Any,
    forgotten: Collection[str] = (),
    in_memory: Mapping[Role, Dataset | DatasetDict] | None = None,
    cache_dir: Path | None = None,
    on_progress: Progress | None = None,
) -> SwapData:
    """Return the images of every role, cut into train, validation and test.

    Args:
        config: names the sources; `in_memory` stands in for them where given.
        task: what the model does; segmentation has masks, detection boxes.
        id2label: rows of the model's head.
        processor: the model's image processor (transformers).
        forgotten: labels that an earlier swap forgot; they are not retained.
        in_memory: data sets by role.
        cache_dir: where images lie that exceed `data.memory_limit_bytes`; None: a temporary folder.
        on_progress: called with images decoded and images in all.

    Raises:
        UserError: a source, a class name or an image is not as it has to be.
    """
    in_memory = in_memory or {}
    _check_roles(in_memory)
    settings: dict[Role, SourceConfig] = {}
    for role in ROLES:
        given = getattr(config, role)
        if given is not None or in_memory.get(role) is not None:
            settings[role] = given or SourceConfig()
    unused = _drop_unlearned(config.order, settings)
    given_roles = tuple(role for role in settings if in_memory.get(role) is not None)
    if task != "classification":
        from kswap.data.scene_build import build_scenes

        scenes = build_scenes(
            config,
            settings,
            task=task,
            id2label=id2label,
            processor=processor,
            forgotten=forgotten,
            in_memory=in_memory,
            cache_dir=cache_dir,
            on_progress=on_progress,
        )
        return replace(scenes, notes=(*unused, *scenes.notes), in_memory=given_roles)
    sources, shards = open_sources(
        settings, in_memory, kind_of=lambda _, one: WholeCells(one), open_whole=open_source
    )
    roles = assign_roles(sources, settings, id2label, forgotten)
    cuts = {
        role: Cut.of(source.splits, config.data, settings[role]) for role, source in sources.items()
    }
    items = _list_items(sources, roles)
    fitter = Fitter(processor)
    decoded = decode_all(
        items,
        fitter,
        cuts,
        seed=config.seed,
        data=config.data,
        cache_dir=cache_dir,
        on_progress=on_progress,
    )
    with decoded.store:
        good = [i for i, digest in enumerate(decoded.digests) if digest is not None]
        pictures = [_picture(items[i], decoded.digests[i]) for i in good]
        arrangement = arrange(pictures, cuts, seed=config.seed)
        splits = dict(zip(good, arrangement.splits, strict=True))
        notes = _check_classes(roles, sources, settings, items, decoded, splits, arrangement)
        sets = _gather(sources, items, decoded, splits, fitter)
    held = frozenset(
        digest
        for i, split in splits.items()
        if split in ("test", "validation") and (digest := decoded.digests[i]) is not None
    )
    streamed = {
        role: StreamedImages(
            own,
            WholeMaker(
                row_of(role, roles, settings[role], id2label, sources[role]),
                fitter,
                decoded.example,
            ),
            held,
            settings[role],
            config.data,
            config.seed,
        )
        for role, own in shards.items()
    }
    source_notes = [note for source in sources.values() for note in source.notes]
    every_note = [
        *unused,
        *source_notes,
        *roles.notes,
        *([skipped(decoded.bad)] if decoded.bad else ()),
        *notes_on_splits(arrangement, cuts, copies_within="a class and split"),
        *notes,
    ]
    return SwapData(
        id2label=roles.id2label,
        num_base_classes=roles.num_base_classes,
        class_ids=roles.class_ids,
        sets=sets,
        pixels=fitter.pixels,
        notes=tuple(dict.fromkeys(one_line(note, 2000) for note in every_note)),
        streamed=streamed,
        in_memory=given_roles,
    )


def _drop_unlearned(order: str, settings: dict[Role, SourceConfig]) -> list[str]:
    """Take out the source of `learn` where no stage learns; return what to say of idle sources.

    Rows of the head that nothing trains would answer in the saved model. Classes to forget are rows
    of the base and stay: how much of them is lost without a stage that forgets is worth a score.
    """
    notes = []
    if "learn" in settings and not learns(order):
        del settings["learn"]
        notes.append(f"learn: left out, as order {order} has no stage that learns")
    if "forget" in settings and not forgets(order):
        notes.append(
            f"forget: order {order} has no stage that forgets; its classes are scored, and not "
            "marked as forgotten"
        )
    return notes


def _check_roles(in_memory: Mapping[Any, object]) -> None:
    for role in in_memory:
        if role not in ROLES:
            raise UserError(
                f"{role!r} is not a role; data in memory is given for {', '.join(ROLES)}"
            )


def _list_items(sources: Mapping[Role, Source], roles: Roles) -> list[Item]:
    """Return the images whose class has a role; the others are never read."""
    items = []
    for role, source in sources.items():
        for split, table in source.splits.items():
            rows = np.asarray(
                [roles.of_source[role].get(name, -1) for name in table.classes] + [-1]
            )
            class_ids = rows[table.labels]  # label -1 reads the last entry, -1
            items += [
                Item(role, split, int(class_ids[row]), table, int(row))
                for row in np.flatnonzero(class_ids >= 0)
            ]
    return items


def _picture(item: Item, digest: bytes | None) -> Picture:
    assert digest is not None
    return Picture(item.role, item.split, item.class_id, digest)


def _check_classes(
    roles: Roles,
    sources: Mapping[Role, Source],
    settings: Mapping[Role, SourceConfig],
    items: list[Item],
    decoded: Decoded,
    splits: Mapping[int, Split | None],
    arrangement: Arrangement,
) -> list[str]:
    """Refuse classes that cannot be trained or roles that cannot be scored; note lesser gaps."""
    # A class that nobody named, of which there is little, is no reason to refuse the others.
    strict = {role: role != "retain" or own.classes is not None for role, own in settings.items()}
    for role, class_id in arrangement.lonely:
        if settings[role].streaming or not strict[role]:  # the stream may have more of it
            continue
        raise UserError(
            f"{role}: class {one_line(roles.id2label[class_id])!r} has one image that is not a "
            f"copy in {sources[role].where}; it needs two, one to train and one to test (or a test "
            "split of its own)"
        )
    before = Counter((item.role, item.class_id) for item in items if item.split == "train")
    after = Counter(
        (items[i].role, items[i].class_id, split)
        for i, split in splits.items()
        if split is not None
    )
    notes = []
    for role, source in sources.items():
        class_ids = sorted(set(roles.of_source[role].values()))
        no_train = [i for i in class_ids if not after[role, i, "train"]]
        no_test = [i for i in class_ids if not after[role, i, "test"]]
        lost = [i for i in no_train if strict[role] or before[role, i]]
        if lost:
            raise UserError(
                _no_train_message(
                    role, source, roles.id2label[lost[0]], before[role, lost[0]], decoded
                )
                + (f", or raise {role}.sample_images" if settings[role].streaming else "")
            )
        if len(no_test) == len(class_ids):
            raise UserError(
                f"{role}: no test images of {listed(roles.id2label[i] for i in no_test)} in "
                f"{source.where}; add some, or leave the test split out, then one is cut from train"
            )
        notes += notes_on_gaps(role, roles, no_train=no_train, no_test=no_test)
    return notes


def _no_train_message(role: Role, source: Source, label: str, before: int, decoded: Decoded) -> str:
    start = f"{role}: no train images of {one_line(label)!r}"
    if not before:
        return f"{start} in {source.where}; add some, or leave the class out"
    reasons = "they are also in a test or validation split" + (
        " or cannot be decoded" if decoded.bad else ""
    )
    return (
        f"{start} are left of {before} in {source.where}, {reasons}; "
        "add images, or leave the class out"
    )


def _gather(
    sources: Mapping[Role, Source],
    items: list[Item],
    decoded: Decoded,
    splits: Mapping[int, Split | None],
    fitter: Fitter,
) -> dict[Role, dict[Split, ImageSet]]:
    members: dict[tuple[Role, Split], list[int]] = {}
    for i, split in splits.items():
        if split is not None:
            members.setdefault((items[i].role, split), []).append(i)

    def read(i: int) -> Any:
        kept = decoded.store.take(i)
        if kept is not None:
            return kept
        image = read_item(items[i])  # rare: see decode.may_be_used
        if content_hash(image) != decoded.digests[i]:
            name = one_line(items[i].table.name(items[i].row))
            raise UserError(f"{name}: has changed while the data was read; run again")
        fitted = fitter(image)
        check_size(fitted, decoded.example, items[i])
        return fitted

    sets: dict[Role, dict[Split, ImageSet]] = {}
    for role in sources:
        sets[role] = {}
        for split in SPLITS:
            chosen = members.get((role, split), [])
            chosen.sort(key=lambda i: (items[i].class_id, decoded.digests[i] or b""))
            images = decoded.store.gather(f"{role}-{split}", chosen, read, decoded.example)
            sets[role][split] = ImageSet(images, class_array([items[i].class_id for i in chosen]))
    return sets
