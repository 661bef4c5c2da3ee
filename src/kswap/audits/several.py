"""What A4 is asked of: runs of one config with other seeds, and several references.

All are asked for the confidence of one answer on the forget-train images that every run trained on.
A reference has no row for the forgotten class, so that its confidence in the class is nothing at
all; asked for is the retained class, which every model knows, that all of them together find most
likely, swapped models and references alike: the answer of one side would be surer there by being
chosen. A model that still knows the class is far less sure of it than a reference; one that never
saw the class is as sure.

Swaps from one base share what that base makes of an image, and differ by seed far less than
references do (LOG.md, 2026-11-26), so that runs may be of bases that differ in seed.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kswap.audits.features import Observed, check_numbers
from kswap.audits.findings import Level
from kswap.audits.quality import Models
from kswap.audits.subjects import ReferenceLevel, SubjectName
from kswap.audits.work import Note, Work, fit_reference_data, load_run, pixels_of
from kswap.data import ImageSet, SwapData
from kswap.data.sets import subset
from kswap.errors import UserError
from kswap.run_folder import first_difference, read_results
from kswap.tasks import example_batches
from kswap.yaml_text import read_yaml

MOST_EXAMPLES = 200
ANSWER = "the retained class that all models together find most likely"


def check_runs(run_dirs: Sequence[Path]) -> None:
    """Refuse runs that are not of one config under different seeds.

    Their bases may be other weights of one architecture with the same labels.

    Raises:
        UserError: another config, or a seed twice.
    """
    configs = [_comparable(run_dir) for run_dir in run_dirs]
    seeds: dict[Any, Path] = {}
    for run_dir, config in zip(run_dirs, configs, strict=True):
        seed = config.pop("seed", None)
        if seed in seeds:
            raise UserError(
                f"{run_dir}: has the seed {seed} of {seeds[seed]}; audit runs with different seeds "
                "together"
            )
        seeds[seed] = run_dir
        first = configs[0]["model"]
        if config["model"] != first and _architecture(run_dir) == _architecture(run_dirs[0]):
            config["model"] = first
        if found := first_difference(configs[0], config):
            field, was, now = found
            raise UserError(
                f"{run_dir}: is of another config than {run_dirs[0]}: {field} is {now!r}, there "
                f"{was!r}; audit runs together that differ in seed, output and weights of the "
                "base only"
            )


def _comparable(run_dir: Path) -> dict[str, Any]:
    read_results(run_dir)  # says best what is no finished run
    config = read_yaml(run_dir / "config.yaml")
    return {key: value for key, value in config.items() if key not in ("environment", "output")}


def _architecture(run_dir: Path) -> dict[str, Any]:
    """Return what the swapped model's config says of it, but for names and versions."""
    path = run_dir / "model" / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); restore what the run saved") from error
    apart = ("_name_or_path", "transformers_version", "dtype")
    return {key: value for key, value in config.items() if key not in apart}


def _num_different(sources: Sequence[str]) -> int:
    """Return how many models there are; demos write a copy of theirs beside each run."""
    found: list[str] = []
    for source in sources:
        if not any(_same_model(source, other) for other in found):
            found.append(source)
    return len(found)


def _same_model(one: str, other: str) -> bool:
    if one == other:
        return True
    first, second = (Path(source) / "model.safetensors" for source in (one, other))
    return first.is_file() and second.is_file() and filecmp.cmp(first, second, shallow=False)


