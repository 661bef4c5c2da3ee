"""The door to the audits: load what a run left, look at it once, ask every question, write it down.

Three models are treated alike: the base that the run began with, the merged model as it was saved,
and a reference that never saw the forget data, where there is one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kswap.audits import references, reversal
from kswap.audits.battery import run_audits
from kswap.audits.features import Observed, observe, seconds_per_image
from kswap.audits.findings import LEVELS, Finding, Level
from kswap.audits.references import beside
from kswap.audits.sampling import chosen_sets, num_images
from kswap.audits.subjects import Case, ReferenceLevel, Subject, SubjectName, control_of
from kswap.audits.units import units_of
from kswap.audits.verdict import verdict
from kswap.audits.views import Again
from kswap.audits.work import Note, Work, find_reference, fit_reference_data, load_run, pixels_of
from kswap.data import ImageSet, SwapData
from kswap.errors import UserError
from kswap.files import disk_errors
from kswap.manifest import check_files
from kswap.plan import plan
from kswap.report.page import draw_report
from kswap.run_folder import open_run, read_results, write_results
from kswap.settings import Role, Split
from kswap.training.device import memory_errors
from kswap.training.progress import progress


def audit(
    run_dir: str | Path,
    *,
    level: Level = "quick",
    reference: str | Path | None = None,
    reference_level: ReferenceLevel | None = None,
    train_reference: bool = False,
    seed: int = 0,
    on_note: Note = lambda note: None,
) -> dict[str, Any]:
    """Audit a finished run; write the answer into its results.json, report and model card.

    Args:
        run_dir: folder of a finished run; its data must still be where config.yaml names it.
        level: quick needs the models' answers only; standard adds rounding (A9) and a short
            relearning (A7); strict adds shadow models (A3, A4) and long relearning.
        reference: hub id or folder of a model that never saw the forget data; classes are matched
            by name. Left out: RUN-reference beside the run, if there is one.
        reference_level: R1, trained from scratch with the base's budget; R2 (default), the same
            pretrained backbone fine-tuned without the forget data.
        train_reference: fine-tune `reference`, a pretrained backbone that never saw the forget
            data, on retain and learn, and compare with that (R2).
        seed: of everything that is drawn or trained.
        on_note: called at once with whatever the user should know.

    Returns:
        What is under "audit" in results.json.

    Raises:
        UserError: not a finished run, its data is gone, or the reference cannot be one.
    """
    begin = time.perf_counter()
    run_dir = Path(run_dir).expanduser()
    if level not in LEVELS:
        raise UserError(f"level: {level!r} is none; take one of {', '.join(LEVELS)}")
    if reference_level not in (None, "R1", "R2"):
        raise UserError(f"reference_level: {reference_level!r} is none; take R1 or R2")
    if reference_level is not None and reference is None and not beside(run_dir.resolve()):
        raise UserError(
            f"--reference-level: {reference_level} of no reference; name one with --reference"
        )
    results = read_results(run_dir)
    check_files(run_dir, "config.yaml", "adapter")
    check_files(run_dir, "events.jsonl", "arrays", may_miss=True)
    with memory_errors(), disk_errors(f"{run_dir}"), open_run(run_dir) as folder:
        work = load_run(run_dir, results, level=level, seed=seed)
        work.reference = find_reference(
            work, run_dir, reference, reference_level, train=train_reference, on_note=on_note
        )
        fit_reference_data(work)
        case, again = _observe(work, on_note)
        found = describe_reference(work, case)
        findings = run_audits(
            case,
            again,
            level=level,
            score_name=str(results["score_name"]),
            has_adapter=(run_dir / "adapter").is_dir(),
            seconds=work.seconds,
        )
        work.seconds["total"] = time.perf_counter() - begin
        answer = _answer(work, case, found, findings)
        results = {**read_results(run_dir), "audit": answer}
        write_results(folder, results)
        draw_report(run_dir)
    return answer


def _observe(work: Work, on_note: Note) -> tuple[Case, Again]:
    """Look at all images once with every model."""
    learned = any("learn" in stage.active for stage in plan(work.config))
    count, num_base = len(work.data.id2label), work.data.num_base_classes
    own = [row if learned or row < num_base else -1 for row in range(count)]
    todo: dict[SubjectName, tuple[Any, Any, SwapData]] = {
        "base": (work.base.model, range(num_base), work.data),
        "swapped": (work.swapped, own, work.data),
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


def describe_reference(work: Work, case: Case) -> dict[str, Any]:
    """Return what results.json says of the reference."""
    subject = case.reference if work.reference is not None else None
    return references.describe(work.reference, case.base, subject)


def _answer(
    work: Work, case: Case, reference: dict[str, Any], findings: Mapping[str, Finding]
) -> dict[str, Any]:
    decides = None if case.decides else case.without_decision()
    if case.reference_level == "R3" and not case.decides:
        decides = "there is no reference (R3); name one with --reference"
    answer = {
        "level": work.level,
        "seed": work.seed,
        "reference": reference,
        "verdict": verdict(
            findings,
            level=work.level,
            task=work.base.task,
            forgets=case.forgets,
            reference=decides,
        ),
        "warnings": [
            reversal.UNMERGED,
            reversal.MERGED,
            *(text for finding in findings.values() for text in finding.warnings),
        ],
        "seconds": {name: round(value, 3) for name, value in work.seconds.items()},
        "audits": {name: finding.to_mapping() for name, finding in findings.items()},
    }
    loaded: dict[str, Any] = json.loads(json.dumps(answer))
    return loaded
