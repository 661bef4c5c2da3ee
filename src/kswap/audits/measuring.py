"""A reference of runs: trained where none is there, and scored on the test images of a run.

`kswap bench` compares runs with what these return; no score of a reference is written down anywhere
before it was measured.
"""

from __future__ import annotations

from pathlib import Path

from kswap.audits.features import Observed, observe
from kswap.audits.fine_tuning import train_reference
from kswap.audits.subjects import ReferenceLevel
from kswap.audits.units import units_of
from kswap.audits.work import Work, fit_reference_data, load_run, pixels_of
from kswap.data import ImageSet
from kswap.errors import UserError
from kswap.files import disk_errors
from kswap.run_folder import read_results
from kswap.settings import ROLES, Role, Split
from kswap.training.device import memory_errors
from kswap.training.progress import progress


def measure_reference(
    run_dir: Path, source: str, level: ReferenceLevel
) -> dict[Role, float | None]:
    """Return the score of each role's test images by a reference; None: there are none.

    Args:
        run_dir: a finished run; its data must still be where config.yaml names it.
        source: hub id or folder of the reference; classes are matched by name.
        level: what its user says it is.

    Raises:
        UserError: the run's data is gone, or the model cannot be its reference.
    """
    with memory_errors():
        work = load_run(run_dir, read_results(run_dir), level="quick", seed=0)
        work.reference = work.load_reference(source, level)
        fit_reference_data(work)
        return _scores(work)


def _scores(work: Work) -> dict[Role, float | None]:
    assert work.reference is not None
    data = work.reference_data or work.data
    sets: dict[Role, dict[Split, ImageSet]] = {
        role: {"test": splits["test"]} for role, splits in data.sets.items() if "test" in splits
    }
    observed = Observed.of(
        work.reference.loaded.model.to(work.device),
        work.reference.rows,
        len(data.id2label),
        pixels_of(data, work.device),
    )
    subject = observe(
        "reference",
        observed,
        sets,
        units_of(work.base.task),
        class_ids=work.class_ids,
        batch_size=work.config.training.eval_batch_size,
    )
    scores: dict[Role, float | None] = {}
    for role in ROLES:
        answers = subject.of(role, "test")
        known = answers is not None and answers.scores is not None
        scores[role] = round(float(answers.scores.total), 6) if answers and known else None
    return scores


def make_reference(run_dir: Path, backbone: str, to_dir: Path, *, seed: int) -> Path:
    """Fine-tune a backbone on what a run retains and learns (R2), and save it with its seconds.

    Args:
        run_dir: a finished run.
        backbone: hub id or folder of a model of the base's family that never saw the forget data.
        to_dir: folder to write; must not exist.
        seed: of the head and of the order of images.

    Raises:
        UserError: the run forgets nothing, its data is gone, or the backbone cannot be used.
    """
    with memory_errors(), disk_errors(f"{to_dir}"):
        work = load_run(run_dir, read_results(run_dir), level="quick", seed=seed)
        if "forget" not in work.class_ids:
            raise UserError(f"{run_dir}: it forgets nothing, so that it needs no reference")
        to_dir.parent.mkdir(parents=True, exist_ok=True)
        with progress("reference") as report:
            return train_reference(
                backbone,
                to_dir,
                work.base,
                work.data,
                pixels=pixels_of(work.data, work.device),
                device=work.device,
                batch_size=work.config.training.eval_batch_size,
                seed=seed,
                report=report,
            )
