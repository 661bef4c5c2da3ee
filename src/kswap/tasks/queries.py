"""Units of models that answer by queries: detectors and mask classifiers.

A query that the library's own matcher gives an object has the class of that object; every other
query says "nothing" (no object), or, where the annotations leave it open, what the base model said
there. Which query of the base model that is, is found by matching both models' answers: queries of
two-stage models change places as the model changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from kswap.objectives import OBJECTIVES, Units
from kswap.settings import ROLES, TermConfig
from kswap.tasks import View
from kswap.tasks.criteria import Decomposed, Layer, loss_name
from kswap.tasks.criteria.masks import MASK_FITS

FORGET, RETAIN = ROLES.index("forget"), ROLES.index("retain")
CONFIDENT = 0.5
"""Probability from which on an answer of the base model counts as an object."""
_OPEN_TERM = TermConfig(roles=("retain",), objective="masked_distillation")


@dataclass(frozen=True)
class Kind:
    """How a model's class outputs are meant."""

    pixels: bool
    """A class for every pixel; otherwise for every query."""
    sigmoid: bool
    """Each class has a yes or no of its own; otherwise they share a softmax."""
    nothing: bool
    """The last column is "no object"."""


def loss_kind(model: nn.Module) -> Kind:
    """Return how a model's class outputs are meant.

    Raises:
        UserError: the loss of the model is not known.
    """
    name = loss_name(model)
    if name == "ForSemanticSegmentationLoss":
        return Kind(pixels=True, sigmoid=False, nothing=False)
    softmax = name == "ForObjectDetectionLoss" or name in MASK_FITS
    return Kind(pixels=False, sigmoid=not softmax, nothing=softmax)


def nothing_first(logits: Tensor, *, nothing: bool) -> Tensor:
    """Put the column of "no object" before the classes, so that new ones are the last columns."""
    return logits.roll(1, -1) if nothing else logits


def forgotten_columns(view: View, *, nothing: bool) -> Tensor:
    """Return (base columns,): the forgotten classes as columns of `nothing_first`."""
    if not nothing:
        return view.forgotten
    return torch.cat([view.forgotten.new_zeros(1), view.forgotten])


def kept_probabilities(
    logits: Float[Tensor, "... columns"], view: View, *, sigmoid: bool, nothing: bool
) -> Float[Tensor, "... classes"]:
    """Return the base model's probabilities of its classes as if the forgotten did not exist."""
    columns = nothing_first(logits.float(), nothing=nothing)
    gone = forgotten_columns(view, nothing=nothing)
    masked = columns.masked_fill(gone, -math.inf)
    shares = masked.sigmoid() if sigmoid else masked.softmax(-1)
    return shares[..., 1:] if nothing else shares


def base_columns(logits: Tensor, num_base: int, *, nothing: bool) -> Tensor:
    """Return logits without the columns of learned classes, which are behind the first ones."""
    if not nothing:
        return logits[..., :num_base]
    return torch.cat([logits[..., :num_base], logits[..., -1:]], -1)


@torch.no_grad()
def align(cost: Float[Tensor, "images queries base_queries"]) -> Int[Tensor, "images queries"]:
    """Return for each query the base model's query it corresponds to, one to one, least cost."""
    best = cost.argmin(-1)
    aligned = best.cpu()
    costs = cost.cpu().numpy()
    for image, row in enumerate(aligned):
        if len(row.unique()) < len(row):  # else the least of each row is the least of all
            _, columns = linear_sum_assignment(costs[image])
            aligned[image] = torch.from_numpy(columns)
    return aligned.to(cost.device)


def class_cost(
    ours: Float[Tensor, "images queries classes"], base: Float[Tensor, "images queries classes"]
) -> Float[Tensor, "images queries queries"]:
    """Return the distance of probabilities between every query and every base query."""
    return torch.cdist(ours, base, p=1)


