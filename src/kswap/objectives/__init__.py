"""Objectives: pure functions of tensors, one loss per unit (image, pixel, query, matched box).

A new objective is a pure function in this package, its name in `TermConfig.objective` and one line
below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from kswap.config import TermConfig
from kswap.objectives.forgetting import bounded_ce_batch, bounded_ce_sample, masked_distillation
from kswap.objectives.learning import cross_entropy, distillation, restricted_distillation


@dataclass(frozen=True)
class Units:
    """What the terms of a loss are computed from; rows of all tensors belong together."""

    logits: Tensor
    """(units, classes), of the model that trains."""
    class_ids: Tensor
    """(units,), rows of the head."""
    base_logits: Tensor | None
    """(units, base classes), of the base model; None where no term needs them."""
    forgotten: Tensor
    """(base classes,), true where the class is to be forgotten, or was."""

    def taught(self) -> tuple[Tensor, Tensor]:
        """Return the logits and those of the base model, for objectives that distil."""
        assert self.base_logits is not None, "the plan says which roles need base logits"
        return self.logits, self.base_logits


OBJECTIVES: dict[str, Callable[[Units, TermConfig], Tensor]] = {
    "cross_entropy": lambda u, t: cross_entropy(u.logits, u.class_ids),
    "bounded_ce_batch": lambda u, t: bounded_ce_batch(u.logits, u.class_ids, bound=t.bound),
    "bounded_ce_sample": lambda u, t: bounded_ce_sample(u.logits, u.class_ids, bound=t.bound),
    "distillation": lambda u, t: distillation(*u.taught(), temperature=t.temperature),
    "masked_distillation": lambda u, t: masked_distillation(
        *u.taught(), u.forgotten, temperature=t.temperature
    ),
    "restricted_distillation": lambda u, t: restricted_distillation(
        *u.taught(), u.forgotten, temperature=t.temperature
    ),
}
NEEDS_BASE = frozenset({"distillation", "masked_distillation", "restricted_distillation"})
"""Objectives that compare with the base model's outputs."""
NEEDS_KEPT = frozenset({"masked_distillation", "restricted_distillation"})
"""Those that do so on the classes that are not forgotten; without any they have no value."""
