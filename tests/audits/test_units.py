"""Units of every family: features of every block, and logits in the rows of the run."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from criteria_models import DETECTORS, MASKS, PER_PIXEL, SIDE
from models.families import FAMILIES, tiny_inputs

from kswap.audits import features, scene_units
from kswap.audits.features import BEFORE_HEAD, ImageUnits, Observed
from kswap.audits.scene_units import ObjectUnits, RegionUnits
from kswap.data.sets import OPEN, Boxes, ImageSet
from kswap.models.checks import repair_config
from kswap.models.tokens import box_masks, pooled, scales_of
from kswap.tasks import Examples
from kswap.tasks.answers import Detections
from kswap.tasks.inside import read_by_head

ORDER = (4, 2, 0, 1, 3)
"""The run's row of each row of the model's head."""
PLAIN = [name for name in FAMILIES if set(tiny_inputs(FAMILIES[name]())) == {"pixel_values"}]


def examples(pixels: torch.Tensor) -> Examples:
    """Two objects in every image but the last, which has none of the role."""
    count, height, width = len(pixels), *pixels.shape[-2:]
    masks = torch.full((count, height, width), OPEN)
    masks[:-1, : height // 2, : width // 2] = 0
    masks[:-1, height // 2 :, width // 2 :] = 3
    masks[-1] = 2
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
    return Examples(
        pixels=pixels,
        class_ids=torch.zeros(count, dtype=torch.long),
        roles=torch.zeros(count, dtype=torch.long),
        complete=torch.ones(count, dtype=torch.bool),
        masks=masks,
        boxes=(boxes,) * (count - 1) + (boxes[:1],),
        box_ids=(torch.tensor([0, 3]),) * (count - 1) + (torch.tensor([2]),),
        crowd=(torch.zeros(2, dtype=torch.bool),) * (count - 1) + (torch.zeros(1).bool(),),
    )


def no_images() -> ImageSet:
    return ImageSet(np.zeros((0, 1, 1, 3), np.uint8), np.zeros(0, np.int64), covered=(0, 2, 3))


@pytest.mark.parametrize("family", PLAIN)
def test_images_of_every_family(family):
    model = FAMILIES[family]()
    observed = Observed.of(model, ORDER, 6, lambda images, sizes=None: images)
    with torch.inference_mode():
        pixels = tiny_inputs(model)["pixel_values"]
        batch = ImageUnits(observed, (0,), no_images()).add(examples(pixels))
        plain = model(pixel_values=pixels).logits
    assert torch.allclose(batch.logits[:, list(ORDER)], plain, atol=1e-5)
    assert (batch.logits[:, 5:] == -torch.inf).all()
    blocks = {name.split(",")[0] for name in batch.layers} - {BEFORE_HEAD}
    assert len(blocks) == len(observed.taps)
    assert list(batch.layers)[-1] == BEFORE_HEAD
    assert all(x.shape[0] == len(pixels) and x.ndim == 2 for x in batch.layers.values())
    assert all(torch.isfinite(x).all() for x in batch.layers.values())


@pytest.mark.parametrize("family", [*DETECTORS, *MASKS, *PER_PIXEL])
def test_objects_and_regions_of_every_family(family):
    detector = family in DETECTORS
    model = {**DETECTORS, **MASKS, **PER_PIXEL}[family]()
    model = model[0] if isinstance(model, tuple) else model
    repair_config(model)  # as loading does
    observed = Observed.of(model, ORDER, 6, lambda images, sizes=None: images)
    kind = ObjectUnits if detector else RegionUnits
    pixels = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        batch = kind(observed, (0, 3), no_images()).add(examples(pixels))
    assert batch.class_ids.tolist() == [0, 3, 0, 3]
    assert batch.images.tolist() == [0, 0, 1, 1]
    assert BEFORE_HEAD in batch.layers
    assert all(len(x) == 4 and torch.isfinite(x).all() for x in batch.layers.values())
    assert len(batch.layers) > len(observed.taps) // 2
    assert batch.logits.shape == (4, 7)
    assert (batch.logits[:, 5] == -torch.inf).all()
    assert torch.isfinite(batch.logits[:, :5]).all()
    if family in PER_PIXEL:
        assert all((rows[0] - rows[1]).abs().max() > 0 for rows in batch.layers.values())


def off_by(logits):
    """Return (images,) from 0 to 0.2: another number for every image, whatever its batch."""
    return logits.nan_to_num(neginf=0.0).flatten(1).abs().sum(1).frac() * 0.2


def near_boxes(logits, boxes, **settings):
    truth = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
    ids = torch.tensor([0, 3])
    return [Detections(truth + off, torch.ones(2), ids) for off in off_by(logits)]


def near_maps(logits, masks, size, **settings):
    maps = torch.full((len(logits), *size), 3)
    for image, off in enumerate(off_by(logits)):
        maps[image, :, : int(size[1] * (0.5 + off))] = 0
    return maps


@pytest.mark.parametrize("kind", [ObjectUnits, RegionUnits])
def test_scores_without_a_group_of_images_are_those_of_the_others(kind, monkeypatch):
    monkeypatch.setattr(scene_units, "NUM_GROUPS", 2)
    monkeypatch.setattr(features, "NUM_GROUPS", 2)
    monkeypatch.setattr(scene_units, "detections", near_boxes)
    monkeypatch.setattr(scene_units, "semantic_map_from_queries", near_maps)
    model = DETECTORS["detr"]() if kind is ObjectUnits else MASKS["maskformer"]()
    repair_config(model)
    observed = Observed.of(model, ORDER, 6, lambda images, sizes=None: images)
    pixels = torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    whole = examples(pixels)

    def scored(rows):
        some = Examples(
            **{
                field.name: (
                    value[rows]
                    if isinstance(value := getattr(whole, field.name), torch.Tensor)
                    else None
                    if value is None
                    else tuple(value[row] for row in rows)
                )
                for field in fields(Examples)
            }
        )
        boxes = tuple(
            Boxes(b.numpy(), i.numpy(), c.numpy())
            for b, i, c in zip(some.boxes, some.box_ids, some.crowd, strict=True)
        )
        images = ImageSet(
            np.zeros((len(rows), SIDE, SIDE, 3), np.uint8),
            np.zeros(len(rows), np.int64),
            boxes=boxes,
            covered=(0, 2, 3),
        )
        units = kind(observed, (0, 3), images)
        with torch.inference_mode():
            units.add(some)
        return units.scores(images), units.scores_without(images)

    _, (without_even, without_odd) = scored([0, 1, 2, 3])
    assert without_even == scored([1, 3])[0]
    assert without_odd == scored([0, 2])[0]
    assert 0 < without_even.total != without_odd.total
    assert scored([0])[1] == []


def test_of_the_stacked_layers_of_an_auxiliary_loss_the_last_is_read():
    model = MASKS["maskformer-auxiliary"]()
    repair_config(model)
    images = examples(torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)))
    units = RegionUnits(
        Observed.of(model, ORDER, 6, lambda images, sizes=None: images), (0, 3), no_images()
    )
    with torch.inference_mode():
        tokens, grid = units.forward(images)[2][BEFORE_HEAD]
        answers = model.class_predictor(tokens)
        expected = model(pixel_values=images.pixels).class_queries_logits
    assert grid is None
    assert torch.allclose(answers, expected, atol=1e-6)


def test_layers_are_told_from_a_map_by_the_head_where_shapes_are_alike():
    given = torch.arange(81.0).reshape(3, 3, 3, 3)
    linear, convolution = torch.nn.Linear(3, 5), torch.nn.Conv2d(3, 5, 1)
    tokens, grid = read_by_head(linear, given, (3, 3))
    assert torch.equal(tokens, given[-1])
    assert grid is None
    tokens, grid = read_by_head(convolution, given, (3, 3))
    assert torch.equal(tokens, given.permute(0, 2, 3, 1).reshape(3, 9, 3))
    assert grid == (3, 3)
    assert read_by_head(linear, given, (3, 4)) is None  # of other places than the queries
    tokens, grid = read_by_head(linear, given, ())  # of every pixel
    assert torch.equal(tokens, given.reshape(3, 9, 3))
    assert grid == (3, 3)


def test_two_units_of_an_image_are_pooled_apart():
    tokens = torch.tensor([[9.0], [1.0], [2.0], [3.0], [4.0]])
    masks = torch.zeros(2, 8, 8)
    masks[0, :4, :4] = 1
    masks[1, 4:, :] = 1
    rows = pooled(tokens, masks, extra=1, grids=[(2, 2)])
    assert rows.flatten().tolist() == [1.0, 3.5]


@pytest.mark.parametrize(
    ("tokens", "size", "expected"),
    [
        (25, (70, 70), (0, ((5, 5),))),
        (26, (70, 70), (1, ((5, 5),))),
        (30, (70, 70), (5, ((5, 5),))),
        (64 + 16 + 4, (64, 64), (0, ((8, 8), (4, 4), (2, 2)))),
        (12, (64, 48), (0, ((4, 3),))),
        (19, (64, 64), (3, ((4, 4),))),
        (1000003, (64, 64), None),
        (20, (70, 50), (0, ((5, 4),))),  # stride 16, the last row and column not whole
        # YOLOS: class token, 16 pixels a patch, 100 detection tokens. Not 26 x 26, nor 22 x 22.
        (1 + 24 * 24 + 100, (384, 384), None),
        (1 + 20 * 20 + 100, (320, 320), None),
    ],
)
def test_the_grid_of_a_sequence_is_read_from_its_length(tokens, size, expected):
    assert scales_of(tokens, size) == expected


def test_a_box_smaller_than_a_pixel_is_one_pixel():
    assert box_masks(torch.tensor([[0.51, 0.51, 0.511, 0.511]]), (4, 4)).sum() == 1
