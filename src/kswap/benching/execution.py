"""What is to run: the jobs of a bench, and those of them that are missing as commands.

Who runs the commands (`RunAll`) is `processes.in_processes`, side by side on this machine, or
`ray_cluster.on_ray`, side by side on the machines of a Ray cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kswap.benching.arms import Arm
from kswap.config import SwapConfig, resolve
from kswap.errors import UserError
from kswap.files import write_bytes
from kswap.models.loading import find_task
from kswap.run_folder import RunFolder, check_config, read_results
from kswap.settings import TaskName


@dataclass(frozen=True)
class Command:
    """One `kswap` command that runs in a process of its own."""

    name: str
    """What the user reads."""
    words: tuple[str, ...]
    """What follows `kswap`."""
    leaves: tuple[str, ...] = ()
    """Files that are there once it has succeeded."""


OnEnd = Callable[[str, str], None]
"""Called with the name of each command that ended, and what went wrong ("": nothing)."""
RunAll = Callable[[Sequence[Command], OnEnd], list[str]]
"""Runs commands and returns a line for each that failed. Whatever ends it (SIGTERM, Ctrl-C, an
error) also ends the commands, each as on SIGTERM, and waits for them."""


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

    Their configs are those of the model's task: what a preset says of it is written out with them.

    Args:
        values: arm -> what its runs share: model, sources, what the user gave.
        arms: rows of the table.
        seeds: of each arm.
        output: folder of the run folders.

    Raises:
        UserError: a value is wrong, or there is no such model.
    """
    tasks: dict[str, TaskName] = {}

    def config_of(arm: Arm, seed: int) -> SwapConfig:
        own, place = values(arm), str(output / f"{arm.name}-{seed}")
        config = arm.config(own, seed=seed, output=place)
        if config.task != "auto":
            return config
        if config.model not in tasks:
            tasks[config.model] = find_task(config.model)
        return arm.config({**own, "task": tasks[config.model]}, seed=seed, output=place)

    return tuple(
        Job(arm, seed, config_of(arm, seed)) for seed in dict.fromkeys(seeds) for arm in arms
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


def check_runs(jobs: Sequence[Job]) -> None:
    """Refuse run folders of other configs than those asked for, as `kswap run` does.

    Raises:
        UserError: one holds a run of another config; the field and both values are named.
    """
    for job in jobs:
        folder = RunFolder(job.config.output)
        if not (folder.config.exists() or folder.results.exists()):
            continue
        try:
            check_config(folder, resolve(job.config))
        except UserError as error:
            raise UserError(f"--output: {str(error).removeprefix('output: ')}") from None


def run_jobs(
    jobs: Sequence[Job],
    configs_dir: Path,
    *,
    run_all: RunAll,
    on_end: Callable[[Job, str], None],
) -> list[str]:
    """Run the jobs that are not finished; return what went wrong, a line each.

    Args:
        jobs: runs.
        configs_dir: where their configs are written.
        run_all: what runs them, such as `processes.in_processes(2)`.
        on_end: called with each job that ran, and what went wrong ("" for nothing).

    Raises:
        UserError: a folder holds a run of another config, or a config cannot be written; nothing
            was run.
    """
    check_runs(jobs)
    waiting = {job.name: job for job in jobs if not job.results_path.exists()}
    try:
        configs_dir.mkdir(parents=True, exist_ok=True)
        for job in waiting.values():
            text = yaml.safe_dump(job.config.to_mapping(), sort_keys=False, allow_unicode=True)
            write_bytes(configs_dir / f"{job.name}.yaml", text.encode())
    except OSError as error:
        raise UserError(
            f"--output: {configs_dir} cannot be written to ({error.strerror}); name another folder"
        ) from None
    commands = [
        Command(name, ("run", str(configs_dir / f"{name}.yaml")), (str(job.results_path),))
        for name, job in waiting.items()
    ]
    return run_all(commands, lambda name, problem: on_end(waiting[name], problem))
