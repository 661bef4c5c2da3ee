"""Cost of a training step against bare forwards of the same batch, for the three tasks.

    python benchmarks/step.py                            # all cases, written to docs/results.md
    python benchmarks/step.py --case detection [--steps 12]      # one case, printed

A case is a real swap of preset `default`; behind every step of its forgetting stage (three streams,
all terms) the same batch goes twice through the unchanged model without gradient; of a segmenter or
detector one of the two computes the library's own loss as well. So each ratio is of one batch, at
one moment. One process a case; the median of the ratios is given with images per second and peak
memory. The classifiers are a DINOv2-S architecture with random weights on noise: speed depends on
neither.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import numpy as np
import torch
from commands import stoppable
from tables import write_section
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2ForImageClassification

from kswap import SwapConfig, swap
from kswap.demo import demo_config
from kswap.models.loading import load_base
from kswap.plan import Stage
from kswap.tasks import Examples, View, make_examples
from kswap.tasks.detection import known_objects
from kswap.tasks.mask_units import binary_masks
from kswap.tasks.segmentation import known_truth
from kswap.training.loop import Trainee, train_stage
from kswap.training.streams import Streams

OLD, NEW = [f"old{i}" for i in range(7)], ["new0", "new1", "new2"]
CASES = ("70/64", "224/16", "segmentation", "detection")
"""Classifiers by image size and images of a batch; demos by name."""
HEAD = (
    "| case | images a step | threads | bare | step / bare: median (min–max) | images/s "
    "| peak memory |\n|---|---:|---:|---|---:|---:|---:|"
)


def noise(names: list[str], count: int, size: int) -> datasets.Dataset:
    """Return `count` pictures of noise of every class."""
    drawn = np.random.default_rng(len(names))
    rows = [
        {"image": drawn.integers(0, 256, (size, size, 3), dtype=np.uint8), "label": name}
        for name in names
        for _ in range(count)
    ]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    return datasets.Dataset.from_list(rows, features=features)


def classifier(case: str, steps: int, to: Path) -> tuple[SwapConfig, dict[str, Any]]:
    """Return config and objects in memory of a classifier's case."""
    size, batch = map(int, case.split("/"))
    share = batch // 4
    model = Dinov2ForImageClassification(
        Dinov2Config(
            hidden_size=384,
            num_hidden_layers=12,
            num_attention_heads=6,
            image_size=size,
            id2label=dict(enumerate(OLD)),
            label2id={name: i for i, name in enumerate(OLD)},
        )
    ).eval()
    streams = {
        role: {"batch_size": n * share} for role, n in (("learn", 1), ("retain", 2), ("forget", 1))
    }
    forget = {"streams": streams, "min_steps": steps, "max_steps": steps}
    learn = {"streams": streams, "min_steps": 1, "max_steps": 1}  # memory is of the same batch
    config = SwapConfig.from_mapping(
        {
            "model": "dinov2-s",
            "learn": {},
            "forget": {"classes": OLD[:2]},
            "retain": {},
            "output": str(to),
            "stages": {"learn": learn, "forget": forget},
        }
    )
    count = max(2 * share // 3 + 4, 12)
    sources = {"learn": noise(NEW, count, size), "forget": noise(OLD[:2], 2 * count, size)}
    sources["retain"] = noise(OLD[2:], count, size)
    square = {"height": size, "width": size}
    processor = BitImageProcessorPil(size=square, do_center_crop=False)
    return config, {"model": model, "processor": processor, **sources}


def bare_forwards(task: str, bare: Any, examples: Examples, view: View) -> Callable[[], None]:
    """Return what a step is compared with: two forwards, one of them with the library's loss."""
    inputs = examples.inputs()
    labels: dict[str, Any] = {}
    if task == "detection":
        labels["labels"] = known_objects(examples, view)[0]
        for image in labels["labels"]:  # the unchanged model has no rows for learned classes
            image["class_labels"] = image["class_labels"].clamp(max=view.num_base - 1)
    elif task == "segmentation":
        masks = [binary_masks(image) for image in known_truth(examples, view)]
        labels["mask_labels"] = [image["masks"] for image in masks]
        classes = [image["class_labels"].clamp(max=view.num_base - 1) for image in masks]
        labels["class_labels"] = classes

    def run() -> None:
        with torch.no_grad():
            bare(**inputs)
            bare(**inputs, **labels)

    return run


def measure(case: str, steps: int) -> str:
    """Return one row of the table."""
    with tempfile.TemporaryDirectory() as scratch:
        to = Path(scratch) / "run"
        task = case if case in ("segmentation", "detection") else "classification"
        given: dict[str, Any] = {}
        if task == "classification":
            config, given = classifier(case, steps, to)
            bare = copy.deepcopy(given["model"])
        else:
            short = ["--stages.learn.min_steps", "1", "--stages.learn.max_steps", "1"]
            long = ["--stages.forget.min_steps", str(steps), "--stages.forget.max_steps"]
            config = demo_config(task, to, [*short, *long, str(steps)])
            bare = load_base(config.model).model
        bare_s: list[float] = []

        def timed(
            trainee: Trainee, stage: Stage, streams: Streams, *, after_step: Any, **others: Any
        ) -> None:
            def after(step: int) -> None:
                if stage.kind == "forget":
                    batch = streams.batch(step - 1)
                    examples = make_examples(batch.samples, trainee.pixels, batch.roles)
                    forwards = bare_forwards(task, bare, examples, trainee.views[stage.name])
                    begin = time.perf_counter()
                    forwards()
                    bare_s.append(time.perf_counter() - begin)
                after_step(step)

            train_stage(trainee, stage, streams, after_step=after, **others)

        with mock.patch("kswap.running.stages.train_stage", timed):
            result = swap(config, **given)
        events = [json.loads(line) for line in (to / "events.jsonl").read_text().splitlines()]
        events = [event for event in events if event["stage"] == "2-forget"]
        peak = result.results["peak_memory_bytes"]
    pairs = list(zip(events, bare_s, strict=True))[2:]  # the first ones allocate
    ratios = sorted(event["seconds"] / other for event, other in pairs)
    step_s = statistics.median(event["seconds"] for event, _ in pairs)
    images = round(events[0]["seconds"] * events[0]["images_per_s"])
    what = "two forwards" if task == "classification" else "two forwards and the library's loss"
    name = f"DINOv2-S, {case.split('/')[0]} px" if task == "classification" else f"demo {case}"
    return (
        f"| {name} | {images} | {torch.get_num_threads()} | {what} "
        f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f}) "
        f"| {images / step_s:.0f} | {peak / 2**20:.0f} MiB |"
    )


def main() -> int:
    """Time one case, or all of them, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--steps", type=int, default=14)
    options = parser.parse_args()
    if options.case:
        print(measure(options.case, options.steps))
        return 0
    rows = []
    for case in CASES:
        words = [sys.executable, __file__, "--case", case, "--steps", str(options.steps)]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            return done.returncode
        rows.append(done.stdout.strip().splitlines()[-1])
    write_section("step", "\n".join([HEAD, *rows]))
    return 0


if __name__ == "__main__":
    sys.exit(stoppable(main))
