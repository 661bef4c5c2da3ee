"""Whether memory and time per image stay the same where a source that streams is ten times larger.

    python benchmarks/streaming.py [--images 10000 100000] [--folder DIR]  # to docs/performance.md
    python benchmarks/streaming.py --task segmentation --images 2000 20000

Writes shards of small JPEG pictures of noise, as tar and as parquet, into a temporary folder. A
process of its own for each forgets one class, of 400 other pictures, while it goes once over all of
them as its retain images: a tiny vision transformer of 32 px, so that reading and decoding are most
of the work, with a shuffle buffer of 1,000 and a sample of 1,000. Peak memory is that of the whole
process, from the libraries to the report; time per image that of the steps alone: the clock's, and
the processor's, which other jobs on the machine disturb less. For segmentation the shards are tar
files with a mask beside each picture, and the model a tiny SegFormer.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from commands import stoppable
from PIL import Image

KINDS = ("tar", "parquet")
TASKS = ("classification", "segmentation")
SECTIONS = {"classification": "streaming", "segmentation": "streaming scenes"}
CLASSES = ("red", "green", "blue", "cyan")
NAMES = ["background", *CLASSES]
"""Of the values of masks."""
SHARD, SIDE, BATCH = 1000, 40, 64
HEAD = (
    "| shards | images | peak memory | ms an image: clock | processor |\n|---|---:|---:|---:|---:|"
)


def pictures(count: int, *, only: int | None = None) -> Iterator[tuple[bytes, int]]:
    """Yield JPEG pictures of noise and their classes: all but the first, or one alone."""
    noise = np.random.default_rng(count)
    for number in range(count):
        pixels = noise.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        pixels[..., number % 3] //= 2
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG")
        yield file.getvalue(), 1 + number % (len(CLASSES) - 1) if only is None else only


def mask_of(row: int) -> bytes:
    """Return a mask of one class on background, as PNG."""
    values = np.zeros((SIDE, SIDE), np.uint8)
    values[4:-4, 4:-4] = row + 1
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def write_tars(folder: Path, count: int, *, task: str, only: int | None = None) -> str:
    """Write tar shards; return the pattern that names them."""
    masks = [mask_of(row) for row in range(len(CLASSES))]
    archive = None
    for number, (content, row) in enumerate(pictures(count, only=only)):
        if number % SHARD == 0:
            if archive is not None:
                archive.close()
            archive = tarfile.open(folder / f"shard-{number // SHARD:05d}.tar", "w")  # noqa: SIM115
        assert archive is not None
        said = ("cls", CLASSES[row].encode()) if task == TASKS[0] else ("png", masks[row])
        for extension, data in (("jpg", content), said):
            member = tarfile.TarInfo(f"{number:08d}.{extension}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    if archive is not None:
        archive.close()
    return str(folder / "shard-*.tar")


def write_parquet(folder: Path, count: int) -> str:
    """Write parquet shards; return the pattern that names them."""
    rows: list[tuple[bytes, int]] = []
    for number, row in enumerate(pictures(count), start=1):
        rows.append(row)
        if number % SHARD == 0 or number == count:
            write_table(folder / f"part-{(number - 1) // SHARD:05d}.parquet", rows)
            rows.clear()
    return str(folder / "part-*.parquet")


def write_table(path: Path, rows: Sequence[tuple[bytes, int]]) -> None:
    """Write one parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    contents = pa.array([content for content, _ in rows], pa.binary())
    table = pa.table({"image": contents, "label": [CLASSES[row] for _, row in rows]})
    pq.write_table(table, path, row_group_size=100)


def write_base(folder: Path, task: str) -> Path:
    """Write a tiny model with random weights, and images to forget."""
    import transformers as hf

    labels = {
        "id2label": dict(enumerate(CLASSES)),
        "label2id": {name: number for number, name in enumerate(CLASSES)},
    }
    size = {"height": 32, "width": 32}
    if task == "segmentation":
        config = hf.SegformerConfig(
            depths=[1, 1], num_encoder_blocks=2, sr_ratios=[2, 1], hidden_sizes=[16, 32],
            patch_sizes=[7, 3], strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2],
            decoder_hidden_size=32, **labels,
        )  # fmt: skip
        hf.SegformerForSemanticSegmentation(config).save_pretrained(folder)
        hf.SegformerImageProcessorPil(size=size).save_pretrained(folder)
        write_tars(folder, 400, task=task, only=0)
        return folder
    config = hf.ViTConfig(
        image_size=32, patch_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, **labels,
    )  # fmt: skip
    hf.ViTForImageClassification(config).save_pretrained(folder)
    hf.ViTImageProcessorPil(size=size).save_pretrained(folder)
    write_table(folder / "forget.parquet", list(pictures(400, only=0)))
    return folder


