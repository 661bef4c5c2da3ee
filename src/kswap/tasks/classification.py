"""Image classification: a unit is an image, the score is top-1 accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from kswap.arrays import Confusion, Marks, Unit
from kswap.data import ImageSet
from kswap.data.samples import Samples
from kswap.gathering import in_order
from kswap.models.head import recorded_head_inputs
from kswap.models.wrapping import in_eval_mode
from kswap.objectives import Units, has_role
from kswap.settings import TermConfig
from kswap.tasks import Examples, Pixels, Scores, Teacher, View

_KEPT = 3
"""Answers of an image that are kept to be shown."""


class Classification:
    """See `kswap.tasks.Task`."""

    name = "classification"
    score_name = "top1"
    counts: Unit = "images"
    units_are_images = True
    new_rows_lead = True
    teacher_sees_views = False

    def units(
        self, model: nn.Module, examples: Examples, teacher: Teacher | None, view: View
    ) -> list[Units]:
        """Return one unit per image; its role is that of its source."""
        logits: Tensor = model(pixel_values=examples.pixels).logits.float()[:, : view.num_rows]
        return [
            Units(
                class_ids=examples.class_ids,
                roles=examples.roles,
                forgotten=view.forgotten,
                logits=logits,
                base_logits=None if teacher is None else teacher["logits"],
            )
        ]

    def slots(self, examples: Examples, answers: Teacher, most: int) -> None:
        """A unit is an image: its features are recorded pooled."""

    def divisors(
        self, samples: Samples, roles: Tensor, terms: Mapping[str, TermConfig], view: View
    ) -> dict[str, float]:
        """A term is the mean over its images."""
        return {name: int(has_role(roles, term.roles).sum()) for name, term in terms.items()}

    def share(self, part: Samples, whole: Samples) -> float:
        """The divisors are those of the whole batch."""
        return 1.0

    def teach(
        self, model: nn.Module, examples: Examples, *, num_base: int | None = None
    ) -> Teacher:
        """Return {"logits": (images, classes)}."""
        return {"logits": model(pixel_values=examples.pixels).logits.float()[:, :num_base]}

    def features(
        self, model: nn.Module, examples: Examples, heads: Sequence[str]
    ) -> tuple[Teacher, dict[str, tuple[Tensor, Tensor]]]:
        """Return the logits, and what each head receives of every image."""
        with recorded_head_inputs(model, heads) as inputs:
            taught = self.teach(model, examples)
            found = {name: (inputs[name].float(), examples.class_ids) for name in heads}
        return taught, found

    @torch.no_grad()
    def score(
        self,
        model: nn.Module,
        images: ImageSet,
        *,
        pixels: Pixels,
        class_ids: Sequence[int],
        num_rows: int,
        batch_size: int,
        keep: Sequence[int] = (),
    ) -> Scores:
        """Return top-1 accuracy over all images and of each class that occurs.

        Answers are the first `num_rows` classes. A class whose row is not among them is never
        answered: its score is 0.
        """
        truth = torch.from_numpy(images.class_ids)
        logits = predict(model, images.images, pixels=pixels, batch_size=batch_size)
        answers = logits[:, :num_rows].argmax(-1)
        num_classes = max(num_rows, int(truth.max()) + 1, 2)
        accuracy = MulticlassAccuracy(num_classes, average=None)(answers, truth)
        per_class = {int(c): float(accuracy[c]) for c in torch.unique(truth)}
        return Scores(
            float((answers == truth).float().mean()),
            per_class,
            confusion=_confusion(truth, answers),
            kept=tuple(_best(logits[row, :num_rows]) for row in keep),
        )


def _confusion(truth: Tensor, answers: Tensor) -> Confusion:
    pairs, counts = torch.unique(torch.stack([truth, answers]), dim=1, return_counts=True)
    found: Confusion = {}
    for row, answer, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
        found.setdefault(row, {})[answer] = count
    return found


def _best(logits: Tensor) -> Marks:
    shares, class_ids = logits.softmax(-1).topk(min(_KEPT, len(logits)))
    return Marks(class_ids.numpy(), shares.numpy())


@torch.no_grad()
def predict(model: nn.Module, images: Any, *, pixels: Pixels, batch_size: int) -> Tensor:
    """Return logits (images, classes) on the CPU, in fp32, the model in evaluation mode."""

    def answer(rows: slice) -> dict[str, Tensor]:
        return {"logits": model(pixel_values=pixels(images[rows])).logits.float().cpu()}

    with in_eval_mode(model):
        parts = [part["logits"] for part in in_order(len(images), batch_size, answer)]
    return torch.cat(parts)
