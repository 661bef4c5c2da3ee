"""The references of a bench: trained once per seed where asked for, measured on the test images.

A run is compared with the reference of its own seed, where one was trained here: splits that are
cut by the seed keep its test images out of that reference's training. References that were named
serve every seed; their scores are averaged. What was measured is kept in references.json.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kswap.audits.fine_tuning import seconds_of
from kswap.audits.measuring import make_reference, measure_reference
from kswap.audits.references import beside
from kswap.audits.subjects import ReferenceLevel
from kswap.benching.table import Yardstick
from kswap.errors import UserError
from kswap.files import write_bytes
from kswap.models.loading import find_task
from kswap.run_folder import read_results
from kswap.settings import ROLES


def check_sources(sources: Sequence[str], task: str, *, train: bool) -> None:
    """Refuse what cannot be a reference, before anything is run.

    Raises:
        UserError: a folder is missing, does another task, or there is not one backbone to train.
    """
    if train and len(sources) != 1:
        raise UserError(
            f"--train-references: {len(sources)} backbones were named with --references; name the "
            "one that never saw the classes to forget"
        )
    for source in sources:
        try:
            does = find_task(source)
        except UserError as error:
            raise UserError(f"--references: {str(error).removeprefix('model: ')}") from None
        if does != task:
            raise UserError(
                f"--references: {source} does {does}, the bench {task}; name a model of the same "
                "task"
            )


def train_missing(
    runs: Mapping[int, Path],
    backbone: str,
    folder: Path,
    *,
    on_end: Callable[[str, str], None] = lambda name, problem: None,
) -> dict[int, str]:
    """Fine-tune one reference for each seed, unless it is there; return seed -> its folder.

    Args:
        runs: seed -> a finished run.
        backbone: of the references.
        folder: theirs.
        on_end: called with the name of each that was trained.

    Raises:
        UserError: the backbone cannot be used.
    """
    found = {}
    for seed, run_dir in runs.items():
        to_dir = folder / str(seed)
        if not (to_dir / "config.json").is_file():
            make_reference(run_dir, backbone, to_dir, seed=seed)
            on_end(f"reference of seed {seed}", "")
        found[seed] = str(to_dir)
    return found


def measure(
    runs: Mapping[int, Path],
    sources: Mapping[int, Sequence[str]],
    level: ReferenceLevel,
    cache_path: Path,
) -> dict[int, Yardstick]:
    """Return seed -> what its references score; what was measured before is read from the cache.

    Args:
        runs: seed -> a finished run, whose test images are read.
        sources: seed -> its references; none: it has no yardstick.
        level: of the references.
        cache_path: references.json.

    Raises:
        UserError: a model cannot be a reference of the runs, or their data is gone.
    """
    cache = _read(cache_path)
    found = {}
    for seed, run_dir in runs.items():
        scored: list[Mapping[str, float | None]] = []
        for source in sources.get(seed, ()):
            key = f"{source} {_state(source)} seed {seed}"
            if key not in cache:
                cache[key] = dict(measure_reference(run_dir, source, level))
                write_bytes(cache_path, json.dumps(cache, indent=2).encode())
            scored.append(cache[key])
        if scored:
            found[seed] = Yardstick(
                level,
                tuple(sources[seed]),
                {role: _mean([one[role] for one in scored]) for role in ROLES},
                _mean([seconds_of(source) for source in sources[seed]]),
            )
    return found


def runs_by_seed(run_dirs: Sequence[Path]) -> dict[int, Path]:
    """Return seed -> a finished run, the one with scores of the most roles.

    Raises:
        UserError: a results.json is damaged.
    """
    best: dict[int, tuple[int, Path]] = {}
    for run_dir in run_dirs:
        if (run_dir / "results.json").exists():
            results = read_results(run_dir)
            known = sum(value is not None for value in results["stages"][-1]["scores"].values())
            if known > best.get(results["seed"], (-1, run_dir))[0]:
                best[results["seed"]] = known, run_dir
    return {seed: run_dir for seed, (_, run_dir) in sorted(best.items())}


def yardsticks_beside(run_dirs: Sequence[Path], cache_path: Path) -> dict[int, Yardstick]:
    """Return seed -> what the reference beside its run (RUN-reference) scores.

    Raises:
        UserError: that model cannot be a reference of the run.
    """
    runs = runs_by_seed(run_dirs)
    sources = {seed: [str(path)] for seed, run in runs.items() if (path := beside(run))}
    return measure(runs, sources, "R2", cache_path)


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None where a value is missing."""
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known and len(known) == len(values) else None


def _state(source: str) -> str:
    """Return what changes when the weights of a folder do; of a hub id there is nothing."""
    path = Path(source) / "model.safetensors"
    if not path.is_file():
        return "as published"
    state = path.stat()
    return f"of {state.st_size} bytes at {state.st_mtime_ns}"


def _read(cache_path: Path) -> dict[str, Any]:
    if not cache_path.exists():
        return {}
    try:
        cache = json.loads(cache_path.read_text(encoding="utf-8"))
        return {str(key): {role: scores[role] for role in ROLES} for key, scores in cache.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{cache_path}: cannot be read ({type(error).__name__}: {error}); delete it, it is "
            "written anew"
        ) from None
