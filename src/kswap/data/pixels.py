"""The processor of a model, split in two: shape once per image, arithmetic once per batch.

A transformers image processor resizes and crops, then rescales and normalises. `Fitter` runs the
first half once for each image and keeps uint8, a quarter of the memory; `Pixels` does the second
half in float32 on the target device. That the two together are the processor is checked on pictures
of several shapes before any data is read; where it is not so (padding after normalisation, a
rescale offset), float32 of the whole processor is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kswap.data.text import one_line
from kswap.errors import UserError

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-5
PROBE_SIZES = ((96, 64), (64, 96), (300, 300), (24, 30))
"""Width and height of the pictures the split is checked on."""


@dataclass(frozen=True)
class Pixels:
    """Rescale and normalise: pixels = (images * scale - mean) / std, per channel."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    separable: bool = True
    """False: the images are float32 and finished."""
    pads_last: bool = True
    """Whether padding is 0 after normalising, as nearly all processors have it; EoMT's pads
    before."""

    def __call__(
        self,
        images: NDArray[Any],
        device: torch.device | str = "cpu",
        *,
        sizes: NDArray[np.int32] | None = None,
    ) -> torch.Tensor:
        """Return `images` (b, H, W, 3) uint8 as (b, 3, H, W) float32 on `device`.

        Beyond `sizes` (b, 2), where given, the result is what the processor pads with.
        """
        finished = self._finish(images, device)
        if sizes is not None and self.pads_last:
            for image, (height, width) in zip(finished, sizes.tolist(), strict=True):
                image[:, height:] = 0
                image[:, :, width:] = 0
        return finished

    def _finish(self, images: NDArray[Any], device: torch.device | str) -> torch.Tensor:
        import torch

        batch = np.ascontiguousarray(images)
        tensor = torch.from_numpy(batch) if batch.flags.writeable else torch.tensor(batch)
        tensor = tensor.to(device)
        if not self.separable:
            return tensor.float()
        tensor = tensor.permute(0, 3, 1, 2).contiguous().float()
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=tensor.device).view(1, -1, 1, 1)
            for values in (self.mean, self.std)
        )
        # 1 / scale is 255 where scale is 1/255: a quotient rounds as the processor's float64 does
        return tensor.div_(1 / self.scale).sub_(mean).div_(std)


