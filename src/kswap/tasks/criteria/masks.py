"""Mask classifiers: a query answers with a class and a mask; one function for each criterion.

`Mask2FormerLoss`, `EomtLoss` and `MaskFormerLoss` are modules of the model; their own matcher and
point sampler are called, in the library's order, so that under the same seed they draw the same
random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kswap.tasks.criteria import terms
from kswap.tasks.criteria.capture import floats
from kswap.tasks.criteria.detectors import weighted_cross_entropy
from kswap.tasks.criteria.matching import Pairs, Targets
from kswap.tasks.criteria.predictions import Indices
from kswap.tasks.criteria.units import Decomposed, Layer, Normaliser

MaskFit = Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Criterion, mask logits (pairs, h, w), truth (pairs, H, W) -> mask and dice loss (pairs,)."""


def decompose_masks(
    model: Any,
    calls: Sequence[dict[str, Any]],
    targets: Targets,
    counts: Normaliser,
) -> Decomposed:
    """Return the summands of every call of the model's `get_loss_dict`.

    class: w_y CE(x, y) / Σ w, w = `no_object_weight` where there is no object; mask: point-wise
    binary cross-entropy (Mask2Former, EoMT) or focal loss (MaskFormer), mean over points, / N;
    dice / N. `model.weight_dict` holds the coefficients.
    """
    fit = MASK_FITS[type(model.criterion).__name__]
    layers: list[Layer] = []
    for call in calls:  # the order of the random numbers: final layer, then its auxiliary ones
        made = [
            _layer(model, classes, masks, fit, targets, counts)
            for classes, masks in _predictions(call)
        ]
        layers += [*made[1:], made[0]]
    return Decomposed(layers, sigmoid=False, nothing=True)


def _predictions(call: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    auxiliary = call.get("auxiliary_predictions") or call.get("auxiliary_logits") or ()
    return [
        (floats(layer["class_queries_logits"]), floats(layer["masks_queries_logits"]))
        for layer in [call, *auxiliary]
    ]


def _layer(
    model: Any,
    logits: Tensor,
    masks: Tensor,
    fit: MaskFit,
    targets: Targets,
    counts: Normaliser,
) -> Layer:
    weights = model.weight_dict
    indices: Indices = ()
    if len(targets):
        indices = model.criterion.matcher(
            masks, logits, targets.each("masks"), targets.each("class_labels")
        )
    pairs = Pairs.of(indices, logits, targets)
    chosen = pairs.take(masks)
    weighted = chosen.sum((1, 2))  # no pairs: nothing, but a path to every parameter, for DDP
    if len(chosen):
        mask, dice = fit(model.criterion, chosen, targets.every("masks")[pairs.row])
        weighted = weights["loss_mask"] * mask + weights["loss_dice"] * dice
    fit_loss = pairs.spread(weighted / counts.num_objects())
    class_loss, class_weight = weighted_cross_entropy(
        logits, pairs, targets, counts, nothing_weight=model.criterion.eos_coef
    )
    weight = weights["loss_cross_entropy"]
    return Layer(
        logits=logits,
        boxes=None,
        masks=masks,
        matched=pairs.matched,
        class_loss=weight * class_loss,
        fit_loss=fit_loss,
        class_weight=weight * class_weight,
    )


def pointwise_fit(
    criterion: Any, masks: Float[Tensor, "pairs h w"], truth: Float[Tensor, "pairs height width"]
) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
    """Return BCE and dice at points where the mask is uncertain, of Mask2Former and EoMT."""
    masks, truth = masks[:, None], truth[:, None]
    with torch.no_grad():
        points = criterion.sample_points_using_uncertainty(
            masks,
            criterion.calculate_uncertainty,
            criterion.num_points,
            criterion.oversample_ratio,
            criterion.importance_sample_ratio,
        )
        wanted = _at(truth, points)
    logits = _at(masks, points)
    loss = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return loss.mean(-1), terms.dice(logits, wanted)


def whole_fit(
    criterion: Any, masks: Float[Tensor, "pairs h w"], truth: Float[Tensor, "pairs height width"]
) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
    """Return focal loss (α = 0.25, γ = 2) and dice of all pixels of the truth, of MaskFormer."""
    del criterion
    logits = functional.interpolate(
        masks[:, None], size=truth.shape[-2:], mode="bilinear", align_corners=False
    )[:, 0].flatten(1)
    wanted = truth.flatten(1)
    focal = terms.focal(logits[:, None], wanted[:, None], alpha=0.25)[:, 0]
    return focal / wanted.shape[-1], terms.dice(logits, wanted)


MASK_FITS: dict[str, MaskFit] = {
    "Mask2FormerLoss": pointwise_fit,
    "EomtLoss": pointwise_fit,
    "EomtDinov3Loss": pointwise_fit,
    "MaskFormerLoss": whole_fit,
}
"""By the class of the model's criterion."""


def _at(
    values: Float[Tensor, "pairs 1 h w"], points: Float[Tensor, "pairs points 2"]
) -> Float[Tensor, "pairs points"]:
    """Return bilinear samples at points (x, y) from 0 to 1."""
    grid = 2.0 * points.unsqueeze(2) - 1.0
    return functional.grid_sample(values, grid, align_corners=False)[:, 0, :, 0]
