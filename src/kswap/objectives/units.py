"""What the terms of a loss are computed from: units, and what the base model knows of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from kswap.settings import ROLES, Role


@dataclass(frozen=True)
class Place:
    """What the base model's features of training images are like at one place of the model."""

    images: Tensor
    """(images, size), features of the images of retained classes, ordered by class."""
    means: Tensor
    """(base classes, size), class means over the training images; 0 where there are none."""
    centre: Tensor
    """(size,), the mean over classes."""
    spread: Tensor
    """(), mean squared distance of an image from the centre."""
    whitening: Tensor
    """(size, size), symmetric: makes the covariance within retained classes (within all, where none
    is retained), plus the mean variance in every direction, the identity."""
    basis: Mapping[int, Tensor]
    """Forget class -> (size, directions), orthonormal, ordered by variance: that of its images
    which lies outside the main directions of the retained images."""
    energy: Mapping[int, Tensor]
    """Forget class -> (directions,), share of the variance in the directions up to each."""
    middle: Tensor
    """(size,), the mean of the means of retained classes; the centre, where there are none."""
    between: Tensor
    """(size, directions), orthonormal: where the means of retained classes differ; by variance, at
    most a quarter of all directions."""
    apart: Tensor
    """(base classes,), squared distance of a class's mean from the middle along all other
    directions; 0 where it has no mean or is not apart."""
    shifts: Tensor
    """(1 + pairs, size), by `Bank.pairs`: what takes the mean of the images of a forget class that
    look like a retained one to the mean of that; 0 in the first row."""


@dataclass(frozen=True)
class Frame:
    """What a head that is fitted to retained images tells others by, at one place of a model.

    The fields are those of `Place`.
    """

    centre: Tensor
    whitening: Tensor
    middle: Tensor
    between: Tensor


@dataclass(frozen=True)
class Bank:
    """What the base model makes of the training images, fixed before the first stage."""

    places: Mapping[str, Place]
    """By name of the place."""
    class_ids: Tensor
    """(images,), ascending, of `Place.images`."""
    starts: Tensor
    """(base classes,), row of a class's first image."""
    counts: Tensor
    """(base classes,), images of a class; 0: it has none."""
    known: Tensor
    """(base classes,), whether the class has a mean."""
    pairs: Tensor
    """(base classes, base classes), row of `Place.shifts` for images of the first class, one to
    forget, that look like the second, a retained one, to the head; 0: there are none."""
    frames: Mapping[str, Frame] = field(default_factory=dict)
    """By name of the place, of the model as it is by now; a place without one has the base's."""


@dataclass(frozen=True)
class Units:
    """What the terms of a loss are computed from; rows of all tensors belong together.

    The columns of softmax classes begin with those of the base model, which may begin with one for
    "no object".
    """

    class_ids: Tensor
    """(units,), columns of the truth."""
    roles: Tensor
    """(units,), index into ROLES: the role of the unit's class at this stage."""
    forgotten: Tensor
    """(base columns,), true where the class is to be forgotten, or was."""
    logits: Tensor | None
    """(units, columns), of the model that trains; None: only the task's own loss is known."""
    base_logits: Tensor | None = None
    """(units, base columns), of the base model; None where no term needs them."""
    own: Tensor | None = None
    """(units,): the unit's summand of the task's own loss, boxes and masks included; None: the
    cross-entropy of `logits`."""
    weight: Tensor | None = None
    """(units,): what turns nats of a unit into its share of the task's own loss; None: a mean."""
    sigmoid: bool = False
    """Whether each class has a yes or no of its own."""
    features: Mapping[str, Tensor] | None = None
    """Place -> (units, size), of the model that trains; None where no term needs them. Places are
    `head` (`head 2` ...) and, for the block of that number, `3 first` and `3 mean`."""
    num_blocks: int = 0
    """Blocks of the model, from 1."""
    base_features: Mapping[str, Tensor] | None = None
    """Place -> (units, size), of the base model; None where no term needs them."""
    noise: Tensor | None = None
    """(units, 2), uniform in [0, 1), a function of seed, stage and step: what an objective draws
    is decided by it; None where no term draws."""
    bank: Bank | None = None
    """What the base model knows of classes; None where no term needs it."""
    inside: bool = False
    """Whether the units (objects, regions) are there for objectives on features alone."""

    def having(self, roles: Sequence[Role]) -> Units:
        """Return the units that have one of `roles`."""
        return self.rows(has_role(self.roles, roles))

    def rows(self, chosen: Tensor) -> Units:
        """Return some units: by index or by truth value."""
        per_unit: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Tensor) and one.name != "forgotten":
                per_unit[one.name] = value[chosen]
            elif isinstance(value, Mapping):
                per_unit[one.name] = {name: rows[chosen] for name, rows in value.items()}
        return replace(self, **per_unit)

    def taught(self) -> tuple[Tensor, Tensor]:
        """Return the logits and those of the base model, for objectives that distil."""
        assert self.logits is not None, "the plan says which units are compared with the base"
        assert self.base_logits is not None, "the plan says which roles need base logits"
        return self.logits, self.base_logits


def has_role(roles: Tensor, wanted: Sequence[Role]) -> Tensor:
    """Return (units,): whether each has one of the wanted roles."""
    codes = [ROLES.index(role) for role in wanted]
    return torch.isin(roles, torch.tensor(codes, device=roles.device))
