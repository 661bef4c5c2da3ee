"""The tables of swaps in docs/results.md: presets x orders x seeds, for each of the three tasks.

    python benchmarks/swaps.py classification [--jobs 2] [--seeds 0 1 2] [--only default-LF]
    python benchmarks/swaps.py segmentation
    python benchmarks/swaps.py detection

Classification: CIFAR-10 and a ViT-S from scripts/make_benchmark.py (run by `make bench`); the other
two: what `kswap demo` ships. Every swap is one `kswap run` in a process of its own, as `kswap
bench` does it; its run folder is kept under the cache folder, so that the command goes on where it
was stopped. `--table` only rewrites the table from the run folders that are there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from commands import check_known, positive, stoppable
from tables import CACHE, section, write_section

from kswap.benching import references, table
from kswap.benching.arms import Arm, make_arms
from kswap.benching.execution import Job, check_runs, finished, make_jobs, run_jobs
from kswap.benching.processes import in_processes
from kswap.demo import demo_values, write_demo
from kswap.yaml_text import merge

SEEDED = {
    "classification": [
        *make_arms(["default"], ["LF", "FL", "J"], ["full"]),
        *make_arms(["paper"], ["LF", "FL", "J"], ["full"]),
        Arm("retain-free", "LF"),
    ],
    "segmentation": [
        *make_arms(["default"], ["LF", "FL", "J"], ["full"]),
        *make_arms(["paper"], ["LF", "FL"], ["full"]),
    ],
    "detection": [
        *make_arms(["default"], ["LF", "FL", "J"], ["full"]),
        *make_arms(["paper"], ["LF", "FL"], ["full"]),
    ],
}
ONCE = {"classification": make_arms(["default"], ["LFL", "FLF"], ["full"])}
"""Arms of the first seed alone, to show that they run."""


def sources(task: str, preset: str) -> Mapping[str, Any]:
    """Return model and data, the same for every preset."""
    if task != "classification":
        values = demo_values(task, CACHE / task / "demo", preset)
        return merge(values, equal_steps(task)) if preset == "paper" else values
    images = {split: str(CACHE / f"cifar10/{split}.parquet") for split in ("train", "test")}
    return {
        "task": task,
        "model": str(CACHE / "base"),
        "learn": {"data": images, "classes": ["horse", "ship", "truck"], "fraction": 0.3},
        "forget": {"data": images, "classes": ["cat", "frog"], "fraction": 0.1},
        "retain": {"data": images, "fraction": 0.1},
    }


def equal_steps(task: str) -> dict[str, Any]:
    """Return what gives `paper` as many steps as `default` has on the demo's scenes.

    Its own lengths, 20 epochs and 3,500 iterations, are meant for COCO and ADE20K.
    """
    values = {**demo_values(task, CACHE / task / "demo", "default"), "output": "unused"}
    return {"stages": {kind: {"max_steps": n} for kind, n in num_steps(values).items()}}


def num_steps(values: Mapping[str, Any]) -> dict[str, int]:
    """Return the steps of every kind of stage of `default` on the demo's scenes."""
    from kswap.config import SwapConfig

    stages = SwapConfig.from_mapping(values).stages
    found = {}
    for kind, stage in stages:
        batch = stage.streams[stage.anchor].batch_size
        found[kind] = max(round(stage.epochs * -(-NUM_SCENES // batch)), stage.min_steps)
    return found


NUM_SCENES = 90
"""Training scenes of the learned and of the forgotten classes, validation aside."""


def run_folders(task: str) -> Path:
    """Return where the run folders of a task are kept."""
    return CACHE / "runs" if task == "classification" else CACHE / task


def write_table(task: str, jobs: list[Job]) -> None:
    """Write the finished runs into the page, compared with the reference that the demo ships."""
    found, reference = finished(jobs), run_folders(task) / "demo-reference"
    if not found:
        return
    yardsticks: dict[int, table.Yardstick] = {}
    if (reference / "config.json").is_file():
        runs = references.runs_by_seed([job.config.output for job in jobs])
        sources = {seed: [str(reference)] for seed in runs}
        cache_path = run_folders(task) / "references.json"
        yardsticks = references.measure(runs, sources, "R2", cache_path)
    write_section(task, section(found, yardsticks, timed=False))


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=SEEDED)
    parser.add_argument(
        "--jobs", type=positive, default=1, help="runs side by side; the cores are shared out"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="names such as default-LF")
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args(argv)
    task, folder = arguments.task, run_folders(arguments.task)
    if task != "classification":
        folder.mkdir(parents=True, exist_ok=True)
        write_demo(task, folder / "demo")

    def values(arm: Arm) -> Mapping[str, Any]:
        return sources(task, arm.preset)

    jobs = [
        *make_jobs(values, SEEDED[task], arguments.seeds, folder),
        *make_jobs(values, ONCE.get(task, ()), arguments.seeds[:1], folder),
    ]
    check_known("--only", arguments.only or (), {job.arm.name for job in jobs})
    check_runs(jobs)  # all that the table is made of, also where nothing runs
    failures: list[str] = []
    if not arguments.table:
        wanted = [job for job in jobs if not arguments.only or job.arm.name in arguments.only]
        failures = run_jobs(
            wanted,
            folder / "configs",
            run_all=in_processes(arguments.jobs),
            on_end=lambda job, problem: print(job.name, problem or "done", flush=True),
        )
    write_table(task, jobs)
    print("\n".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(stoppable(main))
