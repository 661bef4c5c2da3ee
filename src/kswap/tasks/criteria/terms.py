"""The library's losses as pure functions, one value per unit instead of one per batch.

Symbols: x logits, y the object's class, u the overlap (IoU) of a matched query's box with its
object's, N the number of objects, p = σ(x). All are without coefficients and divisors, which
`kswap.tasks.criteria.detectors` and `.masks` apply.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def corners(boxes: Float[Tensor, "*units 4"]) -> Float[Tensor, "*units 4"]:
    """Turn centre x, centre y, width, height into left, top, right, bottom."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def overlap(
    boxes: Float[Tensor, "pairs 4"], objects: Float[Tensor, "pairs 4"]
) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
    """Return IoU and generalised IoU (arXiv 1902.09630) of each pair of boxes (cx, cy, w, h)."""
    a, b = corners(boxes), corners(objects)
    inner = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    outer = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).clamp(min=0)
    sides_a, sides_b = a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2]
    shared, hull = inner[:, 0] * inner[:, 1], outer[:, 0] * outer[:, 1]
    union = sides_a[:, 0] * sides_a[:, 1] + sides_b[:, 0] * sides_b[:, 1] - shared
    iou = shared / union
    return iou, iou - (hull - union) / hull


def box_fit(
    boxes: Float[Tensor, "pairs 4"],
    objects: Float[Tensor, "pairs 4"],
    *,
    l1_weight: float,
    giou_weight: float,
) -> Float[Tensor, " pairs"]:
    """Return l1_weight · ‖b - b*‖₁ + giou_weight · (1 - GIoU) of each pair.

    As `ImageLoss.loss_boxes` of transformers before its sum is divided by N.
    """
    distance = (boxes - objects).abs().sum(-1)
    return l1_weight * distance + giou_weight * (1 - overlap(boxes, objects)[1])


def one_hot(
    logits: Float[Tensor, "images queries columns"],
    place: tuple[Tensor, Tensor, Tensor],
    values: Tensor | float = 1.0,
) -> Float[Tensor, "images queries columns"]:
    """Return zeros like `logits` with `values` (pairs,) at (image, query, class) of each pair."""
    target = torch.zeros_like(logits)
    target[place] = values if isinstance(values, float) else values.to(target)
    return target


def focal(
    logits: Float[Tensor, "images queries columns"],
    target: Float[Tensor, "images queries columns"],
    *,
    alpha: float,
    gamma: float = 2.0,
) -> Float[Tensor, "images queries"]:
    """Return Σ_c α_t (1 - p_t)^γ BCE(x, t), of `sigmoid_focal_loss` (arXiv 1708.02002)."""
    p = logits.sigmoid()
    miss = 1 - (p * target + (1 - p) * (1 - target))
    loss = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    loss = loss * miss**gamma
    if alpha >= 0:
        loss = loss * (alpha * target + (1 - alpha) * (1 - target))
    return loss.sum(-1)


def varifocal(
    logits: Float[Tensor, "images queries columns"],
    target: Float[Tensor, "images queries columns"],
    score: Float[Tensor, "images queries columns"],
    *,
    alpha: float,
    gamma: float,
) -> Float[Tensor, "images queries"]:
    """Return Σ_c w BCE(x, s), s the IoU at the object's class, of RT-DETR's `loss_labels_vfl`.

    w = s there and α p^γ elsewhere, without gradient (arXiv 2008.13367).
    """
    weight = alpha * logits.detach().sigmoid().pow(gamma) * (1 - target) + score
    loss = functional.binary_cross_entropy_with_logits(logits, score, weight, reduction="none")
    return loss.sum(-1)


def matching_aware(
    logits: Float[Tensor, "images queries columns"],
    target: Float[Tensor, "images queries columns"],
    score: Float[Tensor, "images queries columns"],
    *,
    alpha: float | None,
    gamma: float,
) -> Float[Tensor, "images queries"]:
    """Return Σ_c w BCE(x, s), s = IoU^γ at the object's class, of DEIMv2's `loss_labels_mal`.

    w = 1 there and α p^γ elsewhere, without gradient; no α is 1 (arXiv 2412.04234).
    """
    weight = logits.detach().sigmoid().pow(gamma) * (1 - target)
    weight = (1.0 if alpha is None else alpha) * weight + target
    loss = functional.binary_cross_entropy_with_logits(logits, score, weight, reduction="none")
    return loss.sum(-1)


def quality_aware(
    logits: Float[Tensor, "images queries columns"],
    place: tuple[Tensor, Tensor, Tensor],
    iou: Float[Tensor, " pairs"],
    *,
    alpha: float,
) -> Float[Tensor, "images queries"]:
    """Return Σ_c -w⁺ log p - w⁻ log (1 - p), of LW-DETR's `loss_labels` (arXiv 2406.03459).

    At an object's class w⁺ = q = max(p^α u^(1-α), 0.01), without gradient, and w⁻ = 1 - q;
    elsewhere w⁺ = 0 and w⁻ = p², with gradient. Logarithms are those of the logits, so that they
    stay finite where the library's are not.
    """
    p = logits.sigmoid()
    quality = (p[place].pow(alpha) * iou.pow(1 - alpha)).clamp(min=0.01).detach()
    positive = one_hot(logits, place, quality)
    negative = p.square().index_put(place, 1 - quality)
    loss = -positive * functional.logsigmoid(logits) - negative * functional.logsigmoid(-logits)
    return loss.sum(-1)


def cross_entropy(
    logits: Float[Tensor, "images queries columns"], class_ids: Int[Tensor, "images queries"]
) -> Float[Tensor, "images queries"]:
    """Return -log softmax(x)_y of each query, y the last column where there is no object."""
    return functional.cross_entropy(logits.transpose(1, 2), class_ids, reduction="none")


def dice(
    logits: Float[Tensor, "pairs points"], truth: Float[Tensor, "pairs points"]
) -> Float[Tensor, " pairs"]:
    """Return 1 - (2 Σ p t + 1) / (Σ p + Σ t + 1) of each mask."""
    p = logits.sigmoid()
    return 1 - (2 * (p * truth).sum(-1) + 1) / (p.sum(-1) + truth.sum(-1) + 1)
