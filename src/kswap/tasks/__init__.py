"""Tasks: how a model of a task answers, and how it is scored. One file each, one protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from kswap.data import ImageSet


@dataclass(frozen=True)
class Scores:
    """The task's number over a set of images, from 0 to 1."""

    total: float
    """Over the whole set."""
    per_class: dict[int, float]
    """Of each class that occurs in it, by class id."""


class Task(Protocol):
    """What the core asks of a task."""

    name: str
    """As `transformers.pipeline` names it, without `image-`: classification."""
    score_name: str
    """The task's number: top1."""

    def logits(self, model: nn.Module, pixels: Tensor) -> Tensor:
        """Return (units, classes), with gradient, for pixels (images, 3, height, width)."""

    def score(
        self,
        model: nn.Module,
        images: ImageSet,
        *,
        pixels: Callable[[Any], Tensor],
        num_rows: int,
        batch_size: int,
    ) -> Scores:
        """Score the answers among the first `num_rows` classes; `images` is not empty."""


def batches(length: int, size: int) -> Iterable[slice]:
    """Cut range(length) into slices of at most `size`."""
    return (slice(start, start + size) for start in range(0, length, size))
