"""Tiny sources with masks and boxes for the data tests: coloured squares, in every layout.

A scene is a mapping of class name to a box (left, top, right, bottom) in pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from data.pictures import noise
from PIL import Image

from kswap.data import SwapData

Scene = Mapping[str, tuple[int, int, int, int]]
NAMES = ("cat", "dog", "frog", "horse")
WIDTH, HEIGHT = 16, 12


def some_scenes(number: int = 24, names: Sequence[str] = NAMES) -> list[dict[str, Any]]:
    """Two squares each, of classes that take turns."""
    return [
        {names[i % len(names)]: (1, 2, 7, 8), names[(i + 1) % len(names)]: (8, 3, 14, 11)}
        for i in range(number)
    ]


def write_images(folder: Path, number: int, tag: str = "") -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{tag}{i:03}.png" for i in range(number)]
    for name in names:
        noise(name, WIDTH, HEIGHT).save(folder / name)
    return names


def index_mask(scene: Scene, values: Mapping[str, int], size: Any = (WIDTH, HEIGHT)) -> Any:
    mask = np.zeros((size[1], size[0]), np.uint8)
    for name, (left, top, right, bottom) in scene.items():
        mask[top:bottom, left:right] = values[name]
    return mask


def write_masks(
    root: Path, scenes: Sequence[Scene], *, offset: int = 1, tag: str = "", names: Any = NAMES
) -> Path:
    """`images/` and `masks/` with values from `offset`, and classes.txt."""
    files = write_images(root / "images", len(scenes), tag)
    (root / "masks").mkdir(parents=True, exist_ok=True)
    values = {name: place + offset for place, name in enumerate(names)}
    for file, scene in zip(files, scenes, strict=True):
        Image.fromarray(index_mask(scene, values)).save(root / "masks" / file)
    (root / "classes.txt").write_text("\n".join(["background"] * offset + list(names)))
    return root


def coco(
    scenes: Sequence[Scene], files: Sequence[str], *, names: Sequence[str] = NAMES
) -> dict[str, Any]:
    """COCO JSON with boxes and polygons; category ids from 11."""
    annotations = []
    for image, scene in enumerate(scenes):
        for name, (left, top, right, bottom) in scene.items():
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": names.index(name) + 11,
                    "bbox": [left, top, right - left, bottom - top],
                    "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                }
            )
    return {
        "images": [
            {"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT}
            for i, name in enumerate(files)
        ],
        "annotations": annotations,
        "categories": [{"id": i + 11, "name": name} for i, name in enumerate(names)],
    }


def write_coco(root: Path, scenes: Sequence[Scene], *, tag: str = "", **changes: Any) -> Path:
    """`images/` and `annotations.json`; `changes` replace parts of the JSON."""
    files = write_images(root / "images", len(scenes), tag)
    content = coco(scenes, files) | changes
    (root / "annotations.json").write_text(json.dumps(content))
    return root


def boxes_of(data: SwapData, role: str, split: str) -> dict[bytes, list[tuple[Any, ...]]]:
    """Boxes by image: (row, crowd, left, top, right, bottom) in thousandths, sorted."""
    one = data.sets[role][split]  # type: ignore[index]
    assert one.boxes is not None
    return {
        image.tobytes(): sorted(
            (int(c), bool(d), *np.rint(b * 1000).astype(int).tolist())
            for b, c, d in zip(found.boxes, found.class_ids, found.crowd, strict=True)
        )
        for image, found in zip(one.images, one.boxes, strict=True)
    }


def every_mask(data: SwapData, role: str) -> dict[bytes, Any]:
    """Masks by image, over all splits."""
    found = {}
    for one in data.sets[role].values():  # type: ignore[index]
        assert one.masks is not None
        found |= {i.tobytes(): m for i, m in zip(one.images, one.masks, strict=True)}
    return found


def every_box(data: SwapData, role: str) -> dict[bytes, list[tuple[Any, ...]]]:
    return {k: v for split in data.sets[role] for k, v in boxes_of(data, role, split).items()}  # type: ignore[index]
