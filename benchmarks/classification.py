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
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from scipy import stats

ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("KSWAP_BENCH", Path.home() / ".cache/kswap-data/bench"))
RESULTS = ROOT / "docs/results.md"
BEGIN, END = "<!-- begin: classification -->", "<!-- end: classification -->"
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
ROLES = ("learn", "forget", "retain")


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


def interval(values: list[float]) -> str:
    """Return mean and half-width of the 95 % t-interval, in percent."""
    mean = 100 * statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    half = 100 * stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.1f} ± {half:.1f}"


def table(seeds: list[int]) -> str:
    """Return the Markdown table of the finished runs: every role after every stage."""
    head = "| preset, order | seeds | after | learn | forget | retain | seconds |"
    lines = [head, "|---|---:|---|---:|---:|---:|---:|"]
    for name in (*SEEDED, *ONCE):
        found = [
            json.loads(path.read_text())
            for seed in seeds
            if (path := CACHE / f"runs/{name}-{seed}/results.json").exists()
        ]
        for number, stage in enumerate(found[0]["stages"] if found else []):
            cells = [
                interval([r["stages"][number]["scores"][role] for r in found]) for role in ROLES
            ]
            first = f"`{name.rsplit('-', 1)[0]}` {name.rsplit('-', 1)[1]}" if number == 0 else ""
            seconds = statistics.median(r["seconds"]["total"] for r in found)
            last = f"{seconds:.0f}" if number == 0 else ""
            count = str(len(found)) if number == 0 else ""
            lines.append(f"| {first} | {count} | {stage['name']} | {' | '.join(cells)} | {last} |")
    return "\n".join(lines)


def write_table(seeds: list[int]) -> None:
    """Replace what stands between the markers of docs/results.md."""
    text = RESULTS.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    RESULTS.write_text(f"{before}{BEGIN}\n{table(seeds)}\n{END}{after}", encoding="utf-8")


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
    write_table(arguments.seeds)
    print("\n".join(failures) or f"written to {RESULTS}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
