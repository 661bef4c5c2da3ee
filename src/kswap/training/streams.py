"""Batches of a stage: every stream contributes its share, and there is one forward for all.

Which images step t draws is a function of (seed, stage, stream, t) alone, so a resumed run draws
what an uninterrupted one would have drawn, without any state to save.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kswap.config import ROLES, Role
from kswap.data import ImageSet
from kswap.errors import UserError
from kswap.plan import Stage


@dataclass(frozen=True)
class Batch:
    """Images of one step with their roles at this stage; rows of all fields belong together."""

    images: NDArray[Any]
    class_ids: Tensor
    """(images,), rows of the head."""
    roles: Tensor
    """(images,), index into ROLES."""
    base_logits: Tensor | None
    """(images, base classes); zero for roles whose terms do not need them."""

    def __len__(self) -> int:
        return len(self.class_ids)

    def split(self, num_parts: int) -> Iterator[Batch]:
        """Cut into at most `num_parts` micro-batches with the same share of every stream."""
        for part in range(min(num_parts, len(self))):
            rows = slice(part, None, num_parts)
            yield Batch(
                self.images[rows],
                self.class_ids[rows],
                self.roles[rows],
                None if self.base_logits is None else self.base_logits[rows],
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
        base_logits: Mapping[Role, Tensor],
        seed: int,
    ) -> None:
        self._sets = sets
        self._base_logits = base_logits
        self._class_ids = {role: torch.from_numpy(s.class_ids) for role, s in sets.items()}
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
        images, class_ids, roles, teachers = [], [], [], []
        for stream in self._streams.values():
            drawn = stream.draw(step)
            for code in np.unique(stream.roles[drawn]):
                role = ROLES[code]
                rows = stream.rows[drawn[stream.roles[drawn] == code]]
                images.append(self._sets[role].images[rows])
                class_ids.append(self._class_ids[role][rows])
                roles.append(torch.full((len(rows),), int(code)))
                teachers.append(self._teacher(role, rows))
        return Batch(
            np.concatenate(images),
            torch.cat(class_ids),
            torch.cat(roles),
            torch.cat(teachers) if self._base_logits else None,
        )

    def _teacher(self, role: Role, rows: NDArray[np.int64]) -> Tensor:
        if role in self._base_logits:
            return self._base_logits[role][rows]
        width = next(iter(self._base_logits.values())).shape[-1] if self._base_logits else 0
        return torch.zeros(len(rows), width)
