"""Semantic segmentation: a unit is a pixel, or a query with its mask; the score is the mean IoU.

Forgetting a class sends its pixels where the base model would have put them had the class not
existed: to the next-best class, or to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kswap.arrays import Marks, Unit
from kswap.data import ImageSet
from kswap.data.samples import Samples, take
from kswap.data.sets import IGNORE, OPEN
from kswap.gathering import gathered_objects, own_batches
from kswap.models.features import recorded_tokens
from kswap.models.head import recorded_head_inputs
from kswap.objectives import NEEDS_FEATURES, Units
from kswap.settings import TermConfig
from kswap.tasks import Examples, Pixels, Scores, Teacher, View, make_examples
from kswap.tasks.answers import semantic_map_from_pixels, semantic_map_from_queries
from kswap.tasks.criteria import (
    IGNORED,
    Layer,
    Normaliser,
    PixelLayer,
    decompose,
    ignored_label,
    outputs_only,
)
from kswap.tasks.dense import count_objects, object_divisors, roles_of, truth_at
from kswap.tasks.inside import (
    Slots,
    answers_on_regions,
    features_of,
    inside_units,
    slots_of_regions,
)
from kswap.tasks.miou import IoU
from kswap.tasks.queries import (
    CONFIDENT,
    RETAIN,
    align,
    base_columns,
    class_cost,
    forgotten_columns,
    kept_probabilities,
    loss_kind,
    nothing_first,
    query_units,
    taught_where_open,
)


class Segmentation:
    """See `kswap.tasks.Task`."""

    name = "segmentation"
    score_name = "miou"
    counts: Unit = "pixels"
    units_are_images = False
    new_rows_lead = False
    teacher_sees_views = True

    def units(
        self, model: nn.Module, examples: Examples, teacher: Teacher | None, view: View
    ) -> list[Units]:
        """Return one unit per pixel; of a mask classifier, per image, query and layer."""
        truth = known_truth(examples, view)
        with recorded_tokens(model, view.places) as tokens:
            if loss_kind(model).pixels:
                truth = truth.masked_fill(truth == ignored_label(model), IGNORE)
                units, masks = _pixel_units(model, examples, truth, teacher, view), None
            else:
                units, masks = _mask_units(model, examples, truth, teacher, view)
        if not view.places or view.bank is None:
            return units
        slots = slots_of_regions(examples, masks, view.num_slots)
        found = features_of(tokens, slots, view.places, model, examples)
        answers = None
        if teacher is not None:
            assert examples.masks is not None
            answers = answers_on_regions(teacher, slots, examples.masks, view.num_base)
        return [
            *units,
            inside_units(found, slots, examples, view, base_logits=answers, teacher=teacher),
        ]

    def slots(self, examples: Examples, answers: Teacher, most: int) -> Slots:
        """Units are the regions of the annotated classes."""
        return slots_of_regions(examples, answers.get("masks"), most)

    def divisors(
        self, samples: Samples, roles: Tensor, terms: Mapping[str, TermConfig], view: View
    ) -> dict[str, float]:
        """A mean is over the pixels of a term's roles; on features, over regions."""
        assert samples.masks is not None
        masks = torch.from_numpy(samples.masks)
        regions = None
        if any(term.objective in NEEDS_FEATURES for term in terms.values()):
            regions = torch.cat([torch.unique(mask) for mask in masks])
        return object_divisors(count_objects(masks, view), terms, view, units=regions)

    def share(self, part: Samples, whole: Samples) -> float:
        """Return the part of the batch's annotated pixels that a micro-batch has."""
        assert part.masks is not None
        assert whole.masks is not None
        return max(int((part.masks > IGNORE).sum()), 1) / max(int((whole.masks > IGNORE).sum()), 1)

    def teach(
        self, model: nn.Module, examples: Examples, *, num_base: int | None = None
    ) -> Teacher:
        """Return {"logits"}: of pixels (images, columns, h, w); or of queries, with {"masks"}."""
        logits, masks = outputs_only(model, examples.inputs())
        if num_base is not None:
            logits = (
                logits[:, :num_base]
                if masks is None
                else base_columns(logits, num_base, nothing=True)
            )
        taught = {"logits": logits.float() if masks is not None else logits.half()}
        return taught if masks is None else {**taught, "masks": masks.half()}

    def features(
        self, model: nn.Module, examples: Examples, heads: Sequence[str]
    ) -> tuple[Teacher, dict[str, tuple[Tensor, Tensor]]]:
        """Return the answers and, by head, mean features of the places of every class."""
        with recorded_head_inputs(model, heads, whole=True) as inputs:
            taught = self.teach(model, examples)
            recorded = {name: inputs[name].float() for name in heads if name in inputs}
        assert examples.masks is not None
        found = {}
        for name, features in recorded.items():
            if "masks" not in taught:
                found[name] = _features_of_pixels(features, examples.masks)
                continue
            # With an auxiliary loss MaskFormer's head reads all decoder layers at once.
            last = features[-1] if features.ndim == 4 else features
            if last.shape[:2] == taught["masks"].shape[:2]:
                found[name] = _features_of_queries(last, taught["masks"], examples.masks)
        return taught, found

    @torch.no_grad()
    def score(
        self,
        model: nn.Module,
        images: ImageSet,
        *,
        pixels: Pixels,
        class_ids: Sequence[int],
        num_rows: int,
        batch_size: int,
        keep: Sequence[int] = (),
    ) -> Scores:
        """Return the mean IoU over the role's classes that occur, and that of each."""
        model.eval()
        iou = IoU(class_ids, images.covered)
        wanted, kept = set(keep), {}
        for rows, counts in own_batches(len(images), batch_size):
            examples = make_examples(take(images, rows), pixels)
            assert examples.masks is not None
            found = answers(model, examples, num_rows)
            if not counts:
                continue
            for row, answer, truth in zip(
                range(rows.start, rows.stop), found, examples.masks, strict=False
            ):
                iou.update(answer.cpu().numpy(), truth.cpu().numpy())
                if row in wanted:
                    kept[row] = _marks(answer, None if images.sizes is None else images.sizes[row])
        everyones = gathered_objects((iou, kept))
        kept = {row: marks for _, own in everyones for row, marks in own.items()}
        scores = IoU.together([counted for counted, _ in everyones]).scores()
        return replace(scores, kept=tuple(kept[row] for row in sorted(kept)))


