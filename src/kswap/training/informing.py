"""What objectives on features ask for: where to look, and what the base model makes of classes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kswap.data import ImageSet
from kswap.errors import UserError
from kswap.models.features import Places
from kswap.models.structure import FfnBlock
from kswap.objectives import (
    NEEDS_BANK,
    NEEDS_BASE,
    NEEDS_FEATURES,
    NEEDS_NOISE,
    NEEDS_OWN,
    NEEDS_RETAINED,
)
from kswap.objectives.bank import build_bank
from kswap.objectives.places import block_numbers
from kswap.objectives.units import Bank
from kswap.plan import Stage
from kswap.settings import Role, Split, TermConfig
from kswap.tasks import Task

Sets = Mapping[Role, Mapping[Split, ImageSet]]
_PER_CLASS = 300
"""Images of a class in the bank at most: enough for its mean, and it stays on the device."""
_BANK_ROLES: tuple[Role, ...] = ("forget", "retain")


@dataclass
class Asked:
    """What the terms of all stages ask of the base model's features."""

    places: Places = field(default_factory=Places)
    roles: tuple[Role, ...] = ()
    """Roles whose training images are looked at; none: no term asks."""
    own: tuple[Role, ...] = ()
    """Roles of which the features of every image are kept, to compare with."""


def asked(
    stages: Sequence[Stage],
    task: Task,
    *,
    sets: Sets,
    heads: Sequence[str],
    blocks: Sequence[FfnBlock],
) -> Asked:
    """Return what the terms ask for.

    Raises:
        UserError: a term needs features or images that are not there.
    """
    terms = {
        f"stages.{stage.kind}.terms.{name}": term
        for stage in stages
        for name, term in stage.config.terms.items()
        if term.objective in NEEDS_BANK | NEEDS_NOISE
    }
    for where, term in terms.items():
        if task.name != "classification":
            raise UserError(
                f"{where}: {term.objective!r} needs one answer for a whole image, which a model "
                f"for {task.name} has not; take masked_distillation or bounded_ce_sample"
            )
        if term.objective in NEEDS_RETAINED and "retain" not in sets:
            raise UserError(
                f"{where}: {term.objective!r} needs images of retained classes; "
                "add a 'retain:' source, or take dispersion"
            )
    if not any(term.objective in NEEDS_BANK for term in terms.values()):
        return Asked()
    own = {r for t in terms.values() if t.objective in NEEDS_OWN for r in t.roles}
    return Asked(
        _places(list(terms.values()), heads, blocks),
        tuple(role for role in _BANK_ROLES if role in sets),
        tuple(role for role in sets if role in own),
    )


def places_of(stage: Stage, places: Places) -> Places:
    """Return the places that the terms of one stage look at; none, where no term does."""
    looking = [t for t in stage.config.terms.values() if t.objective in NEEDS_FEATURES]
    if not looking:
        return Places()
    numbers = {n for t in looking for n in block_numbers(t.layers, places.num_blocks)}
    heads = places.heads if any({"head", "all"} & set(t.layers) for t in looking) else ()
    kept = tuple(found for found in places.blocks if found[0] in numbers)
    return Places(heads, kept, places.num_blocks)


def _places(
    terms: Sequence[TermConfig], heads: Sequence[str], blocks: Sequence[FfnBlock]
) -> Places:
    """Return every place that a term looks at; the head's input always, for class means."""
    layers = {layer for term in terms if term.objective in NEEDS_FEATURES for layer in term.layers}
    numbers = block_numbers(list(layers), len(blocks))
    return Places(tuple(heads), tuple((n, blocks[n - 1]) for n in numbers), len(blocks))


def bank_of(
    features: Mapping[Role, Mapping[str, Tensor]],
    sets: Sets,
    *,
    forget_ids: Collection[int],
    num_base: int,
    device: torch.device,
) -> Bank:
    """Return what the base makes of the classes whose training images were looked at."""
    ids = {role: torch.from_numpy(sets[role]["train"].class_ids) for role in features}
    rows = {role: some_of_each(ids[role], _PER_CLASS) for role in features}
    return build_bank(
        {
            role: {name: kept[rows[role]].to(device) for name, kept in found.items()}
            for role, found in features.items()
        },
        {role: ids[role][rows[role]].to(device) for role in features},
        forget_ids=forget_ids,
        num_base=num_base,
    )


def some_of_each(class_ids: Tensor, most: int) -> Tensor:
    """Return rows, ascending, of at most so many images of each class, evenly spaced."""
    chosen = []
    for c in torch.unique(class_ids):
        rows = (class_ids == c).nonzero()[:, 0]
        places = torch.linspace(0, len(rows) - 1, min(most, len(rows)), dtype=torch.float64)
        chosen.append(rows[places.round().long()])
    return torch.cat(chosen).sort().values


def sees_without(stage: Stage, task: Task) -> bool:
    """Whether forgotten objects are labelled as the base sees their places without them.

    Not where a term trains on their own labels, as those that raise the loss do.
    """
    terms = [term for term in stage.config.terms.values() if "forget" in term.roles]
    answers = bool(terms) and all(term.objective in NEEDS_BASE for term in terms)
    return task.name == "segmentation" and stage.forgets and answers


def draws(stage: Stage) -> bool:
    """Whether a term of the stage draws."""
    return any(term.objective in NEEDS_NOISE for term in stage.config.terms.values())
