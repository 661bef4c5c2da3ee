"""What the boxes of a detector are fractions of: the image, or the array that it is padded to.

DETR and its like read from `pixel_mask` where an image ends, and answer in fractions of the image.
YOLOS and RT-DETR do not read it: for them the padding is part of the picture, so that their boxes
are fractions of the whole array, as they are of the image itself where it is given alone.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kswap.models.wrapping import bare, in_eval_mode
from kswap.tasks import Examples
from kswap.tasks.criteria import outputs_only

_READS_MASK: dict[type, bool] = {}
"""Kinds of models that have been looked at -> whether they read where an image ends."""


def box_outputs(model: nn.Module, examples: Examples) -> tuple[Tensor, Tensor]:
    """Return logits (images, queries, columns) and boxes (images, queries, 4) of the final layer.

    Boxes are centre x, centre y, width and height as fractions of the image, whatever the model's
    own are fractions of.
    """
    frame = frame_of(model, examples)
    logits, boxes = outputs_only(model, examples.inputs())
    assert boxes is not None
    return logits, of_image(boxes, frame)


def of_image(boxes: Tensor, frame: Tensor | None) -> Tensor:
    """Return boxes (images, queries, 4) of a model as fractions of the image, by its `frame_of`."""
    return boxes if frame is None else boxes / frame[:, None]


def frame_of(model: nn.Module, examples: Examples) -> Float[Tensor, "images 4"] | None:
    """Return what turns fractions of an image into what the model's boxes are; None: they are."""
    if examples.sizes is None or _reads_mask(model, examples):
        return None
    return scale_of(examples)


def scale_of(examples: Examples) -> Float[Tensor, "images 4"]:
    """Return what turns fractions of an image into fractions of its padded array."""
    height, width = examples.pixels.shape[-2:]
    if examples.sizes is None:
        return examples.pixels.new_ones(len(examples), 4)
    sides = examples.sizes.float() / examples.sizes.new_tensor([height, width]).float()
    return sides[:, [1, 0, 1, 0]]


def _reads_mask(model: nn.Module, examples: Examples) -> bool:
    """Whether the answers on an image change with `pixel_mask`; tried once for a kind of model.

    A run asks before it keeps or plays a prefix, which more forwards than one would disturb.
    """
    kind = type(bare(model))
    if kind not in _READS_MASK:
        pixels = examples.pixels[:1].to(next(model.parameters()).device)
        whole = torch.ones(1, *pixels.shape[-2:], dtype=torch.long, device=pixels.device)
        corner = torch.zeros_like(whole)
        corner[:, : (pixels.shape[-2] + 1) // 2, : (pixels.shape[-1] + 1) // 2] = 1
        with torch.no_grad(), in_eval_mode(model):
            answers = [
                outputs_only(model, {"pixel_values": pixels, "pixel_mask": mask})
                for mask in (whole, corner)
            ]
        (one, boxes), (other, other_boxes) = answers
        assert boxes is not None
        assert other_boxes is not None
        _READS_MASK[kind] = not (torch.equal(one, other) and torch.equal(boxes, other_boxes))
    return _READS_MASK[kind]
