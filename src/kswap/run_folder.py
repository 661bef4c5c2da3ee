"""The run folder: who may write into it, what began it, and how a refusal leaves no trace."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import yaml

from kswap.config import SwapConfig
from kswap.errors import UserError
from kswap.files import remove_unfinished, write_bytes
from kswap.manifest import NAME, RESULTS, check_files, write_with_manifest
from kswap.settings import ROLES, TASKS, Role
from kswap.yaml_text import one_line, read_yaml

_OURS = frozenset(
    [
        "config.yaml",
        "results.json",
        "manifest.json",
        "events.jsonl",
        "adapter",
        "model",
        "checkpoints",
        "arrays",
        "figures",
        "report.html",
        "README.md",
        "cache",
        ".lock",
    ]
)

SCORE_NAMES = ("top1", "miou", "map")
"""What a task may be scored by."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run that is locked by this process."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config, with versions and commit."""
        return self.path / "config.yaml"

    @property
    def results(self) -> Path:
        """The numbers; written last, so that its presence says that the run is finished."""
        return self.path / "results.json"

    @property
    def is_complete(self) -> bool:
        """Whether what a finished run leaves for use is there; if not, it can be saved again."""
        return (self.path / "model").is_dir() and (self.path / "adapter").is_dir()

    @property
    def events(self) -> Path:
        """One line per step."""
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Resumable state."""
        return self.path / "checkpoints"

    @property
    def arrays(self) -> Path:
        """What figures and report are drawn from, beside results.json and events.jsonl."""
        return self.path / "arrays"

    @property
    def cache(self) -> Path:
        """Memory-mapped images while the run lasts."""
        return self.path / "cache"


@contextlib.contextmanager
def open_run(path: Path) -> Iterator[RunFolder]:
    """Create and lock the folder; if nothing was begun in it by the end, remove what was created.

    Raises:
        UserError: not writable, another run is in it, or it holds something else.
    """
    created = _make(path)
    folder = RunFolder(path)
    lock = filelock.FileLock(path / ".lock", timeout=0)
    try:
        try:
            lock.acquire()
        except filelock.Timeout:
            raise UserError(
                f"output: {path} is in use by another run; wait for it, or name another folder"
            ) from None
        except OSError as error:
            raise _not_writable(path, error) from None
        try:
            foreign = sorted(p.name for p in path.iterdir() if p.name not in _OURS)
            foreign = [name for name in foreign if not name.endswith(".tmp")]
            if foreign and not folder.config.exists():
                raise UserError(
                    f"output: {path} holds {foreign[0]!r}, which is not of a run; "
                    "name a new or empty folder"
                )
            _remove_unfinished(folder)
            yield folder
        finally:
            shutil.rmtree(folder.cache, ignore_errors=True)
            begun = folder.config.exists()
            with contextlib.suppress(OSError):  # while it is held: nobody else can have locked it
                (path / ".lock").unlink(missing_ok=True)
            lock.release()
            if not begun:
                _remove(created)
    except UserError:
        if not folder.config.exists() and not lock.is_locked:
            _remove(created)
        raise


def _remove_unfinished(folder: RunFolder) -> None:
    """Remove what a killed process did not rename; only who holds the lock writes these files.

    README.md and report.html `kswap report` may be writing, without it.
    """
    own = (folder.config, folder.results, folder.path / NAME)
    unfinished = [found for path in own for found in folder.path.glob(f".{path.name}.*tmp")]
    for path in (*unfinished, *folder.arrays.glob(".*.tmp")):
        with contextlib.suppress(OSError):
            path.unlink()
    remove_unfinished(folder.path)


