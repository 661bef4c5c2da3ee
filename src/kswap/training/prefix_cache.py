"""What lies below the blocks that train, computed once for each training image and view of it.

Where a batch is augmented, a fixed number of views of each image takes the place of a new one at
every step: the first as the image is, the second mirrored, and so on in turn, each with a crop and
colours of its own where the augmentation has them. Masks, boxes and the base model's answers are
those of the view.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kswap.data import ImageSet
from kswap.data.samples import take
from kswap.data.sets import Boxes
from kswap.gathering import gathered_objects, in_order
from kswap.models.prefix import Kept, Prefix, Trial, find_prefix
from kswap.plan import Stage
from kswap.settings import ROLES, Role
from kswap.tasks import Examples, View, make_examples
from kswap.training.augment import Kind, make_change
from kswap.training.loop import Trainee, set_modes
from kswap.training.streams import Source
from kswap.training.teaching import teach

_TEACHER, _CHANGED = "teacher.", "changed."
_TRIAL = 3
"""Images that a prefix is looked for on, and as many to check it on."""


@dataclass
class PrefixCache:
    """The prefix of a model, and what is kept of the training images."""

    prefix: Prefix
    num_frozen: int
    """Blocks that do not train."""
    sources: dict[Role, list[Source]] = field(default_factory=dict)
    """The views of each role."""
    heard: dict[Role, Kept] = field(default_factory=dict)
    """Of training images as they are, from forwards that were done anyway."""
    test: Kept = field(default_factory=dict)
    """Of the test images of all roles, in the order in which they are scored."""


@dataclass(frozen=True)
class CacheSettings:
    """What a run says of its cache."""

    is_on: bool
    augment: Kind
    num_views: int
    """Of each image, where they differ at all."""
    batch_size: int
    """Images in a forward."""
    memory_limit_bytes: int
    disk_limit_bytes: int
    mixed_precision: bool = False
    """Whether stages compute in another precision than the base answers in."""

    @property
    def views(self) -> range:
        """The views that are kept of each image."""
        return range(self.num_views if self.augment != "none" else 1)


def outer_modules(trainee: Trainee, blocks: Sequence[str]) -> set[str]:
    """Return the modules that hold what trains: blocks, and what trains outside of them."""
    owners = set()
    for name, parameter in trainee.base.named_parameters():
        if parameter.requires_grad:
            owner = name.rpartition(".")[0]
            inside = [b for b in blocks if owner == b or owner.startswith(f"{b}.")]
            owners.add(max(inside, key=len) if inside else owner)
    return owners


def look_for_prefix(
    trainee: Trainee, stage: Stage, sets: Mapping[Role, ImageSet], blocks: Sequence[str]
) -> Prefix | None:
    """Return what need not run again in a stage; None, where that cannot be told.

    It is looked for on images of a role of the stage: of classes that the stage does not know there
    are no losses of masks, and a model's answers alone need not show what its masks read.

    Args:
        trainee: narrowed to what trains in the stage.
        stage: the stage.
        sets: training images by role.
        blocks: names of all blocks, in the order of the forward.
    """
    set_modes(trainee.model, checkpointing=False)
    view = trainee.views[stage.name]
    images = next(images for role, images in sets.items() if role in stage.active)
    rows = np.resize(np.arange(len(images)), 2 * _TRIAL)
    parts = [rows[:_TRIAL], rows[: _TRIAL - 1], rows[_TRIAL:]]
    first, fewer, others = (make_examples(take(images, part), trainee.pixels) for part in parts)

    def answers(examples: Examples) -> list[Tensor]:
        with torch.random.fork_rng(devices=[]), trainee.accelerator.autocast():
            torch.manual_seed(0)  # losses of masks look at random points
            units = trainee.task.units(trainee.model, examples, None, view)
        return [t for u in units for t in (u.logits, u.own) if t is not None]

    def blank(examples: Examples, value: float) -> Examples:
        return replace(examples, pixels=torch.full_like(examples.pixels, value))

    read = {  # by terms of any stage: a later one may go on with this prefix
        block.name
        for other in trainee.views.values()
        for _, block in other.places.blocks
        if not _trains(trainee, block.name)
    }
    trial = Trial(answers, blank, _TRIAL, first, fewer, others)
    return find_prefix(trainee.base, outer_modules(trainee, blocks), trial, read=read)


def _trains(trainee: Trainee, block: str) -> bool:
    return any(p.requires_grad for p in trainee.base.get_submodule(block).parameters())


def cached_sources(
    cache: PrefixCache | None,
    trainee: Trainee,
    stage: Stage,
    sources: Mapping[Role, Source],
    blocks: Sequence[str],
    settings: CacheSettings,
    *,
    folder: Path,
    on_note: Callable[[str], None],
    on_batch: Callable[[int, int], None],
) -> PrefixCache | None:
    """Return the cache of a stage, filled; None, where everything is computed at every step.

    Args:
        cache: of the stage before.
        trainee: narrowed to what trains in the stage.
        stage: the stage.
        sources: training images of its roles, and what the base answers on them as they are.
        blocks: names of all blocks, in the order of the forward.
        settings: of the run.
        folder: where files are mapped from that exceed `memory_limit_bytes`.
        on_note: told what is kept, or why nothing is.
        on_batch: called with batches done and in all.

    Raises:
        DiskFullError: the disk is full.
    """
    num_frozen = len(blocks) - len(trainee.groups)
    if not num_frozen or not settings.is_on:
        return None
    told = f"stage {stage.name}: the first {num_frozen} of {len(blocks)} blocks stay as they are"
    if len({source.images.images.shape[1:] for source in sources.values()}) > 1:
        on_note(f"{told}; they run at every step, since the images differ in size between roles")
        return None
    if trainee.teach_now and settings.augment == "none":
        on_note(f"{told}; they run at every step, since the base's answers exceed the memory limit")
        return None
    if cache is None or cache.num_frozen != num_frozen:
        sets = {role: source.images for role, source in sources.items()}
        prefix = look_for_prefix(trainee, stage, sets, blocks)
        if prefix is None or (prefix.reads_pixels and settings.augment != "none"):
            on_note(f"{told}; they run at every step, since this model's cannot be kept apart")
            return None
        cache = PrefixCache(prefix, num_frozen)
    views = len(settings.views)
    count = sum(len(source.images) for role, source in sources.items() if role not in cache.sources)
    size = cache.prefix.bytes_per_image * count * views
    room = min(gathered_objects(shutil.disk_usage(folder.parent).free))
    in_memory = size <= settings.memory_limit_bytes
    if not in_memory and size > min(room, settings.disk_limit_bytes):
        on_note(
            f"{told}; they run at every step: what they give would take {size:,} bytes, more than "
            "training.prefix_limit_bytes or the disk allows"
        )
        return None
    if count:
        on_note(
            f"{told}; what they give for {count:,} images ({views} views) is kept "
            f"{'in memory' if in_memory else 'on disk'}: {size:,} bytes"
        )
    _fill(
        cache,
        trainee,
        sources,
        settings,
        view=trainee.views[stage.name],
        folder=None if in_memory else folder,
        on_batch=on_batch,
    )
    return cache


def _fill(
    cache: PrefixCache,
    trainee: Trainee,
    sources: Mapping[Role, Source],
    settings: CacheSettings,
    *,
    view: View,
    folder: Path | None,
    on_batch: Callable[[int, int], None],
) -> None:
    """Keep every view of the images of roles that are not there yet."""
    set_modes(trainee.model, checkpointing=False)
    missing = [role for role in sources if role not in cache.sources]
    batch_size = settings.batch_size
    total = len(settings.views) * sum(
        -(-len(sources[role].images) // batch_size) for role in missing
    )
    done = 0
    for role in missing:
        found = []
        for number in settings.views:
            changed = _Changed()
            seed = (trainee.seed, ROLES.index(role), number)
            images = sources[role].images
            tensors: Kept = {}
            if number == 0 and role in cache.heard:  # the first view is the image as it is
                tensors = cache.heard.pop(role)
                done += -(-len(images) // batch_size)
            else:
                parts = _recorded(trainee, cache.prefix, images, changed, settings, seed, view)
                with _gathering(tensors, len(images), folder) as put:
                    for part in parts:
                        put(part)
                        done += 1
                        on_batch(done, total)
            found.append(_view_of(sources[role], changed, tensors, cache.prefix.reads_pixels))
        cache.sources[role] = found


@dataclass
class _Changed:
    """The annotations of augmented images."""

    masks: list[Any] = field(default_factory=list)
    boxes: list[Boxes] = field(default_factory=list)

    def add(self, part: Kept) -> None:
        """Take what `_annotations` laid down out of a part."""
        found = {
            n.removeprefix(_CHANGED): part.pop(n) for n in list(part) if n.startswith(_CHANGED)
        }
        if "masks" in found:
            self.masks.append(found["masks"].numpy())
        if "counts" in found:
            counts = found["counts"].tolist()
            names = ("boxes", "box_ids", "crowd")
            fields = (torch.split(found[name], counts) for name in names)
            every = zip(*fields, strict=True)
            self.boxes += [Boxes(*(one.numpy() for one in image)) for image in every]


def _annotations(examples: Examples) -> Kept:
    """Return masks and boxes of augmented images; those of several images end to end."""
    found: Kept = {}
    if examples.masks is not None:
        found[f"{_CHANGED}masks"] = examples.masks.to(torch.int16)
    if examples.boxes is not None:
        assert examples.box_ids is not None
        assert examples.crowd is not None
        found[f"{_CHANGED}counts"] = torch.tensor([len(boxes) for boxes in examples.boxes])
        found[f"{_CHANGED}boxes"] = torch.cat(examples.boxes)
        found[f"{_CHANGED}box_ids"] = torch.cat(examples.box_ids)
        found[f"{_CHANGED}crowd"] = torch.cat(examples.crowd)
    return found


def _recorded(
    trainee: Trainee,
    prefix: Prefix,
    images: ImageSet,
    changed: _Changed,
    settings: CacheSettings,
    seed: tuple[int, int, int],
    view: View,
) -> Iterator[Kept]:
    """Yield, batch by batch, the outputs of the prefix on a view, and the base's answers to it."""
    task, model = trainee.task, trainee.model
    change = None

    def compute(rows: slice) -> Kept:
        nonlocal change
        examples = make_examples(take(images, rows), trainee.pixels)
        annotations: Kept = {}
        if settings.augment != "none":
            if change is None:
                size = (examples.pixels.shape[-2], examples.pixels.shape[-1])
                change = make_change(settings.augment, size, flip=float(seed[-1] % 2))
            assert change is not None
            number = rows.start // settings.batch_size
            torch.manual_seed(int(np.random.default_rng((*seed, number)).integers(2**62)))
            examples = change(examples)
            annotations = _annotations(examples)
        part = _of_batch(trainee, prefix, examples)
        if trainee.teach_now:
            with torch.no_grad(), trainee.accelerator.autocast(), trainee.as_base():
                taught = teach(
                    model,
                    task,
                    examples,
                    num_base=view.num_base,
                    places=trainee.base_places,
                    num_slots=view.num_slots,
                )
            part |= {f"{_TEACHER}{name}": kept for name, kept in taught.items()}
        return {name: kept.cpu() for name, kept in (part | annotations).items()}

    for part in in_order(len(images), settings.batch_size, compute):
        changed.add(part)
        yield part


