"""A change of a linear's weights as an adapter of a given rank."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def low_rank(
    wanted: Float[Tensor, "out in"],
    rank: int,
    *,
    importance: Float[Tensor, "out in"] | None = None,
) -> tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"]]:
    """Return A and B, equally large, with B·A near `wanted`; equal to it where the rank suffices.

    Without `importance` the truncated singular value decomposition: least ‖W − B·A‖_F (Eckart and
    Young 1936). With it the least ‖D_r (W − B·A) D_c‖_F, D_r and D_c diagonal, their squares the
    means of the importance over columns and over rows (Hsu et al. 2022, arXiv 2207.00112, for rows
    alone): what a Fisher information that is a product of outputs' and inputs' says the error
    costs.

    Args:
        wanted: W.
        rank: of A and B. What W does not need of it is left as LoRA begins: B is 0 there, A is not,
            but for rows beyond the smaller side of W.
        importance: of each weight, not negative; a Fisher information.
    """
    full = wanted.double()
    rows, columns = full.new_ones(full.shape[0]), full.new_ones(full.shape[1])
    if importance is not None and bool(importance.any()):
        rows, columns = _scales(importance.double(), 1), _scales(importance.double(), 0)
    left, singular, right = torch.linalg.svd(rows[:, None] * full * columns, full_matrices=False)
    size = min(rank, len(singular))
    up = full.new_zeros(full.shape[0], rank)
    down = full.new_zeros(rank, full.shape[1])
    up[:, :size] = left[:, :size] * singular[:size] / rows[:, None]
    down[:size] = right[:size] / columns
    empty = torch.ones(rank, dtype=torch.bool, device=full.device)
    empty[:size] = singular[:size] <= torch.finfo(torch.float32).eps * singular[0]
    up[:, empty] = 0.0
    norms = up.norm(dim=0), down.norm(dim=1).clamp_min(torch.finfo(full.dtype).tiny)
    # Equally large; where B has nothing to say A has rows of length 1, from which it can learn.
    size_of_row = torch.where(empty, 1.0, (norms[0] * norms[1]).sqrt())
    return (
        (down * (size_of_row / norms[1])[:, None]).to(wanted),
        (up * (size_of_row / norms[0].where(~empty, 1.0))).to(wanted),
    )


_LEAST = 1e-3
"""Of the mean importance: no row or column is free."""


def _scales(importance: Tensor, axis: int) -> Tensor:
    means = importance.mean(axis)
    return (means + _LEAST * means.mean()).sqrt()
