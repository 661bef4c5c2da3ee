"""The features and answers of one model on all images, in one pass: every audit reads these.

Per task a function turns a batch into units (see `subjects.py`). Logits come over in rows of the
run, so that a reference whose head has other rows in another order is treated like the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kswap.audits.layers import Tap, find_taps, has_class_token, tapped
from kswap.audits.subjects import Answers, Subject, SubjectName
from kswap.data import ImageSet
from kswap.errors import UserError
from kswap.models.head import Head, find_heads, head_linear, is_classifier, recorded_head_inputs
from kswap.models.tokens import as_tokens
from kswap.settings import Role, Split
from kswap.tasks import Examples, Pixels, Scores, example_batches

Sets = Mapping[Role, Mapping[Split, ImageSet]]
BEFORE_HEAD = "before the head"
NUM_GROUPS = 10
"""Groups that the images of a set are dealt out to in turn, for the jackknife."""


@dataclass(frozen=True)
class Observed:
    """A model as the audits look at it."""

    model: nn.Module
    """Bare, in evaluation mode, on its device."""
    rows: tuple[int, ...]
    """Row of the run for each row of the model's head; −1: a class that the run does not know, or
    that may not be answered."""
    num_rows: int
    """Rows of the run."""
    pixels: Pixels
    taps: tuple[Tap, ...] = ()
    heads: tuple[str, ...] = ()
    class_token: bool = False

    @classmethod
    def of(cls, model: nn.Module, rows: Sequence[int], num_rows: int, pixels: Pixels) -> Observed:
        """Find blocks and heads."""
        model.eval()
        return cls(
            model=model,
            rows=tuple(rows),
            num_rows=num_rows,
            pixels=pixels,
            taps=find_taps(model),
            heads=find_heads(model),
            class_token=has_class_token(model),
        )

    def in_rows(self, logits: Tensor, *, axis: int = -1, nothing: bool = False) -> Tensor:
        """Return logits of the model's rows as those of the run's; −inf where it lacks a row.

        Args:
            logits: of the model; with `nothing` a last column is "no object", and stays last.
            axis: of the classes.
            nothing: whether there is such a column.
        """
        logits = logits.float().movedim(axis, -1)
        shape = (*logits.shape[:-1], self.num_rows + int(nothing))
        mapped = logits.new_full(shape, -torch.inf)
        own = [place for place, row in enumerate(self.rows) if row >= 0]
        mapped[..., [self.rows[place] for place in own]] = logits[..., own]
        if nothing:
            mapped[..., -1] = logits[..., -1]
        return mapped.movedim(-1, axis)


def num_groups(count: int) -> int:
    """Return how many groups `count` images are dealt out to; 0 where one says nothing."""
    return min(count, NUM_GROUPS) if count > 1 else 0


@dataclass
class Batch:
    """Units of one batch, as a task returns them."""

    layers: dict[str, Tensor]
    logits: Tensor
    class_ids: Tensor
    images: Tensor
    found: Tensor
    counts: dict[str, float] = field(default_factory=dict)


class Units(Protocol):
    """What a task makes of batches; it keeps what the task's own number needs."""

    def add(self, examples: Examples) -> Batch:
        """Do one forward."""

    def scores(self, images: ImageSet) -> Scores | None:
        """Return the task's number over what was added."""

    def scores_without(self, images: ImageSet) -> Sequence[Scores]:
        """Return it without each of `NUM_GROUPS` groups of images; nothing where it is a share."""


def observe(
    name: SubjectName,
    observed: Observed,
    sets: Sets,
    units_of: Callable[[Observed, Sequence[int], ImageSet], Units],
    *,
    class_ids: Mapping[Role, Sequence[int]],
    batch_size: int,
    report: Callable[[int], None] = lambda images: None,
) -> Subject:
    """Return what a model makes of `sets`, in one pass.

    Raises:
        UserError: what it makes of them is no number.
    """
    answers: dict[Role, dict[Split, Answers]] = {}
    with torch.inference_mode():
        for role, splits in sets.items():
            answers[role] = {}
            for split, images in splits.items():
                if len(images):
                    units = units_of(observed, class_ids.get(role, ()), images)
                    answers[role][split] = some = _collect(
                        units, observed, images, batch_size, class_ids.get(role, ()), report
                    )
                    check_numbers(name, some.logits, *some.layers.values())
    return Subject(name, answers, _linear_head(observed, answers))


def check_numbers(
    name: SubjectName, logits: NDArray[np.floating], *layers: NDArray[np.float32]
) -> None:
    """Refuse NaN and infinity, which every audit would take for an answer or fail on.

    A logit of −inf is that of a row which a model lacks.
    """
    if (logits < np.inf).all() and all(np.isfinite(layer).all() for layer in layers):
        return
    what = {
        "base": "model: the base",
        "swapped": "RUN/model: the swapped model",
        "reference": "--reference: the model",
    }
    raise UserError(
        f"{what[name]} answers NaN or infinity; its weights are damaged, or too large for their "
        "type: restore it, or name another"
    )


