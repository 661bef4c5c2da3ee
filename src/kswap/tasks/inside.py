"""Units of scenes for objectives on features: annotated objects, and regions of a class.

They are those that the audits look at: the features of a unit are those of the tokens under its box
or mask, each counted by its part of it; where a layer holds queries, those of the query whose box
or mask is nearest to it. Every image has the same number of slots for units, so that what the base
model makes of them can be kept by image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kswap.data import ImageSet
from kswap.models.features import Places, Tokens, width_of
from kswap.models.head import Head, head_linear
from kswap.models.tokens import as_tokens, behind_image, pooled, scales_of
from kswap.models.wrapping import bare
from kswap.objectives import Units
from kswap.tasks import Examples, Teacher, View
from kswap.tasks.dense import roles_of, truth_at

UNIT_IDS = "unit ids"
"""Beside the features of the units of an image: their classes, (images, slots); -1: an empty slot.
"""
_TURNS = (0.6180339887, 0.7548776662)
"""What noise of an image is turned by from one of its units to the next: golden ratios of one and
of two dimensions, so that neighbours are far apart."""


@dataclass(frozen=True)
class Slots:
    """The units of a batch by image; those of an image are in the order of its annotations."""

    class_ids: Int[Tensor, "images slots"]
    """Rows of the head; -1: an empty slot."""
    masks: Sequence[Tensor]
    """Of each image (units, height, width): where its units are."""
    queries: Sequence[Tensor]
    """Of each image (units,): the query nearest to each; empty where the model has none."""
    num_queries: int = 0
    """Of the model; 0: it has none."""


def num_slots(sets: Sequence[ImageSet]) -> int:
    """Return the largest number of units that an image has."""
    most = 1
    for images in sets:
        if images.boxes is not None:
            most = max([most, *(int((~b.crowd).sum()) for b in images.boxes)])
        elif images.masks is not None:
            most = max([most, *(int((np.unique(mask) >= 0).sum()) for mask in images.masks)])
    return most


def size_of(examples: Examples) -> tuple[int, int]:
    """Return height and width of the arrays that the images lie in."""
    return int(examples.pixels.shape[-2]), int(examples.pixels.shape[-1])


def slots_of_regions(examples: Examples, mask_logits: Tensor | None, most: int) -> Slots:
    """Return the region of each annotated class in each image.

    Args:
        examples: with masks.
        mask_logits: of the queries (images, queries, h, w); None: a class for every pixel.
        most: slots.
    """
    assert examples.masks is not None
    ids, masks, queries = [], [], []
    for image, truth in enumerate(examples.masks):
        there = torch.unique(truth)
        there = there[there >= 0][:most]
        ids.append(there)
        masks.append((truth[None] == there[:, None, None]).float())
        if mask_logits is not None:
            queries.append(nearest_query(mask_logits[image], truth, there))
    num_queries = 0 if mask_logits is None else mask_logits.shape[1]
    return Slots(padded(ids, most), masks, queries, num_queries)


def answers_on_regions(
    teacher: Teacher, slots: Slots, truth: Int[Tensor, "images height width"], num_base: int
) -> list[Tensor]:
    """Return for each image what the base model answers on its regions, (units, base classes).

    What the query says whose mask is nearest, or the mean over the pixels.
    """
    logits = teacher["logits"].float()
    if "masks" not in teacher:
        grid = (int(logits.shape[-2]), int(logits.shape[-1]))
        tokens = logits[:, :num_base].flatten(2).transpose(1, 2)
        return [
            pooled(image, own, extra=0, grids=(grid,))
            for image, own in zip(tokens, slots.masks, strict=True)
        ]
    found = []
    for image, masks in enumerate(teacher["masks"].float()):
        ids = slots.class_ids[image]
        queries = nearest_query(masks, truth[image], ids[ids >= 0])
        found.append(logits[image, queries, :num_base])
    return found


def nearest_query(
    mask_logits: Float[Tensor, "queries h w"],
    truth: Int[Tensor, "height width"],
    classes: Int[Tensor, " units"],
) -> Int[Tensor, " units"]:
    """Return the query whose mask overlaps the region of each class most."""
    small = truth_at(truth[None], mask_logits.shape[-2:])[0]
    inside = mask_logits > 0
    best = []
    for class_id in classes:
        wanted = small == class_id
        common = (inside & wanted).sum((1, 2))
        union = (inside | wanted).sum((1, 2)).clamp_min(1)
        best.append((common / union).argmax())
    return torch.stack(best) if best else classes.new_zeros(0)


def padded(parts: Sequence[Tensor], most: int) -> Int[Tensor, "images slots"]:
    """Return the classes of the units of each image, -1 in empty slots."""
    ids = torch.full((len(parts), most), -1, dtype=torch.long, device=parts[0].device)
    for image, own in enumerate(parts):
        ids[image, : len(own)] = own
    return ids


def features_of(
    tokens: Tokens,
    slots: Slots,
    places: Places,
    model: nn.Module,
    examples: Examples,
) -> dict[str, Tensor]:
    """Return place -> (images, slots, features), with their graph; 0 in empty slots.

    A place whose tokens belong to no place of the image is left out.

    Args:
        tokens: of one forward.
        slots: of its images.
        places: as they were recorded.
        model: bare or wrapped by PEFT.
        examples: its images.
    """
    base = bare(model)
    count = len(slots.class_ids)
    queries = (count, slots.num_queries) if slots.num_queries else ()
    layers: dict[str, tuple[Tensor, tuple[int, int] | None]] = {}
    for number, given in sorted(tokens.heads.items()):
        head = head_linear(base, places.heads[number - 1])
        read = read_by_head(head, given, queries)
        if read is not None:
            layers["head"] = read  # the last head is the final one
    for number, block in places.blocks:
        if number in tokens.blocks:
            channels = width_of(base, block)
            layers[f"{number} mean"] = as_tokens(
                tokens.blocks[number], count, channels, num_behind=behind_image(base.config)
            )
    found = {}
    for name, (values, grid) in layers.items():
        rows = _of_units(values.float(), grid, slots, size_of(examples))
        if rows is not None:
            found[name] = rows
    return found


def read_by_head(
    head: Head, given: Tensor, queries: tuple[int, ...]
) -> tuple[Float[Tensor, "images tokens channels"], tuple[int, int] | None] | None:
    """Return what a head reads as tokens, and their grid where they are a map.

    A linear may read the queries of all decoder layers at once (layers, images, queries, channels),
    as with an auxiliary loss of MaskFormer or DETR: the final answer is of the last layer. Of a
    model without queries it reads a map whose channels come last (TIPSv2).

    Args:
        head: the layer that answers classes.
        given: its input.
        queries: images and queries of the model; empty where every pixel has an answer.

    Returns:
        None where the tokens are neither a map nor the queries: those of an encoder.
    """
    if isinstance(head, nn.Conv2d) or not queries:
        read = read_map(head, given)
        return read.flatten(2).transpose(1, 2), (read.shape[2], read.shape[3])
    last = given[-1] if given.ndim == 4 else given
    return (last, None) if last.shape[:2] == queries else None


def read_map(head: Head, given: Tensor) -> Float[Tensor, "images channels height width"]:
    """Return the map that a head of every pixel reads: a linear has its channels last."""
    return given if isinstance(head, nn.Conv2d) else given.movedim(-1, 1)


def features_by_slot(
    tokens: Tokens, slots: Slots, places: Places, model: nn.Module, examples: Examples
) -> Teacher:
    """Return the features of units, as `features_of`, and beside them their classes."""
    found = features_of(tokens, slots, places, model, examples)
    return {**found, UNIT_IDS: slots.class_ids}


def _of_units(
    tokens: Float[Tensor, "images tokens channels"],
    grid: tuple[int, int] | None,
    slots: Slots,
    size: tuple[int, int],
) -> Tensor | None:
    """Return (images, slots, channels); None where tokens have no place in the image."""
    if grid is None and slots.num_queries and tokens.shape[1] == slots.num_queries:
        rows = [image[chosen] for image, chosen in zip(tokens, slots.queries, strict=True)]
    else:
        scales = (0, (grid,)) if grid is not None else scales_of(tokens.shape[1], size)
        if scales is None:
            return None
        extra, grids = scales
        rows = [
            pooled(image, own, extra=extra, grids=grids)
            for image, own in zip(tokens, slots.masks, strict=True)
        ]
    return _in_slots(rows, slots)


def _in_slots(rows: Sequence[Tensor], slots: Slots) -> Float[Tensor, "images slots features"]:
    """Return the rows of each image's units in its slots, 0 in empty ones."""
    most = slots.class_ids.shape[1]
    return torch.stack([nn.functional.pad(own, (0, 0, 0, most - len(own))) for own in rows])