class Fitter:
    """The half of a processor that gives images the model's size; `pixels` is the other half.

    For segmentation and detection (`dense`) images may keep their shape: what a processor does
    after resizing is left out, so that masks and boxes need only be scaled. It does not pad (the
    data package pads, to `array_size`), crop the centre, or split images into windows.
    """

    def __init__(self, processor: Any, *, dense: bool = False) -> None:
        self.processor = processor
        self.notes: tuple[str, ...] = ()
        """What a processor does that is left out, for the user."""
        self._least = (1, 1)
        self._options: dict[str, Any] = {}
        if dense:
            self._keep_whole()
        self.pixels = _pixels_of(processor)
        if dense and hasattr(processor, "do_split_image"):
            self.pixels = replace(self.pixels, pads_last=False)
        if not self._separates():
            self.pixels = Pixels(scale=1.0, mean=(), std=(), separable=False)

    def __call__(self, image: Image.Image) -> NDArray[Any]:
        """Return the fitted image: (H, W, 3) uint8, or the whole processor's (3, H, W) float32."""
        if self.pixels.separable:
            return self._fit_only(image)
        return self.whole(image)

    def whole(self, image: Image.Image) -> NDArray[np.float32]:
        """Return what the whole processor makes of one image, (3, H, W) float32.

        Raises:
            UserError: the processor fails, or gives something else than one RGB image.
        """
        kind = type(self.processor).__name__
        try:
            output = self.processor(images=image, return_tensors="pt", **self._options)
            values = output["pixel_values"][0]
        except Exception as error:
            raise UserError(
                f"processor {kind}: cannot process an RGB image ({one_line(error)}); correct "
                "preprocessor_config.json"
            ) from None
        pixels = np.asarray(values, dtype=np.float32)
        if pixels.ndim != 3 or pixels.shape[0] != 3:
            raise UserError(
                f"processor {kind}: gives an array of shape {pixels.shape} for one image; "
                "kswap needs (3, height, width), take a model with an ordinary image processor"
            )
        return pixels

    def array_size(self, sizes: Iterable[tuple[int, int]]) -> tuple[int, int]:
        """Return height and width of an array that holds fitted images of `sizes`.

        It is what the processor pads to, or the largest, and a multiple of its divisor.
        """
        heights, widths = zip(self._least, *sizes, strict=True)
        names = ("size_divisor", "pad_size_divisor")
        values = [getattr(self.processor, name, None) for name in names]
        divisor = next((value for value in values if isinstance(value, int) and value > 0), 1)
        height, width = (-(-max(sides) // divisor) * divisor for sides in (heights, widths))
        return height, width

    def _keep_whole(self) -> None:
        p = self.processor
        size = getattr(p, "size", None) or {}
        if getattr(p, "do_split_image", False):  # EoMT's windows
            side = size["shortest_edge"]
            self._options["size"] = {"shortest_edge": side, "longest_edge": side}
            self._least = (side, side)
            self.notes += ("the processor's windows are not cut: images are fitted into one",)
        elif getattr(p, "do_pad", False):
            pad = getattr(p, "pad_size", None)
            if pad and pad["height"] and pad["width"]:
                self._least = (pad["height"], pad["width"])
            elif hasattr(p, "do_split_image"):
                least = size["shortest_edge"], size["longest_edge"] or size["shortest_edge"]
                self._least = least
        if getattr(p, "do_center_crop", False):
            self.notes += ("the processor's centre crop is left out: images are used whole",)
        for key in ("do_pad", "do_center_crop", "do_split_image"):
            if getattr(p, key, None):
                self._options[key] = False

    def _fit_only(self, image: Image.Image) -> NDArray[np.uint8]:
        output = self.processor(images=image, do_rescale=False, do_normalize=False, **self._options)
        fitted = np.asarray(output["pixel_values"][0])
        if fitted.dtype != np.uint8 or fitted.ndim != 3 or fitted.shape[0] != 3:
            raise TypeError(f"{fitted.dtype} of shape {fitted.shape} is not an 8-bit RGB image")
        return np.ascontiguousarray(np.moveaxis(fitted, 0, -1))

    def _separates(self) -> bool:
        """Whether the halves give what the whole processor gives, on pictures of several shapes."""
        noise = np.random.default_rng(0)
        separates = self.pixels.separable
        for width, height in PROBE_SIZES:
            image = Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8))
            whole = self.whole(image)
            separates = separates and self._equals(image, whole)
        return separates

    def _equals(self, image: Image.Image, whole: NDArray[np.float32]) -> bool:
        try:
            halves = self.pixels(self._fit_only(image)[None])[0].numpy()
        except Exception:  # whatever the processor cannot do in halves, it does as a whole
            return False
        return whole.shape == halves.shape and np.allclose(whole, halves, rtol=0, atol=TOLERANCE)


def size_of(fitted: NDArray[Any]) -> tuple[int, int]:
    """Return height and width of a fitted image: (H, W, 3) bytes or (3, H, W) numbers."""
    shape = fitted.shape[:2] if fitted.dtype == np.uint8 else fitted.shape[1:]
    return int(shape[0]), int(shape[1])


def _pixels_of(processor: Any) -> Pixels:
    """Read scale, mean and std off a processor; whether they are all of it is checked later."""
    rescale = bool(getattr(processor, "do_rescale", False))
    normalise = bool(getattr(processor, "do_normalize", False))
    scale = getattr(processor, "rescale_factor", None) if rescale else 1.0
    mean = _per_channel(getattr(processor, "image_mean", None) if normalise else 0.0)
    std = _per_channel(getattr(processor, "image_std", None) if normalise else 1.0)
    if not scale or len(mean) != 3 or len(std) != 3 or not all(std):
        return Pixels(scale=1.0, mean=(), std=(), separable=False)
    return Pixels(scale=float(scale), mean=mean, std=std)


def _per_channel(value: Any) -> tuple[float, ...]:
    if value is None or isinstance(value, Mapping):
        return ()
    if isinstance(value, int | float):
        return (float(value),) * 3
    return tuple(float(part) for part in value)
