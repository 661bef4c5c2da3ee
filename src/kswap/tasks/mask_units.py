"""Units of mask classifiers: queries, each with a class and a mask.

What annotations leave open, and where a forgotten class is, is labelled as the base model sees it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from kswap.data.sets import OPEN
from kswap.objectives import Units
from kswap.tasks import Examples, Teacher, View
from kswap.tasks.criteria import Layer, decompose
from kswap.tasks.dense import roles_of
from kswap.tasks.queries import (
    CONFIDENT,
    align,
    base_columns,
    class_cost,
    forgotten_columns,
    kept_probabilities,
    nothing_first,
    query_units,
)


def mask_units(
    model: nn.Module, examples: Examples, truth: Tensor, teacher: Teacher | None, view: View
) -> tuple[list[Units], Tensor | None]:
    """Return the units of all queries, of the own loss of every layer; and the final masks."""
    closed = examples.complete & ~((truth == OPEN) & (examples.masks != OPEN)).any(-1).any(-1)
    if teacher is not None:
        truth = torch.where(
            (truth == OPEN) & ~closed[:, None, None], _pseudo(teacher, truth, view), truth
        )
        if view.as_if_absent:
            truth = torch.where(
                is_forgotten(truth, view), seen_without(teacher, truth, view), truth
            )
    labels = [binary_masks(image) for image in truth]
    decomposed = decompose(model, examples.inputs(), labels)
    final = decomposed.layers[-1]
    assert isinstance(final, Layer)
    base_logits = None if teacher is None else _aligned(final, teacher, view)
    class_labels = [image["class_labels"] for image in labels]
    units = query_units(decomposed, class_labels, closed, view, base_logits=base_logits)
    return units, None if final.masks is None else final.masks.detach()


def is_forgotten(truth: Tensor, view: View) -> Tensor:
    """Return where the truth is a class that is to be forgotten, or was before."""
    gone = torch.cat([view.forgotten, view.forgotten.new_zeros(view.num_rows - view.num_base)])
    return gone[truth.clamp_min(0)] & (truth >= 0)


def seen_without(teacher: Teacher, truth: Tensor, view: View) -> Tensor:
    """Return the class the base model sees at every pixel without forgotten classes; else OPEN.

    A query whose best remaining answer is "no object" is not there: its mask would otherwise win
    its place for whatever class has the little that is left. So the place falls to the queries
    around it, as it does in a model that never knew the class: to the background, where there is
    such a class.
    """
    logits = nothing_first(teacher["logits"].float(), nothing=True)
    gone = forgotten_columns(view, nothing=True)
    there = logits.masked_fill(gone, -math.inf).argmax(-1) > 0
    shares = kept_probabilities(teacher["logits"], view, sigmoid=False, nothing=True)
    best, classes = _best_seen(shares * there[..., None], teacher, truth)
    return torch.where((best > 0) & (roles_of(classes, view) >= 0), classes, OPEN)


def binary_masks(truth: Tensor) -> dict[str, Tensor]:
    """Return {"class_labels": (k,), "masks": (k, height, width)}, one mask for each class."""
    classes: Tensor = torch.unique(truth)
    classes = classes[classes >= 0]
    return {"class_labels": classes, "masks": (truth[None] == classes[:, None, None]).float()}


def _best_seen(shares: Tensor, teacher: Teacher, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return score and class of what shares (images, queries, classes) put at every pixel."""
    scores = torch.einsum("bqc,bqhw->bchw", shares, teacher["masks"].float().sigmoid())
    scores = functional.interpolate(
        scores, size=truth.shape[-2:], mode="bilinear", align_corners=False
    )
    best, classes = scores.max(1)
    return best, classes


def _pseudo(teacher: Teacher, truth: Tensor, view: View) -> Tensor:
    """Return what the base model surely sees at every pixel, forgotten classes aside; else OPEN."""
    shares = kept_probabilities(teacher["logits"], view, sigmoid=False, nothing=True)
    best, classes = _best_seen(shares, teacher, truth)
    sure = (best >= CONFIDENT) & (roles_of(classes, view) >= 0)
    return torch.where(sure, classes, OPEN)


@torch.no_grad()
def _aligned(layer: Layer, teacher: Teacher, view: View) -> Tensor:
    """Return the base's logits in the order of our queries."""
    assert layer.masks is not None
    base = kept_probabilities(teacher["logits"], view, sigmoid=False, nothing=True)
    ours = kept_probabilities(
        base_columns(layer.logits, view.num_base, nothing=True), view, sigmoid=False, nothing=True
    )
    one, other = (
        functional.adaptive_avg_pool2d(masks.float(), 32).sigmoid().flatten(2)
        for masks in (layer.masks, teacher["masks"])
    )
    common = 2 * one @ other.transpose(1, 2)
    dice = (common + 1) / (one.sum(-1)[:, :, None] + other.sum(-1)[:, None] + 1)
    order = align(class_cost(ours, base) - 2.0 * dice)
    return teacher["logits"].gather(1, order[..., None].expand_as(teacher["logits"]))
