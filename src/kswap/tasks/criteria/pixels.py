"""Heads that give every pixel a class: SegFormer, BEiT, UPerNet, DPT and their kin.

Some of these models call `ForSemanticSegmentationLoss`, some compute the same in their forward:
cross-entropy of the upsampled logits, mean over labelled pixels, plus an auxiliary head's by its
weight. One function serves all; an auxiliary head is the module `auxiliary_head`.

Labels that are negative count for nothing, and so does what the config ignores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from kswap.models.wrapping import bare
from kswap.tasks.criteria.capture import floats
from kswap.tasks.criteria.units import IGNORED, Decomposed, Normaliser, PixelLayer

_BYTE = 255
"""What the library ignores unless a config says otherwise."""


def ignored_label(model: nn.Module) -> int:
    """Return the label that a model's own loss leaves out.

    That is `config.semantic_loss_ignore_index` (UPerNet: `loss_ignore_index`), which may be a class
    of the model (background). Where it is the library's default and there are more classes than a
    byte holds, it is a class, and no label of its own is left out.
    """
    config = bare(model).config
    own = getattr(config, "loss_ignore_index", _BYTE)
    index = int(getattr(config, "semantic_loss_ignore_index", own))
    return IGNORED if index == _BYTE and config.num_labels > _BYTE else index


def decompose_pixels(
    model: nn.Module, inputs: Mapping[str, Any], labels: Tensor, counts: Normaliser
) -> Decomposed:
    """Return the summands of each labelled pixel, of the auxiliary and the main head."""
    base = bare(model)
    head = getattr(base, "auxiliary_head", None)
    noted: list[Tensor] = []
    handle = None
    if isinstance(head, nn.Module):
        handle = head.register_forward_hook(lambda _module, _args, out: noted.append(out))
    try:
        logits = model(**inputs).logits
    finally:
        if handle is not None:
            handle.remove()
    labels = labels.to(logits.device)
    heads = [(auxiliary, float(base.config.auxiliary_loss_weight)) for auxiliary in noted]
    layers = []
    with torch.autocast(logits.device.type, enabled=False):
        for values, weight in [*heads, (logits, 1.0)]:
            share = weight / counts.num_pixels()
            values = floats(values)
            loss = pixel_cross_entropy(values, labels)
            layers.append(PixelLayer(values, share * loss))
    return Decomposed(layers, sigmoid=False, nothing=False)


def pixel_cross_entropy(
    logits: Float[Tensor, "images columns h w"], labels: Int[Tensor, "images height width"]
) -> Float[Tensor, "images height width"]:
    """Return -log softmax(x)_y of each pixel, x upsampled to the labels; 0 where ignored."""
    if logits.shape[-2:] != labels.shape[-2:]:
        logits = functional.interpolate(
            logits, size=labels.shape[-2:], mode="bilinear", align_corners=False
        )
    return functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
