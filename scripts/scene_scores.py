"""Scores segmenters by mean IoU and detectors by average precision, on complete labels.

mIoU: per class, intersection over union of all pixels of the set (as in Pascal VOC), averaged over
the classes without background. AP50: COCO's 101-point interpolated average precision at IoU 0.5.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scene_models import BACKGROUND, make_processor, to_pixels
from scenes import Scene, box, index_mask
from torch import nn
from transformers import Mask2FormerForUniversalSegmentation, RTDetrForObjectDetection


def per_class_iou(counts: np.ndarray) -> np.ndarray:
    """Return the IoU per class of a confusion matrix (truth, prediction); NaN where never seen."""
    hits = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


@torch.no_grad()
def score_segmenter(
    model: Mask2FormerForUniversalSegmentation, scenes: Sequence[Scene]
) -> dict[str, object]:
    """Return mIoU over all classes, as Pascal VOC counts it, and without background; every IoU."""
    numbers, processor = model.config.label2id, make_processor("segmentation")
    counts = np.zeros((len(numbers), len(numbers)), np.int64)
    for start in range(0, len(scenes), 16):
        part = scenes[start : start + 16]
        sizes = [scene.image.shape[:2] for scene in part]
        found = processor.post_process_semantic_segmentation(model(to_pixels(part)), sizes)
        for scene, prediction in zip(part, found, strict=True):
            truth = index_mask(scene, numbers)
            np.add.at(counts, (truth.ravel(), prediction.numpy().ravel()), 1)
    found = per_class_iou(counts).tolist()
    ious = {name: found[number] for name, number in numbers.items()}  # a config lists them by name
    things = [v for name, v in ious.items() if name != BACKGROUND]
    return {
        "miou": float(np.nanmean(found)),
        "miou_things": float(np.nanmean(things)),
        "per_class": ious,
    }


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the IoU (n, m) of corner boxes (n, 4) and (m, 4)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(b[:, 2:] - b[:, :2], 0, None).prod(-1) for b in (boxes, others)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def average_precision(hits: np.ndarray, scores: np.ndarray, num_truths: int) -> float:
    """Return COCO's 101-point average precision of detections that hit (1) or missed (0)."""
    order = np.argsort(-scores, kind="stable")
    hits = hits[order].cumsum()
    recall, precision = hits / max(num_truths, 1), hits / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, np.linspace(0, 1, 101))
    return float(np.append(precision, 0.0)[np.minimum(at, len(hits))].mean())


def matched(found: np.ndarray, truths: np.ndarray, threshold: float) -> np.ndarray:
    """Return 1 per detection, best first, that takes a truth nobody took before; else 0."""
    hits, free = np.zeros(len(found)), np.ones(len(truths), bool)
    for i, ious in enumerate(overlaps(found, truths) if len(truths) else []):
        best = int(np.where(free, ious, -1).argmax())
        if free[best] and ious[best] >= threshold:
            hits[i], free[best] = 1, False
    return hits


@torch.no_grad()
def detections(model: RTDetrForObjectDetection, scenes: Sequence[Scene]) -> list[dict]:
    """Return scores, labels and boxes in pixels, every (query, class) above score 0.001."""
    processor, results = make_processor("detection"), []
    for start in range(0, len(scenes), 16):
        part = scenes[start : start + 16]
        sizes = [scene.image.shape[:2] for scene in part]
        output = model(to_pixels(part))
        found = processor.post_process_object_detection(output, 0.001, sizes)
        results += [{k: v.numpy() for k, v in one.items()} for one in found]
    return results


def score_detector(
    model: RTDetrForObjectDetection, scenes: Sequence[Scene], *, threshold: float = 0.5
) -> dict[str, object]:
    """Return the mean average precision at one IoU threshold, and every class's."""
    results, per_class = detections(model, scenes), {}
    for name, number in model.config.label2id.items():
        hits, scores, num_truths = [], [], 0
        for scene, found in zip(scenes, results, strict=True):
            truths = [box(m) for n, m in zip(scene.names, scene.masks, strict=True) if n == name]
            mine = found["labels"] == number
            order = np.argsort(-found["scores"][mine], kind="stable")
            truth_boxes = np.array(truths, float).reshape(-1, 4)
            hits.append(matched(found["boxes"][mine][order], truth_boxes, threshold))
            scores.append(found["scores"][mine][order])
            num_truths += len(truths)
        per_class[name] = average_precision(
            np.concatenate(hits), np.concatenate(scores), num_truths
        )
    return {"ap50": float(np.mean(list(per_class.values()))), "per_class": per_class}


@torch.no_grad()
def score_dense(model: nn.Module, scenes: Sequence[Scene]) -> dict[str, object]:
    """Return the mIoU of the dense classifier's label maps, without background."""
    numbers = {name: i for i, name in enumerate(model.names)}
    counts = np.zeros((len(numbers), len(numbers)), np.int64)
    for start in range(0, len(scenes), 16):
        part = scenes[start : start + 16]
        size = part[0].image.shape[:2]
        logits = nn.functional.interpolate(model(to_pixels(part)), size=size, mode="bilinear")
        truth = np.stack([index_mask(scene, numbers) for scene in part])
        np.add.at(counts, (truth.ravel(), logits.argmax(1).numpy().ravel()), 1)
    ious = per_class_iou(counts)
    return {"miou": float(np.nanmean(ious[1:])), "per_class": dict(zip(numbers, ious, strict=True))}
