"""What A4 is asked of: runs of one config with other seeds, and several references.

All are asked for the confidence of one answer on the forget-train images that every run trained on.
A reference has no row for the forgotten class, so that its confidence in the class is nothing at
all; asked for is the answer that the base gives with the forgotten classes masked out, among the
retained classes, which every model knows. A model that still knows the class is far less
sure of it than a reference; one that never saw the class is as sure.
"""

from __future__ import annotations

import filecmp
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kswap.audits.features import Observed
from kswap.audits.findings import Level
from kswap.audits.quality import Models
from kswap.audits.references import load_reference
from kswap.audits.sampling import subset
from kswap.audits.subjects import ReferenceLevel
from kswap.audits.work import Note, Work, fit_reference_data, load_run, pixels_of
from kswap.data import ImageSet, SwapData
from kswap.errors import UserError
from kswap.run_folder import first_difference, read_results
from kswap.tasks import example_batches
from kswap.yaml_text import read_yaml

MOST_EXAMPLES = 200
ANSWER = "the retained class that the base gives with the forgotten ones masked"


def check_runs(run_dirs: Sequence[Path]) -> None:
    """Refuse runs that are not of one config under different seeds.

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
        config["model"] = _same_model(configs[0]["model"], config["model"])
        if found := first_difference(configs[0], config):
            field, was, now = found
            raise UserError(
                f"{run_dir}: is of another config than {run_dirs[0]}: {field} is {now!r}, there "
                f"{was!r}; audit runs together that differ in seed and output only"
            )


def _comparable(run_dir: Path) -> dict[str, Any]:
    read_results(run_dir)  # says best what is no finished run
    config = read_yaml(run_dir / "config.yaml")
    return {key: value for key, value in config.items() if key not in ("environment", "output")}


def _same_model(one: str, other: str) -> str:
    """Return `one` where the weights of both are equal: demos write their base beside each run."""
    first, second = (Path(source) / "model.safetensors" for source in (one, other))
    if one == other or not (first.is_file() and second.is_file()):
        return other
    return one if filecmp.cmp(first, second, shallow=False) else other


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
    ours: list[dict[bytes, float]] = []
    theirs: list[dict[bytes, float]] = []
    answers: dict[bytes, int] = {}
    for number, run_dir in enumerate(run_dirs):
        work = load_run(run_dir, read_results(run_dir), level=level, seed=seed)
        ids = work.class_ids
        if work.base.task != "classification" or not ids.get("forget") or not ids.get("retain"):
            return None
        rows, digests = _examples(work.data)
        if number == 0:
            answers = dict(zip(digests, _base_answers(work, rows), strict=True))
            for source in references:
                confidences = _of_reference(work, source, reference_level, rows, digests, answers)
                theirs.append(confidences)
        model = work.swapped.to(work.device)
        logits = _logits(work, work.data, model, work.swapped_rows, rows)
        ours.append(_confidences(logits, digests, answers))
    common = sorted(set.intersection(*(set(one) for one in (*ours, *theirs))))
    swapped, found = (_matrix(models, common) for models in (ours, theirs))
    distinct = np.unique(found, axis=0) if common else found
    if len(distinct) < len(found):
        on_note(
            f"{len(found)} references are {len(distinct)} different models; each counts once in A4"
        )
    return Models(swapped, distinct, ANSWER)


def _matrix(models: Sequence[Mapping[bytes, float]], keys: Sequence[bytes]) -> NDArray[np.float64]:
    """Return (models, keys)."""
    values = [[model[key] for key in keys] for model in models]
    return np.array(values, np.float64).reshape(len(models), len(keys))


def _examples(data: SwapData) -> tuple[NDArray[np.int64], list[bytes]]:
    """Return rows of the forget-train images by content, so that all runs take the same ones."""
    images = data.sets["forget"]["train"]
    digests = [
        hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest()
        for image in images.images
    ]
    rows = sorted(range(len(digests)), key=digests.__getitem__)[:MOST_EXAMPLES]
    return np.array(rows, np.int64), [digests[row] for row in rows]


def _base_answers(work: Work, rows: NDArray[np.int64]) -> list[int]:
    """Return the retained class that the base gives for each image."""
    model = work.base.model.to(work.device)
    logits = _logits(work, work.data, model, range(work.data.num_base_classes), rows)
    return [int(row) for row in masked_answers(logits, work.class_ids["retain"])]


def _of_reference(
    work: Work,
    source: str,
    level: ReferenceLevel,
    rows: NDArray[np.int64],
    digests: Sequence[bytes],
    answers: Mapping[bytes, int],
) -> dict[bytes, float]:
    known = {"task": work.base.task, "names": work.data.id2label, "class_ids": work.class_ids}
    work.reference = load_reference(source, level, **known)  # type: ignore[arg-type]
    work.reference_data = None
    fit_reference_data(work)
    model = work.reference.loaded.model.to(work.device)
    data = work.reference_data or work.data
    return _confidences(_logits(work, data, model, work.reference.rows, rows), digests, answers)


def _logits(
    work: Work, data: SwapData, model: Any, own: Sequence[int], rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return (images, rows of the run), −inf where the model lacks a row."""
    images: ImageSet = subset(data.sets["forget"]["train"], rows)
    observed = Observed.of(model, own, len(data.id2label), pixels_of(data, work.device))
    size = work.config.training.eval_batch_size
    with torch.inference_mode():
        parts = [
            observed.in_rows(observed.model(**examples.inputs()).logits).cpu()
            for examples in example_batches(images, observed.pixels, size)
        ]
    return np.asarray(torch.cat(parts).double().numpy())


def masked_answers(logits: NDArray[np.float64], kept: Sequence[int]) -> NDArray[np.int64]:
    """Return which of the rows `kept` each example's logits (examples, rows) prefer."""
    rows = np.array(sorted(kept), np.int64)
    return np.asarray(rows[logits[:, rows].argmax(1)])


def confidence_in(logits: NDArray[np.float64], answers: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return log p − log(1 − p) = z − log Σ of the others' exp of one answer for each example."""
    places = np.arange(len(logits)), answers
    others = np.array(logits, np.float64)
    others[places] = -np.inf
    return np.asarray(logits[places] - np.logaddexp.reduce(others, axis=1), np.float64)


def _confidences(
    logits: NDArray[np.float64], digests: Sequence[bytes], answers: Mapping[bytes, int]
) -> dict[bytes, float]:
    """Return digest -> confidence in the image's answer, of images that have one."""
    known = [row for row, digest in enumerate(digests) if digest in answers]
    wanted = np.array([answers[digests[row]] for row in known], np.int64)
    confidences = confidence_in(logits[known], wanted)
    return {digests[row]: float(value) for row, value in zip(known, confidences, strict=True)}