def forgotten(base: Path, task: str) -> dict[str, Any]:
    """Return the source of what is forgotten."""
    if task == "segmentation":
        stream = {"data": str(base / "shard-*.tar"), "streaming": True, "class_names": NAMES}
        return {**stream, "classes": [CLASSES[0]]}
    return {"data": str(base / "forget.parquet"), "classes": [CLASSES[0]]}


def run_one(task: str, base: str, pattern: str, count: int, output: str) -> dict[str, float]:
    """Go once over a stream in this process; return its peak in MiB and ms an image."""
    import kswap
    from kswap.environment import peak_resident_bytes
    from kswap.training.loop import train_stage

    spent: list[tuple[float, float]] = []

    def timed(*words: Any, **more: Any) -> None:
        begin = time.perf_counter(), time.process_time()
        train_stage(*words, **more)
        spent.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))

    config = kswap.SwapConfig.from_mapping(
        {
            "model": base,
            "forget": forgotten(Path(base), task),
            "retain": {
                "data": pattern,
                "streaming": True,
                "sample_images": 1000,
                "shuffle_buffer": 1000,
                "images_per_pass": count,
                **({"class_names": NAMES} if task == "segmentation" else {}),
            },
            "order": "F",
            "output": output,
            "stages": {
                "forget": {
                    "anchor": "retain",
                    "epochs": 1.0,
                    "streams": {
                        "retain": {"roles": ["retain"], "batch_size": BATCH},
                        "forget": {"roles": ["forget"], "batch_size": BATCH // 8},
                    },
                }
            },
            "training": {"device": "cpu", "checkpoint_steps": 500},
        }
    )
    with mock.patch("kswap.running.stages.train_stage", timed):
        kswap.swap(config)
    ((seconds, of_processor),) = spent
    drawn = BATCH * -(-count // BATCH)
    peak = peak_resident_bytes() / 2**20
    return {"peak": peak, "ms": 1000 * seconds / drawn, "processor_ms": 1000 * of_processor / drawn}


def measured(task: str, base: Path, pattern: str, count: int, output: Path) -> dict[str, float]:
    """Return what a process of its own measures."""
    words = [task, str(base), pattern, str(count), str(output)]
    command = [sys.executable, __file__, "--only", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    """Measure every kind and number; write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=TASKS, default=TASKS[0])
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--kinds", choices=KINDS, nargs="+", help="of classification")
    parser.add_argument("--folder", type=Path, help="where the shards are written")
    parser.add_argument("--only", nargs=5, help="one run: task, base, pattern, images, output")
    options = parser.parse_args()
    if options.only:
        task, base, pattern, count, output = options.only
        print(json.dumps(run_one(task, base, pattern, int(count), output)))
        return 0
    if options.task != TASKS[0] and options.kinds not in (None, ["tar"]):
        parser.error("--kinds: scenes are measured as tar shards alone; leave it out")
    from tables import write_section

    rows, notes = [HEAD], []
    with tempfile.TemporaryDirectory(prefix="kswap-streaming-", dir=options.folder) as name:
        folder = Path(name)
        (folder / "base").mkdir()
        base = write_base(folder / "base", options.task)
        for kind in options.kinds or (KINDS if options.task == TASKS[0] else KINDS[:1]):
            found = []
            for count in options.images:
                shards = folder / f"{kind}-{count}"
                shards.mkdir()
                begin = time.perf_counter()
                if kind == "tar":
                    pattern = write_tars(shards, count, task=options.task)
                else:
                    pattern = write_parquet(shards, count)
                print(f"{kind}: {count} images written in {time.perf_counter() - begin:.0f} s")
                one = measured(options.task, base, pattern, count, folder / f"run-{kind}-{count}")
                print(one)
                found.append(one)
                rows.append(
                    f"| {kind} | {count:,} | {one['peak']:.0f} MiB | {one['ms']:.2f} "
                    f"| {one['processor_ms']:.2f} |"
                )
            memory, clock, processor = (
                found[-1][key] / found[0][key] for key in ("peak", "ms", "processor_ms")
            )
            notes.append(
                f"{kind}: memory × {memory:.3f}, time an image × {clock:.3f} (clock), "
                f"× {processor:.3f} (processor)"
            )
    largest = f"{options.images[-1] // options.images[0]} times the images"
    rows.append(f"\nWith {largest}: {'; '.join(notes)}.")
    write_section(SECTIONS[options.task], "\n".join(rows), page="performance.md")
    return 0


if __name__ == "__main__":
    sys.exit(stoppable(main))
