"""Objectives of the methods that users compare with, on outputs alone.

Sources: NegGrad+ and SCRUB, Kurmanji et al. 2023 (arXiv 2302.09880); random labels, Golatkar et al.
2020 (arXiv 1911.04933); bad teacher, Chundawat et al. 2023 (arXiv 2205.08096); boundary shrink,
Chen et al. 2023 (arXiv 2303.11570). What differs from them is in docs/method.md.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from kswap.objectives.learning import distillation


def negative_ce(
    logits: Float[Tensor, "units classes"], class_ids: Int[Tensor, " units"]
) -> Float[Tensor, " units"]:
    """Return log p_y of each unit, in nats: gradient ascent on the cross-entropy, without end."""
    return -functional.cross_entropy(logits, class_ids, reduction="none")


def negative_distillation(
    logits: Float[Tensor, "units classes"],
    base_logits: Float[Tensor, "units base_classes"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, " units"]:
    """Return -T² KL(base ‖ model) of each unit, in nats: away from what the base answers."""
    return -distillation(logits, base_logits, temperature=temperature)


def random_labels(
    logits: Float[Tensor, "units classes"],
    class_ids: Int[Tensor, " units"],
    forgotten: Bool[Tensor, " base_classes"],
    noise: Float[Tensor, " units"],
) -> Float[Tensor, " units"]:
    """Return -log p_r of each unit, in nats, r drawn uniformly from the base's kept classes.

    Where none is kept, from its classes but the unit's own. `noise` in [0, 1) decides.
    """
    kept = (~forgotten)[None].expand(len(class_ids), -1)
    own = functional.one_hot(class_ids, logits.shape[-1])[:, : len(forgotten)].bool()
    allowed = kept & ~own if bool((~forgotten).any()) else ~own
    order = allowed.float().cumsum(-1)
    wanted = (noise * order[:, -1]).floor() + 1
    drawn = (order >= wanted[:, None]).float().argmax(-1)
    return functional.cross_entropy(logits, drawn, reduction="none")


def uniform(logits: Float[Tensor, "units classes"], num_base: int) -> Float[Tensor, " units"]:
    """Return KL(u ‖ p) of each unit, in nats; u is uniform over the base's classes.

    The answer of a teacher that knows nothing, in place of a random network's.
    """
    return distillation(logits, torch.zeros(len(logits), num_base, device=logits.device))


def nearest_class(
    logits: Float[Tensor, "units classes"],
    base_logits: Float[Tensor, "units base_classes"],
    class_ids: Int[Tensor, " units"],
    forgotten: Bool[Tensor, " base_classes"],
) -> Float[Tensor, " units"]:
    """Return -log p_n of each unit, in nats; n is the base's most likely kept class."""
    barred = base_logits.masked_fill(forgotten, -torch.inf)
    own = functional.one_hot(class_ids, logits.shape[-1])[:, : base_logits.shape[-1]].bool()
    return functional.cross_entropy(
        logits, barred.masked_fill(own, -torch.inf).argmax(-1), reduction="none"
    )
