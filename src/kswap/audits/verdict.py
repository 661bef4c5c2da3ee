"""The verdict: how far up the ladder a model comes, and the first audit that stopped it.

known < suppressed (A1) < output-consistent (A2, A3, A4, A10) < representation-consistent (A5, A6) <
durable (A7, A9). Never "certified": nobody has an (ε, δ) guarantee for these models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kswap.audits.findings import LEVELS, Finding, Level

LADDER: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("suppressed", ("A1",)),
    ("output-consistent", ("A2", "A3", "A4", "A10")),
    ("representation-consistent", ("A5", "A6")),
    ("durable", ("A7", "A9")),
)
LOWEST = "known"
FIRST_LEVEL: Mapping[str, Level] = {
    "A7": "standard",
    "A9": "standard",
    "A3": "strict",
    "A4": "strict",
}
"""Audits that quick leaves out -> the level that has them."""
CLASSIFICATION_ONLY = ("A3", "A4")


def verdict(
    findings: Mapping[str, Finding],
    *,
    level: Level,
    task: str,
    forgets: bool,
    reference: str | None,
    skip: Sequence[str] = (),
) -> dict[str, Any]:
    """Return level, the audit that stopped it, and why.

    Args:
        findings: by id; those of audits that were not run are missing.
        level: of the audit.
        task: of the model.
        forgets: whether there is anything to forget.
        reference: why no reference can decide anything; None where one can.
        skip: audits that were left out on request.
    """
    if not forgets:
        return _verdict("not available", None, "the run forgets nothing, so there is no verdict")
    reached, notes = LOWEST, list[str]()
    for name, needed in LADDER:
        asked = [a for a in needed if task == "classification" or a not in CLASSIFICATION_ONLY]
        if left := [a for a in needed if a not in asked]:
            notes.append(f"{' and '.join(left)} exist for classification only")
        failed = [a for a in asked if a in findings and findings[a].status == "fail"]
        if failed:
            return _verdict(reached, failed[0], findings[failed[0]].reason, notes)
        if name != "suppressed" and reference:
            return _verdict(reached, None, f"the ladder ends here: {reference}", notes)
        # Where A1 has no answer, even "still answers it" is not known.
        so_far = "not available" if name == "suppressed" else reached
        unknown = [a for a in asked if a in findings and findings[a].status != "pass"]
        if unknown:
            why = f"{unknown[0]}: {findings[unknown[0]].reason}{_later_failure(findings, name)}"
            return _verdict(so_far, unknown[0], why, notes)
        absent = [a for a in asked if a not in findings]
        if absent:
            later = _later_failure(findings, name)
            why = _why_absent(absent, level, skip)
            return _verdict(so_far, None, f"the ladder ends here: {why}{later}", notes)
        reached = name
    return _verdict(reached, None, "no audit stopped it; that is evidence, not a proof", notes)


def _why_absent(absent: Sequence[str], level: Level, skip: Sequence[str]) -> str:
    """Return why audits were not run."""
    said = []
    if left_out := [a for a in absent if a in skip]:
        said.append(f"{', '.join(left_out)} left out (--skip)")
    if others := [a for a in absent if a not in skip]:
        higher = max((FIRST_LEVEL[a] for a in others), key=LEVELS.index)
        said.append(f"{', '.join(others)} not run at level {level} (--level {higher})")
    return ", ".join(said)


def _later_failure(findings: Mapping[str, Finding], at: str) -> str:
    """Return what would stop it further up, where it is known already."""
    names = [name for name, _ in LADDER]
    later = [a for _, needed in LADDER[names.index(at) + 1 :] for a in needed]
    for audit in later:
        if audit in findings and findings[audit].status == "fail":
            return f"; further up {audit} stops it: {findings[audit].reason}"
    return ""


def _verdict(
    level: str, stopped_by: str | None, reason: str, notes: list[str] | None = None
) -> dict[str, Any]:
    said = "; ".join([reason, *dict.fromkeys(notes or ())])
    return {"level": level, "stopped_by": stopped_by, "reason": said}
