"""From a config to the data of a swap, for segmentation and detection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kswap.config import SwapConfig
from kswap.data.decode import Item, Progress
from kswap.data.images import skipped
from kswap.data.left_out import notes_on_gaps, notes_on_splits
from kswap.data.pixels import Fitter
from kswap.data.roles import Roles, assign_roles
from kswap.data.scene_cells import SceneCells
from kswap.data.scene_decode import Scene, SceneReader, Scenes, decode_scenes
from kswap.data.scene_gather import SceneGatherer
from kswap.data.scene_rows import rows_of
from kswap.data.scene_sources import SceneOpener, is_partial
from kswap.data.scene_splits import ScenePicture, arrange_scenes, rarest_classes
from kswap.data.scene_stream import SceneMaker, scene_row_of
from kswap.data.scenes import SceneTable
from kswap.data.sets import SwapData
from kswap.data.splits import Arrangement, Cut
from kswap.data.stream_sample import open_sources
from kswap.data.streaming import StreamedImages
from kswap.data.table import Source
from kswap.data.text import count, listed, one_line
from kswap.errors import UserError
from kswap.settings import Role, SourceConfig, Split, TaskName


def build_scenes(
    config: SwapConfig,
    settings: Mapping[Role, SourceConfig],
    *,
    task: TaskName,
    id2label: Mapping[int, str],
    processor: Any,
    forgotten: Collection[str],
    in_memory: Mapping[Role, Any],
    cache_dir: Path | None,
    on_progress: Progress | None,
) -> SwapData:
    """Return what `build_data` returns, for images that hold several classes.

    Args:
        config: of the run.
        settings: of the roles that have a source.
        task: segmentation or detection.
        id2label: rows of the model's head.
        processor: the model's image processor.
        forgotten: labels that an earlier swap forgot.
        in_memory: data sets by role.
        cache_dir: where arrays lie that exceed the memory limit.
        on_progress: called with images decoded and images in all.

    Raises:
        UserError: a source, a class name, an image or its annotations are not as they have to be.
    """
    fitter = Fitter(processor, dense=True)
    reduce_zero = bool(getattr(processor, "do_reduce_labels", False))
    skip_bad = config.data.on_bad_image == "skip"

    def kind_of(role: Role, one: SourceConfig) -> SceneCells:
        return SceneCells(one, task, id2label, reduce_zero, is_partial(role, one), skip_bad)

    def open_whole(role: Role, one: SourceConfig, given: object) -> Source:
        opener = SceneOpener(role, one, task, id2label, reduce_zero=reduce_zero, skip_bad=skip_bad)
        return opener.open(given)

    sources, shards = open_sources(settings, in_memory, kind_of=kind_of, open_whole=open_whole)
    roles = assign_roles(sources, settings, id2label, forgotten)
    rows = {
        role: rows_of(role, source, roles, one.rename, partial=is_partial(role, one))
        for (role, source), one in zip(sources.items(), settings.values(), strict=True)
    }
    cuts = {
        role: Cut.of(source.splits, config.data, settings[role]) for role, source in sources.items()
    }
    items, left_out = _list_items(sources, roles)
    reader = SceneReader(items, fitter, rows)
    decoded = decode_scenes(
        reader,
        cuts,
        seed=config.seed,
        data=config.data,
        cache_dir=cache_dir,
        on_progress=on_progress,
    )
    with decoded.store:
        good = [i for i, scene in enumerate(decoded.scenes) if scene is not None and scene.own]
        pictures = [_picture(items[i], decoded.scenes[i]) for i in good]
        arrangement = arrange_scenes(pictures, cuts, seed=config.seed)
        splits = dict(zip(good, arrangement.splits, strict=True))
        class_ids = dict(zip(good, rarest_classes(pictures), strict=True))
        notes = _check_classes(roles, sources, settings, pictures, arrangement)
        gather = SceneGatherer(reader, decoded, splits, class_ids, config.data, cache_dir, task)
        partials = {role for role, one in settings.items() if is_partial(role, one)}
        sets = gather.sets(sources, rows, complete=set(sources) - partials)
    held = frozenset(
        scene.digest
        for i, split in splits.items()
        if split in ("test", "validation") and (scene := decoded.scenes[i]) is not None
    )
    streamed = {
        role: StreamedImages(
            own,
            SceneMaker(
                scene_row_of(
                    role, roles, rows[role], settings[role].rename, partial=role in partials
                ),
                # every picture has background: no picture is there for its sake
                frozenset(roles.class_ids[role]) - {rows[role].background},
                rows[role],
                fitter,
                complete=role not in partials,
                num_of=_num_of(roles.of_source[role], sources[role]),
            ),
            held,
            settings[role],
            config.data,
            config.seed,
        )
        for role, own in shards.items()
    }
    every_note = [
        *(note for source in sources.values() for note in source.notes),
        *roles.notes,
        *fitter.notes,
        *left_out,
        *_notes(items, decoded, arrangement, cuts),
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
    )


def _num_of(rows: Mapping[str, int], source: Source) -> Counter[int]:
    """Return how many images of a source hold each row."""
    counted: Counter[int] = Counter()
    for name, number in source.counts.items():
        if name in rows:
            counted[rows[name]] += number
    return counted


def _list_items(sources: Mapping[Role, Source], roles: Roles) -> tuple[list[Item], list[str]]:
    """Return the images with an object of their role; the others are never read, but counted."""
    items, notes = [], []
    for role, source in sources.items():
        num_left = 0
        for split, table in source.splits.items():
            assert isinstance(table, SceneTable)
            own = np.asarray([name in roles.of_source[role] for name in table.classes], bool)
            wanted = table.present[:, own].any(1)
            num_left += int((table.present.any(1) & ~wanted).sum())
            items += [Item(role, split, -1, table, int(row)) for row in np.flatnonzero(wanted)]
        if num_left:
            notes.append(
                f"{role}: {count(num_left, 'image')} of {source.where} left out, without an object "
                f"of the classes to {role}"
            )
    return items, notes


def _picture(item: Item, scene: Scene | None) -> ScenePicture:
    assert scene is not None
    return ScenePicture(item.role, item.split, scene.own, scene.digest)


def _check_classes(
    roles: Roles,
    sources: Mapping[Role, Source],
    settings: Mapping[Role, SourceConfig],
    pictures: list[ScenePicture],
    arrangement: Arrangement,
) -> list[str]:
    """Refuse classes that cannot be trained or roles that cannot be scored; note lesser gaps."""
    held: Counter[tuple[Role, int, Split]] = Counter()
    for picture, split in zip(pictures, arrangement.splits, strict=True):
        if split is not None:
            held.update((picture.role, class_id, split) for class_id in picture.class_ids)
    notes = []
    for role, source in sources.items():
        class_ids = sorted(set(roles.of_source[role].values()))
        no_train = [i for i in class_ids if not held[role, i, "train"]]
        no_test = [i for i in class_ids if not held[role, i, "test"]]
        strict = role != "retain" or settings[role].classes is not None
        if no_train and strict:
            raise UserError(
                f"{role}: no train images of {one_line(roles.id2label[no_train[0]])!r} are left in "
                f"{source.where} (they are in a test or validation split, cannot be read, or the "
                "objects are too small at the model's size); add some, or leave the class out"
                + (f", or raise {role}.sample_images" if settings[role].streaming else "")
            )
        if len(no_test) == len(class_ids):
            raise UserError(
                f"{role}: no test images of {listed(roles.id2label[i] for i in no_test)} in "
                f"{source.where}; add some (a class needs two images, one to train and one to "
                "test), or leave the test split out, then one is cut from train"
            )
        notes += notes_on_gaps(role, roles, no_train=no_train, no_test=no_test)
    return notes


def _notes(
    items: list[Item], decoded: Scenes, arrangement: Arrangement, cuts: Mapping[Role, Cut]
) -> list[str]:
    notes = []
    if decoded.bad:
        notes.append(skipped(decoded.bad))
    scenes = [(item.role, s) for item, s in zip(items, decoded.scenes, strict=True) if s]
    for role in cuts:
        own = [scene for one, scene in scenes if one == role]
        clipped, outside, corners = (
            sum(getattr(scene, key) for scene in own)
            for key in ("num_clipped", "num_outside", "num_corners")
        )
        num_boxes = outside + sum(len(s.boxes.boxes) for s in own if s.boxes is not None)
        hint = ""
        if corners and 2 * corners >= num_boxes:
            hint = (
                f"; {corners} of {count(num_boxes, 'box')} would fit as left, top, right, bottom, "
                "but are read as left, top, width, height: correct them (in a table: box_format)"
            )
        empty = sum(not scene.own for scene in own)
        if clipped:
            notes.append(f"{role}: {count(clipped, 'box')} clipped to the image{hint}")
        if outside:
            told = "" if clipped else hint
            notes.append(f"{role}: {count(outside, 'box')} left out, outside the image{told}")
        if empty:
            notes.append(
                f"{role}: {count(empty, 'image')} left out, whose objects are outside the image or "
                "too small at the model's size"
            )
    return [*notes, *notes_on_splits(arrangement, cuts, copies_within="a split")]
