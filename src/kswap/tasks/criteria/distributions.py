"""D-FINE: a box edge is a distribution over bins; two losses of it (arXiv 2410.13842).

`DFineLoss.loss_local` of transformers, one value per query. Both hold for auxiliary layers: the
fine-grained localisation loss (FGL) for matched queries, the distillation of the final layer's
distributions (DDF) for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kswap.tasks.criteria import terms
from kswap.tasks.criteria.matching import Pairs
from kswap.tasks.criteria.units import Normaliser

_TEMPERATURE = 5.0
"""Of the distillation; fixed in the library."""


@dataclass(frozen=True)
class Edges:
    """What a layer says of the four edges of each query's box."""

    corners: Float[Tensor, "images queries edges_times_bins"]
    points: Float[Tensor, "images queries 4"]
    """The boxes that the edges are measured from."""
    teacher: Float[Tensor, "images queries edges_times_bins"]
    """`corners` of the final layer."""
    confidence: Float[Tensor, "images queries"]
    """The largest class probability of the final layer."""


def layers(corners: Tensor, points: Tensor, teacher: Tensor, classes: Tensor) -> Sequence[Edges]:
    """Cut (images, layers, queries, …) into layers; `teacher` is (images, queries, …)."""
    confidence = classes[:, -1].detach().sigmoid().amax(-1)
    parts = zip(corners.unbind(1), points.unbind(1), strict=True)
    return [Edges(part, point, teacher.detach(), confidence) for part, point in parts]


def edge_loss(
    edges: Edges, pairs: Pairs, objects: Tensor, iou: Tensor, config: Any, counts: Normaliser
) -> Float[Tensor, "images queries"]:
    """Return the weighted sum of both, with their divisors; `objects` (pairs, 4), `iou` (pairs,).

    DDF of the matched queries and of the others are means of their own, weighed by the square roots
    of their numbers per image.
    """
    fine = fine_grained(pairs.take(edges.corners), pairs.take(edges.points), objects, iou, config)
    loss: Tensor = pairs.spread(fine) * (config.weight_loss_fgl / counts.num_objects())
    if torch.equal(edges.corners, edges.teacher):
        return loss
    importance = edges.confidence.index_put((pairs.image, pairs.query), iou)
    distilled = importance * distillation(edges.corners, edges.teacher, config.max_num_bins + 1)
    num_queries, num_edges = distilled.shape[1], 4
    per_image = num_edges * counts.shares / max(len(counts.objects), 1)
    found, rest = counts.num_matched(num_queries), counts.num_unmatched(num_queries)
    roots = math.sqrt(found * per_image), math.sqrt(rest * per_image)
    share = torch.full_like(distilled, roots[1] / (rest or 1))
    share[pairs.image, pairs.query] = roots[0] / (found or 1)
    scale = float(config.weight_loss_ddf) / num_edges / sum(roots)
    return loss + scale * share * distilled


def fine_grained(
    corners: Float[Tensor, "pairs edges_times_bins"],
    points: Float[Tensor, "pairs 4"],
    objects: Float[Tensor, "pairs 4"],
    iou: Float[Tensor, " pairs"],
    config: Any,
) -> Float[Tensor, " pairs"]:
    """Return u Σ_edges (w_left CE(left bin) + w_right CE(right bin)) of each pair."""
    from transformers.loss.loss_d_fine import bbox2distance

    num_bins = config.max_num_bins
    up = torch.tensor([config.up], device=corners.device, dtype=corners.dtype)
    with torch.no_grad():
        target, right, left = bbox2distance(
            points, terms.corners(objects), num_bins, config.reg_scale, up
        )
    logits = corners.reshape(-1, num_bins + 1)
    bin_ids = target.long()
    loss = left * functional.cross_entropy(logits, bin_ids, reduction="none")
    loss = loss + right * functional.cross_entropy(logits, bin_ids + 1, reduction="none")
    per_pair: Tensor = loss.view(-1, 4).sum(-1) * iou
    return per_pair


def distillation(
    corners: Float[Tensor, "images queries edges_times_bins"],
    teacher: Float[Tensor, "images queries edges_times_bins"],
    num_bins: int,
) -> Float[Tensor, "images queries"]:
    """Return T² Σ_edges KL(teacher ‖ layer) of each query, in nats."""
    shape = (*corners.shape[:2], 4, num_bins)
    log_p = functional.log_softmax(corners.reshape(shape) / _TEMPERATURE, -1)
    q = functional.softmax(teacher.reshape(shape) / _TEMPERATURE, -1)
    divergence = functional.kl_div(log_p, q, reduction="none").sum((-1, -2))
    return divergence * _TEMPERATURE**2
