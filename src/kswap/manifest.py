"""RUN/manifest.json: a SHA-256 of every file that a finished run left and that is read again.

Written with results.json, after all else. Commands that read a run compare first, so that a file
that was cut off or changed is named, not used. README.md, report.html and figures/ are anybody's to
edit and are left out. A run without a manifest (of an earlier version, or copied without it) is
read unchecked.

While results.json is replaced the manifest knows its old and its new checksum: a process that is
killed in between leaves a run that is whole.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from kswap.errors import UserError
from kswap.files import digest_of, write_bytes

NAME = "manifest.json"
RESULTS = "results.json"
_RECORDED = ("config.yaml", "events.jsonl", "arrays", "adapter", "model")
_Sums = dict[str, list[str]]
"""Path within the run -> the checksums it may have."""


def write_with_manifest(run_dir: Path, results: bytes, *, anew: bool) -> None:
    """Write results.json, and the manifest before and after it.

    Args:
        run_dir: the run, whole but for results.json.
        results: content of results.json.
        anew: take the checksums of all files, as at the end of a run; else only that of
            results.json is changed, and a run without a manifest stays so.
    """
    path = run_dir / RESULTS
    sums = {name: [digest_of(run_dir / name)] for name in _files(run_dir)} if anew else {}
    if not anew and (run_dir / NAME).is_file():
        sums = _read(run_dir)
    after = hashlib.sha256(results).hexdigest()
    if sums:
        before = [digest_of(path)] if path.is_file() else []
        _write(run_dir, {**sums, RESULTS: [*before, after]})
    write_bytes(path, results)
    if sums:
        _write(run_dir, {**sums, RESULTS: [after]})


def check_files(run_dir: Path, *names: str, may_miss: bool = False) -> None:
    """Compare files, and what is in folders, with the manifest, if there is one.

    Args:
        run_dir: the run.
        names: files and folders within it.
        may_miss: whether a file may be gone; what is read then is for the caller to say.

    Raises:
        UserError: one is not what the run wrote; it is named.
    """
    for name in damaged_files(run_dir, *names, may_miss=may_miss):
        there = (run_dir / name).exists()
        what = "is damaged (its checksum is not that in manifest.json)" if there else "is missing"
        raise UserError(
            f"{run_dir / name}: {what}; restore it{_rebuilt(name)}, or delete manifest.json if the "
            "change is meant"
        )


def damaged_files(run_dir: Path, *names: str, may_miss: bool = False) -> list[str]:
    """Return which of these files, or of the files in these folders, are not as in the manifest.

    Raises:
        UserError: the manifest itself is damaged.
    """
    try:
        sums = _read(run_dir)
    except FileNotFoundError:
        return []
    found = []
    for name, allowed in sums.items():
        if name.split("/")[0] not in names:
            continue
        try:
            if digest_of(run_dir / name) not in allowed:
                found.append(name)
        except (FileNotFoundError, NotADirectoryError):
            if not may_miss:
                found.append(name)
        except OSError as error:
            raise UserError(
                f"{run_dir / name}: cannot be read ({error.strerror}); restore it{_rebuilt(name)}"
            ) from None
    return found


def _rebuilt(name: str) -> str:
    """Return how the file comes back, if it does."""
    if name.split("/")[0] in ("adapter", "model"):
        return ", or run the same swap again, which saves it anew from the last checkpoint"
    if name == RESULTS:
        return ", or delete it and run the same swap again, which writes it anew"
    return ""


def _files(run_dir: Path) -> list[str]:
    found = []
    for name in _RECORDED:
        path = run_dir / name
        inside = path.rglob("*") if path.is_dir() else [path]
        found += [
            file.relative_to(run_dir).as_posix()
            for file in inside
            if file.is_file() and file.name != "README.md" and file.name[0] != "."
        ]
    return sorted(found)


def _read(run_dir: Path) -> _Sums:
    path = run_dir / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        sums: _Sums = content["sha256"]
        if content["own"] != _own(sums):
            raise ValueError("its checksum is wrong")
        return {str(name): list(allowed) for name, allowed in sums.items()}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: is damaged ({type(error).__name__}: {error}); restore it, or delete it: the "
            "files of the run are then read unchecked"
        ) from None


def _write(run_dir: Path, sums: _Sums) -> None:
    content = json.dumps({"sha256": sums, "own": _own(sums)}, indent=1, ensure_ascii=False)
    write_bytes(run_dir / NAME, content.encode())


def _own(sums: _Sums) -> str:
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
