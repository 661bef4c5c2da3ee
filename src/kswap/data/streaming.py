"""Training images that are read as they are needed: a shuffle buffer over shards, and its place.

The order of shards is a permutation for each pass. What is read fills blocks of `buffer_size`
encoded images, each permuted by itself; while one is drawn from, the next is read at the same pace,
so that about one block is in memory. Everything random is a function of (seed, pass or block), and
what a block holds one of the place where it begins: so a place (pass, shard, row, images drawn of
the block) is all that is needed to go on, at the cost of reading one shard up to there and one
block. `datasets`' own shuffle buffer is lost when a run is resumed.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kswap.data.cells import StreamCell
from kswap.data.decode import content_hash, refuse
from kswap.data.images import BadImageError, decode, known_formats
from kswap.data.sets import ImageSet
from kswap.data.shards import Shards
from kswap.data.stream_makers import PASSED, UNKNOWN, Maker
from kswap.data.text import NAME_LIMIT, count, one_line
from kswap.errors import UserError
from kswap.settings import DataConfig, SourceConfig

_ORDER, _BLOCK = 1, 2
"""Beside each other in a seed: the order of shards, and of the images of a block."""


class Start(NamedTuple):
    """Between two images, in the order in which they are read."""

    epoch: int = 0
    """Pass over the source, from 0."""
    shard: int = 0
    """Place in the order of shards of the pass."""
    row: int = 0
    """Images of the shard before it."""


class Place(NamedTuple):
    """Between two images, in the order in which they are drawn."""

    start: Start = Start()
    """Where the block begins that is drawn from."""
    block: int = 0
    """Its number."""
    offset: int = 0
    """Images of it that are drawn."""

    @classmethod
    def from_json(cls, value: Any) -> Place:
        """Return the place that `json.loads(json.dumps(place))` stands for."""
        (epoch, shard, row), block, offset = value
        return cls(Start(epoch, shard, row), block, offset)


@dataclass(frozen=True)
class StreamedImages:
    """The training images of one role that are not kept."""

    shards: Shards
    maker: Maker
    held: frozenset[bytes]
    """Content of test and validation pictures of any role, which are passed over."""
    settings: SourceConfig
    data: DataConfig
    seed: int
    """Of the run."""

    def wanted(self, cell: StreamCell) -> int:
        """Return the row of the class of an image that may be trained on, PASSED or UNKNOWN."""
        row = self.maker.row_of(cell)
        fraction = self.settings.fraction
        if row >= 0 and fraction < 1 and not _within(cell, fraction, self.seed):
            return PASSED
        return row


def _within(cell: StreamCell, fraction: float, seed: int) -> bool:
    """Whether an image is of a share that depends on its encoded content, or its path, alone."""
    if isinstance(cell.image, Image.Image):  # its text has its address in memory
        content = content_hash(cell.image)
    else:
        content = cell.image if isinstance(cell.image, bytes) else str(cell.image).encode()
    key = hashlib.blake2b(content, digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(key, "big") < fraction * 2**64


@dataclass
class Passed:
    """What was read and not trained on, by this process: more than a pass has, where it resumed."""

    num_bad: int = 0
    """Images that cannot be decoded."""
    num_held: int = 0
    """Pictures of a test or validation split."""
    num_unlabelled: int = 0
    """Images without a class."""
    num_unknown: int = 0
    """Images of classes that neither the model nor the sample has."""
    unknown: tuple[str, ...] = ()
    """The first of these classes."""

    def add(self, label: str | int | None) -> None:
        """Count an image without a class, or of an unknown one."""
        if label is None:
            self.num_unlabelled += 1
            return
        self.num_unknown += 1
        name = one_line(label, 100)
        if len(self.unknown) < NAME_LIMIT and name not in self.unknown:
            self.unknown = (*self.unknown, name)

    def told(self) -> list[str]:
        """Return it in words, without what did not happen."""
        more = ", …" if len(self.unknown) == NAME_LIMIT else ""
        words = {
            count(self.num_bad, "bad image"): self.num_bad,
            count(self.num_held, "held-out picture"): self.num_held,
            f"{count(self.num_unlabelled, 'image')} without a class": self.num_unlabelled,
            f"{count(self.num_unknown, 'image')} of unknown classes "
            f"({', '.join(self.unknown)}{more})": self.num_unknown,
        }
        return [text for text, number in words.items() if number]


class Buffer:
    """Cells of a stream in the order in which they are drawn, without end."""

    def __init__(self, images: StreamedImages, seed: tuple[int, ...], place: Place) -> None:
        self._images = images
        self._seed = seed
        self.passed = Passed()
        self._reading = self._read(place.start)
        self._ahead: list[tuple[StreamCell, int] | None] = []
        self._ahead_start = place.start
        self._ahead_end = place.start
        self._is_full = False
        self._block: list[tuple[StreamCell, int] | None] = []
        self._order: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._start, self._number = place.start, place.block - 1
        self._turn()
        for number in self._order[: place.offset]:
            self._block[number] = None
        self._offset = place.offset

    @property
    def place(self) -> Place:
        """Where the next cell is drawn."""
        return Place(self._start, self._number, self._offset)

    def __next__(self) -> tuple[StreamCell, int]:
        """Return a cell and the row of its class.

        Raises:
            UserError: a shard is damaged, or a whole pass has no image of the role.
        """
        while self._offset >= len(self._block):
            self._turn()
        number = int(self._order[self._offset])
        drawn = self._block[number]
        assert drawn is not None
        self._block[number] = None
        self._offset += 1
        if not self._is_full:
            self._read_one()
        return drawn

    def _turn(self) -> None:
        """Go on to the block that was read ahead."""
        while not self._is_full:
            self._read_one()
        self._number += 1
        self._block, self._start, self._offset = self._ahead, self._ahead_start, 0
        generator = np.random.default_rng((*self._seed, _BLOCK, self._number))
        self._order = generator.permutation(len(self._block))
        self._ahead, self._ahead_start, self._is_full = [], self._ahead_end, False

    def _read_one(self) -> None:
        """Read a cell into the block ahead; it is also full where a pass ends."""
        found, self._ahead_end = next(self._reading)
        if found is not None:
            self._ahead.append(found)
        self._is_full = found is None or len(self._ahead) >= self._images.settings.shuffle_buffer

    def _read(self, start: Start) -> Iterator[tuple[tuple[StreamCell, int] | None, Start]]:
        """Yield cells with what lies behind each; None where a pass ends."""
        shards = self._images.shards
        for epoch in itertools.count(start.epoch):
            order = np.random.default_rng((*self._seed, _ORDER, epoch)).permutation(
                shards.num_shards
            )
            is_barren = start == Start(epoch)
            for place in range(start.shard, len(order)):
                cells = shards.read(int(order[place]))
                for number, cell in enumerate(itertools.islice(cells, start.row, None), start.row):
                    row = self._images.wanted(cell)
                    if row >= 0:
                        is_barren = False
                        yield (cell, row), Start(epoch, place, number + 1)
                    elif row == UNKNOWN:
                        self.passed.add(self._images.maker.unknown(cell))
                start = Start(epoch, place + 1)
            if is_barren:
                raise UserError(
                    f"{shards.where}: a whole pass has no image that may be trained on; name a "
                    "source with images of the role's classes, or a larger fraction"
                )
            start = Start(epoch + 1)
            yield None, start


class Drawn(NamedTuple):
    """Images of one batch."""

    images: ImageSet
    place: Place
    """Behind them."""
    passed: Passed
    """On the way, from the first batch on."""


_HELD = object()
"""Instead of a training image: a picture that is held out."""


@dataclass
class Reader:
    """Batches of a stream, decoded in threads, one batch ahead of the step."""

    images: StreamedImages
    seed: tuple[int, ...]
    count: int
    """Images in a batch."""
    place: Place = field(default_factory=Place)
    """Where the next batch begins."""
    passed: Passed = field(default_factory=Passed)
    """What was read so far and is in no batch."""

    def __post_init__(self) -> None:
        """Start the threads; nothing is read before the first batch is asked for."""
        known_formats()  # Pillow loads its plugins here, once
        self._ahead = ThreadPoolExecutor(1, "kswap-stream")
        self._decoders = ThreadPoolExecutor(min(16, os.cpu_count() or 1), "kswap-decode")
        self._buffer: Buffer | None = None
        self._next: Future[Drawn] | None = None

    def draw(self) -> Drawn:
        """Return the next batch, and begin with the one behind it.

        Raises:
            UserError: an image or a shard is bad, or no image is left.
        """
        drawn = (self._next or self._ahead.submit(self._make)).result()
        self.place, self.passed = drawn.place, drawn.passed
        self._next = self._ahead.submit(self._make)
        return drawn

    def close(self) -> None:
        """End the threads."""
        self._ahead.shutdown(cancel_futures=True)
        self._decoders.shutdown(cancel_futures=True)

    def _make(self) -> Drawn:
        buffer = self._buffer = self._buffer or Buffer(self.images, self.seed, self.place)
        made: list[Any] = []
        epoch = buffer.place.start.epoch
        while len(made) < self.count:
            found = [next(buffer) for _ in range(self.count - len(made))]
            for one in self._decoders.map(self._made, found):
                if isinstance(one, BadImageError):
                    refuse(one, self.images.data)
                    buffer.passed.num_bad += 1
                elif one is _HELD:
                    buffer.passed.num_held += 1
                elif one is not None:
                    made.append(one)
            if not made and buffer.place.start.epoch > epoch + 1:
                raise UserError(
                    f"{self.images.shards.where}: all its images of the role are in a test or "
                    "validation split, cannot be decoded, or show nothing of the role; add images"
                )
        images = self.images.maker.together(made)
        return Drawn(images, buffer.place, replace(buffer.passed))

    def _made(self, found: tuple[StreamCell, int]) -> Any:
        """Return a training image, _HELD, what is wrong with it, or None: nothing of the role."""
        cell, row = found
        try:
            said = self.images.maker.said(cell, row)
            if said is None:
                return None
            source = cell.image
            image = decode(source, name=str(source) if isinstance(source, Path) else cell.name)
            if content_hash(image) in self.images.held:
                return _HELD
            return self.images.maker.make(cell, said, image)
        except BadImageError as error:
            return error