def _of_batch(trainee: Trainee, prefix: Prefix, examples: Examples) -> Kept:
    with torch.no_grad(), trainee.accelerator.autocast():
        return prefix.record(trainee.base, lambda: trainee.task.teach(trainee.model, examples))


def _view_of(source: Source, changed: _Changed, tensors: Kept, reads_pixels: bool) -> Source:
    images = source.images
    if not reads_pixels:  # nobody looks at them; their number and size are asked for
        nothing = np.zeros((1,) * images.images.ndim, images.images.dtype)
        images = replace(images, images=np.broadcast_to(nothing, images.images.shape))
    if changed.masks:
        images = replace(images, masks=np.concatenate(changed.masks))
    if changed.boxes:
        images = replace(images, boxes=tuple(changed.boxes))
    cut = len(_TEACHER)
    taught = {name[cut:]: kept for name, kept in tensors.items() if name.startswith(_TEACHER)}
    kept = {name: kept for name, kept in tensors.items() if not name.startswith(_TEACHER)}
    return Source(images, taught or source.teacher, kept)


@contextmanager
def _gathering(tensors: Kept, total: int, folder: Path | None) -> Iterator[Callable[[Kept], None]]:
    """Lay parts end to end, in memory or in files without a name; fill `tensors` at the end."""
    files: dict[str, Any] = {}
    likes: Kept = {}
    place = 0

    def put(part: Kept) -> None:
        nonlocal place
        for name, rows in part.items():
            if folder is None:
                if name not in tensors:
                    tensors[name] = rows.new_empty(total, *rows.shape[1:])
                tensors[name][place : place + len(rows)] = rows
            else:
                if name not in files:
                    folder.mkdir(parents=True, exist_ok=True)
                    files[name] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed below
                    likes[name] = rows[:0]
                files[name].write(rows.contiguous().view(torch.uint8).numpy().data)
        place += len(next(iter(part.values())))

    try:
        yield put
        for name, file in files.items():
            file.flush()
            # copy-on-write: a batch is writable, as torch wants it, the file is not
            mapped = torch.from_numpy(np.memmap(file, np.uint8, mode="c"))
            like = likes[name]
            tensors[name] = mapped.view(like.dtype).view(total, *like.shape[1:])
    finally:
        for file in files.values():
            file.close()