def gather(
    run_dirs: Sequence[Path],
    references: Sequence[str],
    reference_level: ReferenceLevel,
    *,
    level: Level,
    seed: int,
    on_note: Note,
) -> Models | None:
    """Return confidences of all runs and references; None for another task, or nothing forgotten.

    Args:
        run_dirs: finished runs that `check_runs` let pass.
        references: hub ids or folders.
        reference_level: of all of them.
        level: of the audit.
        seed: of the audit.
        on_note: told of references that are copies of each other.

    Raises:
        UserError: a run's data is gone, or a model cannot be a reference.
    """
    ours: list[dict[bytes, NDArray[np.float64]]] = []
    theirs: list[dict[bytes, NDArray[np.float64]]] = []
    bases: list[str] = []
    kept: list[int] = []
    for number, run_dir in enumerate(run_dirs):
        work = load_run(run_dir, read_results(run_dir), level=level, seed=seed)
        ids = work.class_ids
        if work.base.task != "classification" or not ids.get("forget") or not ids.get("retain"):
            return None
        rows, digests = examples(work.data)
        if number == 0:
            kept = sorted(ids["retain"])
            for source in references:
                logits = logits_of_reference(work, source, reference_level, rows)
                theirs.append(dict(zip(digests, logits, strict=True)))
        bases.append(work.config.model)
        model = work.swapped.to(work.device)
        logits = _logits("swapped", work, work.data, model, work.swapped_rows, rows)
        ours.append(dict(zip(digests, logits, strict=True)))
    common = sorted(set.intersection(*(set(one) for one in (*ours, *theirs))))
    if not common:
        return Models(np.zeros((len(ours), 0)), np.zeros((len(theirs), 0)), ANSWER)
    logits = np.array([[model[key] for key in common] for model in (*ours, *theirs)])
    found = confidence_in(logits, likeliest(logits, kept))
    distinct = np.unique(found[len(ours) :], axis=0)
    if len(distinct) < len(theirs):
        on_note(
            f"{len(theirs)} references are {len(distinct)} different models; each counts once in A4"
        )
    return Models(found[: len(ours)], distinct, ANSWER, _num_different(bases))


def examples(data: SwapData) -> tuple[NDArray[np.int64], list[bytes]]:
    """Return rows of the forget-train images by content, so that all runs take the same ones."""
    images = data.sets["forget"]["train"]
    digests = [
        hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest()
        for image in images.images
    ]
    rows = sorted(range(len(digests)), key=digests.__getitem__)[:MOST_EXAMPLES]
    return np.array(rows, np.int64), [digests[row] for row in rows]


def logits_of_reference(
    work: Work, source: str, level: ReferenceLevel, rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return (images, rows of the run), −inf where the reference lacks a row."""
    work.reference = work.load_reference(source, level)
    work.reference_data = None
    fit_reference_data(work)
    model = work.reference.loaded.model.to(work.device)
    data = work.reference_data or work.data
    return _logits("reference", work, data, model, work.reference.rows, rows)


def _logits(
    name: SubjectName,
    work: Work,
    data: SwapData,
    model: Any,
    own: Sequence[int],
    rows: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return (images, rows of the run), −inf where the model lacks a row."""
    images: ImageSet = subset(data.sets["forget"]["train"], rows)
    observed = Observed.of(model, own, len(data.id2label), pixels_of(data, work.device))
    size = work.config.training.eval_batch_size
    with torch.inference_mode():
        parts = [
            observed.in_rows(observed.model(**batch.inputs()).logits).cpu()
            for batch in example_batches(images, observed.pixels, size)
        ]
    found: NDArray[np.float64] = torch.cat(parts).double().numpy()
    check_numbers(name, found)
    return found


def likeliest(logits: NDArray[np.float64], kept: Sequence[int]) -> NDArray[np.int64]:
    """Return (examples,): the row of `kept` with the largest log p, as a mean over models.

    Args:
        logits: (models, examples, rows).
        kept: rows that every model has.
    """
    rows = np.array(sorted(kept), np.int64)
    own = logits[..., rows]
    logs = own - np.logaddexp.reduce(own, axis=-1, keepdims=True)
    return np.asarray(rows[logs.mean(0).argmax(-1)])


def confidence_in(logits: NDArray[np.float64], answers: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return log p − log(1 − p) = z − log Σ of the others' exp of one answer for each example.

    Args:
        logits: (..., examples, rows).
        answers: (examples,), rows.
    """
    places = (..., np.arange(len(answers)), answers)
    others = np.array(logits, np.float64)
    others[places] = -np.inf
    return np.asarray(logits[places] - np.logaddexp.reduce(others, axis=-1), np.float64)
