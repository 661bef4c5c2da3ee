"""Boxes of padded images: fractions of the image, also of models that do not read its mask."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from criteria_models import DETECTORS, SIDE
from scene_examples import examples, view_of

from kswap.data.pixels import Pixels
from kswap.data.sets import Boxes, ImageSet
from kswap.running.run import _padding_as_picture
from kswap.settings import ROLES
from kswap.tasks.boxes import to_corners
from kswap.tasks.detection import Detection
from kswap.tasks.frames import frame_of

HALF = SIDE // 2
IGNORES = {"yolos", "rt-detr", "rt-detr-v2", "d-fine", "deimv2"}
FITS = {"detr", "conditional-detr", "deformable-detr", "dab-detr", "table-transformer"}
"""Of those that read it: families whose tiny models take images of this size."""


def padded_right(given):
    """The left halves of the arrays hold the images."""
    return replace(given, sizes=torch.tensor([[SIDE, HALF]] * len(given)))


@pytest.mark.parametrize("family", sorted(IGNORES | FITS))
def test_what_boxes_are_fractions_of_is_found_by_trying(family):
    frame = frame_of(DETECTORS[family](), padded_right(examples()))
    assert (frame is not None) == (family in IGNORES)
    if frame is not None:
        assert frame[0].tolist() == [0.5, 1, 0.5, 1]


def test_a_model_that_takes_padding_for_picture_is_taught_and_scored_in_the_image():
    model, task = DETECTORS["yolos"](), Detection()
    last = model.bbox_predictor.layers[-1]
    torch.nn.init.zeros_(last.weight)
    # Of the array: centre at a quarter of its width, that is, in the middle of the image.
    last.bias.data = torch.logit(torch.tensor([0.25, 0.5, 0.25, 0.5]))
    box = to_corners(torch.tensor([[0.5, 0.5, 0.5, 0.5]]))  # of the image
    given = padded_right(examples(ids=(0,)))
    given = replace(given, boxes=tuple(box for _ in given.boxes))
    assert torch.allclose(to_corners(task.teach(model, given)["boxes"])[0, 0], box[0], atol=1e-6)
    view = view_of([ROLES.index("retain")] * 5, 5, forgets=False)
    units = task.units(model, given, None, view)[0]
    whole = task.units(model, replace(given, sizes=None), None, view)[0]
    matched = units.class_ids > 0  # 0 is "no object"
    assert matched.any()
    # Without padding the same answer misses the box, which costs more.
    assert units.own[matched].sum() < whole.own[whole.class_ids > 0].sum() - 0.1


@pytest.mark.parametrize(
    ("family", "width", "is_told"),
    [("yolos", HALF, True), ("yolos", SIDE, False), ("detr", HALF, False)],
)
def test_padding_that_a_detector_takes_for_picture_is_told(family, width, is_told):
    box = Boxes(np.array([[0, 0, 1, 1]], np.float32), np.zeros(1, np.int64), np.zeros(1, bool))
    images = ImageSet(
        np.zeros((2, SIDE, SIDE, 3), np.uint8),
        np.zeros(2, np.int64),
        boxes=(box, box),
        sizes=None if width == SIDE else np.array([[SIDE, width], [SIDE, SIDE]], np.int32),
    )
    state = SimpleNamespace(
        data=SimpleNamespace(sets={"retain": {"train": images}}),
        pixels=Pixels(scale=1 / 255, mean=(0.5,) * 3, std=(0.5,) * 3),
    )
    notes = _padding_as_picture(state, DETECTORS[family]())
    told = f"padded to {SIDE}x{SIDE} pixels, which YolosForObjectDetection takes for picture"
    assert [told in note for note in notes] == [True] * is_told
