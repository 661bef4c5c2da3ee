"""Two small images of a few objects, and what their classes are at a stage."""

from __future__ import annotations

import torch
from criteria_models import SIDE

from kswap.data.sets import OPEN
from kswap.settings import ROLES, TermConfig
from kswap.tasks import Examples, View

LEARN, FORGET, RETAIN = range(3)
TERMS = {
    role: TermConfig(roles=(role,), objective="cross_entropy", reduction="share") for role in ROLES
}
_PIXELS = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def view_of(roles: list[int], num_base: int, *, forgets: bool = True) -> View:
    """Return a stage at which rows have these roles; those of FORGET are forgotten."""
    gone = torch.tensor([role == FORGET and forgets for role in roles[:num_base]])
    return View(torch.tensor(roles), num_base, gone)


def examples(*, complete: bool = True, ids: tuple[int, ...] = (0, 3, 4)) -> Examples:
    """Two images of the same objects, one class beside the other."""
    masks = torch.full((2, SIDE, SIDE), OPEN)
    boxes = []
    for place, class_id in enumerate(ids):
        left = 2 + place * (SIDE // len(ids))
        masks[:, 8:40, left : left + 14] = class_id
        boxes.append([left / SIDE, 8 / SIDE, (left + 14) / SIDE, 40 / SIDE])
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Examples(
        pixels=_PIXELS,
        class_ids=torch.zeros(2, dtype=torch.long),
        roles=torch.zeros(2, dtype=torch.long),
        complete=torch.full((2,), complete),
        masks=masks,
        boxes=(corners, corners),
        box_ids=(torch.tensor(ids).long(),) * 2,
        crowd=(torch.zeros(len(ids), dtype=torch.bool),) * 2,
    )
