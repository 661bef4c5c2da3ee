"""Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv 1612.00796): what matters stays."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor


def consolidation(triples: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Float[Tensor, ""]:
    """Return 1/2 Σ F (θ - θ_0)², in nats; triples of θ, θ_0 and the diagonal of the Fisher F."""
    terms = [0.5 * (fisher * (now - anchor).square()).sum() for now, anchor, fisher in triples]
    return torch.stack(terms).sum()
