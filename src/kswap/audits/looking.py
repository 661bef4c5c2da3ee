"""Every model of an audit looks at the images once: what the questions are asked of."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kswap.audits import references
from kswap.audits.earlier import earlier_classes
from kswap.audits.features import Observed, observe, seconds_per_image
from kswap.audits.sampling import chosen_sets, num_images
from kswap.audits.subjects import Case, Subject, SubjectName, control_of
from kswap.audits.units import units_of
from kswap.audits.views import Again
from kswap.audits.work import Note, Work, pixels_of
from kswap.data import ImageSet, SwapData
from kswap.models.adapter import read_matrices
from kswap.settings import Role, Split
from kswap.training.progress import progress


def look_at(work: Work, run_dir: Path, on_note: Note) -> tuple[Case, Again]:
    """Look at all images once with every model.

    Args:
        work: what a run left, and its reference.
        run_dir: of the run.
        on_note: told beforehand what it will cost.
    """
    count, num_base = len(work.data.id2label), work.data.num_base_classes
    todo: dict[SubjectName, tuple[Any, Any, SwapData]] = {
        "base": (work.base.model, range(num_base), work.data),
        "swapped": (work.swapped, work.swapped_rows, work.data),
    }
    if work.reference is not None:
        data = work.reference_data or work.data
        todo["reference"] = (work.reference.loaded.model, work.reference.rows, data)
    models: dict[SubjectName, Observed] = {}
    subjects: dict[SubjectName, Subject] = {}
    sets = {
        name: chosen_sets(data, work.level, reference=work.reference is not None, seed=work.seed)
        for name, (_, _, data) in todo.items()
    }
    begin = time.perf_counter()
    total = sum(num_images(of_model) for of_model in sets.values())
    with progress("features") as report:
        done = 0

        def count_images(images: int) -> None:
            nonlocal done
            done += images
            report(done, total)

        for name, (model, rows, data) in todo.items():
            models[name] = Observed.of(
                model.to(work.device), rows, count, pixels_of(data, work.device)
            )
            if name == "base":
                _estimate(work, models[name], sets["base"], total, on_note)
            subjects[name] = observe(
                name,
                models[name],
                sets[name],
                units_of(work.base.task),
                class_ids=work.class_ids,
                batch_size=work.config.training.eval_batch_size,
                report=count_images,
            )
    work.seconds["features"] = time.perf_counter() - begin
    reference = subjects.get("reference") or control_of(subjects["base"])
    level = work.reference.level if work.reference is not None else "R3"
    case = Case(
        task=work.base.task,
        names=work.data.id2label,
        class_ids=work.class_ids,
        base=subjects["base"],
        swapped=subjects["swapped"],
        reference=reference,
        reference_level=level,
        seed=work.seed,
        valid=references.describe(work.reference, subjects["base"], subjects.get("reference"))[
            "valid"
        ],
        earlier=earlier_classes(work),
    )
    again = Again(
        task=work.base.task,
        models=models,
        sets=sets,
        class_ids=work.class_ids,
        batch_size=work.config.training.eval_batch_size,
        seed=work.seed,
        names=work.data.id2label,
        num_forget=len(work.data.sets["forget"]["train"]) if "forget" in work.data.sets else 0,
        adapter=work.config.adapter,
        own_lora=read_matrices(run_dir / "adapter"),
        factor=4 if work.level == "strict" else 1,
    )
    return case, again


def _estimate(
    work: Work,
    observed: Observed,
    sets: Mapping[Role, Mapping[Split, ImageSet]],
    total: int,
    on_note: Note,
) -> None:
    """Say beforehand what the forwards will cost."""
    images = next(iter(next(iter(sets.values())).values()))
    each = seconds_per_image(observed, images, batch_size=work.config.training.eval_batch_size)
    on_note(
        f"audit {work.level}: {total} forwards of an image, about {total * each:.0f} s "
        f"({each * 1000:.0f} ms each, measured), and the probes"
    )
