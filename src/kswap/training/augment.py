"""Augmentation of a batch, by kornia, on the device.

Random numbers come from torch's seeded generator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor


def make_augment(
    kind: Literal["none", "flip", "flip-crop"], size: tuple[int, int]
) -> Callable[[Tensor], Tensor] | None:
    """Return a function of pixels (images, 3, height, width); None for `none`."""
    if kind == "none":
        return None
    import kornia.augmentation as k

    steps = [k.RandomHorizontalFlip(p=0.5)]
    if kind == "flip-crop":
        steps.append(k.RandomResizedCrop(size, scale=(0.7, 1.0), p=1.0))
    pipeline = k.AugmentationSequential(*steps, data_keys=["input"])

    def augment(pixels: Tensor) -> Tensor:
        changed: Tensor = pipeline(pixels)
        return changed

    return augment
