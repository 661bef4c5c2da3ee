"""What a step costs on one GPU, in images a second and in parts of what its matrices can do.

    python benchmarks/gpu.py [--batch 64] [--rounds 20]            # to docs/performance.md
    python benchmarks/gpu.py --device cpu --size 32 --batch 2      # the same anywhere, printed

ViT-B/16 at 224 px under bfloat16 autocast, the variants of benchmarks/speed.py: `batch` images to
forget and as many to retain, cross-entropy, LoRA of rank 16 in the feed-forward linears, AdamW.
FLOP are counted as they are computed (torch's FlopCounterMode: matrix products and attention,
forward and backward); the peak is the fastest of several products of two square bfloat16 matrices
on the same device. Variants take turns; medians. Memory is the most that a variant's tensors take.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from speed import VARIANTS, Case
from tables import write_section
from torch.utils.flop_counter import FlopCounterMode

SIDES = {"cuda": (4096, 8192, 16384), "cpu": (512,)}
"""Of the square matrices whose product is timed."""
WIDTH = 768
HEAD = (
    "| variant | ms a step | images/s | TFLOP/s | of the matrix peak | × PEFT, two forwards "
    "| memory of tensors |\n|---|---:|---:|---:|---:|---:|---:|"
)


def seconds(device: str, work: Callable[[], object]) -> float:
    """Return how long the device takes for some work."""
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def matrix_peak(device: str) -> float:
    """Return FLOP/s of the fastest product of two square bfloat16 matrices."""
    best = 0.0
    for side in SIDES[device]:
        a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
        times = [seconds(device, lambda a=a, b=b: a @ b) for _ in range(12)]  # type: ignore[misc]
        best = max(best, 2 * side**3 / min(times))
    return best


def flop(case: Case) -> int:
    """Return the FLOP of one step."""
    with FlopCounterMode(display=False) as counter:
        case.step()
    return int(counter.get_total_flops())


def tensor_memory(device: str, case: Case) -> str:
    """Return the most that tensors take in a step, those of the other variants left out."""
    if device != "cuda":
        return "not available"
    before = torch.cuda.memory_allocated()
    own = sum(p.nbytes for p in case.model.parameters()) + case.images.nbytes
    own += sum(tensor.nbytes for tensor in case.kept.values())
    torch.cuda.reset_peak_memory_stats()
    case.step()
    return f"{(torch.cuda.max_memory_allocated() - before + own) / 2**20:.0f} MiB"


def main() -> int:
    """Time all variants in turn; write the table where there is a GPU, else print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    device = options.device
    if device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/gpu.py: there is no GPU here, docs/performance.md is left as it is")
        return 0
    cases = {
        name: Case(
            name, options.size, options.batch, width=WIDTH, device=device, precision=torch.bfloat16
        )
        for name in VARIANTS
    }
    counted = {name: flop(case) for name, case in cases.items()}  # the first step allocates, too
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.rounds):
        for name, case in cases.items():
            found[name].append(seconds(device, case.step))
    peak = matrix_peak(device)
    slow = found["PEFT, two forwards"]
    rows = [HEAD]
    for name, times in found.items():
        median = statistics.median(times)
        speed = counted[name] / median
        against = statistics.median(a / b for a, b in zip(times, slow, strict=True))
        rows.append(
            f"| {name} | {1000 * median:.1f} | {2 * options.batch / median:.0f} "
            f"| {speed / 1e12:.3g} | {speed / peak:.0%} | {against:.2f} "
            f"| {tensor_memory(device, cases[name])} |"
        )
    what = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    rows.append(
        f"\n{what}, ViT-B/16, {2 * options.batch} images of {options.size} px, bfloat16 autocast, "
        f"{options.rounds} rounds; matrix peak {peak / 1e12:.3g} TFLOP/s, measured."
    )
    if device == "cuda":
        write_section("step gpu", "\n".join(rows), page="performance.md")
    else:
        print("\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
