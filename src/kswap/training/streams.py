"""Batches of a stage: every stream contributes its share, and there is one forward for all.

Which images step t draws is a function of (seed, stage, stream, t) alone, so a resumed run draws
what an uninterrupted one would have drawn, without any state to save.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kswap.data import ImageSet
from kswap.data.samples import Samples, concatenate, take
from kswap.errors import UserError
from kswap.plan import Stage
from kswap.settings import ROLES, Role

_NOISE = 2**20
"""Beside the numbers of streams in a seed: no stage has as many."""
_BELOW_ONE = 1 - 2**-24
"""The largest float32 below 1: rounding from float64 can reach 1."""


@dataclass(frozen=True)
class Batch:
    """Images of one step with their roles at this stage; rows of all fields belong together."""

    samples: Samples
    roles: Tensor
    """(images,), index into ROLES: the role whose source the image comes from."""
    teacher: dict[str, Tensor] | None
    """What the base model answers; zero for roles whose terms do not need it. None: not kept."""
    noise: Tensor
    """(images, 2), uniform in [0, 1), for objectives that draw: a function of (seed, stage, t)."""
    kept: dict[str, Tensor] | None = None
    """What the model computes before the first block that trains. None: it is computed anew."""

    def __len__(self) -> int:
        return len(self.samples)

    def split(self, num_parts: int) -> Iterator[Batch]:
        """Cut into at most `num_parts` micro-batches with the same share of every stream."""
        for part in range(min(num_parts, len(self))):
            rows = slice(part, None, num_parts)
            yield Batch(
                self.samples.rows(rows),
                self.roles[rows],
                None if self.teacher is None else {k: v[rows] for k, v in self.teacher.items()},
                self.noise[rows],
                None if self.kept is None else {k: v[rows] for k, v in self.kept.items()},
            )


@dataclass(frozen=True)
class Source:
    """Training images of one role, as they are or as a view of them; rows belong together."""

    images: ImageSet
    teacher: Mapping[str, Tensor] | None = None
    """What the base model answers. None: not needed, or not kept."""
    kept: Mapping[str, Tensor] | None = None
    """What the model computes before the first block that trains. None: not kept."""


@dataclass(frozen=True)
class _Stream:
    roles: NDArray[np.int64]
    """(images of the stream,), index into ROLES."""
    rows: NDArray[np.int64]
    """(images of the stream,), row in the image set of the role."""
    batch_size: int
    seed: tuple[int, ...]

    def draw(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return positions for step `step`, and their epochs: permutations laid end to end."""
        total = len(self.rows)
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, offsets = places // total, places % total
        drawn = np.empty(self.batch_size, dtype=np.int64)
        for epoch in np.unique(epochs):
            order = np.random.default_rng((*self.seed, int(epoch))).permutation(total)
            drawn[epochs == epoch] = order[offsets[epochs == epoch]]
        return drawn, epochs


class Streams:
    """The streams of one stage over the training images of each role."""

    def __init__(
        self, stage: Stage, sources: Mapping[Role, Sequence[Source]], *, seed: int
    ) -> None:
        """Lay out the streams of a stage.

        Args:
            stage: the stage.
            sources: of each role its views, one or more: passes over the images take them in turn.
            seed: of the run.
        """
        self._sources = sources
        self._seed = (seed, stage.index)
        self._streams: dict[str, _Stream] = {}
        for number, (name, settings) in enumerate(stage.config.streams.items()):
            roles = [role for role in settings.roles if role in sources]
            rows = [np.arange(len(sources[role][0].images)) for role in roles]
            total = sum(map(len, rows))
            if total == 0:
                raise UserError(
                    f"stages.{stage.kind}.streams.{name}: no training images for "
                    f"{' and '.join(settings.roles)}; add images or take the stream out"
                )
            codes = [np.full(len(own), ROLES.index(r)) for r, own in zip(roles, rows, strict=True)]
            self._streams[name] = _Stream(
                np.concatenate(codes),
                np.concatenate(rows),
                min(settings.batch_size, total),
                (seed, stage.index, number),
            )
        self._longest = max(
            self._streams, key=lambda n: len(self._streams[n].rows) / self._streams[n].batch_size
        )
        self.num_steps = self._count(stage)

    def _count(self, stage: Stage) -> int:
        anchor = stage.config.anchor
        stream = self._streams[anchor if anchor in self._streams else self._longest]
        steps = math.ceil(stage.config.epochs * math.ceil(len(stream.rows) / stream.batch_size))
        steps = max(steps, stage.config.min_steps)
        return min(steps, stage.config.max_steps or steps)

    def batch(self, step: int) -> Batch:
        """Return the batch of step `step` (from 0)."""
        samples, roles, teachers, kept = [], [], [], []
        for stream in self._streams.values():
            drawn, epochs = stream.draw(step)
            for code in np.unique(stream.roles[drawn]):
                role = ROLES[code]
                own = stream.roles[drawn] == code
                rows = stream.rows[drawn[own]]
                views = (rows + epochs[own]) % len(self._sources[role])
                for number in np.unique(views):
                    source, chosen = self._sources[role][number], rows[views == number]
                    samples.append(take(source.images, chosen))
                    roles.append(torch.full((len(chosen),), int(code)))
                    teachers.append(self._teacher(source, chosen))
                    kept.append({name: v[chosen] for name, v in (source.kept or {}).items()})
        codes = torch.cat(roles)
        noise = np.random.default_rng((*self._seed, _NOISE, step)).random((len(codes), 2))
        return Batch(
            concatenate(samples),
            codes,
            _joined(teachers),
            torch.from_numpy(noise.astype(np.float32)).clamp_max(_BELOW_ONE),
            _joined(kept),
        )

    def _teacher(self, source: Source, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return what the base answers; zeros where no term of the role asks, but others' do."""
        if source.teacher is not None:
            return {name: kept[rows] for name, kept in source.teacher.items()}
        taught = (views[0].teacher for views in self._sources.values())
        like = next((teacher for teacher in taught if teacher is not None), {})
        return {name: kept.new_zeros(len(rows), *kept.shape[1:]) for name, kept in like.items()}


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor] | None:
    """Lay parts end to end; None where there is nothing in them."""
    if not parts[0]:
        return None
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
