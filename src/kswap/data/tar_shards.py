"""WebDataset shards: tar files whose members share a name, `KEY.jpg` and `KEY.cls`.

Read with `tarfile` alone. The reader of the datasets library decodes every member, takes the types
of all shards from the first five samples of the first one, and fails where that one is empty.
"""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from kswap.data.cells import MAX_TEXT_BYTES, CellKind, StreamCell
from kswap.data.text import one_line
from kswap.errors import UserError


def tar_cells(path: Path, kind: CellKind) -> Iterator[StreamCell]:
    """Yield the samples of a tar file: members that share a name up to its first dot."""
    with whole(path):
        _check_end(path)
    cells = kind.of_tar(path)
    with whole(path), _opened(path) as archive:
        members: dict[str, bytes] = {}
        before = None
        for member in archive:
            folder, _, file = member.name.rpartition("/")
            stem, _, extension = file.partition(".")
            if not member.isfile() or not stem or not extension:
                continue
            key, extension = f"{folder}/{stem}" if folder else stem, extension.lower()
            if key != before and before is not None and members:
                yield cells.make(f"{one_line(path)}, {one_line(before)}", members)
                members = {}
            before = key
            wanted = cells.is_picture(extension) or member.size <= MAX_TEXT_BYTES
            content = archive.extractfile(member) if wanted else None
            members[extension] = b"" if content is None else content.read()
            archive.members.clear()  # type: ignore[attr-defined]  # it keeps all, to look them up
        if before is not None and members:
            yield cells.make(f"{one_line(path)}, {one_line(before)}", members)
        _check_rest(archive)


class _Member(tarfile.TarInfo):
    """A header whose damage is raised: `tarfile` takes it for the end, and the rest is lost."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) < tarfile.BLOCKSIZE:
                raise EOFError("it has no end mark, as if it were cut off") from None
            if any(buf):
                raise tarfile.ReadError(f"a damaged header, {error}") from None
            raise  # the end mark


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar file to be read once through; gzip is checked, and may be of several parts."""
    with ExitStack() as files:
        plain = files.enter_context(path.open("rb"))
        packed = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        file = files.enter_context(gzip.GzipFile(fileobj=plain)) if packed else plain
        yield files.enter_context(tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member))


def _check_rest(archive: tarfile.TarFile) -> None:
    """Refuse an archive that goes on behind its end mark.

    Raises:
        ReadError: it does.
    """
    assert archive.fileobj is not None
    while rest := archive.fileobj.read(1 << 20):
        if rest.strip(b"\0"):
            raise tarfile.ReadError(
                "there is data behind its end mark, as if blocks were lost or archives joined"
            )


def _check_end(path: Path) -> None:
    """Refuse a tar file that was cut off, before all of it is read.

    Raises:
        EOFError: it was.
    """
    if path.suffix.lower() != ".tar":
        return
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - tarfile.BLOCKSIZE))
        if any(file.read()):
            raise EOFError("it has no end mark, as if it were cut off")


@contextmanager
def whole(place: object) -> Iterator[None]:
    """Turn what a damaged or missing shard raises into one line."""
    try:
        yield
    except (UserError, GeneratorExit, MemoryError):
        raise
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise _damaged(place, error) from None
    except Exception as error:  # the datasets library and its readers raise nearly anything
        raise _damaged(place, error.__cause__ or error) from None


def _damaged(place: object, error: BaseException) -> UserError:
    return UserError(
        f"{one_line(place)}: cannot be read ({type(error).__name__}: {one_line(error)}); restore "
        "it, or leave it out"
    )
