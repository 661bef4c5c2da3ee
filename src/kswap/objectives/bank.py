"""What the base model knows of classes, from its features of the training images: a pure function.

Class means, the directions of each class to forget, the scale and the whitening of every place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from kswap.objectives.units import Bank, Place
from kswap.settings import Role

_SHRINKAGE = 1.0
"""Share of the mean variance that is added to every direction before whitening: about what the
regularisation of a head that is fitted to a few images amounts to (LOG.md, 2026-11-26)."""
_RETAINED_ENERGY = 0.9
"""Share of the variance of retained images that their main directions hold (`Place.basis`)."""
_MOST_BETWEEN = 0.25
"""Share of all directions that `Place.between` takes at most: the means of many classes differ in
all, and nothing would be left to tell a class by."""
_LEAST_APART = 1e-4
"""A class that is nearer to the retained ones, as a share of the spread, is not apart."""


def white(name: str) -> str:
    """Return the name of a place after whitening."""
    return f"{name} white"


@torch.no_grad()
def build_bank(
    features: Mapping[Role, Mapping[str, Tensor]],
    class_ids: Mapping[Role, Tensor],
    *,
    forget_ids: Collection[int],
    num_base: int,
) -> Bank:
    """Return the bank of the base's features.

    Args:
        features: role -> place -> (images, size), of roles that the base knows.
        class_ids: role -> (images,), below `num_base`.
        forget_ids: classes to forget.
        num_base: classes of the base.
    """
    roles = list(features)
    ids = torch.cat([class_ids[role] for role in roles])
    retained = class_ids.get("retain", ids[:0])
    order = retained.argsort(stable=True)
    counts = torch.bincount(retained, minlength=num_base)
    heads = [features[role]["head"].float() for role in roles if "head" in features[role]]
    pairs = _pairs(torch.cat(heads) if heads else None, ids, counts > 0, forget_ids=forget_ids)
    places: dict[str, Place] = {}
    for name in features[roles[0]]:
        rows = torch.cat([features[role][name] for role in roles]).float()
        kept = features["retain"][name].float() if "retain" in features else rows[:0]
        place = _place(rows, ids, kept[order], pairs, forget_ids=forget_ids, num_base=num_base)
        places[name] = place
        places[white(name)] = _place(
            (rows - place.centre) @ place.whitening,
            ids,
            (kept[order] - place.centre) @ place.whitening,
            pairs,
            forget_ids=forget_ids,
            num_base=num_base,
        )
    return Bank(
        places=places,
        class_ids=retained[order],
        starts=counts.cumsum(0) - counts,
        counts=counts,
        known=torch.bincount(ids, minlength=num_base) > 0,
        pairs=pairs[0],
    )


def nearest(features: Tensor, means: Tensor, allowed: Tensor) -> Tensor:
    """Return (units,): the allowed class whose mean is nearest to each of (units, size) features.

    Args:
        features: of units.
        means: (classes, size).
        allowed: (units, classes) or (classes,), which ones there are to choose from.
    """
    distances = torch.cdist(features.float(), means.float())
    return distances.masked_fill(~allowed, torch.inf).argmin(-1)


def _pairs(
    heads: Tensor | None, ids: Tensor, kept: Tensor, *, forget_ids: Collection[int]
) -> tuple[Tensor, Tensor]:
    """Return `Bank.pairs` and (images,): the row of each image's pair, 0 for one that has none."""
    num_base = len(kept)
    gone = torch.isin(ids, torch.tensor(sorted(forget_ids), dtype=ids.dtype, device=ids.device))
    pairs, rows = ids.new_zeros(num_base, num_base), torch.zeros_like(ids)
    if heads is None or not bool(kept.any()) or not bool(gone.any()):
        return pairs, rows
    alike = nearest(heads[gone], _class_means(heads, ids, num_base), kept)
    codes, number = torch.unique(ids[gone] * num_base + alike, return_inverse=True)
    pairs.view(-1)[codes] = torch.arange(1, len(codes) + 1, device=ids.device)
    rows[gone] = number + 1
    return pairs, rows


def _class_means(rows: Tensor, ids: Tensor, num_base: int) -> Tensor:
    present = torch.unique(ids)
    means = rows.new_zeros(num_base, rows.shape[1])
    means[present] = torch.stack([rows[ids == c].mean(0) for c in present])
    return means


def _shifts(rows: Tensor, means: Tensor, pairs: Tensor, pair_of: Tensor) -> Tensor:
    """Return `Place.shifts`."""
    found = [rows.new_zeros(rows.shape[1])]
    others = (pairs > 0).nonzero()[:, 1]  # in the order of the rows
    for number, other in enumerate(others, start=1):
        found.append(means[other] - rows[pair_of == number].mean(0))
    return torch.stack(found)


def _place(
    rows: Tensor,
    ids: Tensor,
    kept: Tensor,
    pairs: tuple[Tensor, Tensor],
    *,
    forget_ids: Collection[int],
    num_base: int,
) -> Place:
    present = torch.unique(ids)
    means = _class_means(rows, ids, num_base)
    centre = means[present].mean(0)
    gone = torch.isin(ids, torch.tensor(sorted(forget_ids), dtype=ids.dtype, device=ids.device))
    scatter = (rows - means[ids])[~gone if len(kept) else slice(None)]
    covariance = scatter.T @ scatter / len(scatter)
    mean_variance = covariance.diagonal().mean()
    eye = torch.eye(len(covariance), device=rows.device)
    values, vectors = torch.linalg.eigh(covariance + _SHRINKAGE * mean_variance * eye)
    whitening = (vectors * values.clamp_min(1e-12).rsqrt()) @ vectors.T
    main = (
        _directions(kept - kept.mean(0), _RETAINED_ENERGY)
        if len(kept)
        else rows.new_zeros(rows.shape[1], 0)
    )
    basis, energy = {}, {}
    for c in forget_ids:
        own = rows[ids == c] - centre
        if len(own):
            basis[c], energy[c] = _spectrum(own - own @ main @ main.T)
    spread = (rows - centre).square().sum(-1).mean()
    middle, between, apart = _outside(means, present, torch.unique(ids[~gone]), centre)
    return Place(
        images=kept,
        means=means,
        centre=centre,
        spread=spread,
        whitening=whitening,
        basis=basis,
        energy=energy,
        middle=middle,
        between=between,
        apart=apart.where(apart > _LEAST_APART * spread, 0.0),
        shifts=_shifts(rows, means, *pairs),
    )


def _outside(
    means: Tensor, present: Tensor, retained: Tensor, centre: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `Place.middle`, `Place.between` and `Place.apart`."""
    middle, between = centre, means.new_zeros(means.shape[1], 0)
    if len(retained):
        middle = means[retained].mean(0)
        most = min(len(retained) - 1, int(_MOST_BETWEEN * means.shape[1]))
        between = _spectrum(means[retained] - middle)[0][:, :most]
    moved = means[present] - middle
    apart = means.new_zeros(len(means))
    apart[present] = (moved - moved @ between @ between.T).square().sum(-1)
    return middle, between, apart


def _spectrum(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return orthonormal directions (size, n), by variance, and the share up to each (n,)."""
    _, singular, right = torch.linalg.svd(rows, full_matrices=False)
    energy = singular.square().cumsum(0)
    return right.T.contiguous(), energy / energy[-1].clamp_min(torch.finfo(energy.dtype).tiny)


def _directions(rows: Tensor, share: float) -> Tensor:
    directions, energy = _spectrum(rows)
    return directions[:, : int((energy < share).sum()) + 1]