def _marks(answer: Tensor, size: Any) -> Marks:
    """Return an answer without its padding."""
    height, width = answer.shape if size is None else size
    none = np.zeros(0, np.float32)
    return Marks(
        none.astype(np.int64), none, answer[:height, :width].cpu().numpy().astype(np.int16)
    )


def answers(model: nn.Module, examples: Examples, num_rows: int) -> Tensor:
    """Return the class of every pixel, (images, height, width)."""
    logits, masks = outputs_only(model, examples.inputs())
    height, width = examples.pixels.shape[-2:]
    if masks is None:
        return semantic_map_from_pixels(logits, (height, width), num_rows=num_rows)
    return semantic_map_from_queries(logits, masks, (height, width), num_rows=num_rows)


def known_truth(examples: Examples, view: View) -> Tensor:
    """Return the masks with every class that the stage does not know yet left open."""
    assert examples.masks is not None
    unknown = (examples.masks >= 0) & (roles_of(examples.masks, view) < 0)
    return examples.masks.masked_fill(unknown, OPEN)


# ------------------------------------------------------------------------------ a class per pixel
def _pixel_units(
    model: nn.Module, examples: Examples, truth: Tensor, teacher: Teacher | None, view: View
) -> list[Units]:
    """Return units of the task's own loss, at the size of the labels, and of the base's answers.

    The base's answers are compared at the size of the logits, where each stands for several pixels
    of the labels.
    """
    labels = torch.where(truth >= 0, truth, IGNORED)
    counted = int((truth > IGNORE).sum())  # what is open is taught as well
    decomposed = decompose(model, examples.inputs(), labels, Normaliser(pixels=counted))
    annotated = truth >= 0
    roles = roles_of(truth, view)
    own = [layer.loss[annotated] for layer in decomposed.layers if isinstance(layer, PixelLayer)]
    copies = len(own)
    groups = [
        Units(
            class_ids=truth[annotated].repeat(copies),
            roles=roles[annotated].repeat(copies),
            forgotten=view.forgotten,
            logits=None,
            own=torch.cat(own),
            weight=torch.ones_like(torch.cat(own)) / max(counted, 1),
        )
    ]
    if teacher is None:
        return groups
    final = decomposed.layers[-1]
    assert isinstance(final, PixelLayer)
    logits = final.logits[:, : view.num_rows]
    small = truth_at(truth, logits.shape[-2:])
    there = small > IGNORE
    per_place = truth[0].numel() / small[0].numel() / max(counted, 1)
    places = Units(
        class_ids=small[there],
        roles=torch.where(small >= 0, roles_of(small, view), RETAIN)[there],
        forgotten=view.forgotten,
        logits=logits.movedim(1, -1)[there],
        base_logits=teacher["logits"].float().movedim(1, -1)[there],
        own=torch.zeros_like(small[there], dtype=logits.dtype),
        weight=torch.full_like(small[there], per_place, dtype=logits.dtype),
    )
    taught = taught_where_open(places, small[there] == OPEN)
    return [_with_open(groups[0], taught, small[there] == OPEN), replace(places, own=None)]


