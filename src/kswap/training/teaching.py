"""What the base model says of the training images: its answers, and the features of its head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kswap.data import ImageSet
from kswap.data.samples import take
from kswap.errors import UserError
from kswap.gathering import Part, in_order, joined
from kswap.models.features import Places, recorded_features, recorded_tokens
from kswap.objectives import NEEDS_BASE
from kswap.plan import Stage
from kswap.settings import Role
from kswap.tasks import Examples, Pixels, Task, Teacher, example_batches, make_examples
from kswap.tasks.inside import features_by_slot

Features = dict[str, tuple[Tensor, Tensor]]
"""Head -> features (units, size) and class ids (units,), -1 for a unit without a class."""
_NOWHERE = Places()


def taught_roles(stages: Iterable[Stage], task: Task) -> set[Role]:
    """Return the roles whose training images need the base model's answers."""
    configs = [stage.config for stage in stages]
    if task.teacher_sees_views:  # units of every role are in every image
        return {role for stage in configs for s in stage.streams.values() for role in s.roles}
    return {
        role
        for stage in configs
        for term in stage.terms.values()
        if term.objective in NEEDS_BASE
        for role in term.roles
    }


@torch.no_grad()
def answers_fit(
    model: Any,
    task: Task,
    sets: Sequence[ImageSet],
    pixels: Pixels,
    *,
    limit_bytes: int,
    places: Places = _NOWHERE,
    num_slots: int = 0,
) -> bool:
    """Whether the base model's answers on all images, and features, fit into so much memory."""
    if not sets:
        return True
    first = next(iter(example_batches(sets[0], pixels, 1)))
    taught = teach(model.eval(), task, first, places=places, num_slots=num_slots)
    return sum(kept.nbytes for kept in taught.values()) * sum(map(len, sets)) <= limit_bytes


@torch.no_grad()
def teach(
    model: Any,
    task: Task,
    examples: Examples,
    *,
    num_base: int | None = None,
    places: Places = _NOWHERE,
    num_slots: int = 0,
) -> Teacher:
    """Return what the base model answers, and the features of units of scenes at `places`."""
    with recorded_tokens(model, places) as tokens:
        taught = task.teach(model, examples, num_base=num_base)
    slots = task.slots(examples, taught, num_slots) if places else None
    if slots is None:
        return taught
    return {**taught, **features_by_slot(tokens, slots, places, model, examples)}


@torch.no_grad()
def observe(
    model: Any,
    task: Task,
    images: ImageSet,
    heads: Sequence[str],
    pixels: Pixels,
    *,
    batch_size: int,
    places: Places = _NOWHERE,
    num_slots: int = 0,
    limit_bytes: int | None = None,
) -> tuple[Teacher, Features, dict[str, Tensor]]:
    """Return answers, the features of every head, and those at `places`, on the CPU.

    The last are (images, size) by name of the place; of scenes, with units in `num_slots` slots an
    image, (images, slots, size), and the classes of these.

    Raises:
        UserError: those at `places` need more than `limit_bytes`.
    """
    model.eval()

    def look(rows: slice) -> Part:
        examples = make_examples(take(images, rows), pixels)
        if task.units_are_images:
            with recorded_features(model, places) as recorded:
                taught, found = task.features(model, examples, heads)
        else:
            with recorded_tokens(model, places) as tokens:
                taught, found = task.features(model, examples, heads)
            slots = task.slots(examples, taught, num_slots) if places else None
            recorded = (
                {} if slots is None else features_by_slot(tokens, slots, places, model, examples)
            )
        part = {f"answers {name}": kept for name, kept in taught.items()}
        part |= {f"features {name}": units for name, (units, _) in found.items()}
        part |= {f"classes {name}": class_ids for name, (_, class_ids) in found.items()}
        part |= {
            f"inside {name}": f.float() if f.is_floating_point() else f
            for name, f in recorded.items()
        }
        return {name: tensor.cpu() for name, tensor in part.items()}

    parts = []
    for part in in_order(len(images), batch_size, look):
        parts.append(part)
        size = sum(f.nbytes // len(f) for f in _named("inside", part).values())
        if limit_bytes is not None and len(parts) == 1 and size * len(images) > limit_bytes:
            raise UserError(
                f"data.memory_limit_bytes: {limit_bytes} is too little for the base model's "
                f"features of {len(images)} images ({size * len(images)} bytes); name fewer "
                "layers in the terms, use a smaller fraction of the images, or raise it"
            )
    whole = joined(parts)
    class_ids = _named("classes", whole)
    in_heads = {name: (f, class_ids[name]) for name, f in _named("features", whole).items()}
    return _named("answers", whole), in_heads, _named("inside", whole)


def _named(kind: str, part: Part) -> dict[str, Tensor]:
    """Return the tensors of one kind."""
    return {n.removeprefix(f"{kind} "): t for n, t in part.items() if n.startswith(f"{kind} ")}


def class_means(
    features: Mapping[Role, Features], class_ids: Sequence[int]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return for each head the mean feature of each learn class and the centre.

    Args:
        features: of the roles of a stage, learn among them.
        class_ids: of the classes to learn.

    Returns:
        Head -> means (classes, size) and centre (size,).
    """
    found = {}
    for name, (learned, ids) in features["learn"].items():
        rows = [learned[ids == c] for c in class_ids]
        means = [own.mean(0) if len(own) else learned.mean(0) for own in rows]
        found[name] = (
            torch.stack(means),
            _centre([role[name] for role in features.values()], class_ids),
        )
    return found


def _centre(parts: Sequence[tuple[Tensor, Tensor]], learned: Sequence[int]) -> Tensor:
    """Return the mean over images; of scenes, over the classes that are not to be learned.

    Most units of a scene are nothing: from their mean all objects lie in one direction.
    """
    features, ids = (torch.cat(part) for part in zip(*parts, strict=True))
    if not bool((ids < 0).any()):
        return features.mean(0)
    known = [c for c in torch.unique(ids).tolist() if c >= 0 and c not in learned]
    if not known:
        return features[ids < 0].mean(0)
    return torch.stack([features[ids == c].mean(0) for c in known]).mean(0)
