"""Detectors: one function for each loss function of `transformers.loss`.

Each takes what the model's forward would have called that function with, matches objects to queries
with the library's own matcher, and returns summands that add up to its result. What the library
leaves out is left out here: Deformable DETR's two-stage proposals have no loss; auxiliary layers
beyond `config.decoder_layers - 1` have no weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kswap.tasks.criteria import distributions, terms
from kswap.tasks.criteria.capture import floats
from kswap.tasks.criteria.matching import Pairs, Targets
from kswap.tasks.criteria.units import Decomposed, Layer, Normaliser

Call = Mapping[str, Any]
"""Arguments of the library's loss function by name, and `training`, whether the model is."""


@dataclass(frozen=True)
class Prediction:
    """What one layer answers."""

    logits: Tensor
    """(images, queries, columns)"""
    boxes: Tensor
    """(images, queries, 4)"""
    edges: distributions.Edges | None = None
    """D-FINE's distributions of box edges."""
    indices: Sequence[tuple[Tensor, Tensor]] | None = None
    """Query and object of each pair, per image, where known (denoising); else matched."""
    groups: int = 1
    """Groups of queries that each object is taught to."""


def softmax_detector(call: Call, targets: Targets, counts: Normaliser) -> Decomposed:
    """`ForObjectDetectionLoss`: DETR, YOLOS, Table Transformer (arXiv 2005.12872).

    class: w_y CE(x, y) / Σ w, over all queries, w = `eos_coefficient` where there is no object.
    """
    from transformers.loss.loss_for_object_detection import HungarianMatcher

    config = call["config"]
    matcher = _matcher(HungarianMatcher, config)

    def layer(prediction: Prediction) -> Layer:
        pairs = _match(matcher, prediction, targets)
        class_loss, class_weight = weighted_cross_entropy(
            prediction.logits, pairs, targets, counts, nothing_weight=config.eos_coefficient
        )
        fit = _box_fit(
            prediction, pairs, targets, config.bbox_loss_coefficient, config.giou_loss_coefficient
        )
        return _layer(prediction, pairs, class_loss, fit / counts.num_objects(), class_weight)

    return Decomposed("queries", [layer(p) for p in _decoder_layers(call)], False, True)


def focal_detector(call: Call, targets: Targets, counts: Normaliser) -> Decomposed:
    """`DeformableDetrForObjectDetectionLoss`: Deformable, Conditional and DAB DETR.

    class: focal(x, y) / N, γ = 2 (arXiv 2010.04159).
    """
    from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher

    config = call["config"]
    matcher = _matcher(DeformableDetrHungarianMatcher, config)

    def layer(prediction: Prediction) -> Layer:
        pairs = _match(matcher, prediction, targets)
        target = terms.one_hot(prediction.logits, _place(pairs, targets))
        class_loss = terms.focal(prediction.logits, target, alpha=config.focal_alpha)
        fit = _box_fit(
            prediction, pairs, targets, config.bbox_loss_coefficient, config.giou_loss_coefficient
        )
        return _sigmoid_layer(prediction, pairs, class_loss, fit, 1.0, counts)

    return Decomposed("queries", [layer(p) for p in _decoder_layers(call)], True, False)