def _with_open(own: Units, places: Units, open_places: Tensor) -> Units:
    """Add what is open, with the loss that the base's answers give, to the units with labels."""
    assert own.own is not None
    assert own.weight is not None
    assert places.own is not None
    assert places.weight is not None
    return Units(
        class_ids=torch.cat([own.class_ids, places.class_ids[open_places]]),
        roles=torch.cat([own.roles, places.roles[open_places]]),
        forgotten=own.forgotten,
        logits=None,
        own=torch.cat([own.own, places.own[open_places]]),
        weight=torch.cat([own.weight, places.weight[open_places]]),
    )


# ------------------------------------------------------------------------------- mask classifiers
def _mask_units(
    model: nn.Module, examples: Examples, truth: Tensor, teacher: Teacher | None, view: View
) -> tuple[list[Units], Tensor | None]:
    """Return the units of all queries, of the own loss of every layer; and the final masks."""
    closed = examples.complete & ~((truth == OPEN) & (examples.masks != OPEN)).any(-1).any(-1)
    if teacher is not None:
        truth = torch.where(
            (truth == OPEN) & ~closed[:, None, None], _pseudo(teacher, truth, view), truth
        )
        if view.as_if_absent:
            truth = torch.where(_forgotten(truth, view), _without(teacher, truth, view), truth)
    labels = [_binary_masks(image) for image in truth]
    decomposed = decompose(model, examples.inputs(), labels)
    final = decomposed.layers[-1]
    assert isinstance(final, Layer)
    base_logits = None if teacher is None else _aligned(final, teacher, view)
    class_labels = [image["class_labels"] for image in labels]
    units = query_units(decomposed, class_labels, closed, view, base_logits=base_logits)
    return units, None if final.masks is None else final.masks.detach()


def _forgotten(truth: Tensor, view: View) -> Tensor:
    """Return where the truth is a class that is to be forgotten, or was before."""
    gone = torch.cat([view.forgotten, view.forgotten.new_zeros(view.num_rows - view.num_base)])
    return gone[truth.clamp_min(0)] & (truth >= 0)


