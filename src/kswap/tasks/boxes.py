"""Boxes as tensors: corners, centres, and how much they overlap; pure functions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def to_centres(boxes: Float[Tensor, "*boxes 4"]) -> Float[Tensor, "*boxes 4"]:
    """Turn left, top, right, bottom into centre x, centre y, width, height."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def to_corners(boxes: Float[Tensor, "*boxes 4"]) -> Float[Tensor, "*boxes 4"]:
    """Turn centre x, centre y, width, height into left, top, right, bottom."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def box_iou(one: Float[Tensor, "n 4"], other: Float[Tensor, "m 4"]) -> Float[Tensor, "n m"]:
    """Return the intersection over union of all pairs of boxes, given by their corners."""
    low = torch.maximum(one[:, None, :2], other[None, :, :2])
    high = torch.minimum(one[:, None, 2:], other[None, :, 2:])
    common = (high - low).clamp_min(0).prod(-1)
    areas = [(b[:, 2:] - b[:, :2]).clamp_min(0).prod(-1) for b in (one, other)]
    union = areas[0][:, None] + areas[1][None] - common
    return common / union.clamp_min(torch.finfo(union.dtype).tiny)
