"""Makes the demo's classification assets: fetch, train both models, pack, write pictures, measure.

    python scripts/make_demo_classification.py     # about 30 minutes on 2 cores

Result, in src/kswap/demo/assets/classification:
base/               the model that swaps: 7 classes, among them the two that the demo forgets
reference/          the same architecture and images per class, without these two, with the three
                    classes that the demo learns: what an ideal swap would be measured against
train.parquet       the first 250 train images of each of the 10 classes
test.parquet        the first 100 test images of each; no model was trained or selected on them
Each model folder holds config.json, preprocessor_config.json, weights-int8.safetensors and
metrics.json (how it was trained, and its top-1 as unpacked). A trained model found in the cache
folder is packed again and not trained again.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import torch
from cifar10 import CLASS_NAMES, DEFAULT_CACHE_DIR
from pictures import write_pictures
from PIL import Image
from safetensors.torch import load_file
from train_classifier import predict, top1
from transformers import AutoImageProcessor, AutoModelForImageClassification

from kswap.demo.packing import CONFIG_NAMES, WEIGHTS_NAME, pack, write_model

SCRIPTS_DIR = Path(__file__).parent
ASSETS_DIR = SCRIPTS_DIR.parent / "src" / "kswap" / "demo" / "assets" / "classification"
FORGET_CLASSES, LEARN_CLASSES = ("cat", "frog"), CLASS_NAMES[7:]
MODEL_CLASSES = {
    "base": CLASS_NAMES[:7],
    "reference": tuple(name for name in CLASS_NAMES if name not in FORGET_CLASSES),
}
NUM_IMAGES = {"train": 250, "test": 100}
"""Images per class in the demo's pictures."""

NUM_TRAIN_PER_CLASS = 450
"""Images per class that the models are trained on: the first ones, the demo's train among them."""

OPTIONS = ["--depth", "9", "--epochs", "3"]
"""Three quarters of the ViT-S: the whole demo has 90 seconds on 2 cores."""


def train_model(model_dir: Path, names: tuple[str, ...], cache_dir: Path) -> None:
    """Train one model unless it is there already."""
    if (model_dir / "metrics.json").exists():
        return
    command = [sys.executable, SCRIPTS_DIR / "train_classifier.py", "--classes", *names]
    command += ["--num-images", str(NUM_TRAIN_PER_CLASS * len(names)), *OPTIONS]
    command += ["--cache-dir", cache_dir, "--out-dir", model_dir]
    subprocess.run(command, check=True)


def measure(packed_dir: Path, test_path: Path) -> dict[str, object]:
    """Return the top-1 of a packed model on the test pictures of its own classes."""
    with tempfile.TemporaryDirectory() as scratch:
        write_model(packed_dir, Path(scratch) / "model")
        model = AutoModelForImageClassification.from_pretrained(f"{scratch}/model")
        processor = AutoImageProcessor.from_pretrained(f"{scratch}/model", backend="pil")
    ids = model.config.label2id
    rows = [row for row in pq.read_table(test_path).to_pylist() if row["label"] in ids]
    images = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    labels = torch.tensor([ids[row["label"]] for row in rows])
    return top1(predict(model, pixels), labels, list(ids))


def pack_model(model_dir: Path, packed_dir: Path, test_path: Path) -> None:
    """Pack one trained model and write its metrics beside it."""
    packed_dir.mkdir(parents=True, exist_ok=True)
    for name in CONFIG_NAMES:
        shutil.copyfile(model_dir / name, packed_dir / name)
    pack(load_file(model_dir / "model.safetensors"), packed_dir / WEIGHTS_NAME)
    metrics = json.loads((model_dir / "metrics.json").read_text(encoding="utf-8"))
    metrics["test_as_unpacked"] = measure(packed_dir, test_path)
    text = json.dumps(metrics, indent=2) + "\n"
    (packed_dir / "metrics.json").write_text(text, encoding="utf-8")
    print(packed_dir.name, json.dumps(metrics["test_as_unpacked"]))


def main() -> None:
    """Make all assets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE_DIR)
    parser.add_argument("--assets-dir", type=Path, default=ASSETS_DIR)
    args = parser.parse_args()
    cache_dir = args.cache_dir.resolve()
    subprocess.run([SCRIPTS_DIR / "fetch_data.sh", cache_dir], check=True)
    for split, num in NUM_IMAGES.items():
        write_pictures(
            cache_dir / "cifar10",
            split,
            args.assets_dir / f"{split}.parquet",
            names=CLASS_NAMES,
            counts=[num] * len(CLASS_NAMES),
            picture_format="webp",
        )
    for model_name, names in MODEL_CLASSES.items():
        model_dir = cache_dir / "demo-classification" / model_name
        train_model(model_dir, names, cache_dir)
        pack_model(model_dir, args.assets_dir / model_name, args.assets_dir / "test.parquet")
    for path in sorted(args.assets_dir.rglob("*")):
        if path.is_file():
            print(f"{path.stat().st_size / 1e6:6.2f} MB  {path.relative_to(args.assets_dir)}")


if __name__ == "__main__":
    main()
