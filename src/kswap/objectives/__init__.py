"""Objectives: pure functions of tensors, one loss per unit (image, pixel, query, matched box).

A new objective is a pure function in this package, its name in `TermConfig.objective` and one line
below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kswap.config import ROLES, Role, TermConfig
from kswap.objectives import sigmoid
from kswap.objectives.forgetting import (
    bounded_ce_batch,
    bounded_ce_sample,
    default_bound,
    masked_distillation,
)
from kswap.objectives.learning import cross_entropy, distillation, restricted_distillation


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

    def having(self, roles: Sequence[Role]) -> Units:
        """Return the units that have one of `roles`."""
        return self.rows(has_role(self.roles, roles))

    def rows(self, chosen: Tensor) -> Units:
        """Return some units: by index or by truth value."""
        per_unit: dict[str, Any] = {
            f.name: value[chosen]
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor) and f.name != "forgotten"
        }
        return replace(self, **per_unit)

    def taught(self) -> tuple[Tensor, Tensor]:
        """Return the logits and those of the base model, for objectives that distil."""
        assert self.logits is not None, "the plan says which units are compared with the base"
        assert self.base_logits is not None, "the plan says which roles need base logits"
        return self.logits, self.base_logits


def serves(units: Units, objective: str) -> bool:
    """Whether the units have what an objective compares."""
    if objective in NEEDS_BASE:
        return units.base_logits is not None
    return units.own is not None or units.weight is None


def has_role(roles: Tensor, wanted: Sequence[Role]) -> Tensor:
    """Return (units,): whether each has one of the wanted roles."""
    codes = [ROLES.index(role) for role in wanted]
    return torch.isin(roles, torch.tensor(codes, device=roles.device))


def _own(u: Units, t: TermConfig, divisor: float) -> Tensor:
    if u.own is not None:
        return u.own
    assert u.logits is not None
    return cross_entropy(u.logits, u.class_ids)


def _bounded_batch(u: Units, t: TermConfig, divisor: float) -> Tensor:
    if u.own is None:
        assert u.logits is not None
        return bounded_ce_batch(u.logits, u.class_ids, bound=t.bound)
    bound = default_bound(t.bound, u.forgotten[None])
    room = functional.relu(bound - u.own.sum() / divisor)
    return (room * divisor / len(u.own)).expand(len(u.own))


def _bounded_sample(u: Units, t: TermConfig, divisor: float) -> Tensor:
    if u.own is None or u.weight is None:
        assert u.logits is not None
        return bounded_ce_sample(u.logits, u.class_ids, bound=t.bound)
    nats = u.own / u.weight.clamp_min(torch.finfo(u.own.dtype).tiny)
    return u.weight * functional.relu(default_bound(t.bound, u.forgotten[None]) - nats)


def _distil(u: Units, t: TermConfig, divisor: float) -> Tensor:
    function = sigmoid.distillation if u.sigmoid else distillation
    return _weighted(u, function(*u.taught(), temperature=t.temperature))


def _masked(u: Units, t: TermConfig, divisor: float) -> Tensor:
    function = sigmoid.masked_distillation if u.sigmoid else masked_distillation
    return _weighted(u, function(*u.taught(), u.forgotten, temperature=t.temperature))


def _restricted(u: Units, t: TermConfig, divisor: float) -> Tensor:
    function = sigmoid.restricted_distillation if u.sigmoid else restricted_distillation
    return _weighted(u, function(*u.taught(), u.forgotten, temperature=t.temperature))


def _weighted(u: Units, nats: Tensor) -> Tensor:
    return nats if u.weight is None else u.weight * nats


OBJECTIVES: Mapping[str, Callable[[Units, TermConfig, float], Tensor]] = {
    "cross_entropy": _own,
    "bounded_ce_batch": _bounded_batch,
    "bounded_ce_sample": _bounded_sample,
    "distillation": _distil,
    "masked_distillation": _masked,
    "restricted_distillation": _restricted,
}
"""Name -> function of units, the term's settings and what the sum over the units is divided by;
returns (units,)."""
NEEDS_BASE = frozenset({"distillation", "masked_distillation", "restricted_distillation"})
"""Objectives that compare with the base model's outputs."""
NEEDS_KEPT = frozenset({"masked_distillation", "restricted_distillation"})
"""Those that do so on the classes that are not forgotten; without any they have no value."""
