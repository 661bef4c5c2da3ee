"""Audits of the finished runs of a bench: all seeds of an arm together, so that there is an A4.

Each arm is one `kswap audit RUN …` in a process of its own. What was audited is kept in
audits/ARM.json, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import concurrent.futures
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kswap.audits.findings import Level
from kswap.benching.execution import Job, call, threads_each
from kswap.files import write_bytes
from kswap.run_folder import read_results


def audit_arms(
    jobs: Sequence[Job],
    references: Mapping[int, Sequence[str]],
    folder: Path,
    *,
    level: Level,
    reference_level: str,
    num_jobs: int,
    on_end: Callable[[str, str], None],
) -> list[str]:
    """Audit each arm's finished runs, unless that was done; return what went wrong, a line each.

    Args:
        jobs: runs.
        references: seed -> hub ids or folders.
        folder: of the notes on what was audited.
        level: of the audits.
        reference_level: of all references.
        num_jobs: processes side by side; they share out the cores.
        on_end: called with the name of each audited arm, and what went wrong ("": nothing).
    """
    arms: dict[str, list[Job]] = {}
    for job in jobs:
        if job.results_path.exists():
            arms.setdefault(job.arm.name, []).append(job)
    folder.mkdir(parents=True, exist_ok=True)

    def audit(name: str) -> str:
        runs, note_path = arms[name], folder / f"{name}.json"
        named = list(dict.fromkeys(s for job in runs for s in references.get(job.seed, ())))
        note = {
            "level": level,
            "seeds": [job.seed for job in runs],
            "references": named,
            "reference_level": reference_level if named else "R3",
        }
        if _is_done(note_path, note, runs):
            return ""
        problem = call(_words(runs, note), threads_each(num_jobs))
        if not problem:
            write_bytes(note_path, json.dumps(note, indent=2).encode())
        on_end(f"audit of {name}", problem)
        return f"audit of {name}: {problem}" if problem else ""

    with concurrent.futures.ThreadPoolExecutor(num_jobs) as pool:
        return [problem for problem in pool.map(audit, arms) if problem]


def _words(runs: Sequence[Job], note: Mapping[str, Any]) -> list[str]:
    words = [sys.executable, "-m", "kswap", "audit", *(str(job.config.output) for job in runs)]
    words += ["--level", note["level"]]
    for source in note["references"]:
        words += ["--reference", source]
    return [*words, "--reference-level", note["reference_level"]] if note["references"] else words


def _is_done(note_path: Path, note: Mapping[str, Any], runs: Sequence[Job]) -> bool:
    """Whether the same audit of the same runs is in their results already."""
    try:
        if json.loads(note_path.read_text(encoding="utf-8")) != note:
            return False
    except (OSError, ValueError):
        return False
    answers = [read_results(job.config.output).get("audit") or {} for job in runs]
    return all(answer.get("level") == note["level"] for answer in answers)
