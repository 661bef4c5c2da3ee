"""Runs of seconds for each task, with names that would do harm where they were not escaped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import tiny_processor, tiny_vit, write_colours
from criteria_models import DETECTORS, PER_PIXEL, SIDE
from PIL import Image

SCRIPT = "<script>alert(1)</script>"
ARABIC = "خروس \u202eقديم"
QUOTES = "\"'><img src=x onerror=alert(2)> & {{ 7*7 }}"
LONG = "x" * 120 + " and " + "y" * 75
HOSTILE = (SCRIPT, ARABIC, QUOTES, LONG)
OLD = (SCRIPT, ARABIC, "ship", LONG)
"""Of the base; the first is forgotten."""
NEW = QUOTES
TASKS = ("classification", "segmentation", "detection")
_PLACES = ((4, 6, 28, 40), (36, 10, 60, 56))


def tiny_run(
    task: str, folder: Path, *, order: str = "LF", detector: str = "rt-detr"
) -> dict[str, Any]:
    """Write model and data below `folder`; return the values of a config that swaps them."""
    stage = {"max_steps": 2, "min_steps": 1}
    return {
        "model": str(_base(task, folder / "base", detector)),
        "learn": {"data": _source(task, folder / "new", (NEW, "ship")), "classes": [NEW]},
        "forget": {"data": _source(task, folder / "old", OLD), "classes": [SCRIPT]},
        "retain": {"data": _source(task, folder / "old", OLD)},
        "order": order,
        "output": str(folder / "run"),
        "stages": dict.fromkeys(("learn", "forget", "joint"), stage),
        "training": {"device": "cpu", "checkpoint_steps": 1},
    }


def _base(task: str, folder: Path, detector: str) -> Path:
    import transformers as hf

    labels = dict(enumerate(OLD))
    if task == "classification":
        model, processor = tiny_vit(OLD), tiny_processor()
    elif task == "segmentation":
        model = PER_PIXEL["segformer"]()
        processor = hf.SegformerImageProcessorPil(size={"height": SIDE, "width": SIDE})
    else:
        model = DETECTORS[detector]()
        processor = hf.RTDetrImageProcessorPil(size={"height": SIDE, "width": SIDE})
    if task != "classification":
        config = model.config
        config.num_labels = len(OLD)
        config.id2label, config.label2id = labels, {name: row for row, name in labels.items()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = type(model)(config).eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _source(task: str, folder: Path, names: tuple[str, ...]) -> Any:
    if task == "classification":
        table = folder / "images.jsonl"
        if not table.exists():
            _classified(folder, names)
        return str(table)
    if not folder.exists():
        _scenes(folder, names)
    if task == "segmentation":
        return {"images": str(folder / "images"), "annotations": str(folder / "masks")}
    return {"images": str(folder / "images"), "annotations": str(folder / "boxes.json")}


def _classified(folder: Path, names: tuple[str, ...]) -> None:
    colours = ("red", "green", "blue", "cyan")[: len(names)]
    write_colours(folder, colours, count=12, size=20 + len(names))
    lines = [
        json.dumps({"image": str(path), "label": name})
        for colour, name in zip(colours, names, strict=True)
        for path in sorted((folder / colour).iterdir())
    ]
    (folder / "images.jsonl").write_text("\n".join(lines))


def _scenes(folder: Path, names: tuple[str, ...]) -> None:
    """Two rectangles each, as masks and as COCO boxes."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    noise = np.random.default_rng(len(names))
    images, objects = [], []
    for number in range(24):
        pixels = noise.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        for place, (left, top, right, bottom) in enumerate(_PLACES):
            row = (number + place) % len(names)
            mask[top:bottom, left:right] = row + 1
            box = [left, top, right - left, bottom - top]
            objects.append({"image_id": number, "category_id": row + 1, "bbox": box})
        file = f"{number:03}.png"
        Image.fromarray(pixels).save(folder / "images" / file)
        Image.fromarray(mask).save(folder / "masks" / file)
        images.append({"id": number, "file_name": file, "width": SIDE, "height": SIDE})
    (folder / "masks" / "classes.txt").write_text("\n".join(["background", *names]))
    (folder / "boxes.json").write_text(
        json.dumps(
            {
                "images": images,
                "annotations": [
                    {**o, "id": n + 1, "iscrowd": 0, "area": o["bbox"][2] * o["bbox"][3]}
                    for n, o in enumerate(objects)
                ],
                "categories": [{"id": n + 1, "name": name} for n, name in enumerate(names)],
            }
        )
    )
