"""The task's own loss, the one transformers computes, as summands of single units.

`decompose` runs a model on images with labels and returns a value for every query or pixel; their
sum is `model(…, labels).loss`. kswap weighs each by the role of its class. A new family is a
function in `detectors.py`, or a line in `masks.py`, and its name in the table there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kswap.errors import UserError
from kswap.models.wrapping import bare
from kswap.tasks.criteria.capture import captured_loss, captured_loss_dict, floats
from kswap.tasks.criteria.detectors import LOSSES
from kswap.tasks.criteria.masks import MASK_FITS, decompose_masks
from kswap.tasks.criteria.matching import Targets
from kswap.tasks.criteria.pixels import decompose_pixels, ignored_label
from kswap.tasks.criteria.predictions import bounded
from kswap.tasks.criteria.units import (
    IGNORED,
    Decomposed,
    Layer,
    Normaliser,
    PixelLayer,
    normaliser,
)

__all__ = [
    "IGNORED",
    "Decomposed",
    "Layer",
    "Normaliser",
    "PixelLayer",
    "decompose",
    "ignored_label",
    "loss_name",
    "normaliser",
    "outputs_only",
]

_PIXEL_LOSS = "ForSemanticSegmentationLoss"
Labels = Tensor | Sequence[Mapping[str, Tensor]]


def loss_name(model: nn.Module) -> str:
    """Return the library's name of the loss that a model computes from labels.

    Raises:
        UserError: kswap cannot decompose it.
    """
    base = bare(model)
    criterion = getattr(base, "criterion", None)
    known = {*LOSSES, *MASK_FITS, _PIXEL_LOSS}
    if isinstance(criterion, nn.Module):
        name = type(criterion).__name__
    elif getattr(base, "loss_type", None) is None:
        name = "none"
    else:
        name = base.loss_function.__name__
    if name not in known:
        raise UserError(
            f"{type(base).__name__}: its loss ({name}) cannot be split by class; name a model "
            f"whose loss is one of {', '.join(sorted(known))}"
        )
    return name


def decompose(
    model: nn.Module,
    inputs: Mapping[str, Any],
    labels: Labels,
    counts: Normaliser | None = None,
) -> Decomposed:
    """Run the model once and return its loss by layer and unit, with gradient.

    Args:
        model: A transformers detector or segmenter, bare or wrapped by PEFT or DDP.
        inputs: What its forward takes: pixel_values, pixel_mask …
        labels: Detectors: one mapping an image, class_labels (objects,) and boxes (objects, 4),
            centre, width and height from 0 to 1. Mask classifiers: class_labels and masks (objects,
            height, width). Others: (images, height, width), where nothing is known negative or
            `ignored_label`.
        counts: Of the whole batch that this is a part of, by `normaliser`; its own when left out.

    Raises:
        UserError: the loss of this family cannot be split.
    """
    name = loss_name(model)
    if isinstance(labels, Tensor):
        labels = labels.masked_fill(labels == ignored_label(model), IGNORED)
    counts = normaliser(labels) if counts is None else counts
    if name == _PIXEL_LOSS:
        assert isinstance(labels, Tensor), "labels of pixels are a tensor"
        return decompose_pixels(model, inputs, labels, counts)
    assert not isinstance(labels, Tensor), "labels of objects are one mapping an image"
    base = bare(model)
    targets = Targets.of(labels, floats(inputs["pixel_values"]))
    if name in MASK_FITS:
        with captured_loss_dict(model) as captured:
            model(
                **inputs,
                **_hidden_states(base),
                mask_labels=targets.each("masks"),
                class_labels=targets.each("class_labels"),
            )
        with torch.autocast(targets.class_ids.device.type, enabled=False):
            return decompose_masks(base, captured.calls, targets, counts)
    with captured_loss(model) as captured:
        model(**inputs, labels=targets.labels)
    call = {**captured.one(model), "training": base.training}
    with torch.autocast(targets.class_ids.device.type, enabled=False):
        return LOSSES[name](call, targets, counts)


def outputs_only(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Run the model without labels and return its final layer, as `decompose` would.

    Returns:
        Logits (images, queries, columns) with boxes (images, queries, 4) or masks (images, queries,
        h, w); or logits (images, columns, h, w) and None.
    """
    name = loss_name(model)
    outputs = model(**inputs, **_hidden_states(bare(model)))
    if name == _PIXEL_LOSS:
        return floats(outputs.logits), None
    if name in MASK_FITS:
        return floats(outputs.class_queries_logits), floats(outputs.masks_queries_logits)
    return floats(outputs.logits), bounded(floats(outputs.pred_boxes), bare(model).config)


def _hidden_states(base: Any) -> dict[str, bool]:
    """MaskFormer with auxiliary losses stacks hidden states that it only has when asked to."""
    if type(getattr(base, "criterion", None)).__name__ != "MaskFormerLoss":
        return {}
    return {"output_hidden_states": True} if base.config.use_auxiliary_loss else {}
