"""Cost of a training step against two forwards of the same batch through the bare model.

    python benchmarks/step.py                        # the cases below, written to docs/results.md
    python benchmarks/step.py --size 70 --batch 64 [--repeats 11]    # one case, printed

One process a case, both sides in turn on the same images; the median of the ratios is given with
images per second and peak memory. A DINOv2-S architecture with random weights is timed: speed does
not depend on the weights.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tables import write_section
from transformers import Dinov2Config, Dinov2ForImageClassification

from kswap.config import SwapConfig
from kswap.data import ImageSet
from kswap.models import adapter, head, structure
from kswap.plan import plan
from kswap.tasks.classification import Classification
from kswap.training.device import make_accelerator, peak_memory_bytes
from kswap.training.events import EventLog
from kswap.training.loop import Trainee, train_stage
from kswap.training.optimiser import Trainables, make_optimiser
from kswap.training.streams import Streams

NUM_OLD = 7


CASES = ((70, 64), (224, 16))
HEAD = (
    "| model | size | batch | threads | step / two forwards: median (min–max) | images/s "
    "| peak memory |\n|---|---:|---:|---:|---:|---:|---:|"
)


def bare_model(size: int) -> torch.nn.Module:
    """Return the base classifier."""
    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=size,
        num_labels=NUM_OLD,
    )
    return Dinov2ForImageClassification(config).eval()


def main() -> int:
    """Time one case, or all of them, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=11)
    options = parser.parse_args()
    if options.size:
        print(measure(options.size, options.batch, options.repeats))
        return 0
    rows = []
    for size, batch in CASES:
        words = ["--size", str(size), "--batch", str(batch), "--repeats", str(options.repeats)]
        done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            return done.returncode
        rows.append(done.stdout.strip().splitlines()[-1])
    write_section("step", "\n".join([HEAD, *rows]))
    return 0


def measure(size: int, batch_size: int, repeats: int) -> str:
    """Return one row of the table."""
    torch.manual_seed(0)
    model = bare_model(size)
    share = batch_size // 4
    sources = {role: {"data": "-", "classes": [role]} for role in ("learn", "forget", "retain")}
    streams_of = {
        "learn": {"batch_size": share},
        "retain": {"batch_size": 2 * share},
        "forget": {"batch_size": share},
    }
    stages = {"forget": {"streams": streams_of, "max_steps": 1, "min_steps": 1}}
    config = SwapConfig.from_mapping({"model": "-", **sources, "stages": stages})
    stage = plan(config)[1]
    noise = np.random.default_rng(0)

    def images(class_id: int, count: int) -> ImageSet:
        pixels = noise.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        return ImageSet(pixels, np.full(count, class_id))

    sets = {
        "learn": images(NUM_OLD, share),
        "retain": images(1, 2 * share),
        "forget": images(0, share),
    }
    base_logits = {role: torch.randn(len(s), NUM_OLD) for role, s in sets.items()}
    accelerator = make_accelerator(config.training, Path())

    def pixels(batch: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(batch).permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5)

    x = pixels(np.concatenate([s.images for s in sets.values()]))
    blocks = structure.find_ffn_blocks(model)
    heads = head.find_heads(model)
    bare = copy.deepcopy(model)
    head.extend_head(
        model,
        {i: str(i) for i in range(NUM_OLD + 3)} | dict(model.config.id2label),
        init="random",
        seed=0,
    )
    swapped = adapter.attach(model, blocks, config.adapter, head_names=heads, seed=0)
    named = [(n, p) for n, p in swapped.named_parameters() if p.requires_grad]
    forgotten = torch.tensor([True] + [False] * (NUM_OLD - 1))
    trainee = Trainee(
        model=swapped,
        task=Classification(),
        accelerator=accelerator,
        pixels=pixels,
        augment=None,
        groups=list(adapter.adapter_groups(swapped, blocks).values()),
        moved=Trainables(
            [p for p in named if "lora_" in p[0]], [p for p in named if "lora_" not in p[0]]
        ),
        forgotten=forgotten,
        forgotten_before=~forgotten & forgotten,
        training=config.training,
        seed=0,
    )
    streams = Streams(stage, sets, base_logits=base_logits, seed=0)
    optimiser = accelerator.prepare(make_optimiser(trainee.moved, stage.config.optimiser))
    events = EventLog(Path("/dev/null"))

    def two_forwards() -> None:
        with torch.no_grad():
            bare(pixel_values=x)
            bare(pixel_values=x)

    def step() -> None:
        train_stage(
            trainee, stage, streams, optimiser,
            first_step=0, total_step=0, events=events,
            after_step=lambda step: None, report=lambda done, total, detail="": None,
        )  # fmt: skip

    def seconds(what) -> float:
        begin = time.perf_counter()
        what()
        return time.perf_counter() - begin

    with Path("/dev/null").open("wb") as nowhere:
        events._file = nowhere
        two_forwards(), step()
        pairs = [(seconds(step), seconds(two_forwards)) for _ in range(repeats)]
    ratios = sorted(a / b for a, b in pairs)
    step_s = statistics.median(a for a, _ in pairs)
    return (
        f"| {type(bare).__name__} | {size} | {len(x)} | {torch.get_num_threads()} "
        f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f}) "
        f"| {len(x) / step_s:.0f} "
        f"| {peak_memory_bytes(accelerator.device) / 2**20:.0f} MiB |"
    )


if __name__ == "__main__":
    sys.exit(main())
