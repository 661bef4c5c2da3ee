"""Fitter and Pixels together are the processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from data.pictures import noise
from PIL import Image
from transformers.image_processing_backends import PilBackend

from kswap.data import Fitter
from kswap.errors import UserError

SEPARABLE = {
    "vit": ("ViTImageProcessor", {"size": {"height": 16, "width": 16}}),
    "dinov2": (
        "BitImageProcessor",
        {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}},
    ),
    "convnext": ("ConvNextImageProcessor", {"size": {"shortest_edge": 16}}),
    "siglip": ("SiglipImageProcessor", {"size": {"height": 16, "width": 16}}),
    "no-rescale": (
        "ViTImageProcessor",
        {"do_rescale": False, "image_mean": [100.0] * 3, "image_std": [60.0] * 3},
    ),
    "no-normalise": ("ViTImageProcessor", {"do_normalize": False}),
    "one-mean": (
        "ViTImageProcessor",
        {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    ),
}


def saved_and_loaded(name: str, settings: dict[str, Any], folder: Path) -> Any:
    getattr(transformers, name)(**settings).save_pretrained(folder)
    return transformers.AutoImageProcessor.from_pretrained(folder)


@pytest.mark.parametrize("kind", SEPARABLE)
def test_halves_are_the_whole(kind: str, tmp_path: Path) -> None:
    processor = saved_and_loaded(*SEPARABLE[kind], tmp_path)
    fitter = Fitter(processor)
    assert fitter.pixels.separable
    for size in ((40, 30), (30, 40), (9, 7)):
        image = noise("p", *size)
        fitted = fitter(image)
        assert fitted.dtype == np.uint8
        assert fitted.shape[-1] == 3
        pixels = fitter.pixels(fitted[None])
        whole = processor(images=image, return_tensors="pt")["pixel_values"]
        assert pixels.dtype == torch.float32
        assert pixels.is_contiguous()
        torch.testing.assert_close(pixels, whole, rtol=0, atol=1e-6)


def test_every_grey_level_is_equal() -> None:
    processor = transformers.ViTImageProcessor(
        do_resize=False, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    fitter = Fitter(processor)
    whole = processor(images=ramp, return_tensors="pt")["pixel_values"]
    assert torch.equal(fitter.pixels(fitter(ramp)[None]), whole)


class Offset(PilBackend):
    """Adds an offset that the usual attributes do not tell."""

    size = {"height": 8, "width": 8}  # noqa: RUF012
    resample = 2
    do_resize = do_rescale = True
    do_normalize = False

    def rescale(self, image: Any, scale: float, **_: Any) -> Any:
        return super().rescale(image, scale) - 0.5


class PadsAfterwards(PilBackend):
    """Pads with 0 after normalising, which in 8 bits would be another colour."""

    do_resize = False
    do_rescale = do_normalize = do_pad = True
    image_mean = image_std = (0.5, 0.5, 0.5)
    pad_size = {"height": 300, "width": 300}  # noqa: RUF012


@pytest.mark.parametrize("kind", [Offset, PadsAfterwards])
def test_what_cannot_be_halved_is_kept_whole(kind: Any) -> None:
    processor = kind()
    fitter = Fitter(processor)
    assert not fitter.pixels.separable
    image = noise("w", 30, 20)
    fitted = fitter(image)
    assert fitted.dtype == np.float32
    whole = processor(images=image, return_tensors="pt")["pixel_values"]
    assert torch.equal(fitter.pixels(fitted[None]), whole.float())


def test_read_only_batches_are_taken() -> None:
    fitter = Fitter(transformers.ViTImageProcessor(size={"height": 4, "width": 4}))
    batch = fitter(noise("r"))[None].copy()
    expected = fitter.pixels(batch)
    batch.flags.writeable = False
    assert torch.equal(fitter.pixels(batch), expected)


class Broken(PilBackend):
    size = {"height": 8, "width": 8}  # noqa: RUF012
    do_resize = do_rescale = do_normalize = True
    image_mean = (0.5,)
    image_std = (0.5,)


def test_a_processor_that_fails_is_a_users_error() -> None:
    with pytest.raises(UserError, match=r"processor Broken: cannot process an RGB image") as error:
        Fitter(Broken())
    assert "\n" not in str(error.value)


def test_a_processor_of_patches_is_refused() -> None:
    with pytest.raises(UserError, match=r"\(16, 192\) for one image; kswap needs \(3, height, wid"):
        Fitter(transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16))
