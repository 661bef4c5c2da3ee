"""COCO's average precision of the classes of a role, by faster-coco-eval."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from kswap.data import ImageSet
from kswap.tasks import Scores
from kswap.tasks.answers import Detections


def coco_map(
    found: Sequence[Detections],
    images: ImageSet,
    *,
    class_ids: Sequence[int],
    rows: Sequence[int] | None = None,
) -> Scores:
    """Return mAP over IoU 0.50:0.95 and all sizes, AP of each class, AP50 and AP75.

    Only classes of the role that the annotations cover and that occur are scored. Crowds are
    neither hits nor misses.

    Args:
        found: answers on each image of the set.
        images: with boxes.
        class_ids: of the role.
        rows: the images that are scored; None: all.
    """
    assert images.boxes is not None
    rows = range(len(images.boxes)) if rows is None else rows
    covered = set(map(int, images.covered)) if images.covered else set(map(int, class_ids))
    there = [images.boxes[row] for row in rows]
    occurring = {int(c) for b in there for c in b.class_ids[~b.crowd]}
    scored = sorted({int(c) for c in class_ids} & covered & occurring)
    if not scored:
        return Scores(0.0, {})
    annotations: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    pictures: list[dict[str, Any]] = []
    for number, (row, truth) in enumerate(zip(rows, there, strict=True), start=1):
        answer = found[row]
        height, width = _size(images, row)
        scale = np.array([width, height, width, height], dtype=np.float64)
        pictures.append({"id": number, "height": height, "width": width})
        for box, class_id, crowd in zip(truth.boxes, truth.class_ids, truth.crowd, strict=True):
            left, top, right, bottom = (box * scale).tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(class_id),
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": int(crowd),
                }
            )
        boxes = answer.boxes.double().cpu().numpy() * scale
        for box, score, class_id in zip(
            boxes.tolist(), answer.scores.tolist(), answer.class_ids.tolist(), strict=True
        ):
            if class_id in scored:
                left, top, right, bottom = box
                answers.append(
                    {
                        "image_id": number,
                        "category_id": class_id,
                        "bbox": [left, top, right - left, bottom - top],
                        "score": score,
                    }
                )
    if not answers:
        return Scores(0.0, dict.fromkeys(scored, 0.0), {"ap50": 0.0, "ap75": 0.0})
    annotated = {
        "images": pictures,
        "annotations": annotations,
        "categories": [{"id": c, "name": str(c)} for c in sorted(occurring | set(scored))],
    }
    precision = _precision(annotated, answers, scored)
    per_class = {c: _mean(precision[:, :, k]) for k, c in enumerate(scored)}
    return Scores(
        sum(per_class.values()) / len(per_class),
        per_class,
        {"ap50": _mean_of_classes(precision[0]), "ap75": _mean_of_classes(precision[5])},
    )


def _precision(truth: Any, answers: Any, scored: list[int]) -> np.ndarray[Any, Any]:
    """Return precision (IoU thresholds, recalls, classes) over all sizes and 100 answers."""
    from faster_coco_eval import COCO, COCOeval_faster

    with contextlib.redirect_stdout(io.StringIO()):
        annotated = COCO(truth)
        run = COCOeval_faster(annotated, annotated.loadRes(answers), iouType="bbox")
        run.params.catIds = scored
        run.params.imgIds = [picture["id"] for picture in truth["images"]]
        run.evaluate()
        run.accumulate()
    precision: np.ndarray[Any, Any] = np.asarray(run.eval["precision"])
    return precision[:, :, :, 0, -1]


def _mean(precision: np.ndarray[Any, Any]) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else 0.0


def _mean_of_classes(precision: np.ndarray[Any, Any]) -> float:
    """Return the mean over classes of (recalls, classes)."""
    return float(np.mean([_mean(precision[:, k]) for k in range(precision.shape[1])]))


def _size(images: ImageSet, row: int) -> tuple[int, int]:
    """Return height and width in pixels of the file, else of what the model sees."""
    for sizes in (images.original_sizes, images.sizes):
        if sizes is not None:
            return int(sizes[row][0]), int(sizes[row][1])
    shape = images.images.shape
    height, width = shape[1:3] if images.images.dtype == np.uint8 else shape[2:4]
    return int(height), int(width)
