"""Units of scenes: annotated objects (detection) and regions of a class (segmentation).

The features of a unit are those of the tokens under its box or mask; where a layer holds queries,
those of the query whose box or mask is nearest to it. What the model answers on an object is what
that query answers; on a region, the mean over its pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kswap.audits.features import BEFORE_HEAD, NUM_GROUPS, Batch, Observed, num_groups
from kswap.audits.layers import Tap, tapped
from kswap.data import ImageSet
from kswap.models.answering import most_answers
from kswap.models.head import head_linear, recorded_head_inputs
from kswap.models.tokens import as_tokens, behind_image, box_masks, pooled, scales_of
from kswap.models.wrapping import bare
from kswap.tasks import Examples, Scores
from kswap.tasks.answers import (
    Detections,
    detections,
    semantic_map_from_pixels,
    semantic_map_from_queries,
)
from kswap.tasks.boxes import box_iou, to_corners
from kswap.tasks.coco_map import coco_map
from kswap.tasks.criteria import outputs_only
from kswap.tasks.frames import frame_of, of_image, scale_of
from kswap.tasks.inside import nearest_query, read_by_head, size_of
from kswap.tasks.miou import IoU
from kswap.tasks.queries import Kind, loss_kind

_OVERLAP = 0.5
"""From which intersection over union on a box is that of an object."""
_CONFIDENT = 0.3
"""From which score on an answer counts as one that a person would see."""
_APART = 0.1
"""Under which overlap with every annotated object an answer is one on the background."""


class _SceneUnits:
    """What both tasks share: a forward with the outputs of blocks and heads beside it."""

    def __init__(self, observed: Observed, class_ids: Sequence[int], images: ImageSet) -> None:
        self.observed = observed
        self.class_ids = tuple(class_ids)
        self.kind: Kind = loss_kind(observed.model)

    def forward(
        self, examples: Examples
    ) -> tuple[Tensor, Tensor | None, dict[str, tuple[Tensor, tuple[int, int] | None]]]:
        """Return logits in rows of the run, boxes or masks, and layer -> tokens and their grid."""
        observed, batch = self.observed, len(examples)
        num_behind = behind_image(bare(observed.model).config)
        layers: dict[str, tuple[Tensor, tuple[int, int] | None]] = {}

        def record(tap: Tap, output: Tensor) -> None:
            layers[tap.label] = as_tokens(output, batch, tap.width, num_behind=num_behind)

        with (
            tapped(observed.model, observed.taps, record),
            recorded_head_inputs(observed.model, observed.heads, whole=True) as inputs,
        ):
            logits, places = outputs_only(observed.model, examples.inputs())
            for name in observed.heads:
                if name not in inputs:
                    continue
                queries = () if places is None else tuple(logits.shape[:2])
                head = head_linear(observed.model, name)
                read = read_by_head(head, inputs[name].float(), queries)
                if read is not None:
                    layers[BEFORE_HEAD] = read  # the last head is the final one
        mapped = observed.in_rows(
            logits, axis=1 if self.kind.pixels else -1, nothing=self.kind.nothing
        )
        if BEFORE_HEAD in layers:
            layers[BEFORE_HEAD] = layers.pop(BEFORE_HEAD)  # last in order
        return mapped, places, layers

    def features(
        self,
        layers: dict[str, tuple[Tensor, tuple[int, int] | None]],
        masks: Sequence[Tensor],
        queries: Sequence[Tensor],
        num_queries: int,
    ) -> dict[str, Tensor]:
        """Return layer -> (units, size); a layer whose tokens have no place is left out.

        Args:
            layers: from `forward`.
            masks: of each image (units, height, width): where its units are.
            queries: of each image (units,): the query nearest to each unit.
            num_queries: of the model; 0: it has none.
        """
        found: dict[str, Tensor] = {}
        size = (int(masks[0].shape[-2]), int(masks[0].shape[-1]))
        for name, (tokens, grid) in layers.items():
            if grid is None and num_queries and tokens.shape[1] == num_queries:
                rows = [image[chosen] for image, chosen in zip(tokens, queries, strict=True)]
            else:
                scales = (0, (grid,)) if grid is not None else scales_of(tokens.shape[1], size)
                if scales is None:
                    continue
                extra, grids = scales
                rows = [
                    pooled(image, own, extra=extra, grids=grids)
                    for image, own in zip(tokens, masks, strict=True)
                ]
            found[name] = torch.cat(rows)
        return found


class ObjectUnits(_SceneUnits):
    """Detection: a unit is an annotated object of the role."""

    def __init__(self, observed: Observed, class_ids: Sequence[int], images: ImageSet) -> None:
        super().__init__(observed, class_ids, images)
        self._answers: list[Detections] = []

    def add(self, examples: Examples) -> Batch:
        """Do one forward."""
        frame = frame_of(self.observed.model, examples)
        logits, boxes, layers = self.forward(examples)
        assert boxes is not None
        boxes = of_image(boxes, frame)
        assert examples.boxes is not None
        assert examples.box_ids is not None
        assert examples.crowd is not None
        corners = to_corners(boxes.float())
        answers = detections(
            logits,
            boxes.float(),
            sigmoid=self.kind.sigmoid,
            nothing=self.kind.nothing,
            num_rows=self.observed.num_rows,
            most=most_answers(self.observed.model, boxes.shape[1]),
        )
        self._answers += answers
        scale = scale_of(examples)
        wanted = torch.tensor(self.class_ids, device=logits.device)
        ids, queries, masks, overlaps = [], [], [], []
        counts = {"recalled": 0.0, "other label": 0.0, "background": 0.0}
        for image, (own, own_ids, crowd) in enumerate(
            zip(examples.boxes, examples.box_ids, examples.crowd, strict=True)
        ):
            chosen = torch.isin(own_ids, wanted) & ~crowd
            objects = own[chosen]
            overlap = box_iou(objects, corners[image])
            best = overlap.max(1) if overlap.numel() else None
            queries.append(best.indices if best else objects.new_zeros(0, dtype=torch.long))
            overlaps.append(best.values if best else objects.new_zeros(0))
            ids.append(own_ids[chosen])
            masks.append(box_masks(objects * scale[image], size_of(examples)))
            for key, value in _found(answers[image], objects, own_ids[chosen], own).items():
                counts[key] += value
        rows = [image[chosen] for image, chosen in zip(logits, queries, strict=True)]
        return Batch(
            layers=self.features(layers, masks, queries, boxes.shape[1]),
            logits=self._with_nothing(torch.cat(rows)),
            class_ids=torch.cat(ids),
            images=_image_of(ids),
            found=torch.cat(overlaps) >= _OVERLAP,
            counts=counts,
        )

    def scores(self, images: ImageSet) -> Scores:
        """Return mAP of the role's classes."""
        return coco_map(self._answers, images, class_ids=self.class_ids)

    def scores_without(self, images: ImageSet) -> Sequence[Scores]:
        """Return mAP without each group of images."""
        return [
            coco_map(
                self._answers,
                images,
                class_ids=self.class_ids,
                rows=[row for row in range(len(images)) if row % NUM_GROUPS != group],
            )
            for group in range(num_groups(len(images)))
        ]

    def _with_nothing(self, logits: Tensor) -> Tensor:
        """Where each class has a yes or no of its own, nothing has log-odds 0.

        Given that at most one of them holds, softmax over the log-odds and 0 is exact.
        """
        if self.kind.nothing:
            return logits
        return torch.cat([logits, logits.new_zeros(len(logits), 1)], -1)