def inside_units(
    features: Mapping[str, Tensor],
    slots: Slots,
    examples: Examples,
    view: View,
    *,
    base_logits: Sequence[Tensor] | None,
    teacher: Teacher | None,
) -> Units:
    """Return the units of a batch that objectives on features look at.

    Args:
        features: from `features_of`.
        slots: as there.
        examples: the batch.
        view: the classes at the stage.
        base_logits: of each image (units, base classes): what the base answers on each unit.
        teacher: what the base model makes of the images, features among it where a term asks.
    """
    roles = roles_of(slots.class_ids, view)
    there = (slots.class_ids >= 0) & (roles >= 0)
    logits = None if base_logits is None else _in_slots(base_logits, slots)[there]
    base = {name: kept[there] for name, kept in (teacher or {}).items() if name in features}
    return Units(
        class_ids=slots.class_ids[there],
        roles=roles[there],
        forgotten=view.forgotten,
        logits=None,
        base_logits=logits,
        features={name: rows[there] for name, rows in features.items()},
        num_blocks=view.places.num_blocks,
        base_features=base or None,
        noise=None if examples.noise is None else _noise(examples.noise, slots)[there],
        bank=view.bank,
        inside=True,
    )


def _noise(noise: Float[Tensor, "images 2"], slots: Slots) -> Float[Tensor, "images slots 2"]:
    """Return noise of every unit, from that of its image: uniform, and a function of it alone."""
    steps = torch.arange(slots.class_ids.shape[1], device=noise.device, dtype=torch.float64)
    turns = steps[:, None] * torch.tensor(_TURNS, device=noise.device, dtype=torch.float64)
    turned = (noise.double()[:, None] + turns) % 1.0
    return turned.float().clamp_max(1 - 2**-24)
