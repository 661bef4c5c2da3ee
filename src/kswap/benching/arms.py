"""What is compared: a preset, an order, and which supervision of earlier stages is kept.

The advantage that the paper measures for L→F mixes order with supervision: its L→F replays the
learned classes while forgetting, its F→L drops the forget term while learning. A variant takes one
of the two away, so that each order can be seen with and without it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kswap.config import SwapConfig
from kswap.errors import UserError
from kswap.settings import Role, StageKind
from kswap.yaml_text import merge

VARIANTS: Mapping[str, tuple[tuple[StageKind, Role], ...]] = {
    "full": (),
    "no-replay": (("forget", "learn"),),
    "no-forget-term": (("learn", "forget"),),
    "neither": (("forget", "learn"), ("learn", "forget")),
}
"""Name -> (kind of stage, role whose terms it loses)."""


@dataclass(frozen=True)
class Arm:
    """One row of the table."""

    preset: str
    order: str
    variant: str = "full"

    @property
    def name(self) -> str:
        """Name of its run folders, seed aside."""
        parts = [self.preset, self.order, *([] if self.variant == "full" else [self.variant])]
        return "-".join(parts)

    def config(self, values: Mapping[str, Any], *, seed: int, output: str) -> SwapConfig:
        """Return the config of one run.

        Args:
            values: what all arms share: model, sources, and whatever else the user gave.
            seed: of the run.
            output: its folder.

        Raises:
            UserError: a value is wrong.
        """
        own = {"preset": self.preset, "order": self.order, "seed": seed, "output": output}
        config = SwapConfig.from_mapping(merge(values, own))
        if self.variant == "full":
            return config
        stages = config.to_mapping()["stages"]
        for kind, role in VARIANTS[self.variant]:
            stages[kind]["terms"] = _without(stages[kind]["terms"], role)
        return SwapConfig.from_mapping(merge(merge(values, own), {"stages": stages}))


def _without(terms: Mapping[str, Any], role: Role) -> dict[str, Any]:
    """Return terms of which none has the role; one that has no other role gets the weight 0."""
    left = {}
    for name, term in terms.items():
        others = [r for r in term["roles"] if r != role]
        left[name] = {**term, "roles": others} if others else {**term, "weight": 0.0}
    return left


def make_arms(
    presets: Iterable[str], orders: Iterable[str], variants: Iterable[str]
) -> tuple[Arm, ...]:
    """Return the product, without variants that take away what an order does not have.

    Raises:
        UserError: an unknown variant.
    """
    arms = []
    for preset, order, variant in itertools.product(presets, orders, variants):
        if variant not in VARIANTS:
            raise UserError(
                f"--variants: {variant!r} is not a variant; take some of {', '.join(VARIANTS)}"
            )
        if all(_has(order, kind) for kind, _ in VARIANTS[variant]):
            arms.append(Arm(preset, order, variant))
    return tuple(dict.fromkeys(arms))


def _has(order: str, kind: StageKind) -> bool:
    """Whether a stage of this kind comes after one of the other."""
    letter, earlier = {"forget": ("F", "LJ"), "learn": ("L", "FJ"), "joint": ("J", "")}[kind]
    return any(
        letter == here and set(order[:place]) & set(earlier) for place, here in enumerate(order)
    )
