"""Objectives on features: forgetting below the answer, where a probe or a few images would find it.

Sources: dispersion, Spotter (ICML 2026); class means as an attacker's head, impersonation,
translation and discrimination, own design (docs/method.md); subspace, after FG-OrIU (ICCV 2025,
arXiv 2601.13578); prototype, after GS-LoRA++ (TPAMI 2026, arXiv 2501.09705); tilted distillation,
after TREW. All distances are divided by a scale of the base model's features, so that a weight
means the same in every layer and model.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from kswap.objectives.forgetting import masked_distillation

_TINY = 1e-12


def _others_of_class(class_ids: Int[Tensor, " units"]) -> Bool[Tensor, "units units"]:
    """Return which other units are of the same class."""
    same = class_ids[:, None] == class_ids[None, :]
    return same & ~torch.eye(len(class_ids), dtype=torch.bool, device=class_ids.device)


def dispersion(
    features: Float[Tensor, "units size"],
    class_ids: Int[Tensor, " units"],
    centre: Float[Tensor, " size"],
) -> Float[Tensor, " units"]:
    """Return the mean cosine of each unit with the others of its class in the batch.

    cos(f_i - c, f_j - c), averaged over j; c is the centre of the base's features. From -1 to 1;
    without a direction that the class has in common it is 0 or less. A unit that is alone has 0.
    """
    ways = functional.normalize(features.float() - centre, dim=-1)
    same = _others_of_class(class_ids)
    cosines = (ways @ ways.T).masked_fill(~same, 0.0)
    return cosines.sum(-1) / same.sum(-1).clamp_min(1)


def feature_distillation(
    features: Float[Tensor, "units size"],
    targets: Float[Tensor, "units size"],
    spread: Float[Tensor, ""],
) -> Float[Tensor, " units"]:
    """Return ||f - t||² / s of each unit.

    t is fixed; s is the mean squared distance of the base's features from their centre, so that 1
    is as far as the centre and 2 as far as an unrelated image.
    """
    return (features.float() - targets).square().sum(-1) / spread.clamp_min(_TINY)


def discrimination(
    features: Float[Tensor, "units size"],
    class_ids: Int[Tensor, " units"],
    middle: Float[Tensor, " size"],
    between: Float[Tensor, "size directions"],
    squares: Float[Tensor, " units"],
) -> Float[Tensor, " units"]:
    """Return mean_j ⟨r_i, r_j⟩ / d² of each unit, j the others of its class in the batch.

    r = f - m less its part in `between`, the orthonormal directions between the means of retained
    classes, whose middle is m: on whitened features ⟨r_i, mean_j r_j⟩ is what a linear discriminant
    that is fitted to the others tells unit i by. The mean over units estimates the square of the
    mean r of the class without bias, from few units too; with d² that of the base it begins at 1.
    A unit that is alone in its class, or with d = 0, has 0.
    """
    moved = features.float() - middle
    left = moved - moved @ between @ between.T
    same = _others_of_class(class_ids)
    products = (left @ left.T).masked_fill(~same, 0.0).sum(-1) / same.sum(-1).clamp_min(1)
    return (products / squares.clamp_min(_TINY)).where(squares > 0, 0.0)


def drawn_images(
    base_logits: Float[Tensor, "units base_classes"],
    forgotten: Bool[Tensor, " base_classes"],
    starts: Int[Tensor, " base_classes"],
    counts: Int[Tensor, " base_classes"],
    noise: Float[Tensor, "units 2"],
) -> Int[Tensor, " units"]:
    """Return for each unit the row of a retained image for it to look like.

    Its class is drawn from the base's answer without forgotten classes and those without images,
    the image uniformly from the class; `noise` decides both.
    """
    barred = forgotten | (counts == 0)
    chances = base_logits.float().masked_fill(barred, -torch.inf).softmax(-1).cumsum(-1)
    # The last class with a chance takes what rounding leaves over.
    last = int((~barred).nonzero().max())
    classes = (chances <= noise[:, :1] * chances[:, -1:]).sum(-1).clamp_max(last)
    images = (noise[:, 1] * counts[classes]).long()
    return starts[classes] + torch.minimum(images, counts[classes] - 1)


def class_mean_head(
    features: Float[Tensor, "units size"],
    class_ids: Int[Tensor, " units"],
    base_logits: Float[Tensor, "units base_classes"],
    forgotten: Bool[Tensor, " base_classes"],
    means: Float[Tensor, "base_classes size"],
    centre: Float[Tensor, " size"],
    temperature: float,
) -> Float[Tensor, " units"]:
    """Return KL(q ‖ p) of each unit, in nats: what a head made of class means would answer.

    The head has a row for each kept class, the direction of its mean feature in the base, and one
    that an attacker would add: the direction of the mean of the unit's own class, from the other
    units of the batch. p = softmax(cos / temperature); q is the base's answer without forgotten
    classes, zero on the added row. A unit that is alone in its class has 0.
    """
    kept = ~forgotten & (means != 0).any(-1)
    moved = features.float() - centre
    ways = functional.normalize(moved, dim=-1)
    same = _others_of_class(class_ids)
    others = same.sum(-1)
    own = functional.normalize(same.to(moved.dtype) @ moved, dim=-1)
    rows = functional.normalize(means[kept] - centre, dim=-1)
    cosines = torch.cat([ways @ rows.T, (ways * own).sum(-1, keepdim=True)], -1)
    nothing = torch.zeros(int(kept.sum()), dtype=torch.bool, device=forgotten.device)
    divergence = masked_distillation(cosines / temperature, base_logits[:, kept], nothing)
    return divergence * (others > 0)


def subspace(
    features: Float[Tensor, "units size"],
    basis: Float[Tensor, "size directions"],
    centre: Float[Tensor, " size"],
    spread: Float[Tensor, ""],
) -> Float[Tensor, " units"]:
    """Return ||Uᵀ(f - c)||² / s of each unit: what is left in a class's subspace."""
    return ((features.float() - centre) @ basis).square().sum(-1) / spread.clamp_min(_TINY)


