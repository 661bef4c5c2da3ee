"""What a decomposed loss is made of: layers of units, and what their sums are divided by.

A unit is a query of an image (detectors, mask classifiers) or a pixel. The summands of all units of
all layers add up to the library's own loss, so that a weight for each unit, by the role of its
class, is all that kswap adds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""Label of pixels that count for nothing: no class of any model has this number."""


@dataclass(frozen=True)
class Layer:
    """One prediction layer of a query model: final, auxiliary, or of the encoder (two-stage)."""

    logits: Tensor
    """(images, queries, columns), as the library gives them, at least fp32."""
    boxes: Tensor | None
    """(images, queries, 4), centre x, centre y, width, height from 0 to 1."""
    masks: Tensor | None
    """(images, queries, height, width), mask logits."""
    matched: Tensor
    """(images, queries), the object among the image's labels; -1 where there is none."""
    class_loss: Tensor
    """(images, queries), summand of the class loss, with all coefficients and normalisers."""
    fit_loss: Tensor
    """(images, queries), summand of the box or mask losses. 0 where unmatched, but for D-FINE's
    distillation of box distributions, which holds for every query."""
    class_weight: Tensor
    """(images, queries), what turns nats of one unit's class answer into its share of the loss."""

    def total(self) -> Tensor:
        """Return the sum of all summands."""
        return self.class_loss.sum() + self.fit_loss.sum()


@dataclass(frozen=True)
class PixelLayer:
    """A head that gives every pixel a class: the main one, or an auxiliary one."""

    logits: Tensor
    """(images, columns, h, w), as the library gives them, at least fp32; not upsampled."""
    loss: Tensor
    """(images, height, width) of the labels: summands, of an auxiliary head by its weight; 0 where
    ignored."""

    def total(self) -> Tensor:
        """Return the sum of all summands."""
        return self.loss.sum()


@dataclass(frozen=True)
class Decomposed:
    """The library's loss of a batch, by layer and unit."""

    layers: Sequence[Layer] | Sequence[PixelLayer]
    """The final one last."""
    sigmoid: bool
    """Whether each class has a yes or no of its own; else softmax."""
    nothing: bool
    """Whether the last column is "no object"."""

    def total(self) -> Tensor:
        """Return the sum over all layers: the library's loss."""
        return torch.stack([layer.total() for layer in self.layers]).sum()


@dataclass(frozen=True)
class Normaliser:
    """What the library divides by, counted over all images of an optimiser step.

    A micro-batch that is given the counts of its whole batch yields its share of that batch's loss;
    `a + b` are the counts of two parts together.
    """

    objects: tuple[int, ...] = ()
    """How many objects each image has."""
    pixels: int = 0
    """How many pixels are labelled."""
    shares: float = 1
    """Processes whose gradients are averaged, where the counts are those of all of them."""

    def __add__(self, other: Normaliser) -> Normaliser:
        return Normaliser(
            self.objects + other.objects, self.pixels + other.pixels, max(self.shares, other.shares)
        )

    def times(self, groups: int) -> Normaliser:
        """Return the counts with every object taught to `groups` groups of queries."""
        return replace(self, objects=tuple(count * groups for count in self.objects))

    def as_counted(self, objects: Sequence[int], num_own: int) -> Normaliser:
        """Return `objects` of the images of a part, which has `num_own` of all objects, as counts.

        What is only known of a part is taken to be in proportion to the objects.
        """
        return Normaliser(tuple(objects), shares=self.shares * num_own / max(sum(self.objects), 1))

    def num_objects(self) -> float:
        """Return the divisor of box and mask losses: at least 1."""
        return max(sum(self.objects) / self.shares, 1.0)

    def num_pixels(self) -> float:
        """Return the divisor of a loss of pixels: at least 1."""
        return max(self.pixels / self.shares, 1.0)

    def num_matched(self, num_queries: int) -> float:
        """Return how many of each image's `num_queries` queries get an object, summed."""
        return sum(min(count, num_queries) for count in self.objects) / self.shares

    def num_unmatched(self, num_queries: int) -> float:
        """Return how many of them get none."""
        return len(self.objects) * num_queries / self.shares - self.num_matched(num_queries)


def normaliser(labels: Tensor | Sequence[Mapping[str, Any]]) -> Normaliser:
    """Count objects or labelled pixels of labels as `decompose` takes them."""
    if isinstance(labels, Tensor):
        return Normaliser(pixels=int((labels >= 0).sum()))
    return Normaliser(objects=tuple(len(image["class_labels"]) for image in labels))
