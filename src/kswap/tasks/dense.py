"""What segmentation and detection share: roles of annotations, and how units are counted."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from kswap.objectives import NEEDS_FEATURES, has_role
from kswap.settings import TermConfig
from kswap.tasks import View


def object_divisors(
    rows: Tensor,
    terms: Mapping[str, TermConfig],
    view: View,
    *,
    units: Tensor | None = None,
) -> dict[str, float]:
    """Return what the sums of the terms are divided by.

    The task's own loss is divided by the number of objects (pixels) of the batch already. A share
    stays so; a mean is over the objects of the term's roles: the sum is divided by their part in
    all. A term without an object may still have units that say "nothing". A term on features is the
    mean over its own units.

    Args:
        rows: (objects,) classes of the whole batch; negative ones are none.
        terms: of the stage.
        view: the classes at the stage.
        units: (units,) classes of what objectives on features look at; None: the objects.
    """
    looked_at = roles_of(rows if units is None else units, view)
    rows = rows[(rows >= 0) & (rows < view.num_rows)]
    roles = view.role_of_row.to(rows.device)[rows]
    total = max(len(rows), 1)

    def divisor(term: TermConfig) -> float:
        if term.objective in NEEDS_FEATURES:
            return int(has_role(looked_at, term.roles).sum())
        if term.reduction == "share":
            return 1.0
        return max(int(has_role(roles, term.roles).sum()), 1) / total

    return {name: divisor(term) for name, term in terms.items()}


def count_objects(masks: Tensor, view: View) -> Tensor:
    """Return the class of every annotated pixel that the stage knows, (pixels,)."""
    rows = masks[masks >= 0].long()
    return rows[rows < view.num_rows]


def roles_of(class_ids: Tensor, view: View) -> Tensor:
    """Return the role of each class at the stage; -1: none, or not known yet."""
    class_ids = class_ids.long()  # an empty list of classes has no type of its own
    inside = (class_ids >= 0) & (class_ids < view.num_rows)
    roles = view.role_of_row.to(class_ids.device)[class_ids.clamp(0, view.num_rows - 1)]
    return torch.where(inside, roles, -1)


def truth_at(masks: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Return masks (images, height, width) at another size, by the nearest pixel."""
    scaled = functional.interpolate(masks[:, None].float(), size=tuple(size), mode="nearest-exact")
    return scaled[:, 0].round().long()
