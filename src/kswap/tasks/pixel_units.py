"""Units of models that give every pixel a class: pixels of the labels, and places of the logits."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from kswap.data.sets import IGNORE, OPEN
from kswap.objectives import Units
from kswap.tasks import Examples, Teacher, View
from kswap.tasks.criteria import IGNORED, Normaliser, PixelLayer, decompose
from kswap.tasks.dense import roles_of, truth_at
from kswap.tasks.queries import RETAIN, taught_where_open


def pixel_units(
    model: nn.Module, examples: Examples, truth: Tensor, teacher: Teacher | None, view: View
) -> list[Units]:
    """Return units of the task's own loss, at the size of the labels, and of the base's answers.

    The base's answers are compared at the size of the logits, where each stands for several pixels
    of the labels.
    """
    labels = torch.where(truth >= 0, truth, IGNORED)
    counted = int((truth > IGNORE).sum())  # what is open is taught as well
    decomposed = decompose(model, examples.inputs(), labels, Normaliser(pixels=counted))
    annotated = truth >= 0
    roles = roles_of(truth, view)
    own = [layer.loss[annotated] for layer in decomposed.layers if isinstance(layer, PixelLayer)]
    copies = len(own)
    groups = [
        Units(
            class_ids=truth[annotated].repeat(copies),
            roles=roles[annotated].repeat(copies),
            forgotten=view.forgotten,
            logits=None,
            own=torch.cat(own),
            weight=torch.ones_like(torch.cat(own)) / max(counted, 1),
        )
    ]
    if teacher is None:
        return groups
    final = decomposed.layers[-1]
    assert isinstance(final, PixelLayer)
    logits = final.logits[:, : view.num_rows]
    small = truth_at(truth, logits.shape[-2:])
    there = small > IGNORE
    per_place = truth[0].numel() / small[0].numel() / max(counted, 1)
    places = Units(
        class_ids=small[there],
        roles=torch.where(small >= 0, roles_of(small, view), RETAIN)[there],
        forgotten=view.forgotten,
        logits=logits.movedim(1, -1)[there],
        base_logits=teacher["logits"].float().movedim(1, -1)[there],
        own=torch.zeros_like(small[there], dtype=logits.dtype),
        weight=torch.full_like(small[there], per_place, dtype=logits.dtype),
    )
    taught = taught_where_open(places, small[there] == OPEN)
    return [_with_open(groups[0], taught, small[there] == OPEN), replace(places, own=None)]


def _with_open(own: Units, places: Units, open_places: Tensor) -> Units:
    """Add what is open, with the loss that the base's answers give, to the units with labels."""
    assert own.own is not None
    assert own.weight is not None
    assert places.own is not None
    assert places.weight is not None
    return Units(
        class_ids=torch.cat([own.class_ids, places.class_ids[open_places]]),
        roles=torch.cat([own.roles, places.roles[open_places]]),
        forgotten=own.forgotten,
        logits=None,
        own=torch.cat([own.own, places.own[open_places]]),
        weight=torch.cat([own.weight, places.weight[open_places]]),
    )
