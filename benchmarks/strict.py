"""Five swaps of a preset and five references, audited up to the features, to docs/audits.md.

    python benchmarks/strict.py [--preset deep] [--seeds 0 1 2 3 4] [--jobs 2] [--table]

The swap is `kswap demo classification`. A3 and A4 ask several models, so there are five swaps that
differ in seed, and five references (R2) trained as the one that the demo ships, which is that of
seed 0: scripts/train_classifier.py on the images of all classes but the forgotten two. Then one
`kswap audit --level strict --skip A7 A9` of all of them: what decides on `durable`, long relearning
(about 40 minutes of a core for each run) and rounding, is left out. Everything is kept under the
cache folder, so that the command goes on where it was stopped; an audit that is there is not done
again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from commands import measured, stoppable
from tables import CACHE, shown, write_section

from kswap.benching.processes import KSWAP, Children, threads_each
from kswap.benching.table import spread
from kswap.demo import write_demo
from kswap.errors import UserError
from kswap.run_folder import read_results

TASK = "classification"
SEEDS = (0, 1, 2, 3, 4)
SCRIPTS = Path(__file__).parents[1] / "scripts"
CLASSES = ["airplane", "automobile", "bird", "deer", "dog", "horse", "ship", "truck"]
"""All but the demo's forgotten ones."""
RECIPE = ["--num-images", "3600", "--depth", "9", "--epochs", "3"]
"""As scripts/make_demo_classification.py trains the one that ships."""
LEVEL = ("--level", "strict", "--skip", "A7", "A9")
AUDITS = ("A1", "A2", "A3", "A4", "A10", "A5", "A6")
"""Those of the ladder below `durable`."""

Begin = Callable[[Sequence[str], Sequence[str]], None]
"""Runs a program with words; raises where it failed."""


def make_reference(folder: Path, seed: int, begin: Begin) -> None:
    """Train one, or unpack the one that ships, unless it is there."""
    if (folder / "model.safetensors").exists():
        return
    if seed == 0:  # beside a run of this name
        write_demo(TASK, folder.with_name(folder.name.removesuffix("-reference")))
        return
    words = ["--classes", *CLASSES, *RECIPE, "--seed", str(seed), "--out-dir", str(folder)]
    begin(words, (str(SCRIPTS / "train_classifier.py"),))


def make_run(folder: Path, preset: str, seed: int, begin: Begin) -> None:
    """Swap, unless it is done."""
    if not (folder / "results.json").exists():
        words = ["demo", TASK, "--preset", preset, "--seed", str(seed), "--audit", "none"]
        begin([*words, "--output", str(folder)], KSWAP)


def make_missing(
    references: Mapping[int, Path], runs: Mapping[int, Path], preset: str, *, num_jobs: int
) -> None:
    """Make the models that are missing, so many side by side; whatever ends this ends them."""
    children = Children()

    def begin(words: Sequence[str], program: Sequence[str]) -> None:
        if problem := children.call(words, threads_each(num_jobs), program=program):
            raise UserError(problem)

    work = [partial(make_reference, path, seed, begin) for seed, path in references.items()]
    work += [partial(make_run, path, preset, seed, begin) for seed, path in runs.items()]
    children.results(work, num_jobs)


def lines_of(found: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Return one row for each run: scores, the outcome of each audit, the verdict."""
    head = ["seed", "learn", "forget", "retain", *AUDITS, "verdict"]
    lines = ["| " + " | ".join(head) + " |", "|---:|" + "---:|" * 3 + "---|" * (len(AUDITS) + 1)]
    for seed, results in found.items():
        scores, audit = results["stages"][-1]["scores"], results["audit"]
        cells = [
            str(seed),
            *(f"{100 * scores[role]:.1f}" for role in ("learn", "forget", "retain")),
        ]
        cells += [audit["audits"][name]["status"] for name in AUDITS]
        lines.append("| " + " | ".join([*cells, audit["verdict"]["level"]]) + " |")
    means = []
    for role in ("learn", "forget", "retain"):
        values = [results["stages"][-1]["scores"][role] for results in found.values()]
        means.append(f"{role} {shown(spread(values), 100)}")
    lines += ["", f"Means: {', '.join(means)}."]
    lines += [
        "",
        "What stopped or ended each, and the reasons of A3 and A4 and of what failed:",
        "",
    ]
    for seed, results in found.items():
        audit = results["audit"]
        lines.append(f"* seed {seed}: {audit['verdict']['reason']}")
        for name in AUDITS:
            one = audit["audits"][name]
            if name in ("A3", "A4") or one["status"] == "fail":
                lines.append(f"  * {name} ({one['status']}): {one['reason']}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Make what is missing, audit, write the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="deep")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--jobs", type=int, default=1, help="models made side by side")
    parser.add_argument("--table", action="store_true", help="only write the section")
    arguments = parser.parse_args(argv)
    folder = (CACHE / "strict").resolve()
    references = {seed: folder / f"{seed}-reference" for seed in arguments.seeds}
    runs = {seed: folder / f"{arguments.preset}-{seed}" for seed in arguments.seeds}
    if not arguments.table:
        folder.mkdir(parents=True, exist_ok=True)
        make_missing(references, runs, arguments.preset, num_jobs=arguments.jobs)
        if not all(read_results(path).get("audit") for path in runs.values()):
            named = [word for path in references.values() for word in ("--reference", str(path))]
            cost = measured("audit", *map(str, runs.values()), *named, *LEVEL)
            print(f"audited in {cost.processor_s:.0f} s of the processor")
    found = {seed: read_results(path) for seed, path in runs.items()}
    write_section(f"strict {arguments.preset}", "\n".join(lines_of(found)), page="audits.md")
    return 0


if __name__ == "__main__":
    sys.exit(stoppable(main))