def _without(teacher: Teacher, truth: Tensor, view: View) -> Tensor:
    """Return the class the base model sees at every pixel without forgotten classes; else OPEN.

    A query whose best remaining answer is "no object" is not there: its mask would otherwise win
    its place for whatever class has the little that is left. So the place falls to the queries
    around it, as it does in a model that never knew the class: to the background, where there is
    such a class.
    """
    logits = nothing_first(teacher["logits"].float(), nothing=True)
    gone = forgotten_columns(view, nothing=True)
    there = logits.masked_fill(gone, -math.inf).argmax(-1) > 0
    shares = kept_probabilities(teacher["logits"], view, sigmoid=False, nothing=True)
    best, classes = _best_seen(shares * there[..., None], teacher, truth)
    return torch.where((best > 0) & (roles_of(classes, view) >= 0), classes, OPEN)


def _binary_masks(truth: Tensor) -> dict[str, Tensor]:
    """Return {"class_labels": (k,), "masks": (k, height, width)}, one mask for each class."""
    classes: Tensor = torch.unique(truth)
    classes = classes[classes >= 0]
    return {"class_labels": classes, "masks": (truth[None] == classes[:, None, None]).float()}


def _best_seen(shares: Tensor, teacher: Teacher, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return score and class of what shares (images, queries, classes) put at every pixel."""
    scores = torch.einsum("bqc,bqhw->bchw", shares, teacher["masks"].float().sigmoid())
    scores = functional.interpolate(
        scores, size=truth.shape[-2:], mode="bilinear", align_corners=False
    )
    best, classes = scores.max(1)
    return best, classes


def _pseudo(teacher: Teacher, truth: Tensor, view: View) -> Tensor:
    """Return what the base model surely sees at every pixel, forgotten classes aside; else OPEN."""
    shares = kept_probabilities(teacher["logits"], view, sigmoid=False, nothing=True)
    best, classes = _best_seen(shares, teacher, truth)
    sure = (best >= CONFIDENT) & (roles_of(classes, view) >= 0)
    return torch.where(sure, classes, OPEN)


@torch.no_grad()
def _aligned(layer: Layer, teacher: Teacher, view: View) -> Tensor:
    """Return the base's logits in the order of our queries."""
    assert layer.masks is not None
    base = kept_probabilities(teacher["logits"], view, sigmoid=False, nothing=True)
    ours = kept_probabilities(
        base_columns(layer.logits, view.num_base, nothing=True), view, sigmoid=False, nothing=True
    )
    one, other = (
        functional.adaptive_avg_pool2d(masks.float(), 32).sigmoid().flatten(2)
        for masks in (layer.masks, teacher["masks"])
    )
    common = 2 * one @ other.transpose(1, 2)
    dice = (common + 1) / (one.sum(-1)[:, :, None] + other.sum(-1)[:, None] + 1)
    order = align(class_cost(ours, base) - 2.0 * dice)
    return teacher["logits"].gather(1, order[..., None].expand_as(teacher["logits"]))


# --------------------------------------------------------------------------- features of a class
def _features_of_pixels(features: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean feature of each class in each image, and of each whole image (class -1)."""
    small = truth_at(masks, features.shape[-2:])
    rows, class_ids = [features.mean((2, 3))], [torch.full((len(features),), -1)]
    for image, truth in enumerate(small):
        for class_id in torch.unique(truth):
            if class_id >= 0:
                rows.append(features[image][:, truth == class_id].mean(-1)[None])
                class_ids.append(class_id[None].cpu())
    return torch.cat(rows), torch.cat(class_ids)


def _features_of_queries(
    features: Tensor, mask_logits: Tensor, masks: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the feature of the query whose mask is nearest to each class, and means (class -1)."""
    small = truth_at(masks, mask_logits.shape[-2:])
    inside = mask_logits > 0
    rows, class_ids = [features.mean(1)], [torch.full((len(features),), -1)]
    for image, truth in enumerate(small):
        for class_id in torch.unique(truth):
            if class_id >= 0:
                wanted = truth == class_id
                common = (inside[image] & wanted).sum((1, 2))
                union = (inside[image] | wanted).sum((1, 2))
                best = (common / union.clamp_min(1)).argmax()
                rows.append(features[image, best][None])
                class_ids.append(class_id[None].cpu())
    return torch.cat(rows), torch.cat(class_ids)
