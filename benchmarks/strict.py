"""Five swaps of a preset and five references, audited up to the features, to docs/audits.md.

    python benchmarks/strict.py [--preset deep] [--seeds 0 1 2 3 4] [--jobs 2] [--table]
    python benchmarks/strict.py --control [--jobs 2]

The swap is `kswap demo classification`. A3 and A4 ask several models, so there are five swaps, each
of a base of its own seed, and five references (R2). Bases and references are trained as those that
the demo ships, which are those of seed 0: scripts/train_classifier.py on the images of the seven
old classes, or of all ten but the forgotten two. Then one `kswap audit --level strict --skip A7 A9`
of all of them: what decides on `durable`, long relearning (about 40 minutes of a core for each run)
and rounding, is left out. Everything is kept under the cache folder, so that the command goes on
where it was stopped; an audit that is there is not done again.

`--control` asks A4 of five swaps that forget nothing because their one base never saw the classes:
what swaps share by having one base shows there alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from commands import measured, positive, stoppable
from numpy.typing import NDArray
from tables import CACHE, shown, write_section

from kswap.audits import quality, several
from kswap.audits.work import load_run
from kswap.benching.processes import KSWAP, Children, threads_each
from kswap.benching.table import spread
from kswap.demo import demo_values, write_demo
from kswap.errors import UserError
from kswap.run_folder import read_results

TASK = "classification"
SEEDS = (0, 1, 2, 3, 4)
SCRIPTS = Path(__file__).parents[1] / "scripts"
RETAIN = ("airplane", "automobile", "bird", "deer", "dog")
FORGET = ("cat", "frog")
LEARN = ("horse", "ship", "truck")
NUM_TRAIN_PER_CLASS = 450
RECIPE = ("--depth", "9", "--epochs", "3")
"""As scripts/make_demo_classification.py trains those that ship."""
LEVEL = ("--level", "strict", "--skip", "A7", "A9")
AUDITS = ("A1", "A2", "A3", "A4", "A10", "A5", "A6")
"""Those of the ladder below `durable`."""

Begin = Callable[[Sequence[str], Sequence[str]], None]
"""Runs a program with words; raises where it failed."""


def train(folder: Path, classes: Sequence[str], seed: int, begin: Begin) -> None:
    """Train a classifier, unless it is there."""
    if (folder / "model.safetensors").exists():
        return
    words = ["--classes", *classes, "--num-images", str(NUM_TRAIN_PER_CLASS * len(classes))]
    words += [*RECIPE, "--seed", str(seed), "--out-dir", str(folder)]
    begin(words, (str(SCRIPTS / "train_classifier.py"),))


def make_reference(folder: Path, seed: int, begin: Begin) -> None:
    """Train one, or unpack the one that ships, unless it is there."""
    if seed == 0:  # beside a run of this name
        write_demo(TASK, folder.with_name(folder.name.removesuffix("-reference")))
    else:
        train(folder, (*RETAIN, *LEARN), seed, begin)


def make_run(folder: Path, preset: str, seed: int, begin: Begin) -> None:
    """Train a base, or take the one that ships, and swap, unless it is done."""
    if (folder / "results.json").exists():
        return
    if seed:  # the demo takes what lies beside its run
        train(folder.with_name(f"{folder.name}-base"), (*RETAIN, *FORGET), seed, begin)
    words = ["demo", TASK, "--preset", preset, "--seed", str(seed), "--audit", "none"]
    begin([*words, "--output", str(folder)], KSWAP)


def make_control(folder: Path, preset: str, seed: int, begin: Begin) -> None:
    """Learn three classes with a base that never saw the forgotten ones, unless it is done."""
    if (folder / "results.json").exists():
        return
    values: dict[str, Any] = dict(demo_values(TASK, folder, preset))
    del values["forget"]
    values |= {"model": str(folder.with_name("control-base")), "order": "L", "preset": preset}
    values |= {"seed": seed, "output": str(folder)}
    config = folder.with_name(f"{folder.name}.yaml")
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    begin(["run", str(config)], KSWAP)


def all_done(work: Sequence[Callable[[Begin], None]], *, num_jobs: int) -> None:
    """Do pieces of work, so many side by side; whatever ends this ends what they began."""
    children = Children()

    def begin(words: Sequence[str], program: Sequence[str]) -> None:
        if problem := children.call(words, threads_each(num_jobs), program=program):
            raise UserError(problem)

    children.results([partial(piece, begin) for piece in work], num_jobs)


def confidences(
    audited: Path, swapped: Sequence[Path], references: Sequence[Path]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what A4 compares, of models that forgot nothing.

    Args:
        audited: a run whose forget-train images are asked about.
        swapped: finished runs.
        references: folders of models.
    """
    work = load_run(audited, read_results(audited), level="strict", seed=0)
    rows, _ = several.examples(work.data)
    models = [*(run / "model" for run in swapped), *references]
    logits = np.stack([several.logits_of_reference(work, str(m), "R2", rows) for m in models])
    found = several.confidence_in(logits, several.likeliest(logits, work.class_ids["retain"]))
    return found[: len(swapped)], found[len(swapped) :]


