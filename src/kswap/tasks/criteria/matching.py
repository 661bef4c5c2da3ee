"""Objects of a batch in one tensor, and which query each was given to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """The objects of all images of a batch, one after another."""

    labels: Sequence[Mapping[str, Tensor]]
    """As the library takes them: one mapping an image, on the model's device."""
    class_ids: Tensor
    """(objects,)"""
    starts: Tensor
    """(images,), the first object of each image."""

    @staticmethod
    def of(labels: Sequence[Mapping[str, Tensor]], like: Tensor) -> Targets:
        """Move labels to the device and, boxes and masks, to the type of a prediction."""
        moved = [
            {
                name: image[name].to(like.device)
                if name == "class_labels"
                else image[name].to(like)
                for name in ("class_labels", "boxes", "masks")
                if name in image
            }
            for image in labels
        ]
        counts = torch.tensor([len(image["class_labels"]) for image in moved], device=like.device)
        class_ids = torch.cat([image["class_labels"] for image in moved]).long()
        return Targets(moved, class_ids, counts.cumsum(0) - counts)

    def every(self, name: str) -> Tensor:
        """Return boxes (objects, 4) or masks (objects, height, width)."""
        return torch.cat([image[name] for image in self.labels])

    def each(self, name: str) -> list[Tensor]:
        """Return them as a list of images."""
        return [image[name] for image in self.labels]

    def __len__(self) -> int:
        return len(self.class_ids)


@dataclass(frozen=True)
class Pairs:
    """Queries that were given an object, ordered by image and query as in the library."""

    matched: Tensor
    """(images, queries), the object among those of the image; -1 where there is none."""
    image: Tensor
    """(pairs,)"""
    query: Tensor
    """(pairs,)"""
    row: Tensor
    """(pairs,), the object among those of the batch."""

    @staticmethod
    def of(indices: Sequence[tuple[Tensor, Tensor]], logits: Tensor, targets: Targets) -> Pairs:
        """Turn what a matcher of the library returns, or nothing for no pair, into pairs."""
        matched = torch.full(logits.shape[:2], -1, dtype=torch.long)
        for number, (queries, objects) in enumerate(indices):
            matched[number, queries.cpu()] = objects.cpu()
        found = (matched >= 0).nonzero().to(logits.device)
        matched, image, query = matched.to(logits.device), found[:, 0], found[:, 1]
        return Pairs(matched, image, query, targets.starts[image] + matched[image, query])

    def take(self, values: Tensor) -> Tensor:
        """Return (pairs, …) from values of all queries (images, queries, …)."""
        return values[self.image, self.query]

    def spread(self, values: Tensor) -> Tensor:
        """Return (images, queries) from values (pairs,), 0 where there is no pair."""
        empty = values.new_zeros(self.matched.shape)
        return empty.index_put((self.image, self.query), values)
