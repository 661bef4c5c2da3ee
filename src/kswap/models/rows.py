"""The start of the rows that learned classes add to a head: pure functions of tensors.

Own design, after weight imprinting (Qi, Brown, Lowe, CVPR 2018), with a centre and a bias added so
that the new logits are commensurate with trained ones. Random rows: the reference implementation of
the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_MARGIN = 1.0
"""Nats by which a new row leads the old ones at its own class mean."""


def random_rows(
    num_new: int, in_features: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return Xavier-uniform weights and zero biases, from a private generator.

    The matrix of new rows is drawn as a whole: U(-a, a), a = sqrt(6 / (num_new + in_features)).

    Returns:
        weight (num_new, in_features) and bias (num_new,).
    """
    weight = torch.empty(num_new, in_features)
    nn.init.xavier_uniform_(weight, generator=generator)
    return weight, torch.zeros(num_new)


def class_mean_rows(
    old_weight: Tensor,
    old_bias: Tensor | None,
    means: Tensor,
    centre: Tensor,
    *,
    lead: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return rows that point from the centre of the features to the mean of each new class.

    With the mean feature mu_c of new class c, the centre mu, and rho the mean norm of the old rows:

        w_c = rho * (mu_c - mu) / ||mu_c - mu||
        b_c = level - w_c . mu

    All new rows answer `level` at the centre, and, by Cauchy-Schwarz, row c leads the new rows at
    mu_c, where it answers level + rho * ||mu_c - mu||. The level is the mean old logit at mu (an
    image of no class in particular favours neither side), raised as little as needed for every new
    row to lead the old ones by 1 nat at its own mean:

        level = max(mean_k z_k(mu), max_c [max_k z_k(mu_c) + 1 - rho * ||mu_c - mu||])

    That is for heads that always name a class. Where most units are nothing (queries, pixels of a
    background) such rows would answer everywhere, and on every object; without `lead` they are the
    mean of the old rows, which names no class and says what all objects have in common, moved
    towards what sets the new class apart, s the mean distance of the old rows from their mean:

        w_c = mean_k w_k + s * (mu_c - mu) / ||mu_c - mu||
        b_c = mean_k b_k - (w_c - mean_k w_k) . mu

    Without a bias in the head the caller drops b, and only the direction and the norm hold.

    Args:
        old_weight: Rows of the old head (K, in_features).
        old_bias: Its bias (K,), if it has one.
        means: Mean feature of each new class (num_new, in_features).
        centre: mu (in_features,): the mean feature over images that the base knows.
        lead: Whether every new row leads at its own mean.

    Returns:
        weight (num_new, in_features) and bias (num_new,), float32, computed in float64.
    """
    weight, means = old_weight.double().cpu(), means.double().cpu()
    bias = weight.new_zeros(len(weight)) if old_bias is None else old_bias.double().cpu()
    centre = centre.double().cpu()
    offsets = means - centre
    distances = offsets.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    ways = offsets / distances[:, None]
    if not lead:
        middle = weight.mean(0)
        moves = (weight - middle).norm(dim=1).mean() * ways
        return (middle + moves).float(), (bias.mean() - moves @ centre).float()
    rho = weight.norm(dim=1).mean()
    rows = rho * ways
    old_at_means = (means @ weight.T + bias).max(dim=1).values
    at_centre = (weight @ centre + bias).mean()
    level = torch.maximum(at_centre, (old_at_means + _MARGIN - rho * distances).max())
    return rows.float(), (level - rows @ centre).float()