def prototype(
    features: Float[Tensor, "units size"],
    class_ids: Int[Tensor, " units"],
    means: Float[Tensor, "base_classes size"],
) -> Float[Tensor, " units"]:
    """Return KL(softmax(m) ‖ softmax(f)) of each unit, in nats; m is the base's mean of its class.

    A unit of a class without a mean has 0.
    """
    inside = class_ids < len(means)
    own = means[class_ids.clamp_max(len(means) - 1)]
    target = own.log_softmax(-1)
    divergence = (target.exp() * (target - features.float().log_softmax(-1))).sum(-1)
    return divergence * (inside & (own != 0).any(-1))


def tilted_distillation(
    logits: Float[Tensor, "units classes"],
    base_logits: Float[Tensor, "units base_classes"],
    class_ids: Int[Tensor, " units"],
    forgotten: Bool[Tensor, " base_classes"],
    means: Float[Tensor, "base_classes size"],
    centre: Float[Tensor, " size"],
    *,
    tilt: float = 1.0,
    temperature: float = 1.0,
) -> Float[Tensor, " units"]:
    """Return T² KL(q ‖ p) of each unit, in nats, q tilted towards classes like the unit's own.

    q_c ∝ softmax(base_logits / T)_c · exp(tilt · cos(m_y - c, m_c - c)) over the kept classes: with
    tilt 0 it is `masked_distillation`.
    """
    ways = functional.normalize(means - centre, dim=-1) * (means != 0).any(-1, keepdim=True)
    similar = ways[class_ids.clamp_max(len(means) - 1)] @ ways.T
    tilted = base_logits.float() + temperature * tilt * similar
    return masked_distillation(logits, tilted, forgotten, temperature=temperature)
