"""Images of several sizes: Fitter and Pixels are the processor, masks and boxes follow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from data.pictures import noise
from data.scenes import NAMES, every_mask, write_coco, write_masks
from PIL import Image

from kswap.data import Fitter, SwapData
from kswap.data.samples import take
from kswap.data.sets import IGNORE, OPEN
from kswap.tasks import make_examples

Build = Callable[..., SwapData]
EDGES = {"shortest_edge": 48, "longest_edge": 64}
FIXED = {"height": 40, "width": 56}
PROCESSORS: list[tuple[str, dict[str, Any]]] = [
    ("DetrImageProcessorPil", {"size": EDGES}),
    ("DetrImageProcessorPil", {"size": EDGES, "pad_size": {"height": 70, "width": 80}}),
    ("DeformableDetrImageProcessorPil", {"size": EDGES}),
    ("ConditionalDetrImageProcessorPil", {"size": EDGES}),
    ("GroundingDinoImageProcessorPil", {"size": EDGES}),
    ("YolosImageProcessorPil", {"size": EDGES}),
    ("RTDetrImageProcessorPil", {"size": FIXED}),
    ("Mask2FormerImageProcessorPil", {"size": EDGES}),
    ("Mask2FormerImageProcessorPil", {"size": FIXED, "size_divisor": 0}),
    ("MaskFormerImageProcessorPil", {"size": EDGES}),
    ("OneFormerImageProcessorPil", {"size": EDGES}),
    ("SegformerImageProcessorPil", {"size": FIXED}),
    ("BeitImageProcessorPil", {"size": FIXED}),
    ("BeitImageProcessorPil", {"size": FIXED, "do_reduce_labels": True}),
    ("DPTImageProcessorPil", {"size": FIXED}),
    ("MobileViTImageProcessorPil", {"size": {"shortest_edge": 48}, "do_center_crop": False}),
    ("EomtImageProcessorPil", {"size": {"shortest_edge": 64, "longest_edge": 64}}),
    ("EomtImageProcessorPil", {"size": {"shortest_edge": 64, "longest_edge": 64}, "do_pad": True}),
]


def fitted_size(fitter: Fitter, height: int, width: int) -> tuple[int, ...]:
    return fitter(Image.new("RGB", (int(width), int(height)))).shape[:2]


@pytest.mark.parametrize(("kind", "options"), PROCESSORS)
def test_inside_the_image_it_is_the_processor(kind: str, options: dict[str, Any]) -> None:
    processor = getattr(transformers, kind)(**options)
    fitter = Fitter(processor, dense=True)
    assert not fitter.notes
    for width, height in ((90, 60), (30, 70), (64, 64)):
        image = noise(f"{kind}{width}", width, height)
        fitted = fitter(image)
        size = fitted.shape[:2]
        whole = processor(images=image, return_tensors="pt")["pixel_values"][0]
        rows, columns = size
        assert fitted.shape[2:] == (3,)
        padded = np.zeros((*fitter.array_size([size]), 3), np.uint8)
        padded[:rows, :columns] = fitted
        pixels = fitter.pixels(padded[None], sizes=np.array([size], np.int32))[0]
        torch.testing.assert_close(pixels[:, :rows, :columns], whole[:, :rows, :columns])
        # and the processor's padding, where it pads a single image, is ours
        assert pixels.shape == whole.shape
        torch.testing.assert_close(pixels, whole)


def test_windows_and_centre_crops_are_left_out_and_told() -> None:
    windows = transformers.EomtImageProcessorPil(
        size={"shortest_edge": 64, "longest_edge": None}, do_split_image=True, do_pad=True
    )
    fitter = Fitter(windows, dense=True)
    assert fitter(noise("a", 90, 60)).shape == (43, 64, 3)
    assert fitter.array_size([(43, 64)]) == (64, 64)
    assert "windows are not cut" in fitter.notes[0]
    crop = transformers.MobileViTImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    fitter = Fitter(crop, dense=True)
    assert fitter(noise("a", 90, 60)).shape == (32, 48, 3)
    assert "centre crop is left out" in fitter.notes[0]


def sizes_of_scenes(root: Path) -> None:
    """Turn every third image and mask on its side."""
    for folder in ("images", "masks"):
        for path in sorted((root / folder).glob("*.png"))[::3]:
            Image.open(path).transpose(Image.Transpose.TRANSPOSE).save(path)


SQUARE = [{"cat": (2, 2, 10, 10), "dog": (10, 3, 15, 11)} for _ in range(12)]


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_images_of_several_sizes_lie_in_the_upper_left(
    limit: int, tmp_path: Path, build_masks: Build
) -> None:
    write_masks(tmp_path / "m", SQUARE, names=NAMES)
    sizes_of_scenes(tmp_path / "m")
    processor = transformers.Mask2FormerImageProcessorPil(
        size={"shortest_edge": 24, "longest_edge": 64}, size_divisor=8
    )
    data = build_masks(
        forget={"data": str(tmp_path / "m"), "classes": ["cat"]},
        fitted_by=processor,
        data={"memory_limit_bytes": limit},
        cache_dir=tmp_path / "cache",
    )
    fitter = Fitter(processor, dense=True)
    assert fitted_size(fitter, 12, 16) == (24, 32)
    for split in data.sets["forget"].values():
        assert split.images.shape[1:] == (32, 32, 3)
        assert split.masks is not None
        assert split.sizes is not None
        assert split.original_sizes is not None
        for image, mask, size, original in zip(
            split.images, split.masks, split.sizes, split.original_sizes, strict=True
        ):
            height, width = size
            assert (height, width) == fitted_size(fitter, *original)
            assert not image[height:].any()
            assert not image[:, width:].any()
            assert (mask[height:] == IGNORE).all()
            assert (mask[:, width:] == IGNORE).all()
            assert set(np.unique(mask[:height, :width])) == {OPEN, 0, 1}
            assert (mask == 0).sum() == 64 * 4  # twice as large in each direction
    sizes = data.sets["forget"]["train"].sizes
    assert sizes is not None
    both = {tuple(size) for size in sizes.tolist()}
    assert both == {(24, 32), (32, 24)}


def sizes_of_boxes(root: Path) -> None:
    """Make the first four images twice as wide."""
    for path in sorted((root / "images").iterdir())[:4]:
        noise(path.name, 32, 12).save(path)
    text = (root / "annotations.json").read_text()
    for i in range(4):
        text = text.replace(f'"file_name": "00{i}.png", "width": 16', f'"file_name": "00{i}.png", "width": 32')  # fmt: skip  # noqa: E501
    (root / "annotations.json").write_text(text)


def test_boxes_are_fractions_of_the_image_not_of_the_array(
    tmp_path: Path, build_boxes: Build
) -> None:
    root = write_coco(tmp_path, SQUARE)
    sizes_of_boxes(root)
    processor = transformers.DetrImageProcessorPil(size={"shortest_edge": 12, "longest_edge": 32})
    data = build_boxes(forget={"data": str(root), "classes": ["cat"]}, fitted_by=processor)
    widths = set()
    for one in data.sets["forget"].values():
        assert one.boxes is not None
        sizes = one.sizes if one.sizes is not None else [one.images.shape[1:3]] * len(one)
        for boxes, size in zip(one.boxes, sizes, strict=True):
            cat = boxes.boxes[boxes.class_ids == 0][0] * np.tile([size[1], size[0]], 2)
            np.testing.assert_allclose(cat, [2, 2, 10, 10], atol=1e-5)
            widths.add(int(size[1]))
    assert widths == {16, 32}


def test_a_batch_is_padded_as_the_processor_pads_it(tmp_path: Path, build_boxes: Build) -> None:
    root = write_coco(tmp_path, SQUARE)
    sizes_of_boxes(root)
    processor = transformers.DetrImageProcessorPil(size={"shortest_edge": 12, "longest_edge": 32})
    data = build_boxes(forget={"data": str(root), "classes": ["cat"]}, fitted_by=processor)
    images = data.sets["forget"]["train"]
    given = make_examples(take(images, slice(None)), data.pixels).inputs()
    files = [Image.open(path).convert("RGB") for path in sorted((root / "images").iterdir())]
    batch = processor(files, return_tensors="pt")
    theirs = {values.numpy().tobytes() for values in batch["pixel_values"]}
    assert not given["pixel_mask"].all()
    assert all(values.numpy().tobytes() in theirs for values in given["pixel_values"])


def test_images_that_were_not_kept_are_read_again(
    tmp_path: Path, build_masks: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kswap.data import decode

    config = {"forget": {"data": str(write_masks(tmp_path, SQUARE)), "classes": ["cat"]}}
    before = every_mask(build_masks(**config), "forget")
    monkeypatch.setattr(decode, "may_be_used", lambda *args: False)
    after = every_mask(build_masks(**config), "forget")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_objects_that_vanish_at_the_models_size_do_not_count(
    tmp_path: Path, build_masks: Build
) -> None:
    scenes = [dict(scene) for scene in SQUARE]
    scenes[0] = {"cat": (1, 1, 2, 2), "dog": (10, 3, 15, 11)}
    processor = transformers.SegformerImageProcessorPil(size={"height": 3, "width": 4})
    data = build_masks(
        forget={"data": str(write_masks(tmp_path, scenes)), "classes": ["cat"]}, fitted_by=processor
    )
    assert "1 image left out, whose objects are" in " ".join(data.notes)
