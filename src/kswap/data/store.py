"""Where decoded images lie: in memory, or in files that are mapped into it.

Images are put one by one in the order they are decoded, and gathered into one array for each role
and split once it is known which are used. On disk they are written with `write`, not through a
mapping: a full disk is then an error that can be caught, not a bus error that ends the process.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from kswap.data.text import one_line
from kswap.errors import DiskFullError, UserError


class MemoryStore:
    """Images in memory; gathering frees each as it is copied."""

    def __init__(self) -> None:
        self._images: dict[int, NDArray[Any]] = {}

    def __enter__(self) -> Self:
        """Return the store."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Forget what was not gathered."""
        self._images.clear()

    def put(self, index: int, image: NDArray[Any]) -> None:
        """Keep `image` under `index`."""
        self._images[index] = image

    def take(self, index: int) -> NDArray[Any] | None:
        """Return the image kept under `index` and forget it; None if there is none."""
        return self._images.pop(index, None)

    def gather(
        self,
        name: str,
        indices: Sequence[int],
        read: Callable[[int], NDArray[Any]],
        like: NDArray[Any],
    ) -> NDArray[Any]:
        """Return the images of `indices`, read by `read` with the shape of `like`, as one array."""
        array = np.empty((len(indices), *like.shape), like.dtype)
        for row, index in enumerate(indices):
            array[row] = read(index)
        return array


class FileStore:
    """Images in files under `folder`; None: a temporary one, removed when the arrays are gone."""

    def __init__(self, folder: Path | None) -> None:
        self._temporary = folder is None
        with _disk_errors(folder or Path(tempfile.gettempdir())):
            if folder is None:
                folder = Path(tempfile.mkdtemp(prefix="kswap-"))
            folder.mkdir(parents=True, exist_ok=True)
            self.folder = folder
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed in __exit__
        self._places: dict[int, tuple[int, tuple[int, ...], np.dtype[Any]]] = {}
        self._arrays = 0

    def __enter__(self) -> Self:
        """Return the store."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Free the space of what was not gathered."""
        with suppress(OSError):  # what is still in the buffer is not wanted any more
            self._file.close()
        if self._temporary and (kind is not None or not self._arrays):
            shutil.rmtree(self.folder, ignore_errors=True)

    def put(self, index: int, image: NDArray[Any]) -> None:
        """Keep `image` under `index`."""
        with _disk_errors(self.folder):
            place = self._file.seek(0, os.SEEK_END)
            self._places[index] = (place, image.shape, image.dtype)
            self._file.write(np.ascontiguousarray(image).data.cast("B"))

    def take(self, index: int) -> NDArray[Any] | None:
        """Return the image kept under `index`; None if there is none."""
        found = self._places.pop(index, None)
        if found is None:
            return None
        place, shape, dtype = found
        with _disk_errors(self.folder):  # seeking writes what is still in the buffer
            self._file.seek(place)
            data = self._file.read(math.prod(shape) * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(shape)

    def gather(
        self,
        name: str,
        indices: Sequence[int],
        read: Callable[[int], NDArray[Any]],
        like: NDArray[Any],
    ) -> NDArray[Any]:
        """Write the images of `indices`, read by `read`, to `name` and return the mapped file."""
        if not indices:
            return np.empty((0, *like.shape), like.dtype)
        path = self.folder / f"{name}.images"
        part = self.folder / f".{name}.{os.getpid()}.part"
        try:
            with _disk_errors(self.folder):
                with part.open("wb") as file:
                    for index in indices:
                        file.write(np.ascontiguousarray(read(index)).data.cast("B"))
                part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        # copy-on-write: a batch is writable, as torch wants it, the file is not
        array = np.memmap(path, like.dtype, mode="c", shape=(len(indices), *like.shape))
        self._arrays += 1
        if self._temporary:
            weakref.finalize(array, _remove, path)
        return array


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    if not any(path.parent.iterdir()):
        path.parent.rmdir()


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"{one_line(folder)}: the disk is full while decoded images are written; "
                "free some space, or raise data.memory_limit_bytes"
            ) from None
        raise UserError(
            f"{one_line(folder)}: decoded images cannot be written ({one_line(error.strerror)}); "
            "make the folder writable, or raise data.memory_limit_bytes"
        ) from None
