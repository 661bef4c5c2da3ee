"""How deep a stage trains: all blocks, the last ones, or those that its gradient asks for.

What lies below the lowest block that trains does not change in the stage: it needs no backward,
and its outputs can be computed once for each image (`kswap.models.prefix`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from kswap.objectives import has_role
from kswap.plan import Stage
from kswap.training.loop import Trainee, compute_terms, set_modes, step_seed, units_of
from kswap.training.optimiser import Trainables
from kswap.training.streams import Streams

_TRIES = 4
"""Batches that the probe of `auto` looks into for one with a gradient: scenes may lack a class."""
_SHARE = 0.15
"""Share of the squared gradient that the blocks found by `auto` hold. Gradients of a transformer
hardly fall towards its input, while a step costs as much as it has blocks: on images in no split
so much ended no worse than a quarter, a half or all of it (LOG.md, 2026-11-26)."""


def num_frozen_as_said(stage: Stage, total: int) -> int | None:
    """Return how many of `total` blocks stay as they are in a stage; None: its gradient says."""
    depth = stage.config.depth
    if depth == "auto":
        return None
    return 0 if depth == "all" else max(0, total - int(depth.removeprefix("last-")))


def deeper_than(stages: Sequence[Stage], total: int) -> list[str]:
    """Return a note for each stage whose `last-K` asks for more blocks than there are."""
    notes = []
    for stage in stages:
        depth = stage.config.depth
        if depth.startswith("last-") and int(depth.removeprefix("last-")) > total:
            notes.append(
                f"stage {stage.name}: depth {depth}, and the model has {total} blocks: all train"
            )
    return notes


def num_frozen_blocks(trainee: Trainee, stage: Stage, streams: Streams) -> int:
    """Return how many of the first blocks stay as they are in a stage.

    `auto` looks at the gradient of the terms of what the stage is there for, in its first batch.
    """
    total = len(trainee.groups)
    said = num_frozen_as_said(stage, total)
    if said is not None:
        return said
    return total - blocks_needed(_squared_gradients(trainee, stage, streams))


def blocks_needed(squares: Sequence[float], share: float = _SHARE) -> int:
    """Return how many of the last blocks hold `share` of the sum; all, where it is 0."""
    wanted, held = share * sum(squares), 0.0
    for count, square in enumerate(reversed(squares), start=1):
        held += square
        if held >= wanted > 0:
            return count
    return len(squares)


def narrowed(trainee: Trainee, num_frozen: int) -> Trainee:
    """Freeze the adapter of the first blocks, in place, and return what is left to train."""
    for number, group in enumerate(trainee.groups):
        for parameter in group:
            parameter.requires_grad_(number >= num_frozen)
    adapter = [(name, p) for name, p in trainee.moved.adapter if p.requires_grad]
    return replace(
        trainee,
        groups=trainee.groups[num_frozen:],
        moved=Trainables(adapter, trainee.moved.head),
    )


def _squared_gradients(trainee: Trainee, stage: Stage, streams: Streams) -> list[float]:
    """Return the squared norm of the gradient on each block's adapter; zeros: none was found."""
    torch.manual_seed(step_seed(trainee.seed, stage.index, 0))
    set_modes(trainee.model, checkpointing=trainee.training.gradient_checkpointing)
    parameters: list[nn.Parameter] = [p for group in trainee.groups for p in group]
    terms = {n: t for n, t in stage.config.terms.items() if set(t.roles) & set(stage.target)}
    view = trainee.views[stage.name]
    sums = [0.0] * len(trainee.groups)
    for step in range(min(_TRIES, streams.num_steps)):
        batch = streams.batch(step)
        divisors = trainee.task.divisors(batch.samples, batch.roles, terms, view)
        if trainee.task.units_are_images:  # those of other roles have no part in these terms
            roles = [role for term in terms.values() for role in term.roles]
            batch = batch.rows(has_role(batch.roles, roles).nonzero()[:, 0].numpy())
        if not len(batch):
            continue
        values = compute_terms(units_of(trainee, stage, batch), terms, divisors)
        if not values:
            continue
        loss = torch.stack(list(values.values())).sum()
        gradients = iter(torch.autograd.grad(loss, parameters, allow_unused=True))
        for number, group in enumerate(trainee.groups):
            found = [next(gradients) for _ in group]
            sums[number] = sum(float(g.square().sum()) for g in found if g is not None)
        if any(sums):
            break
    return sums
