"""Group lasso over blocks: one group for each block, all LoRA matrices of its feed-forward network.

R = Σ_groups sqrt(Σ_M ‖M‖_F²), as in the paper (no size weight). Two ways to minimise it: the
paper's sub-gradient, made safe by an epsilon, never reaches zero; the proximal operator (Parikh and
Boyd 2014, section 6.5.1) does, exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def group_lasso(groups: Iterable[Sequence[Tensor]], *, epsilon: float = 0.0) -> Float[Tensor, ""]:
    """Return Σ_groups sqrt(Σ ‖M‖_F² + epsilon).

    With epsilon 0 the gradient at a zero group is NaN.
    """
    norms = [
        torch.sqrt(torch.stack([m.square().sum() for m in group]).sum() + epsilon)
        for group in groups
    ]
    return torch.stack(norms).sum()


@torch.no_grad()
def proximal_step(groups: Iterable[Sequence[Tensor]], threshold: float) -> None:
    """Shrink each group in place: M <- M · max(0, 1 - threshold / ‖group‖).

    Short groups become exactly zero.
    """
    for group in groups:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(group))))
        factor = (1.0 - threshold / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_min(0.0)
        torch._foreach_mul_(list(group), factor)


@torch.no_grad()
def num_zero_groups(groups: Iterable[Sequence[Tensor]]) -> int:
    """Return how many groups are exactly zero."""
    return sum(not any(bool(m.any()) for m in group) for group in groups)
