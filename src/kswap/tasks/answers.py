"""From the outputs of a model to its answers: boxes with classes, or a class for every pixel.

As the library's image processors do it, but among the first classes only: rows that are not learned
yet answer nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

_SIDE = 384
"""Masks of queries are scaled to this size before they are combined, as the library does."""


@dataclass(frozen=True)
class Detections:
    """The answers on one image, best first; rows of all fields belong together."""

    boxes: Tensor
    """(answers, 4): left, top, right, bottom as fractions of the image."""
    scores: Tensor
    """(answers,), from 0 to 1."""
    class_ids: Tensor
    """(answers,), rows of the head."""


def detections(
    logits: Float[Tensor, "images queries columns"],
    boxes: Float[Tensor, "images queries 4"],
    *,
    sigmoid: bool,
    nothing: bool,
    num_rows: int,
    most: int,
) -> list[Detections]:
    """Return at most `most` answers an image.

    Args:
        logits: Of classes; with `nothing` the last column is "no object".
        boxes: Centre x, centre y, width, height from 0 to 1.
        sigmoid: Every pair of a query and a class is an answer; else a query answers its best
            class.
        nothing: Whether there is a column of no object.
        num_rows: Classes that may be answered.
        most: The best ones are kept.
    """
    kept = logits[..., :num_rows]
    if nothing:
        kept = torch.cat([kept, logits[..., -1:]], -1)
    shares = kept.sigmoid() if sigmoid else kept.softmax(-1)
    shares = shares[..., :num_rows]
    if not sigmoid:
        best, class_ids = shares.max(-1)
        queries = torch.arange(boxes.shape[1], device=boxes.device).expand_as(best)
    else:
        best = shares.flatten(1)
        places = torch.arange(best.shape[1], device=boxes.device).expand_as(best)
        queries, class_ids = places // num_rows, places % num_rows
    scores, order = best.topk(min(most, best.shape[1]))
    low, size = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., 2:]
    corners = torch.cat([low, low + size], -1)
    return [
        Detections(corners[image, queries[image, chosen]], scores[image], class_ids[image, chosen])
        for image, chosen in enumerate(order)
    ]


def semantic_map_from_queries(
    class_logits: Float[Tensor, "images queries columns"],
    mask_logits: Float[Tensor, "images queries h w"],
    size: tuple[int, int],
    *,
    num_rows: int,
) -> Int[Tensor, "images height width"]:
    """Return argmax_c Σ_q p_q(c) · σ(mask_q) at every pixel; the last column is no object."""
    kept = torch.cat([class_logits[..., :num_rows], class_logits[..., -1:]], -1)
    shares = kept.softmax(-1)[..., :-1]
    masks = functional.interpolate(
        mask_logits, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False
    )
    scores = torch.einsum("bqc,bqhw->bchw", shares, masks.sigmoid())
    return _at(scores, size).argmax(1)


def semantic_map_from_pixels(
    logits: Float[Tensor, "images columns h w"], size: tuple[int, int], *, num_rows: int
) -> Int[Tensor, "images height width"]:
    """Return the best class at every pixel, the logits scaled to the size first."""
    return _at(logits[:, :num_rows], size).argmax(1)


def _at(scores: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(scores.shape[-2:]) == tuple(size):
        return scores
    return functional.interpolate(scores, size=tuple(size), mode="bilinear", align_corners=False)