def _collect(
    units: Units,
    observed: Observed,
    images: ImageSet,
    batch_size: int,
    class_ids: Sequence[int],
    report: Callable[[int], None],
) -> Answers:
    layers: dict[str, list[NDArray[np.float32]]] = {}
    parts: list[Batch] = []
    counts: dict[str, float] = {}
    seen = 0
    for examples in example_batches(images, observed.pixels, batch_size):
        batch = units.add(examples)
        for name, values in batch.layers.items():
            layers.setdefault(name, []).append(values.cpu().numpy().astype(np.float32))
        batch.images = batch.images.cpu() + seen
        batch.layers = {}
        parts.append(batch)
        for key, value in batch.counts.items():
            counts[key] = counts.get(key, 0.0) + value
        seen += len(examples)
        report(len(examples))

    def joined(key: str) -> Any:
        return torch.cat([getattr(part, key).cpu() for part in parts]).numpy()

    whole = {name: np.concatenate(values) for name, values in layers.items()}
    ids = joined("class_ids").astype(np.int64)
    whole = {name: values for name, values in whole.items() if len(values) == len(ids)}
    return Answers(
        layers=whole,
        logits=joined("logits").astype(np.float32),
        class_ids=ids,
        found=joined("found").astype(bool),
        images=joined("images").astype(np.int64),
        scores=units.scores(images),
        leave_out=partial(units.scores_without, images),
        extra=counts,
    )


class ImageUnits:
    """Classification: a unit is an image; its tokens are pooled over the whole image."""

    def __init__(self, observed: Observed, class_ids: Sequence[int], images: ImageSet) -> None:
        self.observed = observed
        self._answers: list[Tensor] = []

    def add(self, examples: Examples) -> Batch:
        """Do one forward."""
        observed, count = self.observed, len(examples)
        layers: dict[str, Tensor] = {}

        def record(tap: Tap, output: Tensor) -> None:
            tokens, _ = as_tokens(output, count, tap.width)
            if observed.class_token:
                layers[f"{tap.label}, class token"] = tokens[:, 0].clone()
            layers[f"{tap.label}, mean token"] = tokens.mean(1)

        with (
            tapped(observed.model, observed.taps, record),
            recorded_head_inputs(observed.model, observed.heads) as inputs,
        ):
            logits = observed.model(pixel_values=examples.pixels).logits
            layers[BEFORE_HEAD] = torch.cat([inputs[name].float() for name in observed.heads], -1)
        mapped = observed.in_rows(logits)
        self._answers.append(mapped.argmax(-1).cpu())
        return Batch(
            layers=layers,
            logits=torch.cat([mapped, mapped.new_full((count, 1), -torch.inf)], -1),
            class_ids=examples.class_ids,
            images=torch.arange(count),
            found=torch.ones(count, dtype=torch.bool),
        )

    def scores(self, images: ImageSet) -> Scores:
        """Return top-1 accuracy over all images and of each class that occurs."""
        hits = torch.cat(self._answers).numpy() == images.class_ids
        per_class = {
            int(c): float(hits[images.class_ids == c].mean()) for c in np.unique(images.class_ids)
        }
        return Scores(float(hits.mean()), per_class)

    def scores_without(self, images: ImageSet) -> Sequence[Scores]:
        """Return nothing: top-1 is a share of images."""
        return ()


def _linear_head(
    observed: Observed, answers: Mapping[Role, Mapping[Split, Answers]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return the head over the last layer in rows of the run, where that is all there is to it."""
    if not is_classifier(observed.model):
        return None
    heads: list[Head] = [head_linear(observed.model, name) for name in observed.heads]
    weight = torch.cat([head.weight.detach() for head in heads], -1).double() / len(heads)
    bias = sum(
        (head.bias.detach().double() if head.bias is not None else weight.new_zeros(len(weight)))
        for head in heads
    ) / len(heads)
    own = [place for place, row in enumerate(observed.rows) if row >= 0]
    places = [observed.rows[place] for place in own]
    full = np.full((observed.num_rows, weight.shape[1]), np.nan)
    offset = np.full(observed.num_rows, np.nan)
    full[places] = weight[own].cpu().numpy()
    offset[places] = torch.as_tensor(bias)[own].cpu().numpy()
    for splits in answers.values():
        for some in splits.values():
            made = some.layers[BEFORE_HEAD][:8] @ full[places].T + offset[places]
            given = some.logits[:8][:, places]
            if not np.allclose(made, given, rtol=1e-3, atol=1e-2):
                return None
            return full, offset
    return None


def seconds_per_image(observed: Observed, images: ImageSet, *, batch_size: int) -> float:
    """Measure one forward of a batch."""
    few = min(batch_size, len(images), 16)
    first = next(iter(example_batches(images, observed.pixels, few)))
    with torch.inference_mode():
        observed.model(**first.inputs())
        begin = time.perf_counter()
        observed.model(**first.inputs())
    return (time.perf_counter() - begin) / few