def _make(path: Path) -> list[Path]:
    """Create the folder with its parents; return what was created, innermost first."""
    missing = []
    here = path
    try:
        while not here.exists():
            missing.append(here)
            here = here.parent
    except OSError as error:  # a name too long, a folder that may not be entered
        raise _not_writable(path, error.strerror) from None
    if not here.is_dir():
        raise UserError(f"output: {here} is a file, not a folder; name another folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _remove(missing)
        raise _not_writable(path, error) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise _not_writable(path, "permission denied")
    return missing


def _remove(created: list[Path]) -> None:
    for folder in created:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _not_writable(path: Path, reason: object) -> UserError:
    return UserError(f"output: {path} cannot be written to ({reason}); name another folder")


def check_config(folder: RunFolder, config: SwapConfig) -> bool:
    """Return whether the folder holds a run of the same config (to resume, or finished).

    Raises:
        UserError: it holds a run of another config, of which the first field that differs is named;
            or config.yaml is damaged.
    """
    if not folder.config.exists():
        if left := [p.name for p in (folder.results, folder.checkpoints) if p.exists()]:
            raise UserError(
                f"output: {folder.path} holds {left[0]} of a run whose config.yaml is gone; "
                "restore it, or name another folder"
            )
        return False
    try:
        before = read_yaml(folder.config)
    except UserError as error:
        raise UserError(f"output: it holds a run whose {error}, or name another folder") from None
    before.pop("environment", None)
    difference = first_difference(before, config.to_mapping())
    if difference:
        check_files(folder.path, "config.yaml")  # damage would read as another config
        field, was, now = difference
        if field == "output":
            raise UserError(
                f"output: {folder.path} holds a run that began as {was!r} and was moved or copied; "
                "move it back to go on with it, or name another folder"
            )
        raise UserError(
            f"output: {folder.path} holds a run with another config: "
            f"{field} was {was!r}, now {now!r}; name another folder, or restore the value"
        )
    return True


def first_difference(before: Any, now: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """Return the first field in which two configs differ, and both values."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in [*before, *(k for k in now if k not in before)]:
            found = first_difference(
                before.get(key), now.get(key), f"{path}.{key}" if path else str(key)
            )
            if found:
                return found
        return None
    return None if before == now else (path, before, now)


def write_config(folder: RunFolder, config: SwapConfig, environment: Mapping[str, Any]) -> None:
    """Write config.yaml: every value, then the environment."""
    content = yaml.safe_dump(
        {**config.to_mapping(), "environment": dict(environment)},
        sort_keys=False,
        allow_unicode=True,
    )
    write_bytes(folder.config, content.encode())


def write_results(folder: RunFolder, results: Mapping[str, Any], *, anew: bool = False) -> None:
    """Write results.json and its checksum; `anew`: at the end of a run, those of all its files."""
    content = json.dumps(results, indent=2, ensure_ascii=False).encode()
    write_with_manifest(folder.path, content, anew=anew)


def read_results(run_dir: Path) -> dict[str, Any]:
    """Read results.json of a finished run.

    Raises:
        UserError: the folder is not one of a finished run, or the file is damaged.
    """
    path = run_dir / RESULTS
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _check_results(results)
    except FileNotFoundError:
        what = "is not finished" if (run_dir / "config.yaml").exists() else "is not a run folder"
        raise UserError(
            f"{run_dir}: {what} (no results.json); name the output of a finished `kswap run`"
        ) from None
    except NotADirectoryError:
        raise UserError(
            f"{run_dir}: is a file; name a run folder, the output of a `kswap run`"
        ) from None
    except PermissionError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); correct the permissions, such as with "
            f"chmod -R u+rX {run_dir}"
        ) from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); mend the disk, or restore the file"
        ) from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); delete it and run the same "
            "swap again, which writes it anew from the last checkpoint"
        ) from None
    check_files(run_dir, RESULTS)
    return results


def check_data_is_named(
    run_dir: Path, config: SwapConfig, results: Mapping[str, Any], *, verb: str
) -> None:
    """Refuse a run of which a command has to read the data again, and cannot.

    Raises:
        UserError: data of the run was given in memory, whether the config names other or none.
    """
    in_memory = results.get("in_memory", ())
    unnamed = [
        role
        for role in ROLES
        if role in in_memory
        or (role in results.get("images", {}) and not getattr(getattr(config, role), "data", ""))
    ]
    if unnamed:
        raise UserError(
            f"{run_dir}: its data ({', '.join(unnamed)}) was given in memory, so it cannot be read "
            f"again; {verb} a run whose config names its data"
        )


def check_classes(
    run_dir: Path, names: Mapping[Role, list[str]], results: Mapping[str, Any]
) -> None:
    """Refuse data that was read again and has other classes than the run.

    Raises:
        UserError: the names of a role's classes, or their order, are others.
    """
    if names != results["classes"]:
        raise UserError(
            f"{run_dir}: the classes of its data are not those of the run (the data has changed, "
            "or was given in memory); restore it"
        )


def _check_results(results: Any) -> None:
    """Touch what commands read, so that a damaged file is found here and not half-way."""
    classes, seconds = results["classes"], results["seconds"]
    for role in ROLES:
        ", ".join(classes[role])
    results["stages"][-1]
    for stage in [*results["stages"], *([results["saved"]] if results.get("saved") else [])]:
        for role in ROLES:
            _check_number(f"the score of {role}", stage["scores"][role], may_be_none=True)
        for name, score in stage.get("per_class", {}).items():
            _check_number(f"the score of class {one_line(name)!r}", score)
    for name, value in seconds.items():
        _check_number(f"seconds of {name}", value)
    seconds["total"]
    for key, known in (("task", TASKS), ("score_name", SCORE_NAMES)):
        if key in results and results[key] not in known:
            raise ValueError(f"{key} {one_line(repr(results[key]))} is none of {', '.join(known)}")


def _check_number(what: str, value: Any, *, may_be_none: bool = False) -> None:
    """Refuse what is no finite number; JSON as Python reads it has NaN and Infinity, too."""
    if value is None and may_be_none:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{what} is {one_line(repr(value))}, not a finite number")
