"""Runs what is missing, side by side, each in a process of its own."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kswap.benching.arms import Arm
from kswap.config import SwapConfig
from kswap.errors import UserError
from kswap.files import write_bytes
from kswap.run_folder import read_results


@dataclass(frozen=True)
class Job:
    """One run of one arm."""

    arm: Arm
    seed: int
    config: SwapConfig

    @property
    def name(self) -> str:
        """Arm and seed."""
        return f"{self.arm.name}-{self.seed}"

    @property
    def results_path(self) -> Path:
        """Where its numbers are once it is finished."""
        return self.config.output / "results.json"


def make_jobs(
    values: Callable[[Arm], Mapping[str, Any]],
    arms: Sequence[Arm],
    seeds: Sequence[int],
    output: Path,
) -> tuple[Job, ...]:
    """Return all runs, seed by seed, so that a table of fewer seeds is there early.

    Args:
        values: arm -> what its runs share: model, sources, what the user gave.
        arms: rows of the table.
        seeds: of each arm.
        output: folder of the run folders.

    Raises:
        UserError: a value is wrong.
    """
    return tuple(
        Job(
            arm,
            seed,
            arm.config(values(arm), seed=seed, output=str(output / f"{arm.name}-{seed}")),
        )
        for seed in dict.fromkeys(seeds)
        for arm in arms
    )


def finished(jobs: Sequence[Job]) -> dict[str, list[Mapping[str, Any]]]:
    """Return arm -> results.json of its finished runs, in the order of the jobs.

    Raises:
        UserError: a results.json is damaged.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for job in jobs:
        if job.results_path.exists():
            found.setdefault(job.arm.name, []).append(read_results(job.config.output))
    return found


def run_jobs(
    jobs: Sequence[Job], configs_dir: Path, *, num_jobs: int, on_end: Callable[[Job, str], None]
) -> list[str]:
    """Run the jobs that are not finished; return what went wrong, a line each.

    Args:
        jobs: runs.
        configs_dir: where their configs are written.
        num_jobs: processes side by side; they share out the cores.
        on_end: called with each job that ran, and what went wrong ("" for nothing).

    Raises:
        UserError: a config cannot be written.
    """
    waiting = [job for job in jobs if not job.results_path.exists()]
    try:
        configs_dir.mkdir(parents=True, exist_ok=True)
        for job in waiting:
            text = yaml.safe_dump(job.config.to_mapping(), sort_keys=False, allow_unicode=True)
            write_bytes(configs_dir / f"{job.name}.yaml", text.encode())
    except OSError as error:
        raise UserError(
            f"--output: {configs_dir} cannot be written to ({error.strerror}); name another folder"
        ) from None

    def run(job: Job) -> str:
        words = [sys.executable, "-m", "kswap", "run", str(configs_dir / f"{job.name}.yaml")]
        problem = call(words, threads_each(num_jobs))
        on_end(job, problem)
        return f"{job.name}: {problem}" if problem else ""

    with concurrent.futures.ThreadPoolExecutor(num_jobs) as pool:
        return [problem for problem in pool.map(run, waiting) if problem]


def threads_each(num_jobs: int) -> int:
    """Return how many threads each of so many processes gets."""
    return max(1, (os.cpu_count() or 1) // num_jobs)


def call(command: Sequence[str], threads: int) -> str:
    """Run a command; return its last line of complaint, if it failed."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    complaint = [line for line in done.stderr.splitlines() if line.strip()]
    return complaint[-1] if complaint else f"exit status {done.returncode}"
