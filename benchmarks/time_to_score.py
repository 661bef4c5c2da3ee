"""Time of a forgetting stage to the same scores: LoRA everywhere by PEFT against `depth: auto`.

    python benchmarks/time_to_score.py classification [--seeds 0 1 2]    # to docs/performance.md
    python benchmarks/time_to_score.py segmentation
    python benchmarks/time_to_score.py detection
    python benchmarks/time_to_score.py classification --table    # again from what was measured

Both sides run the same swap in order LF from the same model and images with the same settings, and
the same learning stage; only the forgetting stage differs. On one side every block trains, LoRA is
PEFT's own, nothing is kept, and each batch takes two forwards and two backwards of half of it; on
the other `depth: auto` chooses the blocks and what lies below them is kept. Probe and prefix count.
While a stage trains, the test images are scored now and then with the clock stopped; the time to
the same scores is that at the first of these looks at which H3 is within half a point of
what the other side has at its end, or more; and, since scores of few images go up and down, that
from which on it stays there. Every look is kept in benchmarks/records. Classification: CIFAR-10 and
the ViT-S of scripts/make_benchmark.py; the other two: what `kswap demo` ships. Seconds are the
processor's, so that what else the machine does falls on neither side (one thread:
OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from records import FOLDER
from swaps import sources
from tables import shown, write_section

from kswap import SwapConfig, swap
from kswap.benching.table import measures, spread
from kswap.demo import demo_values, write_demo
from kswap.files import write_bytes
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
    "| | blocks trained | s a step | s of the stage | H3 at its end | s to the H3 of PEFT's end "
    "| s from which it stays |\n|---|---:|---:|---:|---:|---:|---:|"
)


@dataclass
class Watch:
    """What a forgetting stage took and reached; scoring does not count."""

    aside_s: float = 0.0
    stage_s: float = 0.0
    blocks: str = ""
    curve: list[tuple[float, float]] = field(default_factory=list)
    """Seconds in the stage and H3."""
    step_s: list[float] = field(default_factory=list)
    """Of each step of the stage."""

    def to_reach(self, h3: float) -> float | None:
        """Return the seconds at the first look that is near `h3`, or above; None: never."""
        return next((at for at, value in self.curve if value >= h3 - NEAR), None)

    def to_stay(self, h3: float) -> float | None:
        """Return the seconds at the first look from which on all are; None: the last is not."""
        found = None
        for at, value in reversed(self.curve):
            if value < h3 - NEAR:
                break
            found = at
        return found


def watched(config: SwapConfig, *, fused: bool) -> Watch:
    """Run a swap and watch its forgetting stage."""
    watch = Watch()
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


def measured(task: str, seeds: Sequence[int]) -> dict[str, dict[int, Watch]]:
    """Run both sides for each seed, one after the other."""
    found: dict[str, dict[int, Watch]] = {name: {} for name in SIDES}
    with tempfile.TemporaryDirectory() as scratch:
        shared = values_of(task, Path(scratch) / "demo")
        for seed in seeds:
            for number, (name, own) in enumerate(SIDES.items()):
                output = {"order": "LF", "seed": seed, "output": f"{scratch}/{number}-{seed}"}
                config = SwapConfig.from_mapping(merge(merge(shared, own), output))
                found[name][seed] = watched(config, fused="kswap" in name)
                print(seed, name, found[name][seed], flush=True)
    return found


def write_record(path: Path, found: Mapping[str, Mapping[int, Watch]]) -> None:
    """Keep what was measured."""
    kept = {
        name: {
            str(seed): {
                "blocks": watch.blocks,
                "stage_s": round(watch.stage_s, 3),
                "step_s": [round(seconds, 4) for seconds in watch.step_s],
                "curve": [[round(at, 3), round(h3, 5)] for at, h3 in watch.curve],
            }
            for seed, watch in watches.items()
        }
        for name, watches in found.items()
    }
    write_bytes(path, json.dumps(kept, indent=1).encode() + b"\n")


def read_record(path: Path) -> dict[str, dict[int, Watch]]:
    """Return what was measured."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: {
            int(seed): Watch(**{**one, "curve": [(at, h3) for at, h3 in one["curve"]]})
            for seed, one in watches.items()
        }
        for name, watches in kept.items()
    }


def table_of(found: Mapping[str, Mapping[int, Watch]]) -> str:
    """Return the table and the ratios, seed by seed."""
    slow, fast = (list(watches.values()) for watches in found.values())
    aims = [watch.curve[-1][1] for watch in slow]
    rows = [HEAD]
    for name, watches in zip(found, (slow, fast), strict=True):
        blocks = ", ".join(sorted({watch.blocks for watch in watches}))
        step = statistics.median(median_step(watch) for watch in watches)
        cells = [name, blocks, f"{step:.3f}", shown(spread([w.stage_s for w in watches]))]
        cells.append(shown(spread([watch.curve[-1][1] for watch in watches]), 100))
        for seconds in (Watch.to_reach, Watch.to_stay):
            each = [seconds(watch, aim) for watch, aim in zip(watches, aims, strict=True)]
            cells.append(_times(each))
        rows.append("| " + " | ".join(cells) + " |")
    pairs = list(zip(slow, fast, strict=True))
    reached, stayed = (
        _ratio(
            [(seconds(a, aim), seconds(b, aim)) for (a, b), aim in zip(pairs, aims, strict=True)]
        )
        for seconds in (Watch.to_reach, Watch.to_stay)
    )
    a_step = statistics.median(median_step(a) / median_step(b) for a, b in pairs)
    stage = statistics.median(a.stage_s / b.stage_s for a, b in pairs)
    gaps = [100 * (b.curve[-1][1] - aim) for b, aim in zip(fast, aims, strict=True)]
    rows.append(
        f"\nMedians of {len(pairs)} seeds: {a_step:.1f} times faster a step, {stage:.1f} times for "
        f"the whole stage with probe and prefix, {reached} times to the same scores, {stayed} "
        "times to scores that stay (PEFT's own clock to them as well); H3 at the end differs by "
        f"{', '.join(f'{gap:+.1f}' for gap in gaps)} points."
    )
    return "\n".join(rows)


def _times(each: Sequence[float | None]) -> str:
    known = [seconds for seconds in each if seconds is not None]
    if not known:
        return "never"
    told = shown(spread(known))
    return told if len(known) == len(each) else f"{told} ({len(known)} of {len(each)})"


def _ratio(pairs: Sequence[tuple[float | None, float | None]]) -> str:
    same = [a / b for a, b in pairs if a is not None and b is not None]
    return f"{statistics.median(same):.1f}" if same else "no"


def main() -> int:
    """Measure, or read what was, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=("classification", "segmentation", "detection"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", action="store_true", help="only write the table again")
    options = parser.parse_args()
    path = FOLDER / f"time-{options.task}.json"
    if not options.table:
        write_record(path, measured(options.task, options.seeds))
    write_section(f"time {options.task}", table_of(read_record(path)), page="performance.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
