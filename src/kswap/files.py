"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from kswap.errors import DiskFullError


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` under a temporary name, flush it to the disk, then rename.

    The name is the process's own: two that draw the same report do not take each other's.
    """
    temporary = path.with_name(f".{path.name}.{_owner()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_unfinished(folder: Path) -> None:
    """Remove what `write_bytes` of a process that was killed, of this machine, left in a folder."""
    for path in _of_the_dead(folder, r"\..+\.", r"\.tmp"):
        with contextlib.suppress(OSError):
            path.unlink()


def write_folder(to_dir: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary folder beside `to_dir`, then put it in place of `to_dir`.

    What a process that was killed here left beside it is removed.
    """
    to_dir.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(to_dir)
    fresh = to_dir.with_name(f".{to_dir.name}.new-{_owner()}")
    stale = to_dir.with_name(f".{to_dir.name}.old-{_owner()}")
    for folder in (fresh, stale):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        fresh.mkdir()
        write(fresh)
        if to_dir.exists():
            to_dir.rename(stale)
        fresh.rename(to_dir)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(stale, ignore_errors=True)
    return to_dir


def _remove_leftovers(to_dir: Path) -> None:
    """Remove temporary folders of `write_folder` whose process, of this machine, is gone."""
    for path in _of_the_dead(to_dir.parent, rf"\.{re.escape(to_dir.name)}\.(?:new|old)-"):
        shutil.rmtree(path, ignore_errors=True)


def _owner() -> str:
    """Return what this process's temporary names hold."""
    return f"{_host()}-{os.getpid()}"


def _of_the_dead(folder: Path, before: str, behind: str = "") -> Iterator[Path]:
    """Yield what lies in a folder whose owner, of this machine, is gone; patterns around it."""
    names = re.compile(rf"{before}{re.escape(_host())}-(\d+){behind}")
    for path in folder.iterdir():
        found = names.fullmatch(path.name)
        if found and not _lives(int(found[1])):
            yield path


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.]", "_", platform.node())


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # of another user
        return True
    return True


def is_read_only(error: OSError) -> bool:
    """Whether something may not be written to: by its permissions, or as the whole disk is so."""
    return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn a full disk, in whatever library it shows, into one clear line.

    Raises:
        DiskFullError: the disk or the quota is full, or a file may not grow so large.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            raise DiskFullError(
                f"{what}: a file may not grow so large here ({error.strerror}); raise the limit "
                "(ulimit -f), or name a folder on another file system"
            ) from error
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(error) or "os error 28" in str(error):
            raise DiskFullError(
                f"{what}: the disk is full; free some space and start the same command again"
            ) from error
        raise
