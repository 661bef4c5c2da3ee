"""mIoU and mAP against numbers worked by hand and the library's own post-processing."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from criteria_models import DETECTORS
from peft import LoraConfig, get_peft_model
from transformers import (
    DeformableDetrImageProcessorPil,
    DetrImageProcessorPil,
    Mask2FormerImageProcessorPil,
    RTDetrImageProcessorPil,
    SegformerImageProcessorPil,
)

from kswap.data.sets import IGNORE, OPEN, Boxes, ImageSet
from kswap.models.answering import most_answers, remember_answers
from kswap.models.loading import from_objects
from kswap.tasks.answers import (
    Detections,
    detections,
    semantic_map_from_pixels,
    semantic_map_from_queries,
)
from kswap.tasks.coco_map import coco_map
from kswap.tasks.miou import IoU


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("processor", "sigmoid"),
    [
        (DetrImageProcessorPil, False),
        (DeformableDetrImageProcessorPil, True),
        (RTDetrImageProcessorPil, True),
    ],
)
def test_detections_are_those_of_the_librarys_processor(processor, sigmoid):
    logits, boxes = noise(2, 7, 5 + (not sigmoid)), noise(2, 7, 4, seed=1).sigmoid()
    outputs = SimpleNamespace(logits=logits, pred_boxes=boxes)
    expected = processor().post_process_object_detection(outputs, threshold=0.0)
    model = torch.nn.Sequential(torch.nn.Linear(1, 1))
    remember_answers(model, processor())
    most = most_answers(model, num_queries=7)
    found = detections(logits, boxes, sigmoid=sigmoid, nothing=not sigmoid, num_rows=5, most=most)
    for ours, theirs in zip(found, expected, strict=True):
        order = theirs["scores"].argsort(descending=True)
        assert torch.allclose(ours.scores, theirs["scores"][order])
        assert torch.equal(ours.class_ids, theirs["labels"][order])
        assert torch.allclose(ours.boxes, theirs["boxes"][order], atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(
    ("processor", "expected"),
    [(RTDetrImageProcessorPil, 9), (DeformableDetrImageProcessorPil, 100)],
)
def test_a_loaded_detector_knows_what_its_processor_keeps_also_when_it_is_wrapped(
    processor, expected
):
    loaded = from_objects(DETECTORS["rt-detr"](), processor())
    wrapped = get_peft_model(loaded.model, LoraConfig(target_modules=["fc1"]))
    assert most_answers(wrapped, num_queries=9) == expected
    assert most_answers(loaded.model, num_queries=300) == 100, "as COCO counts"


def test_rows_behind_the_first_are_never_answered():
    logits = torch.tensor([[[0.0, 1.0, 9.0, 0.5]]])
    boxes = torch.full((1, 1, 4), 0.5)
    for sigmoid in (True, False):
        (found,) = detections(
            logits, boxes, sigmoid=sigmoid, nothing=not sigmoid, num_rows=2, most=9
        )
        assert found.class_ids[0] == 1


def test_semantic_maps_are_those_of_the_librarys_processors():
    classes, masks = noise(2, 6, 5), noise(2, 6, 8, 8, seed=1)
    outputs = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)
    sizes = [(20, 24)] * 2
    expected = Mask2FormerImageProcessorPil().post_process_semantic_segmentation(outputs, sizes)
    assert torch.equal(
        semantic_map_from_queries(classes, masks, (20, 24), num_rows=4), torch.stack(expected)
    )
    logits = noise(2, 5, 6, 6)
    outputs = SimpleNamespace(logits=logits)
    expected = SegformerImageProcessorPil().post_process_semantic_segmentation(outputs, sizes)
    assert torch.equal(
        semantic_map_from_pixels(logits, (20, 24), num_rows=5), torch.stack(expected)
    )


def test_iou_by_hand():
    truth = np.array([[0, 0, 1, OPEN], [0, IGNORE, 1, OPEN]])
    answer = np.array([[0, 1, 1, 1], [2, 0, 1, 2]])
    iou = IoU([0, 1], covered=[0, 1])
    iou.update(answer, truth)
    scores = iou.scores()
    # Class 0: 3 true pixels, 1 answered (the ignored one is left out), 1 common. Class 1: 2 true,
    # 4 answered, one of them on an open pixel, 2 common.
    assert scores.per_class == {0: pytest.approx(1 / 3), 1: pytest.approx(2 / 4)}
    assert scores.total == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_classes_that_are_not_covered_or_do_not_occur_are_not_scored():
    iou = IoU([0, 1, 2], covered=[0, 2])
    iou.update(np.array([[0, 1, 2]]), np.array([[0, OPEN, OPEN]]))
    assert iou.scores().per_class == {0: 1.0}


def image_set(boxes: list[Boxes]) -> ImageSet:
    images = np.zeros((len(boxes), 100, 100, 3), np.uint8)
    return ImageSet(images, np.zeros(len(boxes), np.int64), boxes=tuple(boxes), covered=(0, 1))


def objects(rows: list[tuple[float, float, float, float, int]], crowd: bool = False) -> Boxes:
    return Boxes(
        np.array([row[:4] for row in rows], np.float32).reshape(-1, 4),
        np.array([row[4] for row in rows], np.int64),
        np.full(len(rows), crowd),
    )


def answers(rows: list[tuple[float, float, float, float, int, float]]) -> Detections:
    values = torch.tensor([row[:4] for row in rows], dtype=torch.float32).reshape(-1, 4)
    return Detections(
        values, torch.tensor([row[5] for row in rows]), torch.tensor([row[4] for row in rows])
    )


ONE = (0.1, 0.1, 0.5, 0.5)
TWO = (0.6, 0.6, 0.9, 0.9)


@pytest.mark.parametrize(
    ("found", "total"),
    [
        ([(*ONE, 0, 0.9), (*TWO, 1, 0.8)], 1.0),
        ([(*ONE, 0, 0.9)], 0.5),  # class 1 is missed
        ([(*ONE, 1, 0.9), (*TWO, 0, 0.8)], 0.0),  # each has the other's class
        ([], 0.0),
        ([(*ONE, 0, 0.9), (*ONE, 0, 0.8), (*TWO, 1, 0.8)], 1.0),  # a lower duplicate comes later
    ],
)
def test_map_by_hand(found, total):
    truth = image_set([objects([(*ONE, 0), (*TWO, 1)]), objects([])])
    scores = coco_map([answers(found), answers([])], truth, class_ids=[0, 1])
    assert scores.total == pytest.approx(total, abs=1e-6)
    if found:
        assert scores.more["ap50"] == pytest.approx(total, abs=1e-6)


def test_a_higher_false_alarm_halves_precision():
    truth = image_set([objects([(*ONE, 0)])])
    scores = coco_map([answers([(*TWO, 0, 0.9), (*ONE, 0, 0.8)])], truth, class_ids=[0, 1])
    assert scores.per_class == {0: pytest.approx(0.5)}


def test_crowds_are_neither_hits_nor_misses():
    crowd = objects([(*TWO, 0)], crowd=True)
    one = objects([(*ONE, 0)])
    both = Boxes(
        np.concatenate([one.boxes, crowd.boxes]),
        np.concatenate([one.class_ids, crowd.class_ids]),
        np.concatenate([one.crowd, crowd.crowd]),
    )
    found = answers([(*TWO, 0, 0.95), (*ONE, 0, 0.9)])
    assert coco_map([found], image_set([both]), class_ids=[0]).total == pytest.approx(1.0)


def test_only_classes_of_the_role_that_occur_are_scored():
    truth = image_set([objects([(*ONE, 0), (*TWO, 1)])])
    scores = coco_map([answers([(*ONE, 0, 0.9)])], truth, class_ids=[0])
    assert scores.per_class == {0: pytest.approx(1.0)}
