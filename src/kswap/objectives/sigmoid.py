"""Objectives for heads whose classes each have a yes or no of their own (sigmoid detectors).

The counterparts of what is written for a softmax: a sum over classes of the divergence between two
coins. What the base says of a class that is not forgotten stays; a class that the base lacks is a
no. So is a forgotten one, but no surer a no than the surest that the base says to any class there:
a class that is pushed under all others is named by it as the one that was removed.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

_NO = 0.01
"""The most that a class may be given which is a no, where the base doubts all of its classes."""


def masked_distillation(
    logits: Float[Tensor, "units classes"],
    base_logits: Float[Tensor, "units base_classes"],
    forgotten: Bool[Tensor, " base_classes"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, " units"]:
    """Return T² Σ_c KL(q_c ‖ p_c) of each unit, in nats, p_c = σ(logit_c / T).

    q_c = σ(base_logit_c / T) for kept classes of the base, 0 for new ones, and for forgotten ones
    min_k σ(base_logit_k / T) over all classes of the base, at most 1 %.
    """
    q = _kept_by_base(base_logits.float().div(temperature), forgotten, logits)
    scaled = logits.float() / temperature
    cross = functional.binary_cross_entropy_with_logits(scaled, q, reduction="none")
    entropy = -torch.special.xlogy(q, q) - torch.special.xlogy(1 - q, 1 - q)
    divergence: Tensor = (cross - entropy).sum(-1) * temperature**2
    return divergence


def distillation(
    logits: Float[Tensor, "units classes"],
    base_logits: Float[Tensor, "units base_classes"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, " units"]:
    """Return T² Σ_c KL(q_c ‖ p_c) of each unit, in nats; q_c is 0 for classes the base lacks."""
    nothing = torch.zeros(base_logits.shape[-1], dtype=torch.bool, device=base_logits.device)
    return masked_distillation(logits, base_logits, nothing, temperature=temperature)


def restricted_distillation(
    logits: Float[Tensor, "units classes"],
    base_logits: Float[Tensor, "units base_classes"],
    forgotten: Bool[Tensor, " base_classes"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, " units"]:
    """Return the sum over kept classes of the base alone; new rows are left free."""
    kept = ~forgotten
    return masked_distillation(
        logits[:, : base_logits.shape[-1]][:, kept],
        base_logits[:, kept],
        forgotten[kept],
        temperature=temperature,
    )


def hedged_cross_entropy(
    logits: Float[Tensor, "units classes"],
    base_logits: Float[Tensor, "units base_classes"],
    class_ids: Int[Tensor, " units"],
    forgotten: Bool[Tensor, " base_classes"],
    *,
    hedge: float,
) -> Float[Tensor, " units"]:
    """Return the sum over classes of the coins' cross-entropy with a hedged target, in nats.

    q = (1 - hedge) · truth + hedge · base, the base's part without forgotten classes. The truth of
    a unit whose class is negative is a no to all.
    """
    base = _kept_by_base(base_logits.float(), forgotten, logits)
    return _of_coins(logits, hedge * base + (1 - hedge) * _yes_to(class_ids, logits))


def nearest_class(
    logits: Float[Tensor, "units classes"],
    base_logits: Float[Tensor, "units base_classes"],
    class_ids: Int[Tensor, " units"],
    forgotten: Bool[Tensor, " base_classes"],
) -> Float[Tensor, " units"]:
    """Return the sum over classes of the coins' cross-entropy with a label, in nats.

    The label is the base's most likely kept class that is not the unit's own, where the base says
    yes to it (p above a half); else it is a no to all.
    """
    own = _yes_to(class_ids, base_logits).bool()
    best = base_logits.masked_fill(forgotten | own, -torch.inf).max(-1)
    label = torch.where(best.values > 0, best.indices, -1)
    return _of_coins(logits, _yes_to(label, logits))


def _kept_by_base(base_logits: Tensor, forgotten: Tensor, logits: Tensor) -> Tensor:
    """Return what the base says of every column of `logits`: a no to new and forgotten classes."""
    q = base_logits.sigmoid()
    least = q.amin(-1, keepdim=True).clamp_max(_NO)
    return functional.pad(q.where(~forgotten, least), (0, logits.shape[-1] - q.shape[-1]))


def _yes_to(class_ids: Tensor, logits: Tensor) -> Tensor:
    """Return a yes to one class, (units, classes), or to none where it is not among them."""
    return (class_ids[:, None] == torch.arange(logits.shape[-1], device=class_ids.device)).float()


def _of_coins(logits: Tensor, target: Tensor) -> Tensor:
    nats = functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    return nats.sum(-1)
