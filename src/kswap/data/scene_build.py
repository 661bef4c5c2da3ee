"""From a config to the data of a swap, for segmentation and detection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kswap.config import SwapConfig
from kswap.data.decode import Item, Progress, class_array, store_for
from kswap.data.images import skipped
from kswap.data.left_out import notes_on_gaps, notes_on_splits
from kswap.data.pixels import Fitter
from kswap.data.roles import Roles, assign_roles
from kswap.data.scene_cells import SceneCells
from kswap.data.scene_decode import (
    Arrays,
    Scene,
    SceneReader,
    Scenes,
    decode_scenes,
    padded,
    padded_mask,
)
from kswap.data.scene_rows import Rows, rows_of
from kswap.data.scene_sources import SceneOpener, is_partial
from kswap.data.scene_splits import ScenePicture, arrange_scenes, rarest_classes
from kswap.data.scene_stream import SceneMaker, scene_row_of
from kswap.data.scenes import SceneTable
from kswap.data.sets import ImageSet, SwapData
from kswap.data.shards import Shards
from kswap.data.splits import Arrangement, Cut
from kswap.data.store import FileStore
from kswap.data.stream_sample import streamed_source
from kswap.data.streaming import StreamedImages
from kswap.data.table import Source
from kswap.data.text import count, listed, one_line
from kswap.errors import UserError
from kswap.settings import SPLITS, Role, SourceConfig, Split, TaskName


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
    sources, shards = _open_sources(
        settings,
        in_memory,
        task,
        id2label,
        reduce_zero=bool(getattr(processor, "do_reduce_labels", False)),
        skip_bad=config.data.on_bad_image == "skip",
    )
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
        gather = _Gather(reader, decoded, splits, class_ids, config, cache_dir, task)
        partials = {role for role, one in settings.items() if is_partial(role, one)}
        sets = gather.sets(sources, rows, complete=set(sources) - partials)
    held = frozenset(
        scene.digest
        for i, split in splits.items()
        if split in ("test", "validation") and (scene := decoded.scenes[i]) is not None
    )
    streamed = {
        role: StreamedImages(
            shards=own,
            maker=SceneMaker(
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
            held=held,
            buffer_size=settings[role].shuffle_buffer,
            data=config.data,
            fraction=settings[role].fraction,
            seed=config.seed,
            length=settings[role].images_per_pass,
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


def _open_sources(
    settings: Mapping[Role, SourceConfig],
    in_memory: Mapping[Role, Any],
    task: TaskName,
    id2label: Mapping[int, str],
    *,
    reduce_zero: bool,
    skip_bad: bool,
) -> tuple[dict[Role, Source], dict[Role, Shards]]:
    """Return the source of each role, of a stream its sample, and the shards of each stream."""
    sources: dict[Role, Source] = {}
    shards: dict[Role, Shards] = {}
    for role, one in settings.items():
        given = in_memory.get(role)
        if one.streaming:
            partial = is_partial(role, one)
            kind = SceneCells(one, task, id2label, reduce_zero, partial, skip_bad)
            sources[role], shards[role] = streamed_source(role, one, kind, given)
        else:
            opener = SceneOpener(
                role, one, task, id2label, reduce_zero=reduce_zero, skip_bad=skip_bad
            )
            sources[role] = opener.open(given)
    return sources, shards


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


class _Gather:
    """Puts decoded images into one array for each role and split."""

    def __init__(
        self,
        reader: SceneReader,
        decoded: Scenes,
        splits: Mapping[int, Split | None],
        class_ids: Mapping[int, int],
        config: SwapConfig,
        cache_dir: Path | None,
        task: TaskName,
    ) -> None:
        self.task = task
        self.reader, self.decoded, self.class_ids = reader, decoded, class_ids
        self.members: dict[tuple[Role, Split], list[int]] = {}
        for i, split in splits.items():
            if split is not None:
                self.members.setdefault((reader.items[i].role, split), []).append(i)
        used = [i for members in self.members.values() for i in members]
        self.size = reader.fitter.array_size(self._scene(i).size for i in used)
        example = decoded.example
        self.last = example.dtype == np.uint8  # the axis of the channels
        shape = (*self.size, 3) if self.last else (3, *self.size)
        self.like = np.empty(shape, example.dtype)
        self.mask_like = np.empty(self.size, np.int16)
        num_bytes = len(used) * (self.like.nbytes + self.mask_like.nbytes)
        self.store = decoded.store
        if not isinstance(self.store, FileStore):  # padded, they may be more than was thought
            self.store = store_for(num_bytes, config.data, cache_dir)

    def sets(
        self, sources: Mapping[Role, Source], rows: Mapping[Role, Rows], *, complete: set[Role]
    ) -> dict[Role, dict[Split, ImageSet]]:
        found: dict[Role, dict[Split, ImageSet]] = {}
        with self.store:
            for role in sources:
                found[role] = {
                    split: self._set(role, split, rows[role], complete=role in complete)
                    for split in SPLITS
                }
        return found

    def _scene(self, i: int) -> Scene:
        scene = self.decoded.scenes[i]
        assert scene is not None
        return scene

    def _set(self, role: Role, split: Split, rows: Rows, *, complete: bool) -> ImageSet:
        chosen = self.members.get((role, split), [])
        chosen.sort(key=lambda i: (self.class_ids[i], self._scene(i).digest))
        scenes = [self._scene(i) for i in chosen]
        images = self.store.gather(f"{role}-{split}", chosen, self._image, self.like)
        boxes = tuple(scene.boxes for scene in scenes if scene.boxes is not None)
        masks = None
        if self.task == "segmentation":
            masks = self.store.gather(f"{role}-{split}-masks", chosen, self._mask, self.mask_like)
        whole = all(scene.size == self.size for scene in scenes)
        return ImageSet(
            images=images,
            class_ids=class_array([self.class_ids[i] for i in chosen]),
            masks=masks,
            boxes=None if masks is not None else boxes,
            sizes=None if whole else np.asarray([scene.size for scene in scenes], np.int32),
            original_sizes=np.asarray([s.original for s in scenes], np.int32).reshape(-1, 2),
            complete=complete,
            covered=rows.covered,
        )

    def _image(self, i: int) -> NDArray[Any]:
        image = self.decoded.store.take(i)
        if image is None:
            image = self._read_again(i)[0]
        return padded(image, self.size)

    def _mask(self, i: int) -> NDArray[np.int16]:
        mask = self.decoded.store.take(~i)
        if mask is None:
            mask = self._read_again(i)[1]
        assert mask is not None
        return padded_mask(mask, self.size)

    def _read_again(self, i: int) -> Arrays:
        """Read an image that was not kept; rare: see decode.may_be_used."""
        scene, arrays = self.reader(i)
        if scene.digest != self._scene(i).digest:
            item = self.reader.items[i]
            name = one_line(item.table.name(item.row))
            raise UserError(f"{name}: has changed while the data was read; run again")
        return arrays


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
