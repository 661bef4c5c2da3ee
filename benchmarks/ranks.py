"""Throughput of several processes: two of one thread each against one of two threads, on the CPU.

    python benchmarks/ranks.py [--rounds 7] [--steps 3]       # to docs/performance.md

A step is kswap's own (`training.loop.train_stage`): 8 images to forget and 8 to retain, of 224 px,
cross-entropy, the default adapter on all blocks of a DINOv2-S architecture with random weights,
AdamW, the group lasso. The same batch is on both sides; two processes take half of it each and sum
their gradients by gloo. The sides do their steps in turn, so that what else the machine does falls
on both; given is the median of the ratios of rounds.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

SIZE, BATCH, CLASSES = 224, 8, 10
SIDES = {"one process, two threads": (1, 2), "two processes, one thread each": (2, 1)}
"""Processes, threads of each."""


class Side:
    """The processes of one side, which wait for their turn without computing."""

    def __init__(self, processes: int, threads: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self.workers = [
            subprocess.Popen(
                [sys.executable, __file__, "--worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={
                    **os.environ,
                    **(meeting | _place(rank, processes) if processes > 1 else {}),
                    "OMP_NUM_THREADS": str(threads),
                },
            )
            for rank in range(processes)
        ]

    def seconds(self, steps: int) -> float:
        """Return the seconds of so many steps: those of the slowest process."""
        for worker in self.workers:
            assert worker.stdin is not None
            worker.stdin.write(f"{steps}\n")
            worker.stdin.flush()
        told = [worker.stdout.readline() for worker in self.workers if worker.stdout is not None]
        return max(map(float, told))

    def close(self) -> None:
        """Let the processes end."""
        for worker in self.workers:
            worker.communicate()


def _place(rank: int, processes: int) -> dict[str, str]:
    names = {"RANK": rank, "LOCAL_RANK": rank}
    sizes = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    return {name: str(value) for name, value in {**names, **sizes}.items()}


def work() -> None:
    """Do steps as they are asked for on standard input; answer with their seconds."""
    with tempfile.TemporaryDirectory() as folder:
        steps_of = trainer(Path(folder))
        for line in sys.stdin:
            begin = time.perf_counter()
            steps_of(int(line))
            print(time.perf_counter() - begin, flush=True)


def trainer(folder: Path) -> Callable[[int], None]:
    """Return what does so many steps of training."""
    import numpy as np
    import torch
    from transformers import Dinov2Config, Dinov2ForImageClassification

    from kswap.config import SwapConfig
    from kswap.data import ImageSet
    from kswap.models import adapter, head, structure
    from kswap.models.features import Places
    from kswap.models.fused import fused_adapters
    from kswap.plan import plan
    from kswap.settings import ROLES, Role
    from kswap.tasks import View
    from kswap.tasks.classification import Classification
    from kswap.training.device import make_accelerator
    from kswap.training.events import EventLog
    from kswap.training.loop import Trainee, train_stage
    from kswap.training.optimiser import Trainables, make_optimiser
    from kswap.training.streams import Source, Streams

    torch.manual_seed(0)
    config = SwapConfig.from_mapping(
        {
            "model": "none",
            "forget": {"data": "none", "classes": ["0"]},
            "retain": {"data": "none"},
            "order": "F",
            "output": str(folder),
            "training": {"device": "cpu"},
            "stages": {
                "forget": {
                    "min_steps": 1,
                    "streams": {n: {"batch_size": BATCH} for n in ("forget", "retain")},
                    "terms": {
                        "keep": {"weight": 0.0},
                        "forget": {"objective": "cross_entropy"},
                    },
                }
            },
        }
    )
    (stage,) = plan(config.for_task("classification"))
    base: Any = Dinov2ForImageClassification(
        Dinov2Config(
            hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=SIZE,
            num_labels=CLASSES,
        )
    ).eval()  # fmt: skip
    heads, blocks = head.find_heads(base), structure.find_ffn_blocks(base)
    model = adapter.attach(base, blocks, config.adapter, head_names=heads, seed=0)
    drawn = np.random.default_rng(0)
    roles: tuple[Role, ...] = ("forget", "retain")
    sources = {
        role: [
            Source(
                ImageSet(
                    drawn.integers(0, 256, (4 * BATCH, SIZE, SIZE, 3), dtype=np.uint8),
                    drawn.integers(0, CLASSES, 4 * BATCH),
                )
            )
        ]
        for role in roles
    }
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    trainee = Trainee(
        model=model,
        task=Classification(),
        accelerator=make_accelerator(config.training, folder),
        pixels=lambda images, *, sizes=None: (
            torch.from_numpy(images).movedim(-1, 1).float() / 127.5 - 1
        ),
        augment=None,
        views={
            stage.name: View(
                torch.full((CLASSES,), ROLES.index("retain")),
                CLASSES,
                torch.zeros(CLASSES, dtype=torch.bool),
            )
        },
        teach_now=False,
        as_base=lambda: adapter.without_adapter(model),
        base_places=Places(),
        groups=list(adapter.adapter_groups(model, blocks).values()),
        moved=Trainables(
            [(name, p) for name, p in named if "lora_" in name],
            [(name, p) for name, p in named if "lora_" not in name],
        ),
        training=config.training,
        seed=0,
    )
    optimiser = make_optimiser(trainee.moved, stage.config.optimiser)
    events = EventLog(folder / "events.jsonl")
    events.open()

    def steps_of(count: int) -> None:
        length = {"max_steps": count, "min_steps": count}
        longer = replace(stage, config=stage.config.model_copy(update=length))
        with fused_adapters(model):
            train_stage(
                trainee,
                longer,
                Streams(longer, sources, seed=0),
                optimiser,
                first_step=0,
                total_step=0,
                events=events,
                after_step=lambda step: None,
                report=lambda done, total, detail="": None,
            )

    return steps_of


def main() -> int:
    """Time both sides in turn; write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="of each side in a round")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
        return 0
    if options.rounds < 5:
        parser.error(f"--rounds {options.rounds}: a median needs at least 5")
    from tables import write_section

    load = os.getloadavg()[0]
    sides = {name: Side(*shape) for name, shape in SIDES.items()}
    for side in sides.values():
        side.seconds(1)  # the first step allocates
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, side in sides.items():
            found[name].append(side.seconds(options.steps))
    for side in sides.values():
        side.close()
    alone = found[next(iter(SIDES))]
    rows = ["| side | images a second | × one process: median (min–max) |", "|---|---:|---:|"]
    for name, seconds in found.items():
        speed = options.steps * 2 * BATCH / statistics.median(seconds)
        ratios = sorted(a / b for a, b in zip(alone, seconds, strict=True))
        rows.append(
            f"| {name} | {speed:.2f} "
            f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f}) |"
        )
    rows.append(
        f"\n{options.rounds} rounds, steps of each side in a round: {options.steps}; the load "
        f"average was {load:.1f} when they began, on {os.cpu_count()} cores."
    )
    print("\n".join(rows))
    write_section("several processes", "\n".join(rows), page="performance.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
