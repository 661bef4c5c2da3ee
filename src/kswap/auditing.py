"""The door to the audits: load what a run left, look at it once, ask every question, write it down.

Three models are treated alike: the base that the run began with, the merged model as it was saved,
and a reference that never saw the forget data, where there is one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kswap.audits import references, reversal, several
from kswap.audits.battery import AUDITS, run_audits
from kswap.audits.findings import LEVELS, Finding, Level
from kswap.audits.looking import look_at
from kswap.audits.measuring import make_reference
from kswap.audits.quality import Models
from kswap.audits.references import beside
from kswap.audits.subjects import Case, ReferenceLevel
from kswap.audits.verdict import verdict
from kswap.audits.work import Note, Work, find_reference, fit_reference_data, load_run
from kswap.errors import UserError
from kswap.files import disk_errors
from kswap.manifest import check_files
from kswap.report.page import draw_report
from kswap.run_folder import open_run, read_results, write_results
from kswap.training.device import memory_errors


def audit(
    run_dir: str | Path,
    *,
    level: Level = "quick",
    reference: str | Path | None = None,
    reference_level: ReferenceLevel | None = None,
    train_reference: bool = False,
    skip: Sequence[str] = (),
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
        skip: ids of audits to leave out, such as A7, the longest; the ladder ends where one is
            missed.
        seed: of everything that is drawn or trained.
        on_note: called at once with whatever the user should know.

    Returns:
        What is under "audit" in results.json.

    Raises:
        UserError: not a finished run, its data is gone, or the reference cannot be one.
    """
    run_dir = Path(run_dir).expanduser()
    _check(level, reference_level, skip, seed)
    if reference is None and not beside(run_dir.resolve()):
        _check_no_level(reference_level)
    return _audit(
        run_dir,
        level=level,
        reference=reference,
        reference_level=reference_level,
        train_reference=train_reference,
        skip=skip,
        seed=seed,
        on_note=on_note,
    )


def audit_runs(
    run_dirs: Sequence[str | Path],
    *,
    level: Level = "quick",
    references: Sequence[str | Path] = (),
    reference_level: ReferenceLevel | None = None,
    train_reference: bool = False,
    skip: Sequence[str] = (),
    seed: int = 0,
    on_note: Note = lambda note: None,
) -> list[dict[str, Any]]:
    """Audit runs of one config with different seeds together: only so there is an A4.

    A4 is asked of all runs and all references at once, at every level; each run's other audits
    compare it with one reference: the k-th run with the k-th named one, round and round, or with
    the model beside the run.

    Args:
        run_dirs: folders of finished runs that differ in seed, output and the weights of their base
            only. A failed A4 decides where these are of five bases.
        level: as of `audit`.
        references: hub ids or folders of models that never saw the forget data, with seeds of their
            own. Left out: RUN-reference beside each run, where there is one.
        reference_level: as of `audit`.
        train_reference: fine-tune the one backbone that `references` names for each run with the
            run's seed, as RUN-reference, unless that is there.
        skip: as of `audit`.
        seed: of everything that is drawn or trained.
        on_note: called at once with whatever the user should know.

    Returns:
        What is under "audit" in each run's results.json.

    Raises:
        UserError: the runs are not of one config, or as `audit`.
    """
    begin = time.perf_counter()
    runs = [Path(run_dir).expanduser() for run_dir in run_dirs]
    named: list[str | None] = [str(source) for source in references]
    _check(level, reference_level, skip, seed)
    if not runs:
        raise UserError("audit: no run was named; name the output of a finished `kswap run`")
    several.check_runs(runs)
    with memory_errors():
        if train_reference:
            _train_references(runs, named, on_note)
        if train_reference or not named:
            named = [None if (path := beside(run.resolve())) is None else str(path) for run in runs]
        if not any(named):
            _check_no_level(reference_level)
        models = several.gather(
            runs,
            list(dict.fromkeys(source for source in named if source is not None)),
            reference_level or "R2",
            level=level,
            seed=seed,
            on_note=on_note,
        )
    each = (time.perf_counter() - begin) / len(runs)
    answers = []
    for number, run_dir in enumerate(runs):
        on_note(f"{run_dir}: run {number + 1} of {len(runs)}")
        answers.append(
            _audit(
                run_dir,
                level=level,
                reference=named[number % len(named)],
                reference_level=reference_level,
                models=models,
                gathering_s=each,
                skip=skip,
                seed=seed,
                on_note=on_note,
            )
        )
    return answers


