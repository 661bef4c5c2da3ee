"""Augmentation of a batch, by kornia, on the device.

Random numbers come from torch's seeded generator. Pixels come in normalised, so colours are changed
by what needs no range of values: contrast and saturation are factors about means, and a change of
brightness is measured in the image's own standard deviation. Hue is left alone: the colour of a
thing may be what it is told by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from kswap.data.sets import IGNORE
from kswap.tasks import Examples

Kind = Literal["none", "flip", "flip-crop", "flip-crop-colour"]
SceneAugment = Callable[
    [Tensor, Tensor | None, Sequence[Tensor] | None, Tensor | None],
    tuple[Tensor, Tensor | None, list[Tensor] | None, list[Tensor] | None],
]
COLOUR_CHANGE = 0.2
"""Largest change of contrast, saturation and brightness."""
SCENE_SCALE = (0.4, 1.0)
"""Area of a crop, as a share of the image; classification keeps more, its object must stay."""
KEPT_AREA = 0.25
"""Boxes that keep no more of their area in a crop are dropped."""


def make_augment(
    kind: Kind, size: tuple[int, int], *, flip: float = 0.5
) -> Callable[[Tensor], Tensor] | None:
    """Return a function of pixels (images, 3, height, width); None for `none`."""
    if kind == "none":
        return None
    pipeline = _pipeline(kind, size, scale=(0.7, 1.0), keys=["input"], flip=flip)

    def augment(pixels: Tensor) -> Tensor:
        changed: Tensor = pipeline(pixels)
        return change_colours(changed) if kind == "flip-crop-colour" else changed

    return augment


def make_scene_augment(kind: Kind, *, flip: float = 0.5) -> SceneAugment | None:
    """Return a function that changes images, masks and boxes together; None for `none`.

    It takes pixels (b, 3, H, W); masks (b, H, W) of whole numbers or None; for each image boxes
    (objects, 4) left, top, right, bottom as fractions of the image, or None; and sizes (b, 2) of
    the images within `pixels`, or None where they are whole. It returns the same without sizes,
    which stay as they are, and for each image which boxes (objects,) are kept: those of which a
    crop leaves more than KEPT_AREA. Boxes are clipped. What lies beyond the sizes stays 0 and
    IGNORE.
    """
    if kind == "none":
        return None

    def augment(
        pixels: Tensor,
        masks: Tensor | None,
        boxes: Sequence[Tensor] | None,
        sizes: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, list[Tensor] | None, list[Tensor] | None]:
        pixels = pixels.clone()
        masks = None if masks is None else masks.clone()
        moved: dict[int, tuple[Tensor, Tensor]] = {}
        for (height, width), rows in _by_size(pixels, sizes).items():
            inside = pixels[rows, :, :height, :width]
            inner = None if masks is None else masks[rows, :height, :width]
            inside, inner, matrices = _move(kind, inside, inner, flip)
            pixels[rows, :, :height, :width] = inside
            if masks is not None and inner is not None:
                masks[rows, :height, :width] = inner
            if boxes is not None:
                for row, matrix in zip(rows.tolist(), matrices, strict=True):
                    moved[row] = move_boxes(boxes[row], matrix, (height, width))
        if boxes is None:
            return pixels, masks, None, None
        ordered = [moved[row] for row in range(len(boxes))]
        return pixels, masks, [one for one, _ in ordered], [kept for _, kept in ordered]

    return augment


def move_boxes(boxes: Tensor, matrix: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Move boxes (objects, 4), fractions of an image of `size`, by `matrix` (3, 3) of pixels.

    The matrix maps the centres of pixels, which are half a pixel from their edges. Returns clipped
    boxes and which of them keep more than KEPT_AREA of their area, (objects,).
    """
    if not len(boxes):
        return boxes, torch.ones(0, dtype=torch.bool, device=boxes.device)
    height, width = size
    sides = boxes.new_tensor([width, height])
    matrix = matrix.to(boxes)
    corners = boxes.reshape(-1, 2, 2) * sides - 0.5
    turned = corners @ matrix[:2, :2].T + matrix[:2, 2] + 0.5
    turned = torch.cat([turned.amin(1), turned.amax(1)], 1) / sides.repeat(2)
    clipped = turned.clamp(0, 1)
    kept = _area(clipped) > KEPT_AREA * _area(turned)
    return clipped, kept


