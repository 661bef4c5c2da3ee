"""Batches of a stage: every stream contributes its share, and there is one forward for all.

Which images step t draws is a function of (seed, stage, stream, t) alone, so a resumed run draws
what an uninterrupted one would have drawn, without any state to save. Images that are not kept
(`data.streaming`) are drawn in the order of their reader: its place is saved with a checkpoint.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kswap.data import ImageSet
from kswap.data.images import silence_pillow
from kswap.data.samples import Samples, concatenate, take
from kswap.data.streaming import Place, Reader, StreamedImages
from kswap.errors import UserError
from kswap.gathering import joined
from kswap.plan import Stage
from kswap.settings import ROLES, Role
from kswap.training.sharing import shares, steps_in_a_pass

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
    untaught: Tensor | None = None
    """(images,): what the base model answers is needed and not kept. None: nowhere."""

    def __len__(self) -> int:
        return len(self.samples)

    def rows(self, chosen: slice | NDArray[np.int64]) -> Batch:
        """Return some images."""

        def of(kept: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
            return None if kept is None else {name: rows[chosen] for name, rows in kept.items()}

        return Batch(
            self.samples.rows(chosen),
            self.roles[chosen],
            of(self.teacher),
            self.noise[chosen],
            of(self.kept),
            None if self.untaught is None else self.untaught[chosen],
        )

    def split(self, num_parts: int) -> Iterator[Batch]:
        """Cut into at most `num_parts` micro-batches with the same share of every stream."""
        for part in range(min(num_parts, len(self))):
            yield self.rows(slice(part, None, num_parts))


@dataclass(frozen=True)
class Source:
    """Training images of one role, as they are or as a view of them; rows belong together."""

    images: ImageSet
    teacher: Mapping[str, Tensor] | None = None
    """What the base model answers. None: not needed, or not kept."""
    kept: Mapping[str, Tensor] | None = None
    """What the model computes before the first block that trains. None: not kept."""
    streamed: StreamedImages | None = None
    """Where the images come from that are not kept; `images` is a sample of them."""
    is_untaught: bool = False
    """Whether the base model answers at every step, since the images are not kept."""


def batch_of_one(source: Source, role: Role, row: int) -> Batch:
    """Return one training image of a role as a batch, for what looks at them one at a time."""
    taught = source.teacher
    return Batch(
        take(source.images, np.array([row])),
        torch.tensor([ROLES.index(role)]),
        None if taught is None else {name: kept[row : row + 1] for name, kept in taught.items()},
        torch.zeros(1, 2),
    )


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


@dataclass(frozen=True)
class _Part:
    """What a stream draws of a role whose images are not kept."""

    role: Role
    batch_size: int
    seed: tuple[int, ...]


class Streams:
    """The streams of one stage over the training images of each role.

    A context: behind it the threads have ended that read what is not kept.
    """

    def __init__(
        self,
        stage: Stage,
        sources: Mapping[Role, Sequence[Source]],
        *,
        seed: int,
        first_step: int = 0,
        places: Mapping[str, Any] | None = None,
    ) -> None:
        """Lay out the streams of a stage.

        Args:
            stage: the stage.
            sources: of each role its views, one or more: passes over the images take them in turn.
            seed: of the run.
            first_step: step that the run goes on with.
            places: what `places` gave before that step.

        Raises:
            UserError: a stream has no images, or its length is needed and not known.
        """
        self._sources = sources
        self._seed = (seed, stage.index)
        self._first = (first_step, dict(places or {}))
        self._streams: dict[str, _Stream] = {}
        self._parts: dict[str, list[_Part]] = {}
        self._readers: dict[str, Reader] = {}
        self._step = -1
        self._quiet = ExitStack()
        lengths: dict[str, int | None] = {}
        for number, (name, settings) in enumerate(stage.config.streams.items()):
            roles = [role for role in settings.roles if role in sources]
            kept = [role for role in roles if sources[role][0].streamed is None]
            rows = [np.arange(len(sources[role][0].images)) for role in kept]
            total = sum(map(len, rows))
            where = f"stages.{stage.kind}.streams.{name}"
            if total == 0 and len(kept) == len(roles):
                raise UserError(
                    f"{where}: no training images for {' and '.join(settings.roles)}; add images "
                    "or take the stream out"
                )
            own_seed = (seed, stage.index, number)
            sizes = shares(where, settings.batch_size, _lengths(sources, roles), total)
            self._parts[name] = [
                _Part(role, size, (*own_seed, ROLES.index(role))) for role, size in sizes.items()
            ]
            size = min(settings.batch_size - sum(sizes.values()), total)
            if size:
                codes = [
                    np.full(len(own), ROLES.index(r)) for r, own in zip(kept, rows, strict=True)
                ]
                self._streams[name] = _Stream(
                    np.concatenate(codes), np.concatenate(rows), size, own_seed
                )
            lengths[name] = steps_in_a_pass(total, size, sizes, _lengths(sources, roles))
        self.num_steps = self._count(stage, lengths)

    def _count(self, stage: Stage, lengths: Mapping[str, int | None]) -> int:
        """Return the number of steps, where `lengths` are steps in a pass over each stream."""
        anchor = stage.config.anchor
        if anchor not in lengths:
            known = {name: length or 0 for name, length in lengths.items()}
            anchor = max(known, key=lambda name: known[name])
        length = lengths[anchor]
        if length is None and stage.config.max_steps is None:
            raise UserError(
                f"stages.{stage.kind}.epochs: counts passes over the stream {anchor!r}, whose "
                f"length is not known; give images_per_pass of its source, or "
                f"stages.{stage.kind}.max_steps"
            )
        if length is None:
            return int(stage.config.max_steps or 0)
        steps = math.ceil(stage.config.epochs * length)
        steps = max(steps, stage.config.min_steps)
        return min(steps, stage.config.max_steps or steps)

    def __enter__(self) -> Self:
        """Return the streams; threads decode without Pillow's warnings."""
        if any(self._parts.values()):
            self._quiet.enter_context(warnings.catch_warnings())
            silence_pillow()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the threads."""
        self.close()
        self._quiet.close()

    def close(self) -> None:
        """End the threads; a batch that is asked for afterwards starts others."""
        for reader in self._readers.values():
            reader.close()
        self._readers = {}
        self._step = -1

    @property
    def places(self) -> dict[str, Any]:
        """What is not kept is read from here on, by stream and role, before the next step."""
        return {name: reader.place for name, reader in self._readers.items()}

    def notes(self) -> list[str]:
        """Return what was read and not trained on, in a line for each stream and role."""
        notes = []
        for name, reader in self._readers.items():
            *most, last = reader.passed.told() or [""]
            if last:
                told = f"{', '.join(most)} and {last}" if most else last
                notes.append(f"{name}: passed over {told} of what was read")
        return notes

    def _go_to(self, step: int) -> None:
        """Make the readers stand before a step: the next one, the first, or where a run goes on."""
        if step != self._step:
            self.close()
            first, places = self._first
            assert step in (0, first), f"step {step} of a stream that stands before {self._step}"
            for name, parts in self._parts.items():
                for part in parts:
                    streamed = self._sources[part.role][0].streamed
                    assert streamed is not None
                    key = f"{name}.{part.role}"
                    place = Place.from_json(places[key]) if step else Place()
                    self._readers[key] = Reader(streamed, part.seed, part.batch_size, place)
        self._step = step + 1

    def batch(self, step: int) -> Batch:
        """Return the batch of step `step` (from 0).

        Where a stream is not kept, steps are asked for in order, from 0 or where the run goes on.

        Raises:
            UserError: an image that is read now is bad.
        """
        samples, roles, teachers, untaught = [], [], [], []
        kept: list[dict[str, Tensor]] = []
        if any(self._parts.values()):
            self._go_to(step)
        for name, parts in self._parts.items():
            for part in parts:
                found = self._readers[f"{name}.{part.role}"].draw()
                source = self._sources[part.role][0]
                rows = np.arange(part.batch_size)
                samples.append(take(found.images, rows))
                roles.append(torch.full((part.batch_size,), ROLES.index(part.role)))
                teachers.append(self._teacher(replace(source, teacher=None), rows))
                kept.append({})
                untaught.append(torch.full((part.batch_size,), source.is_untaught))
            if name not in self._streams:
                continue
            stream = self._streams[name]
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
                    untaught.append(torch.zeros(len(chosen), dtype=torch.bool))
        codes = torch.cat(roles)
        noise = np.random.default_rng((*self._seed, _NOISE, step)).random((len(codes), 2))
        return Batch(
            concatenate(samples),
            codes,
            joined(teachers) or None,
            torch.from_numpy(noise.astype(np.float32)).clamp_max(_BELOW_ONE),
            joined(kept) or None,
            torch.cat(untaught) if any(bool(own.any()) for own in untaught) else None,
        )

    def _teacher(self, source: Source, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return what the base answers; zeros where no term of the role asks, but others' do."""
        if source.teacher is not None:
            return {name: kept[rows] for name, kept in source.teacher.items()}
        taught = (views[0].teacher for views in self._sources.values())
        like = next((teacher for teacher in taught if teacher is not None), {})
        return {name: kept.new_zeros(len(rows), *kept.shape[1:]) for name, kept in like.items()}


def _lengths(
    sources: Mapping[Role, Sequence[Source]], roles: Sequence[Role]
) -> dict[Role, int | None]:
    """Return images in a pass of those roles whose images are not kept."""
    streamed = {role: sources[role][0].streamed for role in roles}
    return {r: own.settings.images_per_pass for r, own in streamed.items() if own is not None}
