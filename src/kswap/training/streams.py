"""Batches of a stage: every stream contributes its share, and there is one forward for all.

Which images step t draws is a function of (seed, stage, stream, t) alone, so a resumed run draws
what an uninterrupted one would have drawn, without any state to save.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
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
            )


@dataclass(frozen=True)
class _Stream:
    roles: NDArray[np.int64]
    """(images of the stream,), index into ROLES."""
    rows: NDArray[np.int64]
    """(images of the stream,), row in the image set of the role."""
    batch_size: int
    seed: tuple[int, ...]

    def draw(self, step: int) -> NDArray[np.int64]:
        """Return positions for step `step`: epoch permutations, laid end to end."""
        total = len(self.rows)
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, offsets = places // total, places % total
        drawn = np.empty(self.batch_size, dtype=np.int64)
        for epoch in np.unique(epochs):
            order = np.random.default_rng((*self.seed, int(epoch))).permutation(total)
            drawn[epochs == epoch] = order[offsets[epochs == epoch]]
        return drawn


class Streams:
    """The streams of one stage over the training images of each role."""

    def __init__(
        self,
        stage: Stage,
        sets: Mapping[Role, ImageSet],
        *,
        teachers: Mapping[Role, Mapping[str, Tensor]],
        seed: int,
    ) -> None:
        self._sets = sets
        self._seed = (seed, stage.index)
        self._teachers = teachers
        self._streams: dict[str, _Stream] = {}
        for number, (name, settings) in enumerate(stage.config.streams.items()):
            roles = [role for role in settings.roles if role in sets]
            rows = [np.arange(len(sets[role])) for role in roles]
            total = sum(map(len, rows))
            if total == 0:
                raise UserError(
                    f"stages.{stage.kind}.streams.{name}: no training images for "
                    f"{' and '.join(settings.roles)}; add images or take the stream out"
                )
            codes = [np.full(len(sets[role]), ROLES.index(role)) for role in roles]
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
        samples, roles, teachers = [], [], []
        for stream in self._streams.values():
            drawn = stream.draw(step)
            for code in np.unique(stream.roles[drawn]):
                role = ROLES[code]
                rows = stream.rows[drawn[stream.roles[drawn] == code]]
                samples.append(take(self._sets[role], rows))
                roles.append(torch.full((len(rows),), int(code)))
                teachers.append(self._teacher(role, rows))
        codes = torch.cat(roles)
        noise = np.random.default_rng((*self._seed, _NOISE, step)).random((len(codes), 2))
        return Batch(
            concatenate(samples),
            codes,
            {name: torch.cat([t[name] for t in teachers]) for name in teachers[0]}
            if self._teachers
            else None,
            torch.from_numpy(noise.astype(np.float32)).clamp_max(_BELOW_ONE),
        )

    def _teacher(self, role: Role, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        if role in self._teachers:
            return {name: kept[rows] for name, kept in self._teachers[role].items()}
        if not self._teachers:
            return {}
        like = next(iter(self._teachers.values()))
        return {name: kept.new_zeros(len(rows), *kept.shape[1:]) for name, kept in like.items()}
