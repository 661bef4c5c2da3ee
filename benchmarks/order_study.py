"""The fair order study, written to docs/results.md: orders x variants x seeds at equal steps.

    python benchmarks/order_study.py [--jobs 2] [--seeds 0 1 2] [--only LF FL] [--table]

What is compared is in benchmarks/order_study.yaml. Every swap is one `kswap run` in a process of
its own, whose folder is kept under the cache folder, so that the command goes on where it was
stopped; what a finished one scored is kept in benchmarks/records. `--table` only writes the section
again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from commands import check_known, positive, stoppable
from records import Records
from tables import CACHE, section, write_section

from kswap.benching import table
from kswap.benching.arms import Arm, make_arms, matched_steps
from kswap.benching.execution import Job, check_runs, make_jobs, run_jobs
from kswap.benching.processes import in_processes
from kswap.benching.suites import DEMOS, suite_values
from kswap.errors import UserError
from kswap.yaml_text import merge, read_yaml

STUDY = Path(__file__).with_suffix(".yaml")
_KEYS = {"suite", "preset", "orders", "variants", "seeds", "steps", "contrasts"}


def read_study(path: Path) -> dict[str, Any]:
    """Return the keys of a study; a suite that is a file is named from the study's folder.

    Raises:
        UserError: a key is missing or unknown.
    """
    study = read_yaml(path)
    if wrong := _KEYS ^ set(study):
        raise UserError(f"{path}: {', '.join(sorted(wrong))}: missing or unknown")
    if study["suite"] not in DEMOS:
        study["suite"] = path.parent / study["suite"]
    return study


def study_jobs(study: Mapping[str, Any], folder: Path, seeds: Sequence[int]) -> list[Job]:
    """Return all runs, with equally many steps of each kind in every order."""
    shared = suite_values(study["suite"], folder, {})

    def values(arm: Arm) -> Mapping[str, Any]:
        own = shared(arm)
        learn = own.get("stages", {}).get("learn", {})
        # What the suite adds to the two stages holds for the joint one too.
        joint = {key: learn[key] for key in ("terms", "depth") if key in learn}
        own = merge(own, {"stages": {"joint": joint}}) if joint else own
        return merge(own, matched_steps(arm.order, study["steps"]))

    arms = make_arms([study["preset"]], study["orders"], study["variants"])
    return list(make_jobs(values, arms, seeds, folder / "runs"))


def contrast_table(
    study: Mapping[str, Any],
    found: Mapping[str, Sequence[Mapping[str, Any]]],
    yardsticks: Mapping[int, table.Yardstick],
) -> str:
    """Return differences between arms after the last stage, taken seed by seed, in Markdown."""
    names = ("learn", "forget", "retain", "h3", "tow")
    lines = ["| difference, points | seeds | learn | forget | retain | H3 | ToW |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for pair in study["contrasts"]:
        runs = [{r["seed"]: r for r in found.get(f"{study['preset']}-{x}", ())} for x in pair]
        seeds = sorted(set(runs[0]) & set(runs[1]))
        cells = [f"`{pair[0]}` − `{pair[1]}`", str(len(seeds))]
        ends = [[table.measures(r[s], -1, yardsticks.get(s)) for s in seeds] for r in runs]
        for name in names:
            values = [(one[name], other[name]) for one, other in zip(*ends, strict=True)]
            known = [a - b for a, b in values if a is not None and b is not None]
            full = known and len(known) == len(seeds)
            cells.append(table.spread(known).text() if full else "not available")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_study(
    study: Mapping[str, Any],
    jobs: Sequence[Job],
    records: Records,
    *,
    timed: bool,
) -> None:
    """Write the table, the differences and the references into docs/results.md."""
    found = records.found(jobs)
    if not found:
        return
    yardsticks = records.yardsticks(jobs)
    parts = [
        section(found, yardsticks, timed=timed),
        f"Differences, seed by seed ({study['steps']['learn']} learning and "
        f"{study['steps']['forget']} forgetting steps in every order), with 95 % t-intervals:",
        contrast_table(study, found, yardsticks),
    ]
    write_section("order study", "\n\n".join(parts))


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, default=STUDY, help="what is compared")
    parser.add_argument(
        "--jobs", type=positive, default=1, help="runs side by side; the cores are shared out"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="default: those of the study")
    parser.add_argument("--only", nargs="+", help="arms such as LF or FL-no-forget-term")
    parser.add_argument("--output", type=Path, default=CACHE / "order-study", help="run folders")
    parser.add_argument("--table", action="store_true", help="only write the section")
    arguments = parser.parse_args(argv)
    study = read_study(arguments.study)
    folder = arguments.output.expanduser().resolve()
    every = study_jobs(study, folder, study["seeds"])
    records = Records(arguments.study.stem, folder)
    names = [f"{study['preset']}-{name}" for name in arguments.only or ()]
    seeds = arguments.seeds or study["seeds"]
    check_known("--only", names, {job.arm.name for job in every})
    check_known("--seeds", seeds, study["seeds"])
    chosen = [j for j in every if j.seed in seeds and (not names or j.arm.name in names)]
    failures: list[str] = []

    def ended(job: Job, problem: str) -> None:
        print(job.name, problem or "done", flush=True)
        if not problem:
            records.add(job)

    if not arguments.table:
        missing = records.missing(chosen)
        check_runs(missing)  # before a record is made of one
        for job in missing:
            if job.results_path.exists():
                records.add(job)
        failures = run_jobs(
            missing, folder / "configs", run_all=in_processes(arguments.jobs), on_end=ended
        )
    write_study(study, every, records, timed=arguments.jobs == 1)
    print("\n".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(stoppable(main))
