"""Time of a forgetting stage to the same scores: LoRA everywhere by PEFT against `depth: auto`.

    python benchmarks/time_to_score.py classification [--seeds 0 1 2]    # to docs/performance.md
    python benchmarks/time_to_score.py segmentation
    python benchmarks/time_to_score.py detection

Both sides run the same swap in order LF from the same model and images with the same settings, and
the same learning stage; only the forgetting stage differs. On one side every block trains, LoRA is
PEFT's own, nothing is kept, and each batch takes two forwards and two backwards of half of it; on
the other `depth: auto` chooses the blocks and what lies below them is kept. Probe and prefix count.
While a stage trains, the test images are scored now and then with the clock stopped; the time to
the same scores is that at the first of these looks at which H3 is within half a point of
what the other side has at its end. Classification: CIFAR-10 and the ViT-S of
scripts/make_benchmark.py; the other two: what `kswap demo` ships. Seconds are the processor's, so
that what else the machine does falls on neither side (one thread: OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from swaps import sources
from tables import shown, write_section

from kswap import SwapConfig, swap
from kswap.benching.table import measures, spread
from kswap.demo import demo_values, write_demo
from kswap.models.fused import fused_adapters
from kswap.running.scoring import scored
from kswap.running.stages import StageRunner
from kswap.training.loop import train_stage
from kswap.yaml_text import merge

NEAR = 0.005
"""Half a point of H3."""
LOOKS = 8
"""How often a forgetting stage is scored, its end included."""
SIDES: dict[str, dict[str, Any]] = {
    "PEFT, all blocks": {
        "stages": {"forget": {"depth": "all"}},
        "training": {"prefix_cache": False, "accumulation": 2},
    },
    "kswap, `depth: auto`": {"stages": {"forget": {"depth": "auto"}}},
}
HEAD = (
    "| | blocks trained | s a step | s of the stage | H3 at its end | s to the H3 of PEFT's end |\n"
    "|---|---:|---:|---:|---:|---:|"
)


@dataclass
class Watch:
    """What a forgetting stage took and reached; scoring does not count."""

    learned: str
    """Name of the record after the learning stage."""
    aside_s: float = 0.0
    stage_s: float = 0.0
    blocks: str = ""
    curve: list[tuple[float, float]] = field(default_factory=list)
    """Seconds in the stage and H3."""
    step_s: list[float] = field(default_factory=list)
    """Of each step of the stage."""

    def to_reach(self, h3: float) -> float | None:
        """Return the seconds at the first look that is near `h3`; None: never."""
        return next((at for at, value in self.curve if value >= h3 - NEAR), None)


def watched(config: SwapConfig, *, fused: bool) -> Watch:
    """Run a swap and watch its forgetting stage."""
    watch = Watch("1-learn")
    begin = [0.0]
    train_of_run = StageRunner._train

    def clocked(runner: StageRunner, streams: Any, stage: Any, *others: Any) -> Any:
        state = runner.state
        begin[0] = time.process_time()
        watch.aside_s = 0.0

        def looking(
            trainee: Any, stage: Any, streams: Any, optimiser: Any, *, after_step: Any, **more: Any
        ) -> None:
            every = max(1, streams.num_steps // LOOKS)
            last = [time.process_time()]

            def after(step: int) -> None:
                after_step(step)
                paused = time.process_time()
                watch.step_s.append(paused - last[0])
                last[0] = paused
                if step % every and step < streams.num_steps:
                    return
                rows = len(state.data.id2label)
                record = scored(state, "look", trainee.model, rows)
                found = measures({"stages": [state.position.stages[0], record]}, 1)["h3"]
                watch.curve.append((paused - begin[0] - watch.aside_s, found or 0.0))
                last[0] = time.process_time()
                watch.aside_s += last[0] - paused

            look = after if stage.kind == "forget" else after_step
            train_stage(trainee, stage, streams, optimiser, after_step=look, **more)

        with mock.patch("kswap.running.stages.train_stage", looking):
            done = train_of_run(runner, streams, stage, *others)
        if stage.kind == "forget":
            watch.stage_s = time.process_time() - begin[0] - watch.aside_s
            total = len(state.blocks)
            watch.blocks = f"{total - state.position.num_frozen} of {total}"
        return done

    all_tokens = mock.patch(
        "kswap.running.stages.without_unread_tokens", lambda trainee, *words: trainee
    )
    own: Callable[..., Any] = fused_adapters if fused else contextlib.nullcontext
    with (
        mock.patch.object(StageRunner, "_train", clocked),
        mock.patch("kswap.running.stages.fused_adapters", own),
        contextlib.nullcontext() if fused else all_tokens,
    ):
        swap(config)
    return watch


def median_step(watch: Watch) -> float:
    """Return the seconds of a step."""
    return statistics.median(watch.step_s)


def values_of(task: str, demo: Path) -> Mapping[str, Any]:
    """Return model, data and settings that both sides share."""
    if task == "classification":
        return merge(sources(task, "default"), {"preset": "default"})
    write_demo(task, demo)
    return demo_values(task, demo, "default")


def main() -> int:
    """Run both sides for each seed, one after the other; write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=("classification", "segmentation", "detection"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    found: dict[str, list[Watch]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as scratch:
        shared = values_of(options.task, Path(scratch) / "demo")
        for seed in options.seeds:
            for number, (name, own) in enumerate(SIDES.items()):
                output = {"order": "LF", "seed": seed, "output": f"{scratch}/{number}-{seed}"}
                config = SwapConfig.from_mapping(merge(merge(shared, own), output))
                watch = watched(config, fused="kswap" in name)
                found[name].append(watch)
                print(seed, name, watch, flush=True)
    slow, fast = found.values()
    rows = [HEAD]
    aims = [watch.curve[-1][1] for watch in slow]
    for name, watches in found.items():
        reached = [watch.to_reach(aim) for watch, aim in zip(watches, aims, strict=True)]
        times = [seconds for seconds in reached if seconds is not None]
        to_aim = shown(spread(times)) if times else "never"
        if 0 < len(times) < len(reached):
            to_aim += f" (reached by {len(times)} of {len(reached)})"
        rows.append(
            f"| {name} | {', '.join(sorted({watch.blocks for watch in watches}))} "
            f"| {statistics.median(median_step(watch) for watch in watches):.3f} "
            f"| {shown(spread([watch.stage_s for watch in watches]))} "
            f"| {shown(spread([watch.curve[-1][1] for watch in watches]), 100)} | {to_aim} |"
        )
    a_step = statistics.median(
        median_step(a) / median_step(b) for a, b in zip(slow, fast, strict=True)
    )
    stage = statistics.median(a.stage_s / b.stage_s for a, b in zip(slow, fast, strict=True))
    both = [(a.to_reach(aim), b.to_reach(aim)) for a, b, aim in zip(slow, fast, aims, strict=True)]
    same = [a / b for a, b in both if a is not None and b is not None]
    to_same = f"{statistics.median(same):.1f}" if same else "no"
    gaps = [100 * (b.curve[-1][1] - aim) for b, aim in zip(fast, aims, strict=True)]
    rows.append(
        f"\nMedians of {len(options.seeds)} seeds: {a_step:.1f} times faster a step, {stage:.1f} "
        f"times for the whole stage with probe and prefix, {to_same} times to the same scores "
        "(PEFT's own clock to them as well); H3 at the end differs by "
        f"{', '.join(f'{gap:+.1f}' for gap in gaps)} points."
    )
    write_section(f"time {options.task}", "\n".join(rows), page="performance.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