def quality_detector(call: Call, targets: Targets, counts: Normaliser) -> Decomposed:
    """`LwDetrForObjectDetectionLoss`: LW-DETR, RF-DETR, with the encoder's proposals as a layer.

    In evaluation mode the model answers with one group of queries, and each object is taught to one
    query. (The library's criterion is always in training mode: called with a model in evaluation
    mode it cuts these queries into `config.group_detr` groups. That is not followed.)
    """
    from transformers.loss.loss_lw_detr import LwDetrHungarianMatcher

    config = call["config"]
    matcher = _matcher(LwDetrHungarianMatcher, config)
    groups = config.group_detr if call["training"] else 1

    def layer(prediction: Prediction) -> Layer:
        pairs = _match(matcher, prediction, targets, groups)
        boxes, objects = pairs.take(prediction.boxes), targets.every("boxes")[pairs.row]
        class_loss = terms.quality_aware(
            prediction.logits,
            _place(pairs, targets),
            terms.overlap(boxes.detach(), objects)[0],
            alpha=config.focal_alpha,
        )
        fit = _box_fit(
            prediction, pairs, targets, config.bbox_loss_coefficient, config.giou_loss_coefficient
        )
        weight = config.class_loss_coefficient
        return _sigmoid_layer(prediction, pairs, class_loss * weight, fit, weight, counts)

    encoder = Prediction(floats(call["enc_outputs_class"]), floats(call["enc_outputs_coord"]))
    predictions = [replace(p, groups=groups) for p in [encoder, *_decoder_layers(call)]]
    return Decomposed("queries", [layer(p) for p in predictions], True, False)


def varifocal_detector(call: Call, targets: Targets, counts: Normaliser) -> Decomposed:
    """`RTDetrForObjectDetectionLoss` and `DFineForObjectDetectionLoss`: RT-DETR, v2, D-FINE.

    class: varifocal(x, IoU) / N (arXiv 2304.08069). Auxiliary layers, the encoder's proposals and
    denoising groups (training mode only) are layers too. D-FINE's layers carry distributions of box
    edges (`distributions.py`); transformers gives them no loss in the final layer, and a model in
    evaluation mode answers with that layer alone.
    """
    from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

    config = call["config"]
    matcher = RTDetrHungarianMatcher(config)

    def layer(prediction: Prediction) -> Layer:
        pairs = _match(matcher, prediction, targets)
        boxes, objects = pairs.take(prediction.boxes), targets.every("boxes")[pairs.row]
        place = _place(pairs, targets)
        iou = terms.overlap(boxes.detach(), objects)[0]
        class_loss = terms.varifocal(
            prediction.logits,
            terms.one_hot(prediction.logits, place),
            terms.one_hot(prediction.logits, place, iou),
            alpha=config.focal_loss_alpha,
            gamma=config.focal_loss_gamma,
        )
        fit = _box_fit(prediction, pairs, targets, config.weight_loss_bbox, config.weight_loss_giou)
        weight = config.weight_loss_vfl
        made = _sigmoid_layer(prediction, pairs, class_loss * weight, fit, weight, counts)
        if prediction.edges is None:
            return made
        local = distributions.edge_loss(
            prediction.edges, pairs, objects, iou, config, counts.times(prediction.groups)
        )
        return replace(made, fit_loss=made.fit_loss + local)

    return Decomposed("queries", [layer(p) for p in _denoised_layers(call, targets)], True, False)


LOSSES: dict[str, Callable[[Call, Targets, Normaliser], Decomposed]] = {
    "ForObjectDetectionLoss": softmax_detector,
    "DeformableDetrForObjectDetectionLoss": focal_detector,
    "LwDetrForObjectDetectionLoss": quality_detector,
    "RTDetrForObjectDetectionLoss": varifocal_detector,
    "DFineForObjectDetectionLoss": varifocal_detector,
}
"""By the name of the function in `transformers.loss`, which a model's class chooses."""


def weighted_cross_entropy(
    logits: Tensor, pairs: Pairs, targets: Targets, counts: Normaliser, *, nothing_weight: float
) -> tuple[Tensor, Tensor]:
    """Return w_y CE(x, y) / Σ w and w_y / Σ w, both (images, queries).

    y is the last column and w = `nothing_weight` where there is no object; else w = 1.
    """
    num_queries, columns = logits.shape[1:]
    class_ids = torch.full_like(pairs.matched, columns - 1)
    class_ids[pairs.image, pairs.query] = targets.class_ids[pairs.row]
    divisor = counts.num_matched(num_queries) + nothing_weight * counts.num_unmatched(num_queries)
    weight = torch.full_like(logits[..., 0], nothing_weight / divisor)
    weight[class_ids != columns - 1] = 1 / divisor
    return weight * terms.cross_entropy(logits, class_ids), weight


