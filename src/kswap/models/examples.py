"""Inputs of the shape that a model takes, made from its config: to trace it, to export it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kswap.errors import UserError


def example_inputs(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield inputs to try: noise of the config's image size first, common sizes after it."""
    accepted = inspect.signature(model.forward).parameters
    if "pixel_values" not in accepted:
        raise UserError(
            f"{type(model).__name__}: takes no pixel_values; name a model whose input is an image"
        )
    config: Any = model.config
    device = next(model.parameters()).device
    noise = torch.Generator().manual_seed(0)
    channels = int(_config_value(config, "num_channels", 3))
    if "spatial_shapes" in accepted:  # packed patches (SigLIP 2 with native aspect ratio)
        patch = int(_config_value(config, "patch_size", 16))
        side = math.isqrt(int(_config_value(config, "num_patches", 16)))
        pixels = torch.randn(1, side * side, channels * patch * patch, generator=noise)
        packed = {
            "pixel_values": pixels,
            "pixel_attention_mask": torch.ones(1, side * side, dtype=torch.long),
            "spatial_shapes": torch.tensor([[side, side]]),
        }
        yield {name: tensor.to(device) for name, tensor in packed.items()}
        return
    timm = getattr(config, "pretrained_cfg", None) or {}  # (channels, height, width) of timm models
    size = _config_value(config, "image_size", tuple(timm.get("input_size", (224,)))[-2:])
    own = (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[-1]))
    for height, width in dict.fromkeys([own, (224, 224), (64, 64), (384, 384)]):
        pixels = torch.randn(1, channels, height, width, generator=noise)
        yield {"pixel_values": pixels.to(device)}


def _config_value(config: Any, name: str, default: Any) -> Any:
    for part in (
        config,
        *(getattr(config, sub, None) for sub in ("vision_config", "backbone_config")),
    ):
        value = getattr(part, name, None)
        if value is not None:
            return value
    return default
