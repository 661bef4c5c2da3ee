"""Makes the benchmark's pretrained model and its CIFAR-10 pictures: fetch, train, write.

    python scripts/make_benchmark.py          # about 20 minutes on 2 cores, most of it training

Result, in CACHE/bench (default ~/.cache/kswap-data/bench), nothing of it kept in git:
base/                   all 12 blocks of the ViT-S at 70 px, fine-tuned on 4,000 images of 7 classes
reference/              the same, fine-tuned on 4,000 images of the 8 classes without cat and frog
cifar10/train.parquet   those 4,000 images and the first 200 of each of horse, ship, truck
cifar10/test.parquet    the first 100 test images of each of the 10 classes
A part that is there already is left alone.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from cifar10 import CLASS_NAMES, DEFAULT_CACHE_DIR, even_counts
from pictures import write_pictures

SCRIPTS_DIR = Path(__file__).parent
BASE_CLASSES, LEARN_CLASSES = CLASS_NAMES[:7], CLASS_NAMES[7:]
FORGET_CLASSES = ("cat", "frog")
NUM_BASE_IMAGES, NUM_LEARN_IMAGES, NUM_TEST_IMAGES = 4000, 200, 100
"""Train images of the base classes in all; train and test images per class."""


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE_DIR)
    cache_dir = parser.parse_args().cache_dir.resolve()
    subprocess.run([SCRIPTS_DIR / "fetch_data.sh", cache_dir], check=True)

    counts = even_counts(NUM_BASE_IMAGES, len(BASE_CLASSES))
    to_write = {
        "train": counts + [NUM_LEARN_IMAGES] * len(LEARN_CLASSES),
        "test": [NUM_TEST_IMAGES] * len(CLASS_NAMES),
    }
    for split, split_counts in to_write.items():
        path = cache_dir / "bench" / "cifar10" / f"{split}.parquet"
        if not path.exists():
            num = write_pictures(
                cache_dir / "cifar10",
                split,
                path,
                names=CLASS_NAMES,
                counts=split_counts,
                picture_format="png",
            )
            print(f"{path}: {num} pictures")

    without = [name for name in CLASS_NAMES if name not in FORGET_CLASSES]
    for name, classes in (("base", BASE_CLASSES), ("reference", without)):
        model_dir = cache_dir / "bench" / name
        if not (model_dir / "metrics.json").exists():
            command = [sys.executable, SCRIPTS_DIR / "train_classifier.py", "--classes", *classes]
            command += ["--num-images", str(NUM_BASE_IMAGES), "--epochs", "3"]
            command += ["--cache-dir", cache_dir, "--out-dir", model_dir]
            subprocess.run(command, check=True)
        print((model_dir / "metrics.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
