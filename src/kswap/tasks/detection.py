"""Object detection: a unit is a query, the score is COCO's mean average precision.

A query has the class of the object that the library's own matcher gives it. Forgetting a class
sends the query of its object where the base model would have sent it had the class not existed: to
the next-best class or to nothing; its box is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kswap.arrays import Unit
from kswap.data import ImageSet
from kswap.data.samples import Samples, take
from kswap.gathering import in_order
from kswap.models.answering import most_answers
from kswap.models.features import recorded_tokens
from kswap.models.head import recorded_head_inputs
from kswap.models.tokens import box_masks
from kswap.objectives import Units
from kswap.settings import TermConfig
from kswap.tasks import Examples, Pixels, Scores, Teacher, View, make_examples
from kswap.tasks.answers import Detections, detections
from kswap.tasks.box_confusion import box_confusion, surely_seen
from kswap.tasks.boxes import box_iou, to_centres, to_corners
from kswap.tasks.coco_map import coco_map
from kswap.tasks.criteria import Layer, decompose
from kswap.tasks.dense import object_divisors, roles_of
from kswap.tasks.frames import box_outputs, frame_of, of_image, scale_of
from kswap.tasks.inside import (
    Slots,
    features_of,
    inside_units,
    padded,
    size_of,
)
from kswap.tasks.queries import (
    CONFIDENT,
    Kind,
    align,
    base_columns,
    class_cost,
    kept_probabilities,
    loss_kind,
    query_units,
)


class Detection:
    """See `kswap.tasks.Task`."""

    name = "detection"
    score_name = "map"
    counts: Unit = "objects"
    units_are_images = False
    new_rows_lead = False
    teacher_sees_views = True

    def units(
        self, model: nn.Module, examples: Examples, teacher: Teacher | None, view: View
    ) -> list[Units]:
        """Return one unit per image and query; of the own loss, of every layer."""
        kind = loss_kind(model)
        labels, closed = known_objects(examples, view)
        if teacher is not None:
            labels = [
                image if closed[i] else _with_pseudo(image, teacher, i, view, kind)
                for i, image in enumerate(labels)
            ]
        frame = frame_of(model, examples)
        with recorded_tokens(model, view.places) as tokens:
            decomposed = decompose(model, examples.inputs(), _in_frame(labels, frame))
        final = decomposed.layers[-1]
        assert isinstance(final, Layer)
        assert final.boxes is not None
        boxes = of_image(final.boxes, frame)
        final = replace(final, boxes=boxes)
        base_logits = None if teacher is None else _aligned(final, teacher, view, kind)
        class_labels = [image["class_labels"] for image in labels]
        units = query_units(decomposed, class_labels, closed, view, base_logits=base_logits)
        if not view.places or view.bank is None:
            return units
        slots = slots_of_objects(examples, boxes.detach(), view.num_slots)
        found = features_of(tokens, slots, view.places, model, examples)
        answers = None
        if teacher is not None:
            near = slots_of_objects(examples, teacher["boxes"], view.num_slots).queries
            logits = teacher["logits"][..., : view.num_base]
            answers = [image[chosen] for image, chosen in zip(logits, near, strict=True)]
        return [
            *units,
            inside_units(found, slots, examples, view, base_logits=answers, teacher=teacher),
        ]

    def slots(self, examples: Examples, answers: Teacher, most: int) -> Slots:
        """Units are the annotated objects, crowds aside."""
        return slots_of_objects(examples, answers["boxes"], most)

    def divisors(
        self, samples: Samples, roles: Tensor, terms: Mapping[str, TermConfig], view: View
    ) -> dict[str, float]:
        """A mean is over the objects of a term's roles."""
        assert samples.boxes is not None
        rows = torch.cat([torch.from_numpy(b.class_ids[~b.crowd]) for b in samples.boxes])
        return object_divisors(rows, terms, view)

    def share(self, part: Samples, whole: Samples) -> float:
        """Return the part of the batch's objects that a micro-batch has."""
        counts = [sum(int((~b.crowd).sum()) for b in s.boxes or ()) for s in (part, whole)]
        return max(counts[0], 1) / max(counts[1], 1)

    def teach(
        self, model: nn.Module, examples: Examples, *, num_base: int | None = None
    ) -> Teacher:
        """Return {"logits": (images, queries, columns), "boxes": (images, queries, 4)}."""
        logits, boxes = box_outputs(model, examples)
        if num_base is not None:
            logits = base_columns(logits, num_base, nothing=loss_kind(model).nothing)
        return {"logits": logits.float(), "boxes": boxes.float()}

    def features(
        self, model: nn.Module, examples: Examples, heads: Sequence[str]
    ) -> tuple[Teacher, dict[str, tuple[Tensor, Tensor]]]:
        """Return the answers and, by head, the features of the query nearest to each object."""
        with recorded_head_inputs(model, heads, whole=True) as inputs:
            taught = self.teach(model, examples)
            recorded = {name: inputs[name].float() for name in heads if name in inputs}
        assert examples.boxes is not None
        assert examples.box_ids is not None
        found = {}
        for name, features in recorded.items():
            if features.shape[:2] != taught["boxes"].shape[:2]:
                continue  # a head on other places than the queries: encoder tokens
            rows, class_ids = [features.mean(1)], [torch.full((len(features),), -1)]
            for image, (boxes, ids) in enumerate(
                zip(examples.boxes, examples.box_ids, strict=True)
            ):
                if len(boxes):
                    overlap = box_iou(boxes, to_corners(taught["boxes"][image]))
                    rows.append(features[image, overlap.argmax(1)])
                    class_ids.append(ids.cpu())
            found[name] = (torch.cat(rows), torch.cat(class_ids))
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
        """Return mAP over the role's classes that occur, AP50 and AP75."""
        model.eval()
        kind = loss_kind(model)

        def answer(rows: slice) -> dict[str, Tensor]:
            examples = make_examples(take(images, rows), pixels)
            logits, boxes = box_outputs(model, examples)
            answers = detections(
                logits.float(),
                boxes.float(),
                sigmoid=kind.sigmoid,
                nothing=kind.nothing,
                num_rows=num_rows,
                most=most_answers(model, boxes.shape[1]),
            )
            return {
                name: torch.stack([getattr(one, name) for one in answers]).cpu()
                for name in ("boxes", "scores", "class_ids")
            }

        found = [
            Detections(*fields)
            for part in in_order(len(images), batch_size, answer)
            for fields in zip(part["boxes"], part["scores"], part["class_ids"], strict=True)
        ]
        return replace(
            coco_map(found, images, class_ids=class_ids),
            confusion=box_confusion(found, images, class_ids=class_ids),
            kept=tuple(surely_seen(found[row]) for row in keep),
        )


