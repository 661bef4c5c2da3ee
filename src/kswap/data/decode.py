"""Decode every image once: hash its content, give it the model's size, keep it if it may be used.

Decoding runs in threads (Pillow, hashing and resizing release the interpreter lock) and in chunks,
so that results arrive in order and the first bad image stops the run at the same place every time.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kswap.data.images import BadImageError, decode, known_formats, or_skip, silence_pillow
from kswap.data.pixels import Fitter
from kswap.data.splits import KEY_BITS, Cut, order_key
from kswap.data.store import FileStore, MemoryStore
from kswap.data.table import Table
from kswap.data.text import one_line
from kswap.errors import UserError
from kswap.settings import DataConfig, Role, Split

CHUNK = 256
"""Images decoded between two looks at the results."""
Progress = Callable[[int, int], None]


class Item(NamedTuple):
    """An image that has a role, not read yet."""

    role: Role
    split: Split
    class_id: int
    table: Table
    row: int


@dataclass
class Decoded:
    """All items, decoded: `digests[i]` is None where image i is bad."""

    store: MemoryStore | FileStore
    digests: list[bytes | None]
    example: NDArray[Any]
    """A fitted image: shape and type of all."""
    bad: list[BadImageError] = field(default_factory=list)


def content_hash(image: Image.Image) -> bytes:
    """Return a hash of size and pixels, the same for lossless copies."""
    width, height = image.size
    return hashlib.blake2b(f"{width}x{height}:".encode() + image.tobytes(), digest_size=16).digest()


def read_item(item: Item) -> Image.Image:
    """Return the image of `item`, RGB and upright.

    Raises:
        BadImageError: it cannot be decoded.
    """
    try:
        source = item.table.read(item.row)
    except Exception as error:  # a damaged row of a table
        raise BadImageError(item.table.name(item.row), str(error)) from None
    name = str(source) if isinstance(source, Path) else None
    return decode(source, name=name or item.table.name(item.row))


def decode_all(
    items: Sequence[Item],
    fitter: Fitter,
    cuts: Mapping[Role, Cut],
    *,
    seed: int,
    data: DataConfig,
    cache_dir: Path | None,
    on_progress: Progress | None = None,
) -> Decoded:
    """Decode `items`; the pixels of those that `cuts` will surely leave out are not kept.

    Raises:
        UserError: an image is bad (unless they are skipped), or the sizes differ.
    """
    shares = [cuts[item.role].share if item.split == "train" else 1.0 for item in items]
    found: Decoded | None = None
    digests: list[bytes | None] = []
    bad: list[BadImageError] = []
    # Pillow loads its plugins here, once: threads that do so side by side disturb each other
    known_formats()

    def prepare(index: int) -> tuple[bytes, NDArray[Any] | None] | BadImageError:
        try:
            image = read_item(items[index])
        except BadImageError as error:
            return error
        digest = content_hash(image)
        if found is not None and not may_be_used(digest, shares[index], seed):
            return digest, None
        item = items[index]
        try:
            return digest, fit(image, fitter, lambda: item.table.name(item.row))
        except BadImageError as error:
            return error

    try:
        with closing(in_order(prepare, len(items), on_progress)) as results:
            for index, result in enumerate(results):
                if isinstance(result, BadImageError):
                    refuse(result, data)
                    bad.append(result)
                    digests.append(None)
                    continue
                digest, fitted = result
                digests.append(digest)
                if fitted is None:
                    continue
                if found is None:
                    store = store_for(sum(shares) * fitted.nbytes, data, cache_dir)
                    found = Decoded(store, digests, fitted, bad)
                check_size(fitted, found.example, items[index])
                found.store.put(index, fitted)
    except BaseException as error:
        if found is not None:
            found.store.__exit__(type(error), error, None)
        raise
    if found is None:
        raise no_image(bad)
    return found


def no_image(bad: Sequence[BadImageError]) -> UserError:
    """Return what to say where no image is left but those that are `bad`."""
    if not bad:
        return UserError("no images")
    return UserError(f"{bad[0]}; it is one of {len(bad)}, and there is no other image")


def fit(image: Image.Image, fitter: Fitter, name: Callable[[], str]) -> NDArray[Any]:
    """Return an image as the processor leaves it.

    Raises:
        BadImageError: the processor cannot handle its size.
    """
    try:
        return fitter(image)
    except Exception as error:
        raise BadImageError(name(), f"the processor fails: {error}") from None


def check_size(fitted: NDArray[Any], example: NDArray[Any], item: Item) -> None:
    """Refuse an image that the processor leaves in another size than the first.

    Raises:
        UserError: the sizes differ.
    """
    if fitted.shape != example.shape:
        raise UserError(
            f"{one_line(item.table.name(item.row))}: the processor gives it the shape "
            f"{fitted.shape}, the first image {example.shape}; set a fixed size or crop in "
            "preprocessor_config.json, or resize the files"
        )


def may_be_used(digest: bytes, share: float, seed: int) -> bool:
    """Whether a picture's place in the order may be within `share`.

    There is some slack for small classes; where it is not enough, the few pictures needed are
    decoded again.
    """
    return share >= 1 or order_key(seed, digest) < (1.1 * share + 0.02) * 2**KEY_BITS


def refuse(error: BadImageError, data: DataConfig) -> None:
    """Raise what is wrong with an image, unless bad images are skipped.

    Raises:
        UserError: they are not.
    """
    if data.on_bad_image == "error":
        raise or_skip(error)


def store_for(
    num_bytes: float, data: DataConfig, cache_dir: Path | None
) -> MemoryStore | FileStore:
    """Return a store in memory for up to the limit, else on disk."""
    return MemoryStore() if num_bytes <= data.memory_limit_bytes else FileStore(cache_dir)


def in_order(
    function: Callable[[int], Any], number: int, on_progress: Progress | None
) -> Generator[Any, None, None]:
    """Yield `function` of 0 to `number` - 1, computed in threads, in order."""
    with warnings.catch_warnings(), ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        silence_pillow()
        for start in range(0, number, CHUNK):
            end = min(start + CHUNK, number)
            yield from pool.map(function, range(start, end))
            if on_progress is not None:
                on_progress(end, number)


def class_array(class_ids: Sequence[int]) -> NDArray[np.int64]:
    """Return class ids as an array, also of none."""
    return np.asarray(class_ids, dtype=np.int64)
