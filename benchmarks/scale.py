"""What a swap of a large model would cost, reckoned from measured ratios and named assumptions.

    python benchmarks/scale.py                                  # writes the tables of docs/scale.md
    python benchmarks/scale.py --gpus 8 --retain-images 1e6     # prints them for other numbers

Measured are a step in forwards of its batch and the activations it keeps, by benchmarks/speed.py
(docs/performance.md, read from there). All else is an assumption, each a field below and an option.
Nothing here is a measurement on a GPU.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from tables import write_section

PERFORMANCE = Path(__file__).parents[1] / "docs/performance.md"
SMALL_WIDTH, SMALL_BLOCKS, SMALL_TOKENS, SMALL_TOP, SMALL_IMAGES = 384, 12, 197, 4, 16
"""The model of benchmarks/speed.py: ViT-S, patches of 16 in 224 px; its last 4 blocks; a step."""
MIB, GB, TB = 1024**2, 1e9, 1e12
NF4 = 0.5 + 0.127 / 8
"""Bytes of a weight in 4 bits with double quantisation (arXiv 2305.14314)."""


def _help(text: str, value: float) -> float:
    """Return a default; the text beside it is what `--help` and the table of assumptions say."""
    WORDS.append(text)
    return value


WORDS: list[str] = []


@dataclass(frozen=True)
class Assumptions:
    """What is not measured."""

    width: float = _help("width of the model (ViT-g/14, arXiv 2106.04560)", 1408)
    blocks: float = _help("its transformer blocks", 40)
    hidden: float = _help("width inside its feed-forward networks", 6144)
    tokens: float = _help("tokens of an image: 224 px in patches of 14, and one more", 257)
    classes: float = _help("rows of the head", 10_000)
    rank: float = _help("rank of LoRA, in the two linears of each feed-forward network", 16)
    top: float = _help("blocks that train in `depth: last-K`: a third, as measured", 13)
    retain_images: float = _help("images to retain", 1e8)
    retain_share: float = _help("their share of a batch; the rest learns or forgets", 0.75)
    passes: float = _help("passes over the images to retain, all stages together", 1)
    test_images: float = _help("test images, scored before and after each of two stages", 1e6)
    image_bytes: float = _help("bytes of a JPEG file", 1.1e5)
    gpus: float = _help("GPUs", 64)
    peak: float = _help("H100 SXM, dense bf16, of its data sheet (FLOP/s)", 989e12)
    achieved: float = _help("achieved share of that", 0.4)
    memory: float = _help("memory of a GPU (bytes)", 80e9)
    reserve: float = _help("thereof for CUDA, libraries and fragments (bytes)", 6e9)
    half_activations: float = _help("activations under bf16, as a share of those in fp32", 0.6)
    gpu_batch: float = _help("images of a step on each GPU", 32)
    link: float = _help("bytes/s of each GPU in an all-reduce between nodes", 25e9)
    decode: float = _help("JPEG files a second that one core decodes to 224 px", 400)
    disk: float = _help("bytes/s that the shared file system writes for one process", 1e9)


@dataclass(frozen=True)
class Measured:
    """Read from docs/performance.md."""

    step_all: float
    """A step in all blocks, in forwards of its batch. PEFT's, as LoRA is fused in fp32 alone."""
    step_top: float
    """In the last third of the blocks, computed from the image."""
    step_kept: float
    """In the last third, what lies below kept."""
    floats_all: float
    """Activations in numbers of 4 bytes for each token, channel and trained block: all blocks."""
    floats_top: float
    """The same of the last third."""
    predicted_kept: float
    """What a third of `depth: all` would be, fused as `step_kept` was measured, before PEFT's."""
    fused_kept: float


def measured() -> Measured:
    """Return ratios and memory of docs/performance.md."""
    text = PERFORMANCE.read_text(encoding="utf-8")
    text = text.split("<!-- begin: step 224 -->")[1].split("<!-- end: step 224 -->")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    found = {row[0].split(" (")[0]: row for row in rows if len(row) == 5}
    ratio = {
        name: 2 * float(row[2].split()[0]) for name, row in found.items() if row[2][0].isdigit()
    }
    mib = {n: float(m[0]) for n, row in found.items() if (m := re.findall(r"^(\d+) MiB", row[4]))}
    bare = mib["two forwards of the bare model"]
    by_peft = ratio["PEFT, one forward"] / ratio["kswap, all blocks"]
    per = SMALL_IMAGES * SMALL_TOKENS * SMALL_WIDTH * 4 / MIB
    kept = ratio["kswap, last 4 blocks, prefix kept"]
    return Measured(
        ratio["PEFT, one forward"],
        ratio["kswap, last 4 blocks"] * by_peft,
        kept * by_peft,
        (mib["kswap, all blocks"] - bare) / (per * SMALL_BLOCKS),
        (mib["kswap, last 4 blocks, prefix kept"] - bare) / (per * SMALL_TOP),
        ratio["kswap, all blocks"] * SMALL_TOP / SMALL_BLOCKS,
        kept,
    )


