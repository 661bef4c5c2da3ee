"""Image classification: a unit is an image, the score is top-1 accuracy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from kswap.data import ImageSet
from kswap.tasks import Scores, batches


class Classification:
    """See `kswap.tasks.Task`."""

    name = "classification"
    score_name = "top1"

    def logits(self, model: nn.Module, pixels: Tensor) -> Tensor:
        """Return (images, classes)."""
        logits: Tensor = model(pixel_values=pixels).logits
        return logits

    @torch.no_grad()
    def score(
        self,
        model: nn.Module,
        images: ImageSet,
        *,
        pixels: Callable[[Any], Tensor],
        num_rows: int,
        batch_size: int,
    ) -> Scores:
        """Return top-1 accuracy over all images and of each class that occurs.

        Answers are the first `num_rows` classes.

        A class whose row is not among them is never answered: its score is 0.
        """
        class_ids = torch.from_numpy(images.class_ids)
        logits = predict(model, images.images, pixels=pixels, batch_size=batch_size)
        answers = logits[:, :num_rows].argmax(-1)
        num_classes = max(num_rows, int(class_ids.max()) + 1, 2)
        accuracy = MulticlassAccuracy(num_classes, average=None)(answers, class_ids)
        per_class = {int(c): float(accuracy[c]) for c in torch.unique(class_ids)}
        return Scores(float((answers == class_ids).float().mean()), per_class)


@torch.no_grad()
def predict(
    model: nn.Module, images: Any, *, pixels: Callable[[Any], Tensor], batch_size: int
) -> Tensor:
    """Return logits (images, classes) on the CPU, in fp32, the model in evaluation mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    parts = [
        model(pixel_values=pixels(images[rows])).logits.float().cpu()
        for rows in batches(len(images), batch_size)
    ]
    for module in training:
        module.training = True
    return torch.cat(parts)
