"""A7's training of whole models: a new LoRA, the run's, or all weights, with the core's losses.

Each step sees as many retained images as others. What is not annotated in a scene is left as the
task's loss leaves it where there is no teacher.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kswap.audits.features import Observed
from kswap.audits.relearning import LEARN_SET, Condition, Course, draw_rows
from kswap.audits.subjects import SubjectName
from kswap.audits.views import Again
from kswap.data import ImageSet
from kswap.data.samples import concatenate, take
from kswap.data.sets import IGNORE, Boxes, subset
from kswap.models.adapter import attach, continue_from
from kswap.models.head import drop_rows, extend_head, find_heads
from kswap.models.structure import find_ffn_blocks
from kswap.settings import ROLES, AdapterConfig, TermConfig
from kswap.tasks import Examples, Task, View, find, make_examples
from kswap.training.loop import compute_terms

_RATES = {"new LoRA": 4e-3, "same LoRA": 4e-3, "all": 1e-4, "head": 1e-2}


@dataclass(frozen=True)
class Budget:
    """Fixed steps, the same for every model."""

    steps: int
    batch: int
    every: int
    """A score after so many steps."""


STANDARD = Budget(steps=6, batch=16, every=3)
STRICT = Budget(steps=60, batch=32, every=10)


def relearn_model(
    again: Again,
    condition: Condition,
    name: SubjectName,
    draw: int,
    *,
    budget: Budget,
) -> Course:
    """Train a copy of a model as a condition says, and score it on the way.

    Args:
        again: the models and images.
        condition: what is trained on what.
        name: of the model.
        draw: which draw of images; also the seed of new weights.
        budget: steps and batch.
    """
    observed, task = again.models[name], find(again.task)
    forget = tuple(again.class_ids["forget"])
    model, rows = copy.deepcopy(observed.model), list(observed.rows)
    if condition.share:
        rows = _fresh_rows(model, rows, forget, again.names, seed=draw)
    sets = again.sets[name]
    some, kept = _images(again, name, condition, draw, rows), sets["retain"]["train"]
    kept = in_model_rows(kept, rows)
    tests = {
        role: in_model_rows(images["test"], rows)
        for role, images in again.few(name).items()
        if role in ("forget", "retain") and "test" in images
    }
    own = again.own_lora if name == "swapped" and condition.trains == "same LoRA" else {}
    net = _trainable(model, condition.trains, again.adapter, own, seed=draw)
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=_RATES[condition.trains], weight_decay=0.0)
    rng = np.random.default_rng([again.seed, draw])
    steps, scores = [0], [_scores(net, task, observed, again, tests, rows)]
    for step in range(1, budget.steps + 1):
        torch.manual_seed(draw * 1000 + step)  # mask losses draw points
        half = budget.batch // 2
        parts = [take(images, drawn(len(images), half, rng)) for images in (some, kept)]
        examples = make_examples(concatenate(parts), observed.pixels)
        loss = batch_loss(net, task, examples, concatenate(parts), rows)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step % budget.every == 0:
            steps.append(step)
            scores.append(_scores(net, task, observed, again, tests, rows))
    forget_scores, retain_scores = zip(*scores, strict=True)
    return Course(tuple(steps), forget_scores, retain_scores)


def _fresh_rows(
    model: Any, rows: Sequence[int], forget: Sequence[int], names: Mapping[int, str], *, seed: int
) -> list[int]:
    """Take the rows of forgotten classes out of the head, if it has them, and add new ones."""
    own = [place for place, row in enumerate(rows) if row in forget]
    if own:
        drop_rows(model, own)
    left = [row for place, row in enumerate(rows) if place not in own]
    labels = {int(k): str(v) for k, v in model.config.id2label.items()}
    labels |= {len(labels) + i: names[c] for i, c in enumerate(forget)}
    scenes = "Classification" not in type(model).__name__
    extend_head(model, labels, init="mean" if scenes else "random", seed=seed)
    return [*left, *forget]


def _images(
    again: Again,
    name: SubjectName,
    condition: Condition,
    draw: int,
    rows: Sequence[int],
) -> ImageSet:
    """Return the images beside the retained ones, with classes as rows of the model."""
    sets = again.sets[name]
    if condition.share:
        images = sets["forget"]["train"]
        chosen = draw_rows(
            images.class_ids, condition.share, again.num_forget, seed=again.seed, draw=draw
        )
        return in_model_rows(subset(images, np.sort(chosen)), rows)
    if condition.data == LEARN_SET:
        learn = sets.get("learn", {})
        return in_model_rows(learn.get("train") or learn["test"], rows)
    images = sets["retain"]["train"]
    if condition.data == "noise":
        noise = np.random.default_rng([again.seed, draw])
        drawn = noise.integers(0, 256, images.images.shape).astype(images.images.dtype)
        images = replace(images, images=drawn)
    return in_model_rows(images, rows)


def in_model_rows(images: ImageSet, rows: Sequence[int]) -> ImageSet:
    """Return a set with classes as rows of a model; what it has no row for is left out.

    Args:
        images: with rows of the run.
        rows: row of the run for each row of the model.
    """
    count = max([*rows, int(images.class_ids.max(initial=0)), 0]) + 1
    if images.masks is not None:
        count = max(count, int(images.masks.max()) + 1)
    if images.boxes is not None:
        count = max([count, *(int(b.class_ids.max(initial=0)) + 1 for b in images.boxes)])
    place = np.full(count, -1, np.int64)
    for own, row in enumerate(rows):
        if row >= 0:
            place[row] = own
    masks = images.masks
    if masks is not None:
        moved = np.where(place[masks.clip(0)] >= 0, place[masks.clip(0)], IGNORE)
        masks = np.where(masks >= 0, moved, masks).astype(np.int16)
    boxes = images.boxes
    if boxes is not None:
        boxes = tuple(_boxes_in(b, place) for b in boxes)
    covered = tuple(int(place[c]) for c in images.covered if c < count and place[c] >= 0)
    return replace(
        images,
        class_ids=place[images.class_ids].clip(0),
        masks=masks,
        boxes=boxes,
        covered=covered,
    )


def _boxes_in(boxes: Boxes, place: NDArray[np.int64]) -> Boxes:
    ids = place[boxes.class_ids]
    there = ids >= 0
    return Boxes(boxes.boxes[there], ids[there], boxes.crowd[there])


def _trainable(
    model: Any,
    trains: str,
    adapter: AdapterConfig,
    own: Mapping[str, torch.Tensor],
    *,
    seed: int,
) -> nn.Module:
    """Freeze what does not train; the model stays in evaluation mode, as in a run.

    A LoRA begins as `own`, the matrices that were merged into the model, where there are any.
    """
    if trains in ("new LoRA", "same LoRA"):
        blocks, heads = find_ffn_blocks(model), find_heads(model)
        net: nn.Module = attach(
            model, blocks, adapter, head_names=heads, seed=seed, head_train="all"
        )
        if own:
            continue_from(net, own)
    else:
        net = model.requires_grad_(True)
    return net.eval()


def batch_loss(
    net: nn.Module, task: Task, examples: Examples, samples: Any, rows: Sequence[int]
) -> torch.Tensor:
    """Return the task's own loss on a batch."""
    device = examples.pixels.device
    view = View(
        role_of_row=torch.zeros(len(rows), dtype=torch.long, device=device),
        num_base=len(rows),
        forgotten=torch.zeros(len(rows), dtype=torch.bool, device=device),
    )
    reduction: Any = "mean" if task.name == "classification" else "share"
    terms = {"all": TermConfig(roles=ROLES, objective="cross_entropy", reduction=reduction)}
    groups = task.units(net, examples, None, view)
    divisors = task.divisors(samples, examples.roles, terms, view)
    return compute_terms(groups, terms, divisors)["all"]


def drawn(length: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return `count` rows; again and again where there are fewer."""
    rounds = -(-count // length)
    return np.concatenate([rng.permutation(length) for _ in range(rounds)])[:count]


def _scores(
    net: nn.Module,
    task: Task,
    observed: Observed,
    again: Again,
    tests: Mapping[Any, ImageSet],
    rows: Sequence[int],
) -> tuple[float, float]:
    """Return the scores of forget and retain."""
    found = []
    for role in ("forget", "retain"):
        places = [place for place, row in enumerate(rows) if row in again.class_ids[role]]
        scored = task.score(
            net,
            tests[role],
            pixels=observed.pixels,
            class_ids=places,
            num_rows=len(rows),
            batch_size=again.batch_size,
        )
        found.append(scored.total)
    return found[0], found[1]
