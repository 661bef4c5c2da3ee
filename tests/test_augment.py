"""Image, mask and boxes stay together under augmentation: an object is painted and looked for."""

from __future__ import annotations

import pytest
import torch

from kswap.data.sets import IGNORE, OPEN
from kswap.training.augment import (
    change_colours,
    make_augment,
    make_scene_augment,
    move_boxes,
)

SIZE = 64


def painted(number: int = 8) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Bright rectangles of class 5 on dark, their masks and boxes."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.full((number, 3, SIZE, SIZE), -1.0)
    masks = torch.full((number, SIZE, SIZE), OPEN)
    boxes = []
    for i in range(number):
        left, top = torch.randint(4, 30, (2,), generator=generator).tolist()
        wide, high = torch.randint(10, 30, (2,), generator=generator).tolist()
        pixels[i, :, top : top + high, left : left + wide] = 1.0
        masks[i, top : top + high, left : left + wide] = 5
        box = torch.tensor([[left, top, left + wide, top + high]]) / SIZE
        boxes.append(box)
    return pixels, masks, boxes


@pytest.mark.parametrize("kind", ["flip", "flip-crop", "flip-crop-colour"])
def test_mask_and_box_follow_the_pixels(kind):
    torch.manual_seed(0)
    pixels, masks, boxes = painted()
    new, new_masks, new_boxes, kept = make_scene_augment(kind)(pixels, masks, boxes, None)
    assert not torch.equal(new, pixels)
    assert new_masks.dtype == masks.dtype
    assert set(new_masks.unique().tolist()) <= {OPEN, 5}
    for i in range(len(pixels)):
        bright = new[i].mean(0) > (new[i].min() + new[i].max()) / 2
        assert ((new_masks[i] == 5) != bright).float().mean() < 0.05  # half a pixel at the edges
        if kept[i].all():
            rows, columns = torch.nonzero(new_masks[i] == 5, as_tuple=True)
            edges = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (new_boxes[i][0] * SIZE - edges).abs().max() <= 1.0
    assert any(one.all() for one in kept)


def test_a_flip_is_exact():
    torch.manual_seed(1)
    pixels, masks, boxes = painted()
    new, new_masks, new_boxes, kept = make_scene_augment("flip")(pixels, masks, boxes, None)
    turned = [i for i in range(8) if not torch.equal(new[i], pixels[i])]
    assert turned
    for i in turned:
        torch.testing.assert_close(new[i], pixels[i].flip(-1))
        assert torch.equal(new_masks[i], masks[i].flip(-1))
        left, top, right, bottom = boxes[i][0]
        torch.testing.assert_close(new_boxes[i][0], torch.stack([1 - right, top, 1 - left, bottom]))
        assert kept[i].all()


def test_padding_stays_where_it_is():
    torch.manual_seed(0)
    pixels, masks, boxes = painted(4)
    sizes = torch.tensor([[64, 64], [40, 64], [64, 50], [40, 64]])
    for i, (height, width) in enumerate(sizes.tolist()):
        pixels[i, :, height:], pixels[i, :, :, width:] = 0, 0
        masks[i, height:], masks[i, :, width:] = IGNORE, IGNORE
    augment = make_scene_augment("flip-crop-colour")
    new, new_masks, _, _ = augment(pixels, masks, boxes, sizes)
    for i, (height, width) in enumerate(sizes.tolist()):
        assert not new[i, :, height:].any()
        assert not new[i, :, :, width:].any()
        assert (new_masks[i, height:] == IGNORE).all()
        assert (new_masks[i, :height, :width] != IGNORE).all()


def test_boxes_that_lose_three_quarters_are_dropped():
    boxes = torch.tensor([[0.0, 0.0, 0.2, 0.2], [0.5, 0.5, 0.9, 0.9], [0.05, 0.5, 0.45, 0.9]])
    matrix = torch.eye(3)
    matrix[0, 2] = -0.3 * 100  # the left 30 of 100 pixels go
    moved, kept = move_boxes(boxes, matrix, (100, 100))
    assert kept.tolist() == [False, True, True]
    torch.testing.assert_close(moved[2], torch.tensor([0.0, 0.5, 0.15, 0.9]))


def test_no_boxes_and_no_masks():
    pixels, _, _ = painted(2)
    empty = [torch.zeros(0, 4), torch.zeros(0, 4)]
    _, masks, boxes, kept = make_scene_augment("flip-crop")(pixels, None, empty, None)
    assert masks is None
    assert [one.shape for one in boxes] == [(0, 4), (0, 4)]
    assert [one.shape for one in kept] == [(0,), (0,)]


def test_none_is_none_and_seeds_repeat():
    assert make_augment("none", (SIZE, SIZE)) is None
    assert make_scene_augment("none") is None
    pixels, masks, boxes = painted()
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        runs.append(make_scene_augment("flip-crop-colour")(pixels, masks, boxes, None))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])


def test_colours_change_and_whole_images_may_be_augmented_too():
    torch.manual_seed(0)
    pixels = torch.randn(6, 3, 8, 8)
    changed = change_colours(pixels)
    assert changed.shape == pixels.shape
    assert not torch.allclose(changed, pixels)
    assert (changed - pixels).abs().max() < 3
    assert make_augment("flip-crop-colour", (8, 8))(pixels).shape == pixels.shape
