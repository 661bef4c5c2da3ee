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


def matched_steps(order: str, steps: Mapping[str, int]) -> dict[str, Any]:
    """Return the lengths of an order's stages, so that all orders train for equally many steps.

    The steps of a kind are shared out among its stages; a joint stage is a learning and a
    forgetting stage at once and takes a share of both.

    Args:
        order: string of L, F and J.
        steps: all steps of `learn` and of `forget` in an order.

    Raises:
        UserError: there are fewer steps than stages.
    """
    joint = order.count("J")
    stages = {"learn": order.count("L") + joint, "forget": order.count("F") + joint}
    for kind, count in stages.items():
        if steps[kind] < count:
            raise UserError(
                f"--steps: {steps[kind]} steps of {kind} cannot be shared out among the {count} "
                f"stages of order {order}; give {count} or more"
            )
    share = {kind: steps[kind] // max(count, 1) for kind, count in stages.items()}
    share["joint"] = share["learn"] + share["forget"]
    return {"stages": {kind: {"min_steps": n, "max_steps": n} for kind, n in share.items()}}


def _has(order: str, kind: StageKind) -> bool:
    """Whether a stage of this kind comes after one of the other."""
    letter, earlier = {"forget": ("F", "LJ"), "learn": ("L", "FJ"), "joint": ("J", "")}[kind]
    return any(
        letter == here and set(order[:place]) & set(earlier) for place, here in enumerate(order)
    )
