"""The classification table in docs/results.md: presets x orders x seeds, CIFAR-10, a ViT-S.

    python benchmarks/classification.py [--jobs 2] [--seeds 0 1 2] [--only default-LF] [--table]

Base and data come from scripts/make_benchmark.py (run by `make bench`). Each swap is one `kswap
run` in a process of its own; its run folder is kept under the cache folder, so that the command
goes on where it was stopped. `--table` only rewrites the table from the run folders that are there.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from tables import stage_rows, stage_table, write_section

CACHE = Path(os.environ.get("KSWAP_BENCH", Path.home() / ".cache/kswap-data/bench"))
SEEDED = (
    "default-LF",
    "paper-LF",
    "retain-free-LF",
    "default-FL",
    "paper-FL",
    "default-J",
    "paper-J",
)
ONCE = ("default-LFL", "default-FLF")


def config(name: str, seed: int) -> dict[str, Any]:
    """Return the config of one run: comparable, since every preset gets the same data."""
    preset, order = name.rsplit("-", 1)
    images = {split: str(CACHE / f"cifar10/{split}.parquet") for split in ("train", "test")}
    return {
        "model": str(CACHE / "base"),
        "learn": {"data": images, "classes": ["horse", "ship", "truck"], "fraction": 0.3},
        "forget": {"data": images, "classes": ["cat", "frog"], "fraction": 0.1},
        "retain": {"data": images, "fraction": 0.1},
        "order": order,
        "preset": preset,
        "seed": seed,
        "output": str(CACHE / f"runs/{name}-{seed}"),
    }


def run(name: str, seed: int, threads: int) -> str:
    """Run one swap unless it is finished; return what went wrong, if anything."""
    to = CACHE / f"runs/{name}-{seed}"
    if (to / "results.json").exists():
        return ""
    configs = CACHE / "configs"
    configs.mkdir(parents=True, exist_ok=True)
    path = configs / f"{name}-{seed}.yaml"
    path.write_text(yaml.safe_dump(config(name, seed), sort_keys=False))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "kswap", "run", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    print(f"{name} seed {seed}: status {done.returncode}", flush=True)
    return "" if done.returncode == 0 else f"{name} seed {seed}: {done.stderr[-2000:]}"


def table(seeds: list[int]) -> str:
    """Return the Markdown table of the finished runs: every role after every stage."""
    rows: list[str] = []
    for name in (*SEEDED, *ONCE):
        paths = [CACHE / f"runs/{name}-{seed}/results.json" for seed in seeds]
        found = [json.loads(path.read_text()) for path in paths if path.exists()]
        preset, order = name.rsplit("-", 1)
        rows += stage_rows(f"`{preset}` {order}", found, timed=False)
    return stage_table(rows)


def main() -> int:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs side by side; the cores are shared out"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--only", nargs="+", default=[*SEEDED, *ONCE], help="names such as default-LF"
    )
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    failures: list[str] = []
    if not arguments.table:
        jobs = [
            (name, seed)
            for seed in arguments.seeds
            for name in arguments.only
            if name not in ONCE or seed == arguments.seeds[0]
        ]
        threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
        with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
            failures = [f for f in pool.map(lambda job: run(*job, threads), jobs) if f]
    write_section("classification", table(arguments.seeds))
    print("\n".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
