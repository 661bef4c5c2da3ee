"""Every method on one swap, audited, written to docs/results.md: presets x seeds.

    python benchmarks/methods.py [--jobs 2] [--seeds 0 1 2] [--only default deep] [--table]
    python benchmarks/methods.py --task cifar10      # or segmentation, or detection

The swap is that of `kswap demo classification`, in order LF. All methods get the same images,
flips, steps, batches and blocks, and those that have no learning stage of their own learn by the
demo's; what differs is the objective. `deep` alone forgets in six blocks instead of four, from
twice the forget images a step, in 180 steps instead of 52. Every run is a `kswap run`, then a
`kswap audit --level quick` with the demo's reference, each in a process of its own, kept under the
cache folder, so that the command goes on where it was stopped; what a finished one says is kept in
benchmarks/records.

The other tasks have `default` and `deep`, with their own steps: the demos' scenes with the demos'
references, and CIFAR-10 with the ViT-S and the reference of scripts/make_benchmark.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from commands import check_known, positive, stoppable
from records import Records, scores_of
from swaps import sources
from tables import CACHE, shown, write_section

from kswap.audits.findings import Interval
from kswap.audits.probe import MARGIN
from kswap.benching import table
from kswap.benching.arms import Arm
from kswap.benching.audits import audit_arms
from kswap.benching.execution import Job, make_jobs, run_jobs
from kswap.benching.processes import in_processes
from kswap.demo import demo_values, write_demo
from kswap.presets import PRESETS
from kswap.run_folder import read_results
from kswap.yaml_text import merge

TASK = "classification"
STEPS = {"learn": 78, "forget": 52}
"""Those of the demo."""
METHODS = [
    *("default", "deep", "paper", "ft", "neggrad+", "random-labels", "scrub", "salun", "ssd"),
    *("bad-teacher", "boundary-shrink", "task-arithmetic", "gs-lora", "gs-lora++", "lwf", "ewc"),
]
TASKS = (TASK, "cifar10", "segmentation", "detection")
OTHER_METHODS = ["default", "deep"]
"""Those of the other tasks."""
_BATCHES = {"learn": 32, "retain": 32, "forget": 16, "kept": 48}
RESTORE = ("class means of 5 images", "head refitted, 5 images")
"""Ways whose scores the table has."""
SEEDS = (0, 1, 2)


def values(arm: Arm, folder: Path, task: str = TASK) -> Mapping[str, Any]:
    """Return the config of an arm without seed and output."""
    if task == "cifar10":
        return sources(TASK, arm.preset)
    if task != TASK:
        return demo_values(task, folder, arm.preset)
    own = demo_values(TASK, folder, arm.preset)
    if arm.preset in ("default", "deep"):
        return own
    demo = demo_values(TASK, folder, "default")
    preset = PRESETS[arm.preset][TASK]
    trains_rows = preset["head"]["train"] != "none"
    shared: dict[str, Any] = {
        **own,
        "data": demo["data"],
        "head": demo["head"] if trains_rows else {},
        "stages": {kind: _equal(arm, kind, preset["stages"][kind]) for kind in STEPS},
    }
    for role in ("learn", "forget", "retain"):
        shared[role] = {**own[role], "fraction": 1.0}
    default = PRESETS["default"][TASK]["stages"]["learn"]["terms"]
    if preset["stages"]["learn"]["terms"] == default:
        terms = demo["stages"]["learn"]["terms"]
        shared = merge(shared, {"stages": {"learn": {"terms": terms}}})
    return shared


def _equal(arm: Arm, kind: str, stage: Mapping[str, Any]) -> dict[str, Any]:
    """Return what gives a stage the demo's steps, batches and blocks."""
    steps = sum(STEPS.values()) if arm.order == "L" else STEPS[kind]
    streams = {
        name: {"batch_size": min(stream["batch_size"], _BATCHES[name])}
        for name, stream in stage["streams"].items()
    }
    return {"min_steps": steps, "max_steps": steps, "depth": "last-4", "streams": streams}


def arm_of(preset: str) -> Arm:
    """Return the arm of a method; fine-tuning on what is kept has no stage that forgets."""
    return Arm(preset, "L" if preset == "ft" else "LF")


