"""What a run keeps of the blocks that do not train, from its first forward to its last score.

The base runs over training and test images anyway, to be scored and to answer; where the depth of
the first stage is known by then, those forwards already leave what the stage will need. Stages then
train, and are scored, from there on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kswap.data import ImageSet
from kswap.gathering import interleaved, joined
from kswap.plan import Stage
from kswap.settings import Role, Split
from kswap.tasks import Pixels
from kswap.training.loop import Trainee
from kswap.training.prefix_cache import (
    CacheSettings,
    PrefixCache,
    cached_sources,
    look_for_prefix,
)
from kswap.training.streams import Source, Streams


@dataclass
class Prefixes:
    """The cache of the stage under way, and how it comes about."""

    settings: CacheSettings
    folder: Path
    on_note: Callable[[str], None]
    cache: PrefixCache | None = None

    def begin(
        self,
        probe: Callable[[], Trainee],
        stage: Stage,
        num_frozen: int | None,
        sets: Mapping[Role, Mapping[Split, ImageSet]],
        blocks: Sequence[str],
        *,
        views_change_answers: bool,
    ) -> None:
        """Look for the prefix of the first stage before the base is run.

        Not where its depth is not known yet, where images will not be seen as they are, or where
        not all fits into memory: then `of_stage` decides.

        Args:
            probe: makes a copy of what will be trained, narrowed to what trains in the stage.
            stage: the first one.
            num_frozen: blocks that do not train in it; None: not known yet.
            sets: all images by role; training and test images are kept.
            blocks: names of all blocks, in the order of the forward.
            views_change_answers: whether the base answers anew for every view.
        """
        settings = self.settings
        as_they_are = ("none",) if views_change_answers else ("none", "flip")
        kept = [splits[split] for splits in sets.values() for split in ("train", "test")]
        alike = len({images.images.shape[1:] for images in kept}) == 1
        if not (num_frozen and settings.is_on and alike and settings.augment in as_they_are):
            return
        train = {role: splits["train"] for role, splits in sets.items()}
        prefix = look_for_prefix(probe(), stage, train, blocks)
        count = len(settings.views) * sum(map(len, kept))
        if prefix is not None and prefix.bytes_per_image * count <= settings.memory_limit_bytes:
            self.cache = PrefixCache(prefix, num_frozen)

    def drop(self) -> None:
        """Keep nothing any more: what lies below has changed, or may have."""
        self.cache = None

    @contextmanager
    def answering(self, model: Any, role: Role) -> Iterator[None]:
        """Within the context the bare base runs once over the training images of a role.

        In mixed precision that is not what a stage would compute, and a run that is gone on from
        computes anew: nothing is kept.
        """
        if self.cache is None or self.settings.mixed_precision:
            yield
            return
        with self.cache.prefix.listening(model) as heard:
            yield
        self.cache.heard[role] = joined(interleaved(heard))

    @contextmanager
    def scoring_base(self, model: Any) -> Iterator[None]:
        """Within the context the bare base runs once over the test images.

        Of several processes each keeps what it scores, which is the same at every stage.
        """
        if self.cache is None:
            yield
            return
        with self.cache.prefix.listening(model) as heard:
            yield
        self.cache.test = joined(heard)

    @contextmanager
    def scoring(self, model: Any) -> Iterator[None]:
        """Within the context the wrapped model runs once over the test images, in their order."""
        if self.cache is None or not self.cache.test:
            yield
            return
        with self.cache.prefix.following(model, model.get_base_model(), self.cache.test):
            yield

    def of_stage(
        self,
        trainee: Trainee,
        stage: Stage,
        sources: Mapping[Role, Source],
        blocks: Sequence[str],
        *,
        on_batch: Callable[[int, int], None],
    ) -> tuple[Streams, Trainee] | None:
        """Return streams that bring what need not be computed again; None: there is no such.

        Args:
            trainee: narrowed to what trains in the stage.
            stage: the stage.
            sources: training images by role, and what the base answers on them.
            blocks: names of all blocks, in the order of the forward.
            on_batch: called with batches done and in all.

        Raises:
            DiskFullError: the disk is full.
        """
        drawn = {role for stream in stage.config.streams.values() for role in stream.roles}
        unkept = [role for role, source in sources.items() if source.streamed and role in drawn]
        num_frozen = len(blocks) - len(trainee.groups)
        if unkept:
            if num_frozen and self.settings.is_on:
                self.on_note(
                    f"stage {stage.name}: the first {num_frozen} of {len(blocks)} blocks stay as "
                    f"they are; they run at every step, since the images of {unkept[0]} are not "
                    "kept"
                )
            return None
        self.cache = cached_sources(
            self.cache,
            trainee,
            stage,
            {role: source for role, source in sources.items() if role in drawn},
            blocks,
            self.settings,
            folder=self.folder,
            on_note=self.on_note,
            on_batch=on_batch,
        )
        if self.cache is None:
            return None
        pixels = trainee.pixels
        if not self.cache.prefix.reads_pixels:
            some = trainee.pixels(next(iter(sources.values())).images.images[:1])
            pixels = _nothing_like(some)
        streams = Streams(stage, self.cache.sources, seed=trainee.seed)
        return streams, replace(
            trainee, prefix=self.cache.prefix, pixels=pixels, augment=None, teach_now=False
        )


def _nothing_like(some: Tensor) -> Pixels:
    """Return what stands for images that nobody looks at."""
    return lambda images, *, sizes=None: torch.zeros_like(some).expand(len(images), -1, -1, -1)
