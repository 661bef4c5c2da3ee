"""Makes the assets of the scene demos: render scenes, train the models, pack, measure, describe.

    python scripts/make_demo_scenes.py     # hours on 2 cores; what is trained is not trained again

Result, in src/kswap/demo/assets:
segmentation/scenes.zip    the scenes of both demos (scripts/make_scenes.py)
{segmentation,detection}/base/, reference/    config.json, preprocessor_config.json, metrics.json,
                           weights-int8.safetensors
{segmentation,detection}/README.md (licenses/ beside it is kept by hand)
The way there: a Swin learns dense classification of the 8 retained classes; from it a Mask2Former
and an RT-DETR learn the same classes; each is then trained on, once with the two classes that the
demo forgets (base) and once, for as long, with the two that it learns (reference), the other two
never shown. Scores are those of the unpacked models on the shipped test scenes.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from make_scenes import write_scenes
from PIL import Image
from safetensors.torch import load_file
from scene_assets_readme import write_pages
from scene_scores import score_detector, score_segmenter
from scenes import Scene
from transformers import AutoModelForObjectDetection, AutoModelForUniversalSegmentation

from kswap.demo.packing import CONFIG_NAMES, WEIGHTS_NAME, pack, write_model

SCRIPTS_DIR = Path(__file__).parent
ASSETS_DIR = SCRIPTS_DIR.parent / "src" / "kswap" / "demo" / "assets"
TRAINED_DIR = Path.home() / ".cache" / "kswap-data" / "demo-scenes"
SCENES_PATH = Path("segmentation") / "scenes.zip"
TASKS = ("segmentation", "detection")
MODELS = ("base", "reference")
TESTS = {"base": ("forget", "retain"), "reference": ("whole",)}
"""Test folders whose labels are complete over the model's classes and, for the base, that show no
class it does not know."""


def plan() -> dict[str, list[str]]:
    """Return the options of each training by the folder it writes; --init names another one.

    The shipped detection base and the first training of the segmentation base come from an earlier
    state of these scripts, whose backgrounds varied less. Their references are trained for longer,
    therefore; the shipped ones went on from the eight-bit weights of the training before.
    """
    texts = {
        "backbone": "backbone --classes retain --num-images 25600 --rate 8e-4",
        "segmentation-retain": _training("segmentation", "retain", "backbone", 24000, 0.0, 1),
        "segmentation-first": _training("segmentation", "base", "segmentation-retain", 8000),
        "segmentation-base": _training("segmentation", "base", "segmentation-first", 8000, 0.8, 5)
        + " --rate 3e-4",
        "segmentation-reference-first": _training(
            "segmentation", "reference", "segmentation-retain", 12000
        ),
        "segmentation-reference-second": _training(
            "segmentation", "reference", "segmentation-reference-first", 16000, seed=3
        ),
        "segmentation-reference": _training(
            "segmentation", "reference", "segmentation-reference-second", 24000, seed=4
        ),
        "detection-retain": _training("detection", "retain", "backbone", 20000, 0.0, 1),
        "detection-base": _training("detection", "base", "detection-retain", 9600),
        "detection-reference-first": _training("detection", "reference", "detection-retain", 10000),
        "detection-reference": _training(
            "detection", "reference", "detection-reference-first", 24000, seed=3
        ),
    }
    return {name: text.split() for name, text in texts.items()}


def _training(
    task: str, classes: str, init: str, num_images: int, fall: float = 0.5, seed: int = 2
) -> str:
    return (
        f"{task} --classes {classes} --init {init} --fall {fall} --seed {seed} "
        f"--num-images {num_images}"
    )


def train(name: str, trained_dir: Path) -> list[dict[str, object]]:
    """Train one model of the plan, after those it starts from; return what each training took."""
    options, before = plan()[name], []
    if "--init" in options:
        at = options.index("--init") + 1
        before = train(options[at], trained_dir)
        options[at] = str(trained_dir / options[at])
    command = [sys.executable, SCRIPTS_DIR / "train_scene_models.py", *options]
    subprocess.run([*command, "--out-dir", trained_dir / name], check=True)
    metrics = json.loads((trained_dir / name / "metrics.json").read_text(encoding="utf-8"))
    metrics["command"] = metrics["command"].replace(str(trained_dir), "$TRAINED_DIR")
    kept = ("command", "num_train_images", "seconds", "history")
    return [*before, {key: metrics[key] for key in kept}]


def zip_folder(folder: Path, to: Path) -> None:
    """Write every file of `folder` with a fixed date, in order, so that the bytes repeat."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(to, "w") as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            info = zipfile.ZipInfo(path.relative_to(folder).as_posix(), (2026, 1, 1, 0, 0, 0))
            is_text = path.suffix == ".json"
            info.compress_type = zipfile.ZIP_DEFLATED if is_text else zipfile.ZIP_STORED
            info.external_attr = 0o644 << 16
            archive.writestr(info, path.read_bytes())


