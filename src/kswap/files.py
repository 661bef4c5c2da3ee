"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from kswap.errors import DiskFullError


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` under a temporary name, flush it to the disk, then rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn a full disk, in whatever library it shows, into one clear line.

    Raises:
        DiskFullError: the disk or the quota is full.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(error) or "os error 28" in str(error):
            raise DiskFullError(
                f"{what}: the disk is full; free some space and start the same command again "
                "(a run goes on from its last checkpoint)"
            ) from error
        raise
