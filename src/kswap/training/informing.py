"""What objectives on features ask for: where to look, and what the base model makes of classes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

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
    NEEDS_HEAD,
    NEEDS_NOISE,
    NEEDS_OWN,
    NEEDS_RETAINED,
    ON_IMAGES,
)
from kswap.objectives.bank import build_bank
from kswap.objectives.places import block_numbers, is_at
from kswap.objectives.units import Bank
from kswap.plan import Stage
from kswap.settings import Role, Split, TermConfig
from kswap.tasks import Task
from kswap.tasks.inside import UNIT_IDS

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
    terms: Mapping[str, TermConfig] = field(default_factory=dict)
    """The terms that ask, by where the config has them."""


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
        if term.objective in NEEDS_BANK | NEEDS_NOISE | ON_IMAGES
    }
    for where, term in terms.items():
        if not task.units_are_images and term.objective in ON_IMAGES:
            raise UserError(
                f"{where}: {term.objective!r} needs one answer for a whole image, which a model "
                f"for {task.name} has not; take masked_distillation or bounded_ce_sample"
            )
        if task.units_are_images and term.objective in NEEDS_RETAINED and "retain" not in sets:
            _lacks_retained(where, term)
    if not any(term.objective in NEEDS_BANK for term in terms.values()):
        return Asked()
    own = {r for t in terms.values() if t.objective in NEEDS_OWN for r in t.roles}
    if own and not task.units_are_images:  # units of every role are in every image
        own = set(sets)
    return Asked(
        _places(list(terms.values()), heads, blocks),
        tuple(role for role in _BANK_ROLES if role in sets),
        tuple(role for role in sets if role in own),
        terms,
    )


def _lacks_retained(where: str, term: TermConfig) -> NoReturn:
    raise UserError(
        f"{where}: {term.objective!r} needs images of retained classes; "
        "add a 'retain:' source, or take dispersion"
    )


def check_bank(bank: Bank, asked: Asked) -> None:
    """Raise where scenes have no unit, or no place of one, that a term needs.

    Raises:
        UserError: it names the term.
    """
    for where, term in asked.terms.items():
        if term.objective in NEEDS_RETAINED and not bool(bank.counts.any()):
            _lacks_retained(where, term)
        total = asked.places.num_blocks
        if term.objective in NEEDS_FEATURES and not any(
            is_at(name, term.layers, total) for name in bank.places
        ):
            raise UserError(
                f"{where}: at {list(term.layers)} no token of this model belongs to a place of "
                "the image or to a query; name other layers, such as head or 1.0"
            )


def places_of(stage: Stage, places: Places) -> Places:
    """Return the places that the terms of one stage look at; none, where no term does."""
    looking = [t for t in stage.config.terms.values() if t.objective in NEEDS_FEATURES]
    if not looking:
        return Places()
    numbers = {n for t in looking for n in block_numbers(t.layers, places.num_blocks)}
    sees_head = any({"head", "all"} & set(t.layers) or t.objective in NEEDS_HEAD for t in looking)
    heads = places.heads if sees_head else ()
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
    """Return what the base makes of the classes whose training images were looked at.

    Units of scenes count by their class, whatever role their image is there for.
    """
    ids = {role: torch.from_numpy(sets[role]["train"].class_ids) for role in features}
    if any(UNIT_IDS in found for found in features.values()):
        features, ids = _by_class(features, forget_ids=forget_ids, num_base=num_base)
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


def _by_class(
    features: Mapping[Role, Mapping[str, Tensor]], *, forget_ids: Collection[int], num_base: int
) -> tuple[dict[Role, dict[str, Tensor]], dict[Role, Tensor]]:
    """Return features and classes of the units of all images, by the role of their class."""
    class_ids = torch.cat([found[UNIT_IDS].flatten() for found in features.values()])
    names = [name for name in next(iter(features.values())) if name != UNIT_IDS]
    rows = {
        name: torch.cat([found[name].flatten(0, 1) for found in features.values()])
        for name in names
    }
    known = (class_ids >= 0) & (class_ids < num_base)
    gone = torch.isin(class_ids, torch.tensor(sorted(forget_ids), dtype=torch.long))
    chosen: dict[Role, Tensor] = {"forget": known & gone, "retain": known & ~gone}
    there = {role: own for role, own in chosen.items() if bool(own.any())}
    return (
        {role: {name: kept[own] for name, kept in rows.items()} for role, own in there.items()},
        {role: class_ids[own] for role, own in there.items()},
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