def change_colours(pixels: Tensor) -> Tensor:
    """Change contrast, saturation and brightness of normalised images (b, 3, height, width)."""
    draws = (torch.rand(3, len(pixels), 1, 1, 1) * 2 - 1) * COLOUR_CHANGE
    contrast, saturation, brightness = draws.to(pixels)
    mean = pixels.mean((1, 2, 3), keepdim=True)
    spread = pixels.std((1, 2, 3), keepdim=True)
    grey = pixels.mean(1, keepdim=True)
    pixels = grey + (pixels - grey) * (1 + saturation)
    changed: Tensor = mean + (pixels - mean) * (1 + contrast) + brightness * spread
    return changed


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)


def _by_size(pixels: Tensor, sizes: Tensor | None) -> dict[tuple[int, int], Tensor]:
    """Return rows by the size of their image."""
    if sizes is None:
        height, width = pixels.shape[-2:]
        return {(height, width): torch.arange(len(pixels), device=pixels.device)}
    found: dict[tuple[int, int], list[int]] = {}
    for row, (height, width) in enumerate(sizes.tolist()):
        found.setdefault((height, width), []).append(row)
    return {size: torch.tensor(rows, device=pixels.device) for size, rows in found.items()}


def _move(
    kind: Kind, pixels: Tensor, masks: Tensor | None, flip: float
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return images and masks, moved alike, and for each the matrix (3, 3) of pixels."""
    height, width = pixels.shape[-2:]
    keys = ["input"] if masks is None else ["input", "mask"]
    pipeline = _pipeline(kind, (height, width), scale=SCENE_SCALE, keys=keys, flip=flip)
    if masks is None:
        moved = pipeline(pixels)
    else:
        # kornia fills with 0, which would be a class: all is moved up by one more than IGNORE needs
        raised = (masks - IGNORE + 1).to(pixels.dtype)[:, None]
        moved, filled = pipeline(pixels, raised)
        lowered = filled[:, 0].round().to(masks.dtype) - 1 + IGNORE
        masks = torch.where(lowered < IGNORE, IGNORE, lowered)
    if kind == "flip-crop-colour":
        moved = change_colours(moved)
    return moved, masks, pipeline.transform_matrix


def _pipeline(
    kind: Kind, size: tuple[int, int], *, scale: tuple[float, float], keys: list[str], flip: float
) -> Any:
    import kornia.augmentation as k

    steps = [k.RandomHorizontalFlip(p=flip)]
    if kind != "flip":
        steps.append(k.RandomResizedCrop(size, scale=scale, p=1.0))
    return k.AugmentationSequential(*steps, data_keys=keys)


def make_change(
    kind: Kind, size: tuple[int, int], *, flip: float = 0.5
) -> Callable[[Examples], Examples] | None:
    """Return what changes a batch, with its masks and boxes; None where nothing changes.

    `flip` is the probability with which an image is mirrored.
    """
    change, change_scenes = make_augment(kind, size, flip=flip), make_scene_augment(kind, flip=flip)
    if change is None or change_scenes is None:
        return None

    def augment(given: Examples) -> Examples:
        if given.masks is None and given.boxes is None:
            return replace(given, pixels=change(given.pixels))
        pixels, masks, boxes, kept = change_scenes(
            given.pixels, given.masks, given.boxes, given.sizes
        )
        if boxes is None or kept is None or given.box_ids is None or given.crowd is None:
            return replace(given, pixels=pixels, masks=masks)
        return replace(
            given,
            pixels=pixels,
            masks=masks,
            boxes=tuple(b[k] for b, k in zip(boxes, kept, strict=True)),
            box_ids=tuple(c[k] for c, k in zip(given.box_ids, kept, strict=True)),
            crowd=tuple(c[k] for c, k in zip(given.crowd, kept, strict=True)),
        )

    return augment
