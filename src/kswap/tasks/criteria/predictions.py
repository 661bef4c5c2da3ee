"""From the arguments of a detector's loss function to the answers of its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kswap.tasks.criteria import distributions
from kswap.tasks.criteria.capture import floats
from kswap.tasks.criteria.matching import Targets

Call = Mapping[str, Any]
"""Arguments of the library's loss function by name, and `training`, whether the model is."""
Indices = Sequence[tuple[Tensor, Tensor]]
"""Query and object of each pair, one entry an image, as the library's matchers return them."""


@dataclass(frozen=True)
class Prediction:
    """What one layer answers."""

    logits: Tensor
    """(images, queries, columns)"""
    boxes: Tensor
    """(images, queries, 4)"""
    edges: distributions.Edges | None = None
    """D-FINE's distributions of box edges."""
    indices: Indices | None = None
    """Query and object of each pair, per image, where known (denoising); else matched."""
    groups: int = 1
    """Groups of queries that each object is taught to."""


def has_edges(config: Any) -> bool:
    """Whether the model answers with distributions of box edges: D-FINE, DEIMv2."""
    return hasattr(config, "max_num_bins")


def bounded(boxes: Tensor, config: Any) -> Tensor:
    """Return boxes as the loss sees them: those made from distributions are cut off at 0 and 1."""
    return boxes.clamp(0, 1) if has_edges(config) else boxes


def decoder_layers(call: Call) -> list[Prediction]:
    """Return auxiliary layers that the library weighs, and the final one; (layers, images, …)."""
    config = call["config"]
    layers = [Prediction(floats(call["logits"]), floats(call["pred_boxes"]))]
    if config.auxiliary_loss:
        classes, boxes = floats(call["outputs_class"]), floats(call["outputs_coord"])
        pairs = list(zip(classes[:-1], boxes[:-1], strict=False))
        num_weighed = getattr(config, "decoder_layers", 1) - 1
        layers = [Prediction(*pair) for pair in pairs[:num_weighed]] + layers
    return layers


def denoised_layers(call: Call, targets: Targets) -> list[Prediction]:
    """Return the layers of RT-DETR and D-FINE: denoising, encoder, auxiliary, final."""
    meta = call["denoising_meta_values"]
    sizes = None if meta is None else meta["dn_num_split"]

    def split(values: Tensor, dim: int) -> tuple[Tensor, ...]:
        """Return the values of denoising queries, none without, and those of the others."""
        values = floats(values)
        return (values[:0], values) if sizes is None else torch.split(values, sizes, dim)

    def boxes(values: Tensor) -> Tensor:
        return bounded(floats(values), call["config"])

    final = Prediction(split(call["logits"], 1)[1], split(boxes(call["pred_boxes"]), 1)[1])
    if not call["config"].auxiliary_loss:
        return [final]
    encoder = Prediction(floats(call["enc_topk_logits"]), boxes(call["enc_topk_bboxes"]))
    noisy_classes, classes = split(call["outputs_class"], 2)
    noisy_boxes, coords = split(boxes(call["outputs_coord"]), 2)
    edges = noisy_edges = None
    if has_edges(call["config"]):
        noisy_corners, corners = split(call["predicted_corners"], 2)
        noisy_points, points = split(call["initial_reference_points"], 2)
        edges = distributions.layers(corners[:, :-1], points[:, :-1], corners[:, -1], classes)
        if meta is not None:
            noisy_edges = distributions.layers(
                noisy_corners, noisy_points, noisy_corners[:, -1], noisy_classes
            )
    layers = [encoder, *_stack(classes[:, :-1], coords[:, :-1], edges), final]
    if meta is None:
        return layers
    known = {"indices": _known_pairs(meta, targets), "groups": meta["dn_num_group"]}
    return [replace(p, **known) for p in _stack(noisy_classes, noisy_boxes, noisy_edges)] + layers


def _stack(
    classes: Tensor, boxes: Tensor, edges: Sequence[distributions.Edges] | None
) -> list[Prediction]:
    """Cut (images, layers, queries, …) into layers; as many as all have, as the library does."""
    parts = (classes.unbind(1), boxes.unbind(1))
    if edges is None:
        return [Prediction(*part) for part in zip(*parts, strict=True)]
    return [Prediction(*part) for part in zip(*parts, edges, strict=False)]


def _known_pairs(meta: Mapping[str, Any], targets: Targets) -> list[tuple[Tensor, Tensor]]:
    """Return which object each positive denoising query was made from."""
    pairs = []
    for image, queries in zip(targets.labels, meta["dn_positive_idx"], strict=True):
        objects = torch.arange(len(image["class_labels"]))
        pairs.append((queries, objects.tile(meta["dn_num_group"])[: len(queries)]))
    return pairs
