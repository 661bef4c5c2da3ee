"""What a step costs: PEFT as it is used elsewhere against kswap's fused linears and kept prefix.

    python benchmarks/speed.py [--rounds 7] [--size 224] [--batch 8]      # to docs/performance.md

One step forgets `batch` images and retains `batch` others: cross-entropy, LoRA of rank 16 in the
feed-forward linears, AdamW. All variants take the same images, one after the other in every round,
so that what else the machine does falls on all of them; given are medians of the ratios. The model
is a ViT-S/16 with random weights (speed depends on neither weights nor images). Peak memory is that
of a process that does nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from commands import stoppable
from tables import write_section
from torch import Tensor
from torch.nn import functional
from transformers import ViTConfig, ViTForImageClassification

from kswap.environment import peak_resident_bytes
from kswap.models.adapter import attach
from kswap.models.fused import fused_adapters
from kswap.models.head import find_heads
from kswap.models.prefix import Prefix, Trial, find_prefix
from kswap.models.structure import find_ffn_blocks
from kswap.models.unread import Unread, find_unread
from kswap.settings import AdapterConfig

CLASSES, RANK, TOP = 10, 16, 4
VARIANTS = {
    "two forwards of the bare model": "the limit: a backward needs at least another forward",
    "PEFT, two forwards": "one for what is forgotten, one for what is retained, as in the paper",
    "PEFT, one forward": "both in one batch",
    "kswap, all blocks": "`depth: all`: one forward, LoRA fused, unread tokens left out",
    "kswap, last 4 blocks": "`depth: last-4`, computed from the image",
    "kswap, last 4 blocks, prefix kept": "`depth: last-4`, what lies below is kept",
}
HEAD = (
    "| variant | ms a step | × two bare forwards: median (min–max) | × PEFT, two forwards "
    "| peak memory |\n|---|---:|---:|---:|---:|"
)


class Case:
    """One variant, ready to do steps."""

    def __init__(
        self,
        name: str,
        size: int,
        batch: int,
        *,
        width: int = 384,
        device: str = "cpu",
        precision: torch.dtype | None = None,
    ) -> None:
        torch.manual_seed(0)
        config = ViTConfig(
            hidden_size=width, num_hidden_layers=12, num_attention_heads=width // 64,
            intermediate_size=4 * width, patch_size=16, image_size=size, num_labels=CLASSES,
        )  # fmt: skip
        self.name, self.batch = name, batch
        self.precision = torch.autocast(device, precision, enabled=precision is not None)
        model: Any = ViTForImageClassification(config).eval().to(device)
        self.images = torch.randn(2 * batch, 3, size, size, device=device)
        self.labels = torch.randint(CLASSES, (2 * batch,), device=device)
        self.kept: dict[str, Tensor] = {}
        self.prefix: Prefix | None = None
        self.unread: Unread | None = None
        if "bare" in name:
            self.model = model
            return
        blocks = find_ffn_blocks(model)
        self.model = attach(
            model, blocks, AdapterConfig(rank=RANK), head_names=find_heads(model), seed=0
        ).eval()
        if "last" in name:
            for block in blocks[:-TOP]:
                model.get_submodule(block.name).requires_grad_(False)
        if "kswap" in name:
            with self.precision:
                self.unread = find_unread(
                    model,
                    blocks[-1],
                    lambda: [self.model(pixel_values=self.images[:1]).logits],
                    tolerance=1e-5 if precision is None else 3e-2,
                )
            assert self.unread is not None, "a ViT's head reads one token"
        if "kept" in name:
            with self.precision:
                self._keep([block.name for block in blocks[-TOP:]])
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def _keep(self, trained: list[str]) -> None:
        base: Any = self.model.get_base_model()
        ends = [*trained, *find_heads(base)]
        some, other = self.images[:3], self.images[3:6]
        trial = Trial(
            lambda x: [self.model(pixel_values=x).logits], torch.full_like, 3, some, some[:2], other
        )
        self.prefix = find_prefix(base, ends, trial)
        assert self.prefix is not None
        self.kept = self.prefix.record(base, lambda: self.model(pixel_values=self.images))

    def step(self) -> None:
        """Do one step, or what it is compared with."""
        first, second = self.images[: self.batch], self.images[self.batch :]
        if "bare" in self.name:
            with torch.no_grad(), self.precision:
                self.model(pixel_values=self.images)
                self.model(pixel_values=self.images)
            return
        with self.precision:
            if "two" in self.name:
                logits = torch.cat([self.model(pixel_values=x).logits for x in (first, second)])
            else:
                with contextlib.ExitStack() as stack:
                    if "kswap" in self.name:
                        stack.enter_context(fused_adapters(self.model))
                    base: Any = self.model.get_base_model()
                    if self.unread is not None:
                        stack.enter_context(self.unread.skipped(base))
                    if self.prefix is not None:
                        stack.enter_context(self.prefix.playing(base, self.kept))
                    logits = self.model(pixel_values=self.images).logits
            loss = functional.cross_entropy(logits, self.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.optimiser.zero_grad()


def timed(step: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds of one step, by the clock and by the processor."""
    begin = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - begin[0], time.process_time() - begin[1]


def peak_mib(name: str, size: int, batch: int) -> float:
    """Return the peak memory of a process that does three steps of one variant."""
    words = [sys.executable, __file__, "--only", name, "--size", str(size), "--batch", str(batch)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> int:
    """Time all variants in turn; write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--only", choices=list(VARIANTS), help="three steps of one, for its memory")
    options = parser.parse_args()
    if options.only:
        case = Case(options.only, options.size, options.batch)
        for _ in range(3):
            case.step()
        print(peak_resident_bytes() / 2**20)
        return 0
    cases = {name: Case(name, options.size, options.batch) for name in VARIANTS}
    for case in cases.values():
        case.step()  # the first one allocates
    found: dict[str, list[float]] = {name: [] for name in cases}
    processor: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.rounds):
        for name, case in cases.items():
            seconds, of_processor = timed(case.step)
            found[name].append(seconds)
            processor[name].append(of_processor)
    bare, peft = (found[name] for name in list(VARIANTS)[:2])
    rows = [HEAD]
    for name, what in VARIANTS.items():
        ratios = sorted(a / b for a, b in zip(found[name], bare, strict=True))
        others = [a / b for a, b in zip(found[name], peft, strict=True)]
        memory = peak_mib(name, options.size, options.batch)
        rows.append(
            f"| {name} ({what}) | {1000 * statistics.median(found[name]):.0f} "
            f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f}) "
            f"| {statistics.median(others):.2f} | {memory:.0f} MiB |"
        )
    most = processor[next(iter(VARIANTS))]
    by_processor = {
        name: statistics.median(a / b for a, b in zip(processor[name], most, strict=True))
        for name in list(VARIANTS)[1:]
    }
    rows.append(
        f"\n{2 * options.batch} images of {options.size} px, {torch.get_num_threads()} threads, "
        f"{options.rounds} rounds. The processor's time, × two bare forwards: "
        + "; ".join(f"{name} {ratio:.2f}" for name, ratio in by_processor.items())
        + "."
    )
    write_section(f"step {options.size}", "\n".join(rows), page="performance.md")
    return 0


if __name__ == "__main__":
    sys.exit(stoppable(main))