def query_units(
    decomposed: Decomposed,
    class_labels: Sequence[Tensor],
    closed: Bool[Tensor, " images"],
    view: View,
    *,
    base_logits: Float[Tensor, "images queries base_columns"] | None,
) -> list[Units]:
    """Return units of the task's own loss, of all layers, and of the base's answers, of the final.

    Auxiliary layers have a loss of their own where there are labels; the base model's final answers
    are compared with final answers alone, so that a model that is the base is left as it is.

    Args:
        decomposed: The library's loss by layer and query.
        class_labels: The class of each object, by image, as they were given to `decompose`.
        closed: Whether a query without an object is known to be nothing.
        view: The classes at this stage.
        base_logits: The base model's logits, its queries in the order of ours.
    """
    forgotten = forgotten_columns(view, nothing=decomposed.nothing)
    parts: list[Units] = []
    for layer in decomposed.layers:
        assert isinstance(layer, Layer)
        classes = matched_classes(layer.matched, class_labels)
        has_object = classes >= 0
        open_ = ~has_object & ~closed[:, None]
        own = (layer.class_loss + layer.fit_loss).masked_fill(open_, 0.0)
        parts.append(
            Units(
                class_ids=(classes + 1 if decomposed.nothing else classes).flatten(),
                roles=torch.where(
                    has_object, view.role_of_row[classes.clamp_min(0)], RETAIN
                ).flatten(),
                forgotten=forgotten,
                logits=None,
                own=own.flatten(),
                weight=layer.class_weight.flatten(),
                sigmoid=decomposed.sigmoid,
            )
        )
    if base_logits is None:
        return [joined(parts)]
    final = nothing_first(layer.logits, nothing=decomposed.nothing).flatten(0, 1)
    base = nothing_first(base_logits, nothing=decomposed.nothing).flatten(0, 1)
    compared = replace(
        parts[-1], logits=final[:, : view.num_rows + decomposed.nothing], base_logits=base
    )
    if view.as_if_absent:
        compared = forgotten_by_base(compared, view, nothing=decomposed.nothing)
    parts[-1] = replace(taught_where_open(compared, open_.flatten()), logits=None, base_logits=None)
    return [joined(parts), replace(compared, own=None)]


def forgotten_by_base(units: Units, view: View, *, nothing: bool) -> Units:
    """Give the role to forget to the queries that the base answers with such a class.

    Their objects may be labelled with something else by now.
    """
    assert units.base_logits is not None
    answered = units.base_logits.argmax(-1)
    roles = torch.full((units.base_logits.shape[-1],), -1, device=answered.device)
    roles[int(nothing) :] = view.role_of_row[: view.num_base]
    told = roles[answered] == FORGET
    return replace(
        units,
        class_ids=torch.where(told, answered, units.class_ids),
        roles=torch.where(told, FORGET, units.roles),
    )


def joined(parts: Sequence[Units]) -> Units:
    """Lay units that have the task's own loss end to end."""
    return replace(
        parts[0],
        class_ids=torch.cat([part.class_ids for part in parts]),
        roles=torch.cat([part.roles for part in parts]),
        own=torch.cat([part.own for part in parts if part.own is not None]),
        weight=torch.cat([part.weight for part in parts if part.weight is not None]),
    )


def matched_classes(
    matched: Int[Tensor, "images queries"], class_labels: Sequence[Tensor]
) -> Int[Tensor, "images queries"]:
    """Return the class of each query's object; -1 where it has none."""
    classes = torch.full_like(matched, -1)
    for image, labels in enumerate(class_labels):
        if len(labels):
            found = labels.to(matched.device)[matched[image].clamp_min(0)]
            classes[image] = torch.where(matched[image] >= 0, found, -1)
    return classes


def taught_where_open(units: Units, open_units: Bool[Tensor, " units"]) -> Units:
    """Put the base model's answer in the place of a label where there is none."""
    if not bool(open_units.any()) or units.base_logits is None:
        return units
    assert units.own is not None
    assert units.logits is not None
    rows = open_units.nonzero()[:, 0]
    taught = OBJECTIVES["masked_distillation"](units.rows(rows), _OPEN_TERM, 1.0)
    own = units.own.index_put((rows,), taught.to(units.own.dtype))
    return replace(units, own=own)