def _found(
    answers: Detections, objects: Tensor, class_ids: Tensor, everything: Tensor
) -> dict[str, float]:
    """Count objects found at any score, found under another label, and answers on background.

    Args:
        answers: on one image.
        objects: (objects, 4) of the role.
        class_ids: (objects,).
        everything: (annotated, 4): all that is annotated.
    """
    counts = {"recalled": 0.0, "other label": 0.0, "background": 0.0}
    sure = answers.scores >= _CONFIDENT
    if len(objects):
        near = box_iou(objects, answers.boxes) >= _OVERLAP
        same = answers.class_ids[None] == class_ids[:, None]
        counts["recalled"] = float((near & same).any(1).sum())
        counts["other label"] = float((near & ~same & sure[None]).any(1).sum())
    away = sure.clone()
    if len(everything):
        away &= box_iou(answers.boxes, everything).max(1).values < _APART
    counts["background"] = float(away.sum())
    return counts


class RegionUnits(_SceneUnits):
    """Segmentation: a unit is the region of a class of the role in an image."""

    def __init__(self, observed: Observed, class_ids: Sequence[int], images: ImageSet) -> None:
        super().__init__(observed, class_ids, images)
        self._new_counts = partial(IoU, class_ids, images.covered)
        self._groups = [self._new_counts() for _ in range(NUM_GROUPS)]
        self._seen = 0

    def add(self, examples: Examples) -> Batch:
        """Do one forward."""
        assert examples.masks is not None
        logits, query_masks, layers = self.forward(examples)
        size = (int(examples.masks.shape[-2]), int(examples.masks.shape[-1]))
        rows = self.observed.num_rows
        if query_masks is None:
            answers = semantic_map_from_pixels(logits, size, num_rows=rows)
            shares = logits.softmax(1)
        else:
            answers = semantic_map_from_queries(logits, query_masks, size, num_rows=rows)
            of_query = logits.softmax(-1)[..., :-1]
            shares = torch.einsum("bqc,bqhw->bchw", of_query, query_masks.float().sigmoid())
            shares = shares / shares.sum(1, keepdim=True).clamp_min(1e-12)
        for answer, truth in zip(answers, examples.masks, strict=True):
            self._groups[self._seen % NUM_GROUPS].update(answer.cpu().numpy(), truth.cpu().numpy())
            self._seen += 1
        ids, masks, queries, means = [], [], [], []
        for image, truth in enumerate(examples.masks):
            there = torch.unique(truth)
            there = there[torch.isin(there, torch.tensor(self.class_ids, device=there.device))]
            own = (truth[None] == there[:, None, None]).float()
            ids.append(there)
            masks.append(own)
            means.append(_over_region(shares[image], own))
            if query_masks is not None:
                queries.append(nearest_query(query_masks[image], truth, there))
        given = torch.cat(means).clamp_min(1e-38).log()
        lacking = [row for row in range(rows) if row not in self.observed.rows]
        given[:, lacking] = -torch.inf
        num_queries = 0 if query_masks is None else query_masks.shape[1]
        return Batch(
            layers=self.features(layers, masks, queries, num_queries),
            logits=torch.cat([given, given.new_full((len(given), 1), -torch.inf)], -1),
            class_ids=torch.cat(ids),
            images=_image_of(ids),
            found=torch.ones(len(given), dtype=torch.bool),
        )

    def scores(self, images: ImageSet) -> Scores:
        """Return the mean IoU of the role's classes."""
        return IoU.together([self._new_counts(), *self._groups]).scores()

    def scores_without(self, images: ImageSet) -> Sequence[Scores]:
        """Return mean IoU without each group of images."""
        found = []
        for group in range(num_groups(len(images))):
            others = [counts for n, counts in enumerate(self._groups) if n != group]
            found.append(IoU.together([self._new_counts(), *others]).scores())
        return found


def _over_region(shares: Float[Tensor, "classes h w"], masks: Tensor) -> Tensor:
    """Return (units, classes): mean probabilities over each region."""
    size = shares.shape[-2], shares.shape[-1]
    weights = functional.adaptive_avg_pool2d(masks[:, None], size).flatten(1)
    weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-12)
    return weights @ shares.flatten(1).T


def _image_of(ids: Sequence[Tensor]) -> Tensor:
    """Return (units,): the image of each unit within the batch."""
    return torch.cat([torch.full((len(own),), image) for image, own in enumerate(ids)])
