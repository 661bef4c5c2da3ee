"""Whether the last block need not see all tokens in a stage: asked of the stage's own forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from kswap.data import ImageSet
from kswap.models.structure import FfnBlock
from kswap.models.unread import find_unread
from kswap.plan import Stage
from kswap.ranks import shards_base
from kswap.settings import Role
from kswap.training.loop import Trainee, units_of
from kswap.training.streams import Source, batch_of_one

_ROUNDING = {"no": 1e-4, "bf16": 3e-2, "fp16": 5e-3}
"""By precision: largest difference of answers where products have other shapes, of the largest."""


def without_unread_tokens(
    trainee: Trainee, stage: Stage, sets: Mapping[Role, ImageSet], block: FfnBlock
) -> Trainee:
    """Return a trainee that leaves out what nobody reads of the last block; or the same.

    A function of the model and the stage alone: a run that is gone on from finds the same.
    Not for scenes, where every token is a place of the image; not where activations are computed
    again in the backward; not where the base is sharded.

    Args:
        trainee: narrowed to what trains in the stage; computes from the image.
        stage: the stage.
        sets: training images by role.
        block: the model's last one.
    """
    if not trainee.task.units_are_images:
        return trainee
    if trainee.training.gradient_checkpointing or shards_base():
        return trainee
    trainee.model.eval()  # with dropout two forwards differ once the adapter is not zero
    role = next(role for role in sets if role in stage.active)
    batch = batch_of_one(Source(sets[role]), role, 0)
    asked = replace(trainee, teach_now=False, augment=None)

    def answers() -> list[Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            units = units_of(asked, stage, batch)
        found = [t for one in units for t in (one.logits, one.own) if t is not None]
        return found + [rows for one in units for rows in (one.features or {}).values()]

    unread = find_unread(
        trainee.base,
        block,
        answers,
        tolerance=_ROUNDING[trainee.accelerator.mixed_precision],
    )
    return replace(trainee, unread=unread)