def _matcher(matcher: Any, config: Any) -> Any:
    return matcher(
        class_cost=config.class_cost, bbox_cost=config.bbox_cost, giou_cost=config.giou_cost
    )


def _match(matcher: Any, prediction: Prediction, targets: Targets, *args: Any) -> Pairs:
    """Match by the library; it cannot where no image has an object."""
    indices = prediction.indices
    if indices is None and len(targets):
        outputs = {"logits": prediction.logits, "pred_boxes": prediction.boxes}
        indices = matcher(outputs, targets.labels, *args)
    return Pairs.of(indices, prediction.logits, targets)


def _place(pairs: Pairs, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
    return pairs.image, pairs.query, targets.class_ids[pairs.row]


def _box_fit(
    prediction: Prediction, pairs: Pairs, targets: Targets, l1_weight: float, giou_weight: float
) -> Tensor:
    """Return (images, queries), not yet divided."""
    boxes, objects = pairs.take(prediction.boxes), targets.every("boxes")[pairs.row]
    return pairs.spread(terms.box_fit(boxes, objects, l1_weight=l1_weight, giou_weight=giou_weight))


def _layer(
    prediction: Prediction, pairs: Pairs, class_loss: Tensor, fit: Tensor, class_weight: Tensor
) -> Layer:
    return Layer(
        logits=prediction.logits,
        boxes=prediction.boxes,
        masks=None,
        matched=pairs.matched,
        class_loss=class_loss,
        fit_loss=fit,
        class_weight=class_weight,
    )


def _sigmoid_layer(
    prediction: Prediction,
    pairs: Pairs,
    class_loss: Tensor,
    fit: Tensor,
    weight: float,
    counts: Normaliser,
) -> Layer:
    """Divide by the number of objects; the class's share is the same for every query."""
    divisor = counts.times(prediction.groups).num_objects()
    share = torch.full_like(class_loss, weight / divisor)
    return _layer(prediction, pairs, class_loss / divisor, fit / divisor, share)


def _decoder_layers(call: Call) -> list[Prediction]:
    """Return auxiliary layers that the library weighs, and the final one; (layers, images, …)."""
    config = call["config"]
    layers = [Prediction(floats(call["logits"]), floats(call["pred_boxes"]))]
    if config.auxiliary_loss:
        classes, boxes = floats(call["outputs_class"]), floats(call["outputs_coord"])
        pairs = list(zip(classes[:-1], boxes[:-1], strict=False))
        num_weighed = getattr(config, "decoder_layers", 1) - 1
        layers = [Prediction(*pair) for pair in pairs[:num_weighed]] + layers
    return layers


def _denoised_layers(call: Call, targets: Targets) -> list[Prediction]:
    """Return the layers of RT-DETR and D-FINE: denoising, encoder, auxiliary, final."""
    meta = call["denoising_meta_values"]
    sizes = None if meta is None else meta["dn_num_split"]

    def split(values: Tensor, dim: int) -> tuple[Tensor, ...]:
        """Return the values of denoising queries, none without, and those of the others."""
        values = floats(values)
        return (values[:0], values) if sizes is None else torch.split(values, sizes, dim)

    bounded = hasattr(call["config"], "max_num_bins")

    def boxes(values: Tensor) -> Tensor:
        return floats(values).clamp(0, 1) if bounded else floats(values)

    final = Prediction(split(call["logits"], 1)[1], split(boxes(call["pred_boxes"]), 1)[1])
    if not call["config"].auxiliary_loss:
        return [final]
    encoder = Prediction(floats(call["enc_topk_logits"]), boxes(call["enc_topk_bboxes"]))
    noisy_classes, classes = split(call["outputs_class"], 2)
    noisy_boxes, coords = split(boxes(call["outputs_coord"]), 2)
    edges = noisy_edges = None
    if bounded:
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
