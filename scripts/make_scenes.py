"""Writes the scenes that the two scene demos swap with: pictures, index masks and COCO boxes.

    python scripts/make_scenes.py --out-dir /tmp/demo-scenes

What: one folder per role, each with a train and a test part, as a user would keep them:
learn    at least one object of a learned class in each; only the learned classes are labelled
         (partial: objects of the base's classes lie there too, unlabelled)
forget   at least one object of a forgotten class in each; all base classes are labelled (complete)
retain   objects of all base classes, forgotten ones among them; complete
whole    (test only) objects of all classes, all labelled: for the base, an ideal swap and the
         reference to be measured on one set
The base classes include the forgotten ones. Split: train scenes show the photographs that the
pretraining showed, test scenes only unseen ones; places, sizes and colours are drawn anew for each;
the drawings of a class are the same in train and test. A mask's pixel is the class number of
classes.json, 0 where nothing is labelled. Segmentation gets pictures and masks, detection the same
pictures (stored once, beside the masks) and COCO JSON made from the same instances.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from scene_art import ART_DIR, fetch_art
from scenes import (
    ALL_CLASSES,
    BASE_CLASSES,
    FORGET_CLASSES,
    LEARN_CLASSES,
    Art,
    Scene,
    box,
    compose,
    draw_names,
    index_mask,
    load_art,
)

SEED = 20_000_003
"""Far from those of the pretraining."""
NUMBERS = {name: i for i, name in enumerate(ALL_CLASSES, start=1)}
ROLES = {
    "learn": (ALL_CLASSES, LEARN_CLASSES, LEARN_CLASSES),
    "forget": (BASE_CLASSES, FORGET_CLASSES, BASE_CLASSES),
    "retain": (BASE_CLASSES, (), BASE_CLASSES),
    "whole": (ALL_CLASSES, (), ALL_CLASSES),
}
"""Per folder: the classes that occur, those of which each picture has one, those labelled."""

COUNTS = {
    "train": {"learn": 100, "forget": 100, "retain": 200},
    "test": {"learn": 60, "forget": 60, "retain": 120, "whole": 120},
}


def render(role: str, split: str, count: int, art: Art) -> list[Scene]:
    """Return the scenes of one folder."""
    classes, focus, _ = ROLES[role]
    rng = np.random.default_rng([SEED, list(ROLES).index(role), int(split == "test")])
    scenes = []
    while len(scenes) < count:
        scene = compose(rng, art, draw_names(rng, classes, focus=focus))
        if not focus or set(scene.names) & set(focus):
            scenes.append(scene)
    return scenes


def polygon_free_annotation(scene: Scene, index: int, image_id: int) -> dict[str, object]:
    """Return one instance in COCO's words (box only; the masks are the PNG files)."""
    left, top, right, bottom = box(scene.masks[index])
    return {
        "image_id": image_id,
        "category_id": NUMBERS[scene.names[index]],
        "bbox": [left, top, right - left, bottom - top],
        "area": int(scene.masks[index].sum()),
        "iscrowd": 0,
    }


def write_part(folder: Path, scenes: list[Scene], labelled: tuple[str, ...]) -> None:
    """Write images/, masks/ and annotations.json of one part."""
    numbers = {name: NUMBERS[name] for name in labelled}
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i, scene in enumerate(scenes):
        Image.fromarray(scene.image).save(folder / "images" / f"{i:03}.webp", quality=90, method=6)
        mask = Image.fromarray(index_mask(scene, numbers))
        mask.save(folder / "masks" / f"{i:03}.png", optimize=True)
        height, width = scene.image.shape[:2]
        images.append({"id": i, "file_name": f"{i:03}.webp", "height": height, "width": width})
        annotations += [
            polygon_free_annotation(scene, k, i) for k, n in enumerate(scene.names) if n in numbers
        ]
    annotations = [{"id": i, **a} for i, a in enumerate(annotations, start=1)]
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    text = json.dumps(content, separators=(",", ":"))
    (folder / "annotations.json").write_text(text, encoding="utf-8")


def write_scenes(out_dir: Path) -> None:
    """Write all folders and classes.json."""
    for split, counts in COUNTS.items():
        art = load_art(fetch_art(ART_DIR), test=split == "test")
        for role, count in counts.items():
            scenes = render(role, split, count, art)
            write_part(out_dir / role / split, scenes, ROLES[role][2])
    names = {0: "background", **{i: name for name, i in NUMBERS.items()}}
    text = json.dumps(names, indent=2) + "\n"
    (out_dir / "classes.json").write_text(text, encoding="utf-8")


def main() -> None:
    """Write the scenes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out-dir", type=Path, required=True)
    write_scenes(parser.parse_args().out_dir)


if __name__ == "__main__":
    main()
