"""Which audits a level runs, in the order of the report, each timed."""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping

from kswap.audits import (
    anomaly,
    collateral,
    membership,
    precision,
    probe,
    restore,
    reversal,
    scores,
)
from kswap.audits.findings import LEVELS, Finding, Level
from kswap.audits.subjects import Case
from kswap.audits.views import Again


def run_audits(
    case: Case,
    again: Again,
    *,
    level: Level,
    score_name: str,
    rank: int,
    has_adapter: bool,
    seconds: MutableMapping[str, float],
) -> dict[str, Finding]:
    """Return the findings of a level by id; write into `seconds` what each took."""
    todo: list[tuple[str, Level, Callable[[], Finding]]] = [
        ("A1", "quick", lambda: scores.audit(case, score_name=score_name)),
        ("A2", "quick", lambda: membership.audit(case)),
        ("A5", "quick", lambda: probe.audit(case)),
        ("A6", "quick", lambda: restore.audit(case)),
        (
            "A8",
            "quick",
            lambda: reversal.audit(
                case,
                again.models["base"].model.state_dict(),
                again.models["swapped"].model.state_dict(),
                rank=rank,
                has_adapter=has_adapter,
            ),
        ),
        ("A9", "standard", lambda: precision.audit(case, again.variants())),
        ("A10", "quick", lambda: anomaly.audit(case)),
        ("A11", "quick", lambda: collateral.audit(case)),
    ]
    findings: dict[str, Finding] = {}
    for name, first, run in todo:
        if LEVELS.index(first) <= LEVELS.index(level):
            begin = time.perf_counter()
            findings[name] = run()
            seconds[name] = time.perf_counter() - begin
    return findings
