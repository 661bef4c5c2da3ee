"""A8: is it reversible? What it takes to undo the swap.

The adapter is a separate file: whoever leaves it out has the base again, forgotten classes
included. A merged model is the base plus a matrix of low rank in every adapted layer: whoever holds
the public base subtracts the two. So nothing here can pass; it is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kswap.audits.findings import Finding, Table, not_available
from kswap.audits.subjects import Case

TITLE = "Adapter removal"
QUESTION = "Is it reversible?"
UNMERGED = (
    "The unmerged adapter is reversible by design: without it the model is the base again, "
    "forgotten classes included. Give away model/, not adapter/ beside a base."
)
MERGED = (
    "The merged model is reversible too for whoever holds the public base: subtracting the two "
    "leaves the adapter."
)
_TOLERANCE = 1e-3
"""Part of a difference's norm that its rank may leave out: rounding of the merge."""


def audit(
    case: Case,
    base: Mapping[str, Tensor],
    swapped: Mapping[str, Tensor],
    *,
    rank: int,
    has_adapter: bool,
) -> Finding:
    """Compare the weights of the merged model with the base's, and say what follows.

    Args:
        case: for the scores of the base.
        base: its state by name.
        swapped: that of the merged model.
        rank: of the adapter.
        has_adapter: whether the run still holds it.
    """
    ranks = {
        name: difference_rank(base[name], swapped[name], most=rank + 8)
        for name in base
        if name in swapped
        and base[name].shape == swapped[name].shape
        and base[name].ndim >= 2
        and not torch.equal(base[name], swapped[name])
    }
    low = sum(found is not None and found <= rank for found in ranks.values())
    table = Table(
        "Merged weights minus the base's",
        ("matrices that differ", "of a rank up to the adapter's", "rank of the adapter"),
        [[len(ranks), low, rank]],
    )
    answers = case.base.of("forget", "test") or case.base.of("retain", "test")
    what = "forget" if case.forgets else "retain"
    undone = float(answers.scores.total) if answers is not None else not_available("no images")
    scores = Table(
        "Score with the adapter disabled: the base's",
        ("role", "score"),
        [[f"{what}, test", undone if has_adapter else not_available("RUN/adapter is gone")]],
    )
    return Finding(
        TITLE,
        QUESTION,
        "info",
        "reversible by design, by whoever holds the adapter apart or the public base",
        (table, scores),
        values={"ranks": ranks, "score with the adapter disabled": undone},
    )


def difference_rank(one: Tensor, other: Tensor, *, most: int) -> int | None:
    """Return the rank of other − one, up to `most`, leaving out rounding; None: it is higher."""
    delta: Any = (other.double() - one.double()).flatten(1)
    if min(delta.shape) <= most:
        values = torch.linalg.svdvals(delta)
    else:
        generator = torch.Generator().manual_seed(0)
        sketch = torch.randn(delta.shape[1], most, generator=generator, dtype=delta.dtype)
        span, _ = torch.linalg.qr(delta @ sketch)
        inside = span.T @ delta
        if float((delta - span @ inside).norm()) > _TOLERANCE * float(delta.norm()):
            return None
        values = torch.linalg.svdvals(inside)
    left = values.square().flip(0).cumsum(0).sqrt().flip(0)  # norm of what a cut at i leaves out
    return int((left > _TOLERANCE * float(left[0])).sum())
