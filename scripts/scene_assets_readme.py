"""Writes the README.md of the scene demos' asset folders from the metrics.json of their models.

Why: commands and numbers are read from what the runs recorded, so a page cannot differ from the
weights. `make_demo_scenes.py` calls it; alone:

    python scripts/scene_assets_readme.py
"""

import argparse
import json
import zipfile
from pathlib import Path
from typing import Any

from scene_art import EMOJI, TEST_BACKGROUNDS
from scenes import ALL_CLASSES, FORGET_CLASSES, LEARN_CLASSES, RETAIN_CLASSES

ASSETS_DIR = Path(__file__).parent.parent / "src" / "kswap" / "demo" / "assets"
SCORES = {"segmentation": ("miou", "mIoU"), "detection": ("ap50", "AP50")}
ARCHITECTURES = {
    "segmentation": "Mask2Former (20 queries, 2 pixel decoder and 3 decoder layers)",
    "detection": "RT-DETR (30 queries, 1 encoder and 3 decoder layers)",
}
NOTES = {
    "segmentation": """Row 0 of the head is `background`, a class like the others, so that every
pixel has an answer; a mask's 0 is this class where labels are complete. mIoU is over all
classes, background too (as Pascal VOC counts it; without it in `metrics.json`), all pixels of the
set counted together, by transformers' own post-processing.""",
    "detection": """AP50 is COCO's 101-point interpolated average precision at IoU 0.5, averaged
over the model's classes; the pictures lie in `../segmentation/scenes.zip`.""",
}

PAGE = """# Assets of the {task} demo ({total} MB)

Composited scenes of 128×128 px: cut-outs of everyday things pasted on photographs, and small models
trained on such scenes. Made, trained, packed and measured by

```bash
python scripts/make_demo_scenes.py
```

This page is written by `scripts/scene_assets_readme.py`.

| what | |
|---|---|
| retain | {retain} |
| forget | {forget} |
| learn | {learn} |
| `base/` | {architecture}, Swin of width 48, 96 px: knows retain and forget |
| `reference/` | the same architecture: knows retain and learn, never saw the forget classes |

{note}

## Scenes

`segmentation/scenes.zip` holds the scenes of both demos, {num_scenes} pictures:

```
classes.json            class number → name; 0 is background
learn/{{train,test}}/     {counts[learn]}: a learn class in each, only these labelled (partial)
forget/{{train,test}}/    {counts[forget]}: a forget class in each, all base classes labelled
retain/{{train,test}}/    {counts[retain]}: base classes, all labelled
whole/test/             {counts[whole]}: all classes, all labelled
    images/000.webp     lossy WebP, quality 90
    masks/000.png       the class number of every pixel
    annotations.json    COCO: the boxes of the same instances
```

Objects of the base's classes, forget classes among them, lie unlabelled in learn scenes; forget
classes are among the objects of retain scenes. Test scenes show only photographs that no training
and no train scene showed ({test_backgrounds}) or textures drawn anew; place, size, turn and colour
are drawn anew for each scene. The drawings of a class are the same in train and test. Models were
trained on other scenes, rendered as they went, of the train photographs.

## Measured

On the shipped test scenes, as unpacked (8-bit weights), one run each. The base on {base_parts}
({base_images} pictures), the reference on {reference_parts} ({reference_images} pictures, where
objects of the forget classes lie too and count as background).

| model | {score_title} | {all_names} |
|---|---|{rule}
{rows}

The reference was trained for longer than the base, as its backgrounds vary more: the first training
of the shipped bases showed plainer ones than the scripts do now. `kswap audit` compares what the
two retain on the pictures of each run (docs/audits.md).

Trained by (seconds on a shared core; {seconds}):

```bash
{commands}
```

## Origin and licences

Cut-outs, {num_drawings} drawings: Noto Emoji (Google; Apache-2.0; npm emoji-datasource-google
16.0.0), Twemoji (Twitter, Inc. and other contributors; CC BY 4.0; npm emoji-datasource-twitter
16.0.0) and Fluent Emoji (Microsoft Corporation; MIT; npm @lobehub/fluent-emoji-3d 1.1.0). Changes:
scaled, turned, flipped, recoloured, partly covered, and pasted into pictures. Photographs:
panoramas of Poly Haven (CC0; npm @pmndrs/assets 1.7.0) and, from scikit-image 0.26.0, brick, grass
and gravel (CC0), coffee (CC0, Rachel Michetti), rocket (SpaceX, public domain) and hubble (NASA,
public domain), by its docstrings. The licence texts are in `licenses/`. Weights were trained from
random numbers on these scenes only.
"""


def row(name: str, metrics: dict[str, Any], score: str) -> str:
    """Return one model's line; a dash where it does not know the class."""
    found = metrics["test_as_unpacked"]
    cells = [
        f"{found['per_class'][n]:.2f}" if n in found["per_class"] else "-" for n in ALL_CLASSES
    ]
    return f"| {name} | {found[score]:.3f} | " + " | ".join(cells) + " |"


def page(assets_dir: Path, task: str) -> str:
    """Return the page of one task."""
    folder, (score, title) = assets_dir / task, SCORES[task]
    texts = {n: (folder / n / "metrics.json").read_text("utf-8") for n in ("base", "reference")}
    metrics = {name: json.loads(text) for name, text in texts.items()}
    base, reference = metrics["base"], metrics["reference"]
    with zipfile.ZipFile(assets_dir / "segmentation" / "scenes.zip") as archive:
        pictures = [n for n in archive.namelist() if n.endswith(".webp")]
    roles = ("learn", "forget", "retain", "whole")
    parts = {
        r: [sum(n.startswith(f"{r}/{s}/") for n in pictures) for s in ("train", "test")]
        for r in roles
    }
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6
    trainings = base["trainings"] + [
        t for t in reference["trainings"] if t not in base["trainings"]
    ]
    return PAGE.format(
        task=task,
        total=f"{size:.1f}",
        retain=", ".join(RETAIN_CLASSES),
        forget=", ".join(FORGET_CLASSES),
        learn=", ".join(LEARN_CLASSES),
        architecture=ARCHITECTURES[task],
        note=NOTES[task],
        num_scenes=len(pictures),
        counts={r: " + ".join(str(n) for n in pair if n) for r, pair in parts.items()},
        test_backgrounds=", ".join(TEST_BACKGROUNDS),
        base_parts=" and ".join(base["test_folders"]),
        base_images=base["num_test_images"],
        reference_parts=" and ".join(reference["test_folders"]),
        reference_images=reference["num_test_images"],
        score_title=title,
        all_names=" | ".join(ALL_CLASSES),
        rule="---|" * len(ALL_CLASSES),
        rows="\n".join(row(name, m, score) for name, m in metrics.items()),
        seconds=", ".join(str(t["seconds"]) for t in trainings),
        commands="\n".join(t["command"] for t in trainings),
        num_drawings=3 * sum(len(points.split()) for points in EMOJI.values()),
    )


def write_pages(assets_dir: Path) -> None:
    """Write the README.md of both folders."""
    for task in SCORES:
        (assets_dir / task / "README.md").write_text(page(assets_dir, task), encoding="utf-8")


def main() -> None:
    """Write the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets-dir", type=Path, default=ASSETS_DIR)
    write_pages(parser.parse_args().assets_dir)


if __name__ == "__main__":
    main()
