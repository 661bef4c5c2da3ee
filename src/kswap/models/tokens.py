"""Tokens as places of an image, whatever shape they come in, and what of them stands for a unit.

Outputs of blocks are images of tokens (batch, height, width, channels), (batch, channels, height,
width), sequences (batch, tokens, channels) with or without class tokens, several scales end to end,
or queries; what a layer is, is read from the shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

_EXTRAS = (0, 1, 2, 5, 3, 4, 6, 8, 9, 17)
"""Tokens before those of the image: class, distillation and register tokens."""


def as_tokens(
    output: Tensor, batch: int, width: int, *, num_behind: int = 0
) -> tuple[Float[Tensor, "batch tokens channels"], tuple[int, int] | None]:
    """Return a block's output as tokens, and the grid where its shape has one.

    The last `num_behind` of a sequence, which are no places of the image, are left out.
    """
    if output.ndim == 4 and len(output) == batch:
        if output.shape[-1] != width and output.shape[1] == width:
            output = output.movedim(1, -1)
        return output.flatten(1, 2), (output.shape[1], output.shape[2])
    if output.ndim == 3 and len(output) != batch and output.shape[1] == batch:
        output = output.transpose(0, 1)
    if output.ndim >= 3 and output.shape[-1] != width and output.shape[1] == width:
        output = output.movedim(1, -1)
    tokens = output.reshape(batch, -1, output.shape[-1])
    return tokens[:, : tokens.shape[1] - num_behind], None


def behind_image(config: Any) -> int:
    """Return how many tokens of a sequence lie behind those of the image: YOLOS's queries."""
    return int(getattr(config, "num_detection_tokens", 0))


def scales_of(
    num_tokens: int, size: tuple[int, int]
) -> tuple[int, tuple[tuple[int, int], ...]] | None:
    """Return how many tokens come first, and the grids that the others are, one behind another.

    Args:
        num_tokens: of a sequence.
        size: height and width of the image.

    Returns:
        The least number of extra tokens that explains the sequence as one grid of a whole stride,
        or as several of doubling strides; None where nothing does, as where queries are before
        them (EoMT).
    """
    strides = [one for one in range(1, 129) if _is_stride(one, size)]
    for extra in _EXTRAS:
        for stride in strides:
            grid = _grid(size, stride)
            if math.prod(grid) == num_tokens - extra:
                return extra, (grid,)
    for first in (2, 4, 8, 16, 32):
        for count in range(2, 6):
            grids = tuple(_grid(size, first * 2**level) for level in range(count))
            if sum(map(math.prod, grids)) == num_tokens:
                return 0, grids
    return None


def _is_stride(stride: int, size: tuple[int, int]) -> bool:
    """Whether a model may have this stride: patches fill the image, or convolutions halve it.

    Any other would explain nearly every number of tokens, with the wrong places.
    """
    return stride & (stride - 1) == 0 or not (size[0] % stride or size[1] % stride)


def _grid(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return -(-size[0] // stride), -(-size[1] // stride)


def pooled(
    tokens: Float[Tensor, "tokens channels"],
    masks: Float[Tensor, "units height width"],
    *,
    extra: int,
    grids: Sequence[tuple[int, int]],
) -> Float[Tensor, "units channels"]:
    """Return the mean over the tokens that lie within each mask, each counted by its part of it.

    A mask smaller than a token counts the token that holds it.
    """
    shares = torch.cat(
        [functional.adaptive_avg_pool2d(masks[:, None], grid).flatten(1) for grid in grids], 1
    )
    shares = shares / shares.sum(1, keepdim=True).clamp_min(torch.finfo(shares.dtype).tiny)
    return shares @ tokens[extra:]


def box_masks(boxes: Float[Tensor, "units 4"], size: tuple[int, int]) -> Tensor:
    """Return (units, height, width), 1 inside each box (fractions of the array), at least a pixel.

    Args:
        boxes: left, top, right, bottom.
        size: height and width.
    """
    height, width = size
    rows = torch.arange(height, device=boxes.device)[None, :, None]
    columns = torch.arange(width, device=boxes.device)[None, None]
    left, top = (boxes[:, 0] * width).floor(), (boxes[:, 1] * height).floor()
    right = torch.maximum((boxes[:, 2] * width).ceil(), left + 1)
    bottom = torch.maximum((boxes[:, 3] * height).ceil(), top + 1)
    inside = (rows >= top[:, None, None]) & (rows < bottom[:, None, None])
    return (inside & (columns >= left[:, None, None]) & (columns < right[:, None, None])).float()
