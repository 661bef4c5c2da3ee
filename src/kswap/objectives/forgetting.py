"""Objectives that make a class be forgotten.

Sources: the bounded cross-entropy is that of the ICML 2025 paper (arXiv 2502.08075) and of GS-LoRA;
masked distillation follows DELETE (CVPR 2025), in the direction KL(target ‖ model), which stays
finite where the target has no mass.
"""

from __future__ import annotations

import math

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional


def bounded_ce_batch(
    logits: Float[Tensor, "units classes"],
    class_ids: Int[Tensor, " units"],
    *,
    bound: float | None = None,
) -> Float[Tensor, " units"]:
    """Return ReLU(bound - mean CE), the same value for every unit, in nats.

    The paper's form: the bound holds for the mean of the batch, so that a few units with an
    exploded loss hide those that are not forgotten.
    """
    loss = functional.cross_entropy(logits, class_ids)
    return functional.relu(default_bound(bound, logits) - loss).expand(len(class_ids))


def bounded_ce_sample(
    logits: Float[Tensor, "units classes"],
    class_ids: Int[Tensor, " units"],
    *,
    bound: float | None = None,
) -> Float[Tensor, " units"]:
    """Return ReLU(bound - CE) of each unit, in nats; the bound is ln K unless given.

    ln K is the loss of an answer that is no better than a guess among K classes.
    """
    loss = functional.cross_entropy(logits, class_ids, reduction="none")
    return functional.relu(default_bound(bound, logits) - loss)


def masked_distillation(
    logits: Float[Tensor, "units classes"],
    base_logits: Float[Tensor, "units base_classes"],
    forgotten: Bool[Tensor, " base_classes"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, " units"]:
    """Return T² KL(q ‖ p) of each unit, in nats.

    p = softmax(logits / T) over all classes; q = softmax of base_logits / T with the forgotten
    classes taken out, renormalised, and zero on rows the base lacks: what the base would have
    answered had the class not existed. At least one class of the base must be kept.
    """
    num_base = base_logits.shape[-1]
    target = base_logits.float().masked_fill(forgotten, -math.inf).div(temperature)
    log_q = target.log_softmax(-1)
    log_p = logits.float().div(temperature).log_softmax(-1)[..., :num_base]
    q = log_q.exp()
    # 0 · log 0 = 0: the masked entries have no mass, but their logarithm is minus infinity.
    divergence = q * (log_q.masked_fill(forgotten, 0.0) - log_p)
    return divergence.sum(-1) * temperature**2


def default_bound(bound: float | None, logits: Tensor) -> float:
    """Return the bound in nats; ln K for K columns unless given."""
    return math.log(logits.shape[-1]) if bound is None else bound
