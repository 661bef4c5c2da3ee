"""Objectives that teach: what a unit is, and what the base model thought of it.

Sources: distillation, Hinton et al. 2015 (arXiv 1503.02531); restricted to the old classes on
images of new ones, Learning without Forgetting, Li and Hoiem 2016 (arXiv 1606.09282).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from kswap.objectives.forgetting import masked_distillation


def cross_entropy(
    logits: Float[Tensor, "units classes"], class_ids: Int[Tensor, " units"]
) -> Float[Tensor, " units"]:
    """Return -log p_y of each unit, in nats."""
    return functional.cross_entropy(logits, class_ids, reduction="none")


def hedged_cross_entropy(
    logits: Float[Tensor, "units classes"],
    base_logits: Float[Tensor, "units base_classes"],
    class_ids: Int[Tensor, " units"],
    forgotten: Bool[Tensor, " base_classes"],
    *,
    hedge: float,
) -> Float[Tensor, " units"]:
    """Return -Σ_c q_c log p_c of each unit, in nats; q = (1 - hedge) · truth + hedge · base.

    The base's part is its answer without forgotten classes. A learned class then leads the old
    classes that its images look like by ln((1 - hedge) / hedge) nats and no more, whereas
    cross-entropy drives it up without end, over images of those old classes as well.
    """
    target = base_logits.float().masked_fill(forgotten, -math.inf).softmax(-1)
    log_p = logits.float().log_softmax(-1)
    old = (target * log_p[..., : base_logits.shape[-1]]).sum(-1)
    own = log_p.gather(-1, class_ids[:, None])[:, 0]
    return -(1 - hedge) * own - hedge * old


def distillation(
    logits: Float[Tensor, "units classes"],
    base_logits: Float[Tensor, "units base_classes"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, " units"]:
    """Return T² KL(q ‖ p) of each unit, in nats.

    p = softmax(logits / T) over all classes; q = softmax(base_logits / T), zero on rows the base
    lacks.
    """
    nothing = torch.zeros(base_logits.shape[-1], dtype=torch.bool, device=base_logits.device)
    return masked_distillation(logits, base_logits, nothing, temperature=temperature)


def restricted_distillation(
    logits: Float[Tensor, "units classes"],
    base_logits: Float[Tensor, "units base_classes"],
    forgotten: Bool[Tensor, " base_classes"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, " units"]:
    """Return T² KL(q ‖ p') of each unit, in nats, p' over the kept rows of the base alone.

    On images of learn classes: what the base answers among its own classes is kept, while the mass
    that the new rows take is left free. Both sides leave out the forgotten classes.
    """
    kept = ~forgotten
    return masked_distillation(
        logits[:, : base_logits.shape[-1]][:, kept],
        base_logits[:, kept],
        forgotten[kept],
        temperature=temperature,
    )
