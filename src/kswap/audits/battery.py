"""Which audits a level runs, in the order of the report, each timed."""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping, Sequence

from kswap.audits import (
    anomaly,
    collateral,
    membership,
    precision,
    probe,
    quality,
    relearning,
    restore,
    retraining,
    reversal,
    scores,
    shadow,
)
from kswap.audits.findings import LEVELS, Finding, Level
from kswap.audits.relearning import Condition, Course, relearn_head
from kswap.audits.subjects import Case, SubjectName
from kswap.audits.verdict import CLASSIFICATION_ONLY, FIRST_LEVEL
from kswap.audits.views import Again

AUDITS = tuple(f"A{number}" for number in range(1, 12))


def run_audits(
    case: Case,
    again: Again,
    *,
    level: Level,
    score_name: str,
    has_adapter: bool,
    several: quality.Models | None = None,
    skip: Sequence[str] = (),
    seconds: MutableMapping[str, float],
) -> dict[str, Finding]:
    """Return the findings of a level by id; write into `seconds` what each took.

    A4 is asked at every level where there are several models, `several`, to ask it of; those of
    `skip` at none.
    """
    conditions = relearning.STRICT if level == "strict" else relearning.STANDARD
    budget = retraining.STRICT if level == "strict" else retraining.STANDARD

    without = {} if again.own_lora else {"same LoRA": "the run's adapter is gone"}
    if not again.sets["swapped"].get("learn"):
        without[relearning.LEARN_SET] = "the run learns no class"

    def relearn(condition: Condition, name: SubjectName, draw: int) -> Course:
        if condition.trains == "head":
            return relearn_head(
                case.subjects[name],
                condition,
                seed=case.seed,
                draw=draw,
                num_forget=again.num_forget,
            )
        return retraining.relearn_model(again, condition, name, draw, budget=budget)

    todo: dict[str, Callable[[], Finding]] = {
        "A1": lambda: scores.audit(case, score_name=score_name),
        "A2": lambda: membership.audit(case),
        "A3": lambda: shadow.audit(case),
        "A4": lambda: quality.audit(case, several),
        "A5": lambda: probe.audit(case),
        "A6": lambda: restore.audit(case),
        "A7": lambda: relearning.audit(case, relearn, conditions, without=without),
        "A8": lambda: reversal.audit(
            case,
            again.models["base"].model.state_dict(),
            again.models["swapped"].model.state_dict(),
            rank=again.adapter.rank,
            has_adapter=has_adapter,
        ),
        "A9": lambda: precision.audit(case, again.variants()),
        "A10": lambda: anomaly.audit(case),
        "A11": lambda: collateral.audit(case),
    }
    left_out = {*skip, *(CLASSIFICATION_ONLY if case.task != "classification" else ())}
    findings: dict[str, Finding] = {}
    for name, run in todo.items():
        first = FIRST_LEVEL.get(name, "quick")
        if name == "A4" and several is not None:
            first = "quick"
        if LEVELS.index(first) <= LEVELS.index(level) and name not in left_out:
            begin = time.perf_counter()
            findings[name] = run()
            seconds[name] = time.perf_counter() - begin
    return findings
