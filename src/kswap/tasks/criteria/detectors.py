"""Detectors: one function for each loss function of `transformers.loss`.

Each takes what the model's forward would have called that function with, matches objects to queries
with the library's own matcher, and returns summands that add up to its result. What the library
leaves out is left out here: Deformable DETR's two-stage proposals have no loss; auxiliary layers
beyond `config.decoder_layers - 1` have no weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kswap.tasks.criteria import terms
from kswap.tasks.criteria.capture import floats
from kswap.tasks.criteria.distributions import edge_loss
from kswap.tasks.criteria.matching import Pairs, Targets
from kswap.tasks.criteria.predictions import (
    Call,
    Indices,
    Prediction,
    decoder_layers,
    denoised_layers,
)
from kswap.tasks.criteria.units import Decomposed, Layer, Normaliser


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
        fit = box_fit(prediction, pairs, targets, config) / counts.num_objects()
        return _layer(prediction, pairs, class_loss, fit, class_weight)

    return Decomposed([layer(p) for p in decoder_layers(call)], sigmoid=False, nothing=True)


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
        fit = box_fit(prediction, pairs, targets, config) / counts.num_objects()
        return _sigmoid_layer(prediction, pairs, class_loss, fit, 1.0, counts)

    return Decomposed([layer(p) for p in decoder_layers(call)], sigmoid=True, nothing=False)


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
    counts = counts.times(groups)

    def layer(prediction: Prediction) -> Layer:
        pairs = _match(matcher, prediction, targets, groups)
        class_loss = terms.quality_aware(
            prediction.logits,
            _place(pairs, targets),
            _overlap(prediction, pairs, targets),
            alpha=config.focal_alpha,
        )
        fit = box_fit(prediction, pairs, targets, config) / counts.num_objects()
        weight = config.class_loss_coefficient
        return _sigmoid_layer(prediction, pairs, class_loss, fit, weight, counts)

    encoder = Prediction(floats(call["enc_outputs_class"]), floats(call["enc_outputs_coord"]))
    layers = [layer(prediction) for prediction in [encoder, *decoder_layers(call)]]
    return Decomposed(layers, sigmoid=True, nothing=False)


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
        pairs, own = _match(matcher, prediction, targets), counts.times(prediction.groups)
        place, iou = _place(pairs, targets), _overlap(prediction, pairs, targets)
        class_loss = terms.varifocal(
            prediction.logits,
            terms.one_hot(prediction.logits, place),
            terms.one_hot(prediction.logits, place, iou),
            alpha=config.focal_loss_alpha,
            gamma=config.focal_loss_gamma,
        )
        fit = box_and_edge_fit(prediction, pairs, targets, config, own)
        return _sigmoid_layer(prediction, pairs, class_loss, fit, config.weight_loss_vfl, own)

    return Decomposed(
        [layer(p) for p in denoised_layers(call, targets)], sigmoid=True, nothing=False
    )


def matching_aware_detector(call: Call, targets: Targets, counts: Normaliser) -> Decomposed:
    """`Deimv2ForObjectDetectionLoss`: DEIMv2 (arXiv 2509.20787).

    class: matching_aware(x, IoU) / N. With `use_dense_one_to_one` boxes are fitted by every query
    that any layer gives an object to; such a layer comes as two, one that fits boxes and has no
    class loss, and one the other way round. How many fit is only known of the micro-batch; for its
    whole batch it is taken to be in proportion to the objects. (Without auxiliary losses the
    library also matches the denoising queries of a model in training mode, as it did for D-FINE
    before its pull request 48528. That is not followed.)
    """
    from transformers.loss.loss_deimv2 import Deimv2Loss
    from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

    config = call["config"]
    matcher = RTDetrHungarianMatcher(config)
    predictions = denoised_layers(call, targets)
    every = [_indices(matcher, prediction, targets) for prediction in predictions]
    free = [found for found, p in zip(every, predictions, strict=True) if p.indices is None]
    dense: Indices | None = None
    dense_counts = counts
    if config.use_dense_one_to_one and len(targets):
        dense = Deimv2Loss._get_dense_o2o_indices(None, free[-1], free[:-1])
        dense_counts = counts.as_counted([len(queries) for queries, _ in dense], len(targets))
    layers: list[Layer] = []
    for prediction, found in zip(predictions, every, strict=True):
        pairs, own = Pairs.of(found, prediction.logits, targets), counts.times(prediction.groups)
        place, iou = _place(pairs, targets), _overlap(prediction, pairs, targets)
        class_loss = terms.matching_aware(
            prediction.logits,
            terms.one_hot(prediction.logits, place),
            terms.one_hot(prediction.logits, place, iou.pow(config.focal_loss_gamma)),
            alpha=config.mal_alpha,
            gamma=config.focal_loss_gamma,
        )
        none = torch.zeros_like(class_loss)
        if dense is None or prediction.indices is not None:
            fit = box_and_edge_fit(prediction, pairs, targets, config, own)
        else:
            fitted = Pairs.of(dense, prediction.logits, targets)
            fit = box_and_edge_fit(prediction, fitted, targets, config, dense_counts)
            layers.append(_layer(prediction, fitted, none, fit, none))
            fit = none
        layers.append(
            _sigmoid_layer(prediction, pairs, class_loss, fit, config.weight_loss_mal, own)
        )
    return Decomposed(layers, sigmoid=True, nothing=False)


LOSSES: dict[str, Callable[[Call, Targets, Normaliser], Decomposed]] = {
    "ForObjectDetectionLoss": softmax_detector,
    "DeformableDetrForObjectDetectionLoss": focal_detector,
    "LwDetrForObjectDetectionLoss": quality_detector,
    "RTDetrForObjectDetectionLoss": varifocal_detector,
    "DFineForObjectDetectionLoss": varifocal_detector,
    "Deimv2ForObjectDetectionLoss": matching_aware_detector,
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
    weight[pairs.image, pairs.query] = 1 / divisor
    return weight * terms.cross_entropy(logits, class_ids), weight


def box_fit(prediction: Prediction, pairs: Pairs, targets: Targets, config: Any) -> Tensor:
    """Return `terms.box_fit` of each query (images, queries), with the coefficients of a config."""
    if not len(pairs.row):  # a path to every parameter, for DDP; what is no number stays none
        return prediction.boxes.sum(-1) * 0.0
    boxes, objects = pairs.take(prediction.boxes), targets.every("boxes")[pairs.row]
    rt_detr = hasattr(config, "weight_loss_bbox")
    loss = terms.box_fit(
        boxes,
        objects,
        l1_weight=config.weight_loss_bbox if rt_detr else config.bbox_loss_coefficient,
        giou_weight=config.weight_loss_giou if rt_detr else config.giou_loss_coefficient,
    )
    return pairs.spread(loss)


def box_and_edge_fit(
    prediction: Prediction, pairs: Pairs, targets: Targets, config: Any, counts: Normaliser
) -> Tensor:
    """Return the fit, divided, with the losses of edge distributions where the layer has them."""
    fit = box_fit(prediction, pairs, targets, config) / counts.num_objects()
    if prediction.edges is None:
        return fit
    objects, iou = targets.every("boxes")[pairs.row], _overlap(prediction, pairs, targets)
    return fit + edge_loss(prediction.edges, pairs, objects, iou, config, counts)


def _matcher(matcher: Any, config: Any) -> Any:
    return matcher(
        class_cost=config.class_cost, bbox_cost=config.bbox_cost, giou_cost=config.giou_cost
    )


def _match(matcher: Any, prediction: Prediction, targets: Targets, *args: Any) -> Pairs:
    return Pairs.of(_indices(matcher, prediction, targets, *args), prediction.logits, targets)


def _indices(matcher: Any, prediction: Prediction, targets: Targets, *args: Any) -> Indices:
    """Match by the library, unless the pairs are known or there is no object.

    Boxes that are not numbers match nothing, where the library would raise: the loss is no number
    then, and the loop reports that.
    """
    if prediction.indices is not None:
        return prediction.indices
    if not len(targets) or bool(prediction.boxes.isnan().any()):
        return ()
    outputs = {"logits": prediction.logits, "pred_boxes": prediction.boxes}
    indices: Sequence[tuple[Tensor, Tensor]] = matcher(outputs, targets.labels, *args)
    return indices


def _place(pairs: Pairs, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
    return pairs.image, pairs.query, targets.class_ids[pairs.row]


def _overlap(prediction: Prediction, pairs: Pairs, targets: Targets) -> Tensor:
    """Return IoU (pairs,), without gradient."""
    boxes, objects = pairs.take(prediction.boxes.detach()), targets.every("boxes")[pairs.row]
    return terms.overlap(boxes, objects)[0]


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
    """Weigh the class loss and divide it by the number of objects, the same for every query."""
    share = torch.full_like(class_loss, weight / counts.num_objects())
    return _layer(prediction, pairs, share * class_loss, fit, share)
