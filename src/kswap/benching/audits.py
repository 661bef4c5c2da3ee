"""Audits of the finished runs of a bench: all seeds of an arm together, so that there is an A4.

Each arm is one `kswap audit RUN …` in a process of its own. What was audited is kept in
audits/ARM.json, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kswap.audits.findings import Level
from kswap.benching.execution import Command, Job, OnEnd, RunAll
from kswap.files import write_bytes
from kswap.run_folder import read_results


def audit_arms(
    jobs: Sequence[Job],
    references: Mapping[int, Sequence[str]],
    folder: Path,
    *,
    level: Level,
    reference_level: str,
    run_all: RunAll,
    on_end: OnEnd,
) -> list[str]:
    """Audit each arm's finished runs, unless that was done; return what went wrong, a line each.

    Args:
        jobs: runs.
        references: seed -> hub ids or folders.
        folder: of the notes on what was audited.
        level: of the audits.
        reference_level: of all references.
        run_all: what runs them.
        on_end: called with the name of each audited arm, and what went wrong ("": nothing).
    """
    arms: dict[str, list[Job]] = {}
    for job in jobs:
        if job.results_path.exists():
            arms.setdefault(job.arm.name, []).append(job)
    folder.mkdir(parents=True, exist_ok=True)

    notes, missing = dict[str, dict[str, Any]](), list[Command]()
    for name, runs in arms.items():
        named = list(dict.fromkeys(s for job in runs for s in references.get(job.seed, ())))
        note = {
            "level": level,
            "seeds": [job.seed for job in runs],
            "references": named,
            "reference_level": reference_level if named else "R3",
        }
        if not _is_done(folder / f"{name}.json", note, runs):
            notes[f"audit of {name}"] = {"path": folder / f"{name}.json", "note": note}
            missing.append(Command(f"audit of {name}", _words(runs, note)))

    def ended(name: str, problem: str) -> None:
        if not problem:
            write_bytes(notes[name]["path"], json.dumps(notes[name]["note"], indent=2).encode())
        on_end(name, problem)

    return run_all(missing, ended)


def _words(runs: Sequence[Job], note: Mapping[str, Any]) -> tuple[str, ...]:
    words = ["audit", *(str(job.config.output) for job in runs)]
    words += ["--level", note["level"]]
    for source in note["references"]:
        words += ["--reference", source]
    level = ["--reference-level", note["reference_level"]] if note["references"] else []
    return (*words, *level)


def _is_done(note_path: Path, note: Mapping[str, Any], runs: Sequence[Job]) -> bool:
    """Whether the same audit of the same runs is in their results already."""
    try:
        if json.loads(note_path.read_text(encoding="utf-8")) != note:
            return False
    except (OSError, ValueError):
        return False
    answers = [read_results(job.config.output).get("audit") or {} for job in runs]
    return all(answer.get("level") == note["level"] for answer in answers)
