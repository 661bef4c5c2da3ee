"""What some methods work out once, before a stage trains: which entries move, and which matter.

- Saliency (SalUn, Fan et al. 2024, arXiv 2310.12508): only those entries of the adapter train whose
  gradient of the cross-entropy on forget images is large.
- Consolidation (EWC, Kirkpatrick et al. 2017, arXiv 1612.00796): entries that matter for what is
  protected, by the diagonal Fisher information, are held at their values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from kswap.data import ImageSet
from kswap.errors import UserError
from kswap.objectives import OBJECTIVES
from kswap.objectives.units import Units
from kswap.plan import Stage
from kswap.settings import Role, TermConfig
from kswap.training.loop import Trainee, set_modes, step_seed, units_of
from kswap.training.streams import Batch, Source, Streams, batch_of_one

_BATCHES = 4
"""Batches that saliency is the mean over."""
_IMAGES = 64
"""Images that the Fisher information is the mean over."""


def prepare(
    trainee: Trainee, stage: Stage, streams: Streams, sets: Mapping[Role, ImageSet]
) -> dict[str, Tensor]:
    """Return `mask.NAME` (bool) and `fisher.NAME` of the adapter's tensors, as the stage asks."""
    found: dict[str, Tensor] = {}
    if stage.config.saliency is None and not stage.config.consolidation:
        return found
    torch.manual_seed(step_seed(trainee.seed, stage.index, 0))
    set_modes(trainee.model, checkpointing=trainee.training.gradient_checkpointing)
    if stage.config.saliency is not None:
        batches = (streams.batch(step) for step in range(min(_BATCHES, streams.num_steps)))
        mean = _gradients(trainee, stage, batches, ("forget",))
        for name, gradient in mean.items():
            found[f"mask.{name}"] = salient(gradient, stage.config.saliency)
    if stage.config.consolidation:
        found |= {f"fisher.{k}": v for k, v in _fisher(trainee, stage, sets).items()}
    return found


def salient(gradient: Tensor, share: float) -> Tensor:
    """Return where |gradient| is among the largest `share` of a tensor; ties are in.

    Of every tensor by itself: the gradients of A and B differ in scale, and A's is 0 where B is.
    """
    size = gradient.abs().flatten()
    rank = min(len(size), max(1, round(share * len(size))))
    threshold: Tensor = size.kthvalue(len(size) - rank + 1).values
    return gradient.abs() >= threshold


def _fisher(trainee: Trainee, stage: Stage, sets: Mapping[Role, ImageSet]) -> dict[str, Tensor]:
    """Return the mean squared gradient of log p_y over single images of protected roles."""
    roles = [role for role in stage.protected if role in sets]
    if not roles:
        raise UserError(
            f"stages.{stage.kind}.consolidation: there are no images of what is to be kept, whose "
            "Fisher information it needs; add a 'retain:' source, or set it to 0"
        )
    sums: dict[str, Tensor] = {}
    count = 0
    for role in roles:
        total = len(sets[role])
        rows = np.unique(np.linspace(0, total - 1, -(-_IMAGES // len(roles))).astype(np.int64))
        for row in rows:
            image = batch_of_one(Source(sets[role]), role, int(row))
            count += 1
            for name, gradient in _gradients(trainee, stage, [image], roles).items():
                sums[name] = sums.get(name, torch.zeros_like(gradient)) + gradient.square()
    return {name: total / count for name, total in sums.items()}


def _gradients(
    trainee: Trainee, stage: Stage, batches: Iterable[Batch], roles: Sequence[Role]
) -> dict[str, Tensor]:
    """Return the gradient of the mean cross-entropy of units of `roles`, by adapter tensor."""
    own = TermConfig(roles=tuple(roles), objective="cross_entropy")
    names, parameters = zip(*trainee.moved.adapter, strict=True)
    sums: dict[str, Tensor] = {}
    for batch in batches:
        groups: list[Units] = [
            chosen
            for units in units_of(trainee, stage, batch)
            if not units.inside and len((chosen := units.having(own.roles)).class_ids)
        ]
        if not groups:
            continue
        losses = [OBJECTIVES["cross_entropy"](units, own, 1.0).mean() for units in groups]
        gradients = torch.autograd.grad(torch.stack(losses).sum(), parameters, allow_unused=True)
        for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
            if gradient is not None:
                sums[name] = sums.get(name, torch.zeros_like(parameter.detach())) + gradient
    return sums