class Plan:
    """Everything that follows."""

    def __init__(self, a: Assumptions, m: Measured) -> None:
        self.a, self.m = a, m
        block = 4 * a.width**2 + 2 * a.width * a.hidden
        self.parameters = a.blocks * block
        self.forward = (  # FLOP of an image: products with weights, and attention's two
            2 * self.parameters * a.tokens + a.blocks * 4 * a.tokens**2 * a.width
        )
        self.images = a.passes * a.retain_images / a.retain_share
        self.speed = a.gpus * a.peak * a.achieved
        self.below = 1 - a.top / a.blocks
        self.head = a.classes * (a.width + 1)
        self.cached = a.tokens * a.width * 4  # kept in fp32

    def lora(self, blocks: float) -> float:
        """Return the parameters of LoRA in so many blocks."""
        return blocks * 2 * self.a.rank * (self.a.width + self.a.hidden)

    def hours(self, forwards: float, images: float, gpus: float | None = None) -> float:
        """Return the hours of so many forwards of so many images."""
        speed = self.speed * (gpus or self.a.gpus) / self.a.gpus
        return forwards * self.forward * images / speed / 3600

    def step_s(self, forwards: float) -> float:
        """Return the seconds of a step without its message."""
        return forwards * self.forward * self.a.gpu_batch * self.a.gpus / self.speed

    def message_s(self, parameters: float) -> float:
        """Return the seconds of a ring all-reduce of so many gradients in fp32."""
        return 2 * (1 - 1 / self.a.gpus) * 4 * parameters / self.a.link

    def costs(self) -> str:
        """Return the table of variants."""
        a, m = self.a, self.m
        lines = [
            "| | all blocks | last third, computed | last third, prefix kept |",
            "|---|---:|---:|---:|",
        ]
        steps = (m.step_all, m.step_top, m.step_kept)
        trained = [self.lora(n) + self.head for n in (a.blocks, a.top, a.top)]
        once = (0.0, 0.0, self.hours(self.below, a.retain_images))
        train = [self.hours(step, self.images) for step in steps]
        total = [x + y for x, y in zip(train, once, strict=True)]
        rate = [self.speed / (step * self.forward) for step in steps]
        floats = (m.floats_all, m.floats_top, m.floats_top)
        depth = (a.blocks, a.top, a.top)
        image = [
            f * n * a.tokens * a.width * 4 * a.half_activations
            for f, n in zip(floats, depth, strict=True)
        ]
        room = a.memory - a.reserve
        fits = [
            (room - 4 * (self.parameters + self.head) - 16 * t) / i
            for t, i in zip(trained, image, strict=True)
        ]
        rows: list[tuple[str, Sequence[float], str]] = [
            ("a step in forwards of its batch", steps, "{:.2f}"),
            ("a step, ms", [1e3 * self.step_s(s) for s in steps], "{:.0f}"),
            ("its gradient message, MB", [4 * t / 1e6 for t in trained], "{:.0f}"),
            ("which takes, ms", [1e3 * self.message_s(t) for t in trained], "{:.1f}"),
            ("prefix of every image once, hours", once, "{:.2f}"),
            (f"training, {a.passes:g} pass over what is retained, hours", train, "{:.2f}"),
            ("both, GPU hours", [a.gpus * t for t in total], "{:.0f}"),
            ("images a second, all GPUs", rate, "{:.0f}"),
            ("activations of an image, MB", [i / 1e6 for i in image], "{:.0f}"),
            ("images that fit on a GPU", fits, "{:.0f}"),
            ("read while training, GB/s", [*(r * a.image_bytes / GB for r in rate[:2]),
             rate[2] * self.cached / GB], "{:.1f}"),
            ("cores that decode JPEG", [*(r / a.decode for r in rate[:2]), 0], "{:.0f}"),
        ]  # fmt: skip
        lines += [f"| {n} | {' | '.join(s.format(v) for v in vs)} |" for n, vs, s in rows]
        return "\n".join(lines)

    def sizes(self) -> str:
        """Return the table of sizes, and of what each process does for itself."""
        a, m = self.a, self.m
        trained = self.lora(a.blocks) + self.head
        checkpoint = 4 * (3 * trained + self.lora(a.blocks))
        every = 25 * self.step_s(m.step_all)
        even = self.below / (m.step_top - m.step_kept) * a.retain_share
        rows = [
            (
                "weights of the blocks",
                f"{self.parameters / 1e9:.2f} · 10⁹, {4 * self.parameters / GB:.2f} GB in fp32",
            ),
            (
                "the same in 8 and 4 bits",
                f"{self.parameters / GB:.2f} and {self.parameters * NF4 / GB:.2f} GB",
            ),
            ("a forward of an image", f"{self.forward / 1e12:.3f} TFLOP"),
            (
                "adapter, all blocks",
                f"{self.lora(a.blocks) / 1e6:.1f} · 10⁶, {4 * self.lora(a.blocks) / 1e6:.0f} MB",
            ),
            ("head", f"{self.head / 1e6:.1f} · 10⁶, {4 * self.head / 1e6:.0f} MB"),
            (
                "a message of all gradients, were the base trained",
                f"{4 * self.parameters / GB:.1f} GB, "
                f"{1e3 * self.message_s(self.parameters):.0f} ms",
            ),
            (
                "a checkpoint (weights, two moments, the adapter before)",
                f"{checkpoint / 1e6:.0f} MB",
            ),
            (
                "writing it, after every 25 steps as by default",
                f"{checkpoint / a.disk:.2f} s in {every:.1f} s of training",
            ),
            ("JPEG files of what is retained", f"{a.retain_images * a.image_bytes / TB:.1f} TB"),
            ("decoded to 224 px and kept", f"{a.retain_images * 224**2 * 3 / TB:.1f} TB"),
            ("the base's answers on them", f"{a.retain_images * a.classes * 4 / TB:.1f} TB"),
            ("the kept prefix, of one image", f"{self.cached / 1e6:.2f} MB"),
            ("of all, one view each", f"{a.retain_images * self.cached / TB:.0f} TB"),
            ("passes from which keeping it pays in arithmetic", f"{even:.1f}"),
            (
                "one process decodes all of it, 16 cores",
                f"{a.retain_images / a.decode / 16 / 3600:.1f} h",
            ),
            (
                "one process asks the base about all of them",
                f"{self.hours(1, a.retain_images, 1):.1f} h",
            ),
            (
                "one process scores the test images three times",
                f"{3 * self.hours(1, a.test_images, 1):.1f} h",
            ),
        ]
        return "\n".join(
            ["| what | how much |", "|---|---:|", *(f"| {n} | {v} |" for n, v in rows)]
        )