def read_image(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Return the pixels of one picture of the archive."""
    with Image.open(io.BytesIO(archive.read(name))) as image:
        return np.asarray(image)


def read_part(archive: zipfile.ZipFile, part: str, task: str) -> list[Scene]:
    """Return shipped scenes; for detection an instance's mask is its whole box."""
    coco = json.loads(archive.read(f"{part}/annotations.json"))
    names = {c["id"]: c["name"] for c in coco["categories"]}
    scenes = []
    for entry in coco["images"]:
        image = read_image(archive, f"{part}/images/{entry['file_name']}")
        if task == "segmentation":
            mask = read_image(archive, f"{part}/masks/{Path(entry['file_name']).stem}.png")
            numbers = [n for n in np.unique(mask) if n]
            masks = [mask == n for n in numbers]
        else:
            mine = [a for a in coco["annotations"] if a["image_id"] == entry["id"]]
            numbers = [a["category_id"] for a in mine]
            masks = []
            for left, top, width, height in (a["bbox"] for a in mine):
                mask = np.zeros(image.shape[:2], bool)
                mask[top : top + height, left : left + width] = True
                masks.append(mask)
        stacked = np.stack(masks) if masks else np.zeros((0, *image.shape[:2]), bool)
        scenes.append(Scene(image, [names[n] for n in numbers], stacked))
    return scenes


def measure(packed_dir: Path, task: str, scenes: list[Scene]) -> dict[str, object]:
    """Return the scores of a packed model."""
    with tempfile.TemporaryDirectory() as scratch:
        write_model(packed_dir, Path(scratch) / "model")
        if task == "segmentation":
            model = AutoModelForUniversalSegmentation.from_pretrained(f"{scratch}/model").eval()
            return score_segmenter(model, scenes)
        model = AutoModelForObjectDetection.from_pretrained(f"{scratch}/model").eval()
    score = score_detector(model, scenes)
    return {**score, "ap75": score_detector(model, scenes, threshold=0.75)["ap50"]}


def pack_model(
    task: str, name: str, trainings: list[dict[str, object]], args: argparse.Namespace
) -> None:
    """Pack one trained model and write its metrics beside it."""
    model_dir, packed_dir = args.trained_dir / f"{task}-{name}", args.assets_dir / task / name
    packed_dir.mkdir(parents=True, exist_ok=True)
    for file in CONFIG_NAMES:
        shutil.copyfile(model_dir / file, packed_dir / file)
    pack(load_file(model_dir / "model.safetensors"), packed_dir / WEIGHTS_NAME)
    metrics: dict[str, object] = {"trainings": trainings}
    with zipfile.ZipFile(args.assets_dir / SCENES_PATH) as archive:
        parts = [s for role in TESTS[name] for s in read_part(archive, f"{role}/test", task)]
    metrics["test_folders"] = [f"{role}/test" for role in TESTS[name]]
    metrics["num_test_images"] = len(parts)
    metrics["test_as_unpacked"] = measure(packed_dir, task, parts)
    text = json.dumps(metrics, indent=2) + "\n"
    (packed_dir / "metrics.json").write_text(text, encoding="utf-8")
    print(task, name, json.dumps(metrics["test_as_unpacked"]))


def main() -> None:
    """Make all assets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trained-dir", type=Path, default=TRAINED_DIR)
    parser.add_argument("--assets-dir", type=Path, default=ASSETS_DIR)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        write_scenes(Path(scratch))
        zip_folder(Path(scratch), args.assets_dir / SCENES_PATH)
    for task in TASKS:
        for name in MODELS:
            trainings = train(f"{task}-{name}", args.trained_dir)
            pack_model(task, name, trainings, args)
    write_pages(args.assets_dir)


if __name__ == "__main__":
    main()
