"""Objectives: pure functions of tensors, one loss per unit (image, pixel, query, matched box).

A new objective is a pure function in this package, its name in `TermConfig.objective`, one line
below, and its name in the sets of what it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from kswap.objectives import baselines, deep, sigmoid
from kswap.objectives.bank import nearest, white
from kswap.objectives.forgetting import (
    bounded_ce_batch,
    bounded_ce_sample,
    default_bound,
    masked_distillation,
)
from kswap.objectives.learning import (
    cross_entropy,
    distillation,
    hedged_cross_entropy,
    restricted_distillation,
)
from kswap.objectives.places import is_at
from kswap.objectives.units import Frame, Place, Units, has_role
from kswap.settings import TermConfig

__all__ = ["NEEDS_BANK", "NEEDS_BASE", "NEEDS_FEATURES", "NEEDS_HEAD", "NEEDS_KEPT", "NEEDS_NOISE"]
__all__ += ["NEEDS_OWN", "NEEDS_RETAINED", "OBJECTIVES", "ON_IMAGES", "Units", "has_role", "serves"]


def serves(units: Units, objective: str) -> bool:
    """Whether the units have what an objective compares."""
    if objective in NEEDS_FEATURES:
        return units.features is not None
    if units.inside:
        return False
    if objective in NEEDS_BASE:
        return units.base_logits is not None
    return units.own is not None or units.weight is None


def _own(u: Units, t: TermConfig, divisor: float) -> Tensor:
    if u.own is not None:
        return u.own
    assert u.logits is not None
    return cross_entropy(u.logits, u.class_ids)


def _hedged(u: Units, t: TermConfig, divisor: float) -> Tensor:
    logits, base_logits = u.taught()
    function = sigmoid.hedged_cross_entropy if u.sigmoid else hedged_cross_entropy
    return _weighted(u, function(logits, base_logits, u.class_ids, u.forgotten, hedge=t.hedge))


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


def _tilted(u: Units, t: TermConfig, divisor: float) -> Tensor:
    assert u.bank is not None
    place = u.bank.places["head"]
    return deep.tilted_distillation(
        *u.taught(),
        u.class_ids,
        u.forgotten,
        place.means,
        place.centre,
        tilt=t.tilt,
        temperature=t.temperature,
    )


def _at_places(
    u: Units, t: TermConfig, frames: Mapping[str, Place | Frame] | None = None
) -> Iterator[tuple[Tensor, str, Place]]:
    """Yield the features of the term's places, the name and what the bank knows of each.

    `frames` say how features are whitened; None: as the bank says.
    """
    assert u.features is not None
    assert u.bank is not None, "the plan says which terms need features"
    by = u.bank.places if frames is None else frames
    for name, features in u.features.items():
        if not is_at(name, t.layers, u.num_blocks):
            continue
        if t.whiten:
            moved = (features.float() - by[name].centre) @ by[name].whitening
            yield moved, white(name), u.bank.places[white(name)]
        else:
            yield features, name, u.bank.places[name]


def _of_base(u: Units, name: str) -> Tensor:
    """Return the base's features of the same units, whitened where the place's name says so."""
    assert u.base_features is not None
    raw = name.removesuffix(white(""))
    features = u.base_features[raw].float()
    if raw == name:
        return features
    assert u.bank is not None
    place = u.bank.places[raw]
    return (features - place.centre) @ place.whitening


def _mean(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).mean(0)


def _dispersion(u: Units, t: TermConfig, divisor: float) -> Tensor:
    places = _at_places(u, t)
    return _mean([deep.dispersion(f, u.class_ids, place.centre) for f, _, place in places])


def _impersonation(u: Units, t: TermConfig, divisor: float) -> Tensor:
    assert u.bank is not None
    assert u.base_logits is not None
    assert u.noise is not None
    bank = u.bank
    rows = deep.drawn_images(u.base_logits, u.forgotten, bank.starts, bank.counts, u.noise)
    return _mean(
        [
            deep.feature_distillation(f, place.images[rows], place.spread)
            for f, _, place in _at_places(u, t)
        ]
    )


def _pair_rows(u: Units) -> Tensor:
    """Return (units,): the row of `Place.shifts` of each unit, by what the base's head sees."""
    assert u.bank is not None
    pairs = u.bank.pairs
    possible = pairs[u.class_ids.clamp_max(len(pairs) - 1)]
    possible = possible * (u.class_ids < len(pairs))[:, None]  # classes to learn have no pair
    alike = nearest(_of_base(u, "head"), u.bank.places["head"].means, possible > 0)
    return possible.gather(-1, alike[:, None])[:, 0]


def _translation(u: Units, t: TermConfig, divisor: float) -> Tensor:
    rows = _pair_rows(u)
    return _mean(
        [
            deep.feature_distillation(f, _of_base(u, name) + place.shifts[rows], place.spread)
            for f, name, place in _at_places(u, t)
        ]
    )


def _discrimination(u: Units, t: TermConfig, divisor: float) -> Tensor:
    assert u.bank is not None
    frames: Mapping[str, Place | Frame] = {**u.bank.places, **u.bank.frames}
    losses = []
    for f, name, place in _at_places(u, t, frames):
        apart = place.apart[u.class_ids.clamp_max(len(place.apart) - 1)]
        apart = apart * (u.class_ids < len(place.apart))
        own = frames[name]
        losses.append(deep.discrimination(f, u.class_ids, own.middle, own.between, apart))
    return _mean(losses)