def _check_no_level(reference_level: ReferenceLevel | None) -> None:
    if reference_level is not None:
        raise UserError(
            f"--reference-level: {reference_level} of no reference; name one with --reference"
        )


def _check(level: str, reference_level: str | None, skip: Sequence[str], seed: int) -> None:
    if level not in LEVELS:
        raise UserError(f"level: {level!r} is none; take one of {', '.join(LEVELS)}")
    if reference_level not in (None, "R1", "R2"):
        raise UserError(f"reference_level: {reference_level!r} is none; take R1 or R2")
    if unknown := [name for name in skip if name not in AUDITS]:
        raise UserError(f"--skip: {unknown[0]} is no audit; name some of {', '.join(AUDITS)}")
    if not 0 <= seed < 2**31:
        raise UserError(f"--seed: {seed} is not allowed; give 0 or more, less than 2^31")


def _train_references(runs: Sequence[Path], named: Sequence[str | None], on_note: Note) -> None:
    """Write RUN-reference for each run that has none."""
    if len(named) != 1 or named[0] is None:
        raise UserError(
            f"--train-reference: {len(named)} backbones were named with --reference; name the one "
            "that never saw the classes to forget"
        )
    for run in runs:
        if beside(run.resolve()) is None:
            on_note(f"{run}: its reference is fine-tuned")
            to_dir = run.resolve().with_name(f"{run.resolve().name}-reference")
            make_reference(run, named[0], to_dir, seed=int(read_results(run)["seed"]))


def _audit(
    run_dir: Path,
    *,
    level: Level,
    reference: str | Path | None,
    reference_level: ReferenceLevel | None,
    train_reference: bool = False,
    models: Models | None = None,
    gathering_s: float = 0.0,
    skip: Sequence[str],
    seed: int,
    on_note: Note,
) -> dict[str, Any]:
    """Audit one run; A4 is asked of `models`, which took `gathering_s`."""
    begin = time.perf_counter()
    results = read_results(run_dir)
    check_files(run_dir, "config.yaml", "adapter")
    check_files(run_dir, "events.jsonl", "arrays", may_miss=True)
    with memory_errors(), disk_errors(f"{run_dir}"), open_run(run_dir) as folder:
        work = load_run(run_dir, results, level=level, seed=seed)
        work.reference = find_reference(
            work, run_dir, reference, reference_level, train=train_reference, on_note=on_note
        )
        fit_reference_data(work)
        case, again = look_at(work, run_dir, on_note)
        found = describe_reference(work, case)
        findings = run_audits(
            case,
            again,
            level=level,
            score_name=str(results["score_name"]),
            has_adapter=(run_dir / "adapter").is_dir(),
            several=models,
            skip=skip,
            seconds=work.seconds,
        )
        if models is not None:
            work.seconds["A4"] += gathering_s
        work.seconds["total"] = time.perf_counter() - begin + gathering_s
        answer = _answer(work, case, found, findings, skip=skip, held_in=results.get("base") or {})
        results = {**read_results(run_dir), "audit": answer}
        write_results(folder, results)
        draw_report(run_dir)
    return answer


def describe_reference(work: Work, case: Case) -> dict[str, Any]:
    """Return what results.json says of the reference."""
    subject = case.reference if work.reference is not None else None
    return references.describe(work.reference, case.base, subject)


def _answer(
    work: Work,
    case: Case,
    reference: dict[str, Any],
    findings: Mapping[str, Finding],
    *,
    skip: Sequence[str],
    held_in: Mapping[str, Any],
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
            skip=skip,
        ),
        "warnings": [
            reversal.UNMERGED,
            reversal.MERGED,
            *_of_weights(str(held_in.get("weights", "fp32"))),
            *(text for finding in findings.values() for text in finding.warnings),
        ],
        "seconds": {name: round(value, 3) for name, value in work.seconds.items()},
        "audits": {name: finding.to_mapping() for name, finding in findings.items()},
    }
    loaded: dict[str, Any] = json.loads(json.dumps(answer))
    return loaded


def _of_weights(bits: str) -> list[str]:
    """Return what to know where the run's base was held in fewer bits than what is audited."""
    if bits == "fp32":
        return []
    return [
        f"Audited are the base and model/ in full precision; the run trained and scored its stages "
        f"on a base held in {bits}."
    ]
