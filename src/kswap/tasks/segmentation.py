"""Semantic segmentation: a unit is a pixel, or a query with its mask; the score is the mean IoU.

Forgetting a class sends its pixels where the base model would have put them had the class not
existed: to the next-best class, or to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kswap.arrays import Marks, Unit
from kswap.data import ImageSet
from kswap.data.samples import Samples, take
from kswap.data.sets import IGNORE, OPEN
from kswap.gathering import gathered_objects, own_batches
from kswap.models.features import recorded_tokens
from kswap.models.head import head_linear, recorded_head_inputs
from kswap.objectives import NEEDS_FEATURES, Units
from kswap.settings import TermConfig
from kswap.tasks import Examples, Pixels, Scores, Teacher, View, make_examples
from kswap.tasks.answers import semantic_map_from_pixels, semantic_map_from_queries
from kswap.tasks.criteria import ignored_label, outputs_only
from kswap.tasks.dense import count_objects, object_divisors, roles_of, truth_at
from kswap.tasks.inside import (
    Slots,
    answers_on_regions,
    features_of,
    inside_units,
    nearest_query,
    read_map,
    slots_of_regions,
)
from kswap.tasks.mask_units import mask_units
from kswap.tasks.miou import IoU
from kswap.tasks.pixel_units import pixel_units
from kswap.tasks.queries import base_columns, loss_kind


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
                units, masks = pixel_units(model, examples, truth, teacher, view), None
            else:
                units, masks = mask_units(model, examples, truth, teacher, view)
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
                read = read_map(head_linear(model, name), features)
                found[name] = _features_of_pixels(read, examples.masks)
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
    return Marks.of_mask(answer[:height, :width].cpu().numpy())


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
    rows, class_ids = [features.mean(1)], [torch.full((len(features),), -1)]
    small = truth_at(masks, mask_logits.shape[-2:])
    for image, truth in enumerate(masks):
        there = torch.unique(small[image])
        there = there[there >= 0]
        rows.append(features[image, nearest_query(mask_logits[image], truth, there)])
        class_ids.append(there.cpu())
    return torch.cat(rows), torch.cat(class_ids)