def _class_mean_head(u: Units, t: TermConfig, divisor: float) -> Tensor:
    assert u.base_logits is not None
    return _mean(
        [
            deep.class_mean_head(
                f,
                u.class_ids,
                u.base_logits,
                u.forgotten,
                place.means,
                place.centre,
                t.temperature / 10,
            )
            for f, _, place in _at_places(u, t)
        ]
    )


def _subspace(u: Units, t: TermConfig, divisor: float) -> Tensor:
    losses = []
    for f, _, place in _at_places(u, t):
        loss = f.new_zeros(len(f), dtype=torch.float32)
        for c, basis in place.basis.items():
            chosen = u.class_ids == c
            num = int((place.energy[c] < t.energy).sum()) + 1
            own = deep.subspace(f[chosen], basis[:, :num], place.centre, place.spread)
            loss = loss.index_put((chosen.nonzero()[:, 0],), own)
        losses.append(loss)
    return _mean(losses)


def _feature_distillation(u: Units, t: TermConfig, divisor: float) -> Tensor:
    return _mean(
        [
            deep.feature_distillation(f, _of_base(u, name), place.spread)
            for f, name, place in _at_places(u, t)
        ]
    )


def _prototype(u: Units, t: TermConfig, divisor: float) -> Tensor:
    return _mean([deep.prototype(f, u.class_ids, p.means) for f, _, p in _at_places(u, t)])


def _bounded_prototype(u: Units, t: TermConfig, divisor: float) -> Tensor:
    bound = default_bound(t.bound, u.forgotten[None])
    return functional.relu(bound - _prototype(u, t, divisor))


def _negative_ce(u: Units, t: TermConfig, divisor: float) -> Tensor:
    return -_own(u, t, divisor)


def _negative_distillation(u: Units, t: TermConfig, divisor: float) -> Tensor:
    return -_distil(u, t, divisor)


def _random_labels(u: Units, t: TermConfig, divisor: float) -> Tensor:
    assert u.logits is not None
    assert u.noise is not None
    loss = baselines.random_labels(u.logits, u.class_ids, u.forgotten, u.noise[:, 0])
    return _weighted(u, loss)


def _uniform(u: Units, t: TermConfig, divisor: float) -> Tensor:
    assert u.logits is not None
    return _weighted(u, baselines.uniform(u.logits, len(u.forgotten)))


def _nearest_class(u: Units, t: TermConfig, divisor: float) -> Tensor:
    function = sigmoid.nearest_class if u.sigmoid else baselines.nearest_class
    return _weighted(u, function(*u.taught(), u.class_ids, u.forgotten))


OBJECTIVES: Mapping[str, Callable[[Units, TermConfig, float], Tensor]] = {
    "cross_entropy": _own,
    "hedged_cross_entropy": _hedged,
    "bounded_ce_batch": _bounded_batch,
    "bounded_ce_sample": _bounded_sample,
    "distillation": _distil,
    "masked_distillation": _masked,
    "restricted_distillation": _restricted,
    "tilted_distillation": _tilted,
    "negative_ce": _negative_ce,
    "negative_distillation": _negative_distillation,
    "random_labels": _random_labels,
    "uniform": _uniform,
    "nearest_class": _nearest_class,
    "dispersion": _dispersion,
    "impersonation": _impersonation,
    "translation": _translation,
    "discrimination": _discrimination,
    "class_mean_head": _class_mean_head,
    "subspace": _subspace,
    "feature_distillation": _feature_distillation,
    "prototype": _prototype,
    "bounded_prototype": _bounded_prototype,
}
"""Name -> function of units, the term's settings and what the sum over the units is divided by;
returns (units,)."""
NEEDS_FEATURES = frozenset(
    {"dispersion", "impersonation", "class_mean_head", "subspace", "feature_distillation"}
    | {"prototype", "bounded_prototype", "translation", "discrimination"}
)
"""Objectives on the features of units."""
NEEDS_BANK = NEEDS_FEATURES | {"tilted_distillation"}
"""Objectives that ask what the base model makes of classes."""
NEEDS_BASE = frozenset(
    {"distillation", "masked_distillation", "restricted_distillation", "tilted_distillation"}
    | {"negative_distillation", "nearest_class", "impersonation", "class_mean_head"}
    | {"feature_distillation", "hedged_cross_entropy", "translation"}
)
"""Objectives that compare with the base model's outputs."""
NEEDS_KEPT = frozenset(
    {"masked_distillation", "restricted_distillation", "tilted_distillation", "nearest_class"}
    | {"impersonation", "class_mean_head", "hedged_cross_entropy", "translation"}
)
"""Those that do so on the classes that are not forgotten; without any they have no value."""
NEEDS_OWN = frozenset({"feature_distillation", "translation"})
"""Objectives that compare with the base's features of the same image."""
NEEDS_HEAD = frozenset({"translation"})
"""Objectives that look at what the head receives, wherever else they do."""
NEEDS_RETAINED = frozenset({"impersonation", "class_mean_head", "translation", "discrimination"})
"""Objectives that need images of retained classes."""
NEEDS_NOISE = frozenset({"impersonation", "random_labels"})
"""Objectives that draw."""
ON_IMAGES = frozenset({"tilted_distillation", "random_labels", "uniform"})
"""Objectives on the one answer for a whole image: not for segmentation and detection."""