def control_lines(swapped: NDArray[np.float64], references: NDArray[np.float64]) -> list[str]:
    """Return what A4 finds, and how far models of one kind lie apart."""
    epsilons = quality.epsilon_per_example(swapped, references)
    null, draws = quality.relabelled(swapped, references, seed=0)
    reached = float((draws >= epsilons.mean() - 1e-9).mean())
    apart = [float(of.std(0, ddof=1).mean()) for of in (swapped, references)]
    return [
        "| models | N | mean ε | sides drawn anew | draws that reach it | spread over models |",
        "|---|---:|---:|---:|---:|---:|",
        f"| swaps of one base that never saw the classes | {len(swapped)} | {epsilons.mean():.2f} "
        f"| {null.mean:.2f} | {reached:.1%} | {apart[0]:.2f} |",
        f"| references | {len(references)} | | | | {apart[1]:.2f} |",
    ]


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
        "What stopped or ended each, and the reasons of A2, A3, A4 and of what failed:",
        "",
    ]
    for seed, results in found.items():
        audit = results["audit"]
        lines.append(f"* seed {seed}: {audit['verdict']['reason']}")
        for name in AUDITS:
            one = audit["audits"][name]
            if name in ("A2", "A3", "A4") or one["status"] == "fail":
                lines.append(f"  * {name} ({one['status']}): {one['reason']}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Make what is missing, audit, write the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="deep")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--jobs", type=positive, default=1, help="models made side by side")
    parser.add_argument("--table", action="store_true", help="only write the section")
    parser.add_argument("--control", action="store_true", help="ask A4 of what never saw them")
    arguments = parser.parse_args(argv)
    folder, preset = (CACHE / "strict").resolve(), arguments.preset
    seeds, jobs = arguments.seeds, arguments.jobs
    references = {seed: folder / f"{seed}-reference" for seed in seeds}
    runs = {seed: folder / f"{preset}-{seed}" for seed in seeds}
    folder.mkdir(parents=True, exist_ok=True)
    work = [partial(make_reference, path, seed) for seed, path in references.items()]
    if arguments.control:
        controls = [folder / f"control-{seed}" for seed in seeds]
        work.append(partial(train, folder / "control-base", RETAIN, 0))
        all_done(work, num_jobs=jobs)
        work = [partial(make_control, *one) for one in zip(controls, repeat(preset), seeds)]
        all_done([*work, partial(make_run, runs[seeds[0]], preset, seeds[0])], num_jobs=jobs)
        found = confidences(runs[seeds[0]], controls, list(references.values()))
        write_section("strict control", "\n".join(control_lines(*found)), page="audits.md")
        return 0
    if not arguments.table:
        work += [partial(make_run, path, preset, seed) for seed, path in runs.items()]
        all_done(work, num_jobs=jobs)
        if not all(read_results(path).get("audit") for path in runs.values()):
            named = [word for path in references.values() for word in ("--reference", str(path))]
            cost = measured("audit", *map(str, runs.values()), *named, *LEVEL)
            print(f"audited in {cost.processor_s:.0f} s of the processor")
    results = {seed: read_results(path) for seed, path in runs.items()}
    write_section(f"strict {preset}", "\n".join(lines_of(results)), page="audits.md")
    return 0


if __name__ == "__main__":
    sys.exit(stoppable(main))