def slots_of_objects(
    examples: Examples, boxes: Float[Tensor, "images queries 4"], most: int
) -> Slots:
    """Return the annotated objects, crowds aside, and the query whose box is nearest to each.

    Args:
        examples: with boxes.
        boxes: of the model's queries: centre x, centre y, width, height from 0 to 1.
        most: slots.
    """
    assert examples.boxes is not None
    assert examples.box_ids is not None
    assert examples.crowd is not None
    scale, corners = scale_of(examples), to_corners(boxes.float())
    ids, masks, queries = [], [], []
    for image, (own, own_ids, crowd) in enumerate(
        zip(examples.boxes, examples.box_ids, examples.crowd, strict=True)
    ):
        objects = own[~crowd][:most]
        ids.append(own_ids[~crowd][:most].long())
        masks.append(box_masks(objects * scale[image], size_of(examples)))
        queries.append(box_iou(objects, corners[image]).argmax(1) if len(objects) else ids[-1])
    return Slots(padded(ids, most), masks, queries, boxes.shape[1])


def known_objects(examples: Examples, view: View) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Return the labels of each image and whether all that is in it is known.

    Objects of classes that the stage does not know yet are left open, crowds are left out.
    """
    assert examples.boxes is not None
    assert examples.box_ids is not None
    assert examples.crowd is not None
    labels, closed = [], examples.complete.clone()
    for image, (boxes, ids, crowd) in enumerate(
        zip(examples.boxes, examples.box_ids, examples.crowd, strict=True)
    ):
        known = roles_of(ids, view) >= 0
        if bool((~known).any()):
            closed[image] = False
        chosen = known & ~crowd
        labels.append({"class_labels": ids[chosen], "boxes": to_centres(boxes[chosen])})
    return labels, closed


def _in_frame(labels: list[dict[str, Tensor]], frame: Tensor | None) -> list[dict[str, Tensor]]:
    """Return labels with boxes as fractions of what the model's are fractions of."""
    if frame is None:
        return labels
    return [
        {**image, "boxes": image["boxes"] * own} for image, own in zip(labels, frame, strict=True)
    ]


def _with_pseudo(
    labels: dict[str, Tensor], teacher: Teacher, image: int, view: View, kind: Kind
) -> dict[str, Tensor]:
    """Add what the base model surely sees where nothing is annotated, forgotten classes aside."""
    shares = kept_probabilities(
        teacher["logits"][image], view, sigmoid=kind.sigmoid, nothing=kind.nothing
    )
    best, classes = shares.max(-1)
    boxes = teacher["boxes"][image].to(labels["boxes"])
    sure = (best >= CONFIDENT) & (roles_of(classes, view) >= 0)
    if len(labels["boxes"]) and len(boxes):
        overlap = box_iou(to_corners(boxes), to_corners(labels["boxes"]))
        sure &= overlap.max(-1).values < CONFIDENT
    return {
        "class_labels": torch.cat([labels["class_labels"], classes[sure]]),
        "boxes": torch.cat([labels["boxes"], boxes[sure]]),
    }


@torch.no_grad()
def _aligned(layer: Layer, teacher: Teacher, view: View, kind: Kind) -> Tensor:
    """Return the base's logits in the order of our queries."""
    options = {"sigmoid": kind.sigmoid, "nothing": kind.nothing}
    base = kept_probabilities(teacher["logits"], view, **options)
    ours = kept_probabilities(
        base_columns(layer.logits, view.num_base, nothing=kind.nothing), view, **options
    )
    assert layer.boxes is not None
    near = to_corners(layer.boxes.float()), to_corners(teacher["boxes"])
    giou = torch.stack([box_iou(a, b) for a, b in zip(*near, strict=True)])
    distance = torch.cdist(layer.boxes.float(), teacher["boxes"], p=1)
    order = align(5.0 * distance - 2.0 * giou + class_cost(ours, base))
    return teacher["logits"].gather(1, order[..., None].expand_as(teacher["logits"]))