def methods_table(
    found: Mapping[str, Sequence[Mapping[str, Any]]],
    yardsticks: Mapping[int, table.Yardstick],
) -> str:
    """Return one row a method, after its last stage, in Markdown."""
    last = [row for row in table.rows(found, yardsticks, timed=False) if row["last"]]
    names = ("learn", "forget", "retain", "h3", "tow", "gap")
    head = ["method", "seeds", "learn", "forget", "retain", "H3", "ToW", "average gap"]
    head += ["A1, A2, A10", "A5: layers that fail", "probe before the head", "residual"]
    head += ["A6: ways that fail", *(f"{way} (reference)" for way in RESTORE)]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * 7 + "---|" + "---:|" * 6]
    for row in last:
        runs = found[row["run"]]
        cells = [f"`{row['run'].rsplit('-', 1)[0]}`", str(row["seeds"])]
        cells += [row[n].text() if row[n] is not None else "not available" for n in names]
        audits = [run["audit"]["audits"] for run in runs if run.get("audit")]
        cells += _audited(audits) if len(audits) == len(runs) else ["not audited"] * 7
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _audited(audits: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what the audits of the seeds of a method say, a text for each column."""
    marks = []
    for name in ("A1", "A2", "A10"):
        passed = sum(one[name]["status"] == "pass" for one in audits)
        marks.append(f"{passed}/{len(audits)}")
    probes = [one["A5"]["values"] for one in audits]
    layers = [_failing(p["excess over the reference"]) for p in probes]
    head = [p["before the head"]["swapped"]["mean"] for p in probes]
    residual = [list(p["residual"].values())[-1] for p in probes]
    known = [r["mean"] for r in residual if isinstance(r, Mapping)]
    restored = [one["A6"]["values"] for one in audits]
    ways = [_failing(r["excess over the reference"]) for r in restored]
    back = []
    for way in RESTORE:
        pair = [
            shown(table.spread([r["forget"][way][name]["mean"] for r in restored]), 100)
            for name in ("swapped", "reference")
        ]
        back.append("{} ({})".format(*pair))
    return [
        " ".join(marks),
        shown(table.spread(layers)),
        shown(table.spread(head), 100),
        shown(table.spread(known), digits=2) if len(known) == len(audits) else "not available",
        shown(table.spread(ways)),
        *back,
    ]


def _failing(excess: Mapping[str, Mapping[str, Any]]) -> float:
    """Return in how many layers, or ways, there is more than in the reference, as audits count."""
    return float(sum(Interval(**gap).above(MARGIN) for gap in excess.values()))


def summary(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record of the table has of a run: scores, and what the audits say."""
    audit = results["audit"]
    audits = audit["audits"]
    kept: dict[str, Any] = {name: {"status": one["status"]} for name, one in audits.items()}
    probes, restored = audits["A5"]["values"], audits["A6"]["values"]
    of_probes = ("excess over the reference", "before the head", "residual")
    kept["A5"]["values"] = {key: probes[key] for key in of_probes}
    kept["A6"]["values"] = {
        "excess over the reference": restored["excess over the reference"],
        "forget": {way: restored["forget"][way] for way in RESTORE},
    }
    verdict = {key: audit["verdict"][key] for key in ("level", "reason")}
    return {**scores_of(results), "audit": {"verdict": verdict, "audits": kept}}


def run_seed(
    jobs: Sequence[Job], folder: Path, records: Records, *, num_jobs: int, reference: Path
) -> list[str]:
    """Run and audit the methods of one seed; return what went wrong, a line each."""
    run_all = in_processes(num_jobs)
    failures = run_jobs(
        jobs,
        folder / "configs",
        run_all=run_all,
        on_end=lambda job, problem: print(job.name, problem or "done", flush=True),
    )
    by_arm = {job.arm.name: job for job in jobs}

    def audited(name: str, problem: str) -> None:
        print(name, problem or "done", flush=True)
        if not problem:
            records.add(by_arm[name.removeprefix("audit of ")], summary)

    failures += audit_arms(
        jobs,
        {job.seed: [str(reference)] for job in jobs},
        folder / f"audits-{jobs[0].seed}" if jobs else folder,
        level="quick",
        reference_level="R2",
        run_all=run_all,
        on_end=audited,
    )
    for job in records.missing(jobs):  # audited by a command that was stopped since
        if job.results_path.exists() and "audit" in read_results(job.config.output):
            records.add(job, summary)
    return failures


def main(argv: Sequence[str] | None = None) -> int:
    """Run and audit what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=TASKS, default=TASK)
    parser.add_argument("--jobs", type=positive, default=1, help="runs side by side")
    parser.add_argument("--seeds", type=int, nargs="+", choices=SEEDS, default=SEEDS)
    parser.add_argument("--only", nargs="+", help="presets")
    parser.add_argument("--output", type=Path, help="run folders (default: in the cache folder)")
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args(argv)
    task = arguments.task
    name = "methods" if task == TASK else f"methods-{task}"
    folder = (arguments.output or CACHE / name).expanduser().resolve()
    own = CACHE / "reference" if task == "cifar10" else None
    failures: list[str] = []
    presets = METHODS if task == TASK else OTHER_METHODS
    only = arguments.only or presets
    check_known("--only", only, presets)
    folder.mkdir(parents=True, exist_ok=True)
    if task != "cifar10":
        write_demo(task, folder / "demo")
    arms = [arm_of(preset) for preset in presets]
    every = make_jobs(lambda arm: values(arm, folder / "demo", task), arms, SEEDS, folder / "runs")
    records = Records(name, folder)
    chosen = [job for job in every if job.arm.preset in only and job.seed in arguments.seeds]
    for seed in () if arguments.table else arguments.seeds:
        missing = records.missing([job for job in chosen if job.seed == seed])
        failures += run_seed(
            missing,
            folder,
            records,
            num_jobs=arguments.jobs,
            reference=own or folder / "demo-reference",
        )
    found = records.found(every)
    if found:
        yardsticks = records.yardsticks(every, own)
        text = f"{methods_table(found, yardsticks)}\n\n{table.describe(yardsticks)}"
        write_section(name.replace("-", " "), text)
    print("\n".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(stoppable(main))
