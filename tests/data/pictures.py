"""Tiny picture sources for the data tests: noise that depends on a name, in folders."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from kswap.data import SwapData


def noise(name: str, width: int = 12, height: int = 10) -> Image.Image:
    """A picture that depends on its name only."""
    pixels = np.random.default_rng(zlib.crc32(name.encode()))
    return Image.fromarray(pixels.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, suffix: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, suffix)
    return file.getvalue()


def write_folder(root: Path, classes: Mapping[str, int], tag: str = "") -> Path:
    """One folder for each class with that many pictures; another tag gives other pictures."""
    for name, number in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(number):
            noise(f"{tag}{name}{i}").save(root / name / f"{i}.png")
    return root


def images_of(data: SwapData, role: str, split: str) -> list[bytes]:
    """The images of a set as values that can be compared."""
    return [image.tobytes() for image in data.sets[role][split].images]


def sizes(data: SwapData, role: str) -> tuple[int, int, int]:
    """Numbers of train, validation and test images."""
    one = data.sets[role]
    return len(one["train"]), len(one["validation"]), len(one["test"])


def same(one: SwapData, other: SwapData) -> bool:
    """Whether two builds hold equal arrays in equal order."""
    return one.sets.keys() == other.sets.keys() and all(
        np.array_equal(a.images, other.sets[role][split].images)
        and np.array_equal(a.class_ids, other.sets[role][split].class_ids)
        for role, splits in one.sets.items()
        for split, a in splits.items()
    )
