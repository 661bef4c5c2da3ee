"""Scenes as shards and tables that stream, and what is drawn of them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from data.pictures import encoded, noise
from data.scenes import HEIGHT, NAMES, WIDTH, Scene, index_mask
from PIL import Image
from shard_files import write_tar

from kswap.data import SwapData
from kswap.data.sets import ImageSet
from kswap.data.streaming import Place, Reader

VALUES = {name: value for value, name in enumerate(NAMES, 1)}
CLASS_NAMES = ["background", *NAMES]
OLD = NAMES[:3]
Write = Callable[[Path, list[Scene]], str]


def picture(number: int) -> bytes:
    return encoded(noise(f"scene {number}", WIDTH, HEIGHT))


def pixels(number: int) -> bytes:
    with Image.open(io.BytesIO(picture(number))) as image:
        return np.asarray(image.convert("RGB")).tobytes()


def mask(scene: Scene) -> bytes:
    return encoded(Image.fromarray(index_mask(scene, VALUES)))


def objects(scene: Scene) -> list[dict[str, Any]]:
    return [
        {"bbox": [left, top, right - left, bottom - top], "category": name}
        for name, (left, top, right, bottom) in scene.items()
    ]


def _dealt(number: int, shards: int = 3) -> list[range]:
    return [range(shard, number, shards) for shard in range(shards)]


def tar_masks(extension: str) -> Write:
    def write(folder: Path, scenes: list[Scene]) -> str:
        for shard, rows in enumerate(_dealt(len(scenes))):
            samples = [
                (f"{row:03}", {"jpg": picture(row), extension: mask(scenes[row])}) for row in rows
            ]
            write_tar(folder / f"{shard}.tar", samples)
        return str(folder / "{0..2}.tar")

    return write


def tar_boxes(wrap: Callable[[list[dict[str, Any]]], Any]) -> Write:
    def write(folder: Path, scenes: list[Scene]) -> str:
        for shard, rows in enumerate(_dealt(len(scenes))):
            members = [
                {"png": picture(r), "json": json.dumps(wrap(objects(scenes[r]))).encode()}
                for r in rows
            ]
            write_tar(folder / f"{shard}.tar", zip(map(str, rows), members, strict=True))
        return str(folder / "{0..2}.tar")

    return write


def _lists(found: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {key: [one[key] for one in found] for key in ("bbox", "category")}


def parquet_of(column: Callable[[Scene], dict[str, Any]]) -> Write:
    def write(folder: Path, scenes: list[Scene]) -> str:
        import datasets

        for shard, rows in enumerate(_dealt(len(scenes))):
            table = datasets.Dataset.from_list(
                [{"image": {"bytes": picture(r), "path": None}, **column(scenes[r])} for r in rows]
            )
            table.to_parquet(str(folder / f"{shard}.parquet"))
        return str(folder / "*.parquet")

    return write


def jsonl_boxes(folder: Path, scenes: list[Scene]) -> str:
    for shard, rows in enumerate(_dealt(len(scenes))):
        lines = []
        for row in rows:
            (folder / f"{row}.png").write_bytes(picture(row))
            lines.append(json.dumps({"image": f"{row}.png", "objects": objects(scenes[row])}))
        (folder / f"{shard}.jsonl").write_text("\n".join(lines))
    return str(folder / "*.jsonl")


def csv_masks(folder: Path, scenes: list[Scene]) -> str:
    lines = ["image,mask"]
    for row, scene in enumerate(scenes):
        (folder / f"{row}.png").write_bytes(picture(row))
        (folder / f"{row}-mask.png").write_bytes(mask(scene))
        lines.append(f"{row}.png,{row}-mask.png")
    (folder / "all.csv").write_text("\n".join(lines))
    return str(folder / "all.csv")


MASKS: dict[str, Write] = {
    "tar, png beside jpg": tar_masks("png"),
    "tar, mask.png": tar_masks("mask.png"),
    "tar, seg.png": tar_masks("seg.png"),
    "parquet": parquet_of(lambda scene: {"mask": {"bytes": mask(scene), "path": None}}),
    "csv": csv_masks,
}
BOXES: dict[str, Write] = {
    "tar, a list": tar_boxes(lambda found: found),
    "tar, objects": tar_boxes(lambda found: {"width": WIDTH, "height": HEIGHT, "objects": found}),
    "tar, lists": tar_boxes(_lists),
    "tar, objects of lists": tar_boxes(lambda found: {"annotations": _lists(found)}),
    "parquet": parquet_of(lambda scene: {"objects": objects(scene)}),
    "jsonl": jsonl_boxes,
}


def streaming(data: str, **more: Any) -> dict[str, Any]:
    return {"data": data, "streaming": True, "shuffle_buffer": 3, **more}


def drawn(data: SwapData, role: str, number: int, *, place: Place | None = None) -> list[ImageSet]:
    """Return so many batches of four."""
    reader = Reader(data.streamed[role], (0, 1, 2), 4, place or Place())  # type: ignore[index]
    try:
        return [reader.draw().images for _ in range(number)]
    finally:
        reader.close()


def as_data(batches: list[ImageSet]) -> SwapData:
    """Return batches as if they were the splits of a role."""
    sets = {"retain": dict(enumerate(batches))}
    return SwapData({}, 0, {}, sets, None, ())  # type: ignore[arg-type]


def not_held(data: SwapData) -> set[bytes]:
    """Return the train images of retain."""
    return {image.tobytes() for image in data.sets["retain"]["train"].images}
