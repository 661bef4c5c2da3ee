"""Selective synaptic dampening: weights that matter to what is to be forgotten alone are shrunk.

Source: SSD, Foster, Schoepf, Brintrup (AAAI 2024, arXiv 2308.07707). No stage of training: one pass
over images gives the importances, one product the weights. What differs is in docs/method.md.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def selected(
    forget: Float[Tensor, "*shape"], kept: Float[Tensor, "*shape"], *, selection: float
) -> Bool[Tensor, "*shape"]:
    """Return where I_f > α · I_k: weights that what is to be forgotten needs more than the rest.

    Args:
        forget: I_f, mean squared gradient over images of what is to be forgotten.
        kept: I_k, over images of what is kept.
        selection: α.
    """
    return forget > selection * kept


def dampened(
    weights: Float[Tensor, "*shape"],
    forget: Float[Tensor, "*shape"],
    kept: Float[Tensor, "*shape"],
    *,
    selection: float,
    strength: float,
) -> Float[Tensor, "*shape"]:
    """Return w · min(λ · I_k / I_f, 1) where a weight is `selected`, w elsewhere, bit by bit.

    `strength` is λ; the other arguments are those of `selected`.
    """
    chosen = selected(forget, kept, selection=selection)
    factor = (strength * kept / forget.where(chosen, 1.0)).clamp_max(1.0)
    return torch.where(chosen, weights * factor, weights)