def assumptions(a: Assumptions) -> str:
    """Return the table of what is assumed."""
    lines = ["| option | value | what |", "|---|---:|---|"]
    for field, text in zip(fields(a), WORDS, strict=True):
        option = f"--{field.name.replace('_', '-')}"
        lines.append(f"| `{option}` | {getattr(a, field.name):g} | {text} |")
    return "\n".join(lines)


def check(m: Measured) -> str:
    """Return how well the rules that carry over to a larger model hold where they are measured."""
    return (
        f"A third of the {SMALL_BLOCKS / SMALL_TOP * m.predicted_kept:.2f} forwards of all blocks "
        f"would be {m.predicted_kept:.2f}; measured for the last third, kept, are "
        f"{m.fused_kept:.2f}. Activations: {m.floats_all:.1f} numbers for each token, channel and "
        f"block where all train, {m.floats_top:.1f} where a third does."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Write the tables, or print them where an assumption was given."""
    parser = argparse.ArgumentParser(description=__doc__)
    for field, text in zip(fields(Assumptions), WORDS, strict=True):
        assert field.default is not MISSING
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=float, default=field.default, help=text)
    a = Assumptions(**vars(parser.parse_args(argv)))
    m = measured()
    plan = Plan(a, m)
    made = {
        "assumptions": assumptions(a),
        "check": check(m),
        "costs": plan.costs(),
        "sizes": plan.sizes(),
    }
    if a != Assumptions():
        print("\n\n".join(made.values()))
        return 0
    for name, text in made.items():
        write_section(name, text, page="scale.md")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
