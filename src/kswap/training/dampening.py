"""A stage without a step: selective synaptic dampening, left in the adapter at its rank.

Source: SSD (Foster et al., AAAI 2024, arXiv 2308.07707). Importances are diagonal Fisher
information, the mean squared gradient of the loss of single images, on the weights that the adapter
stands on, as they are by now (W + s·B·A), and on the rows of the head that train. Dampening the
former is a change of full rank; the adapter takes the nearest one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from kswap.errors import UserError
from kswap.models.adapter import ADAPTER_NAME
from kswap.models.low_rank import low_rank
from kswap.objectives.dampening import dampened, selected
from kswap.plan import Stage
from kswap.settings import ROLES, DampeningConfig, Role
from kswap.training.loop import Trainee, compute_terms, set_modes, step_seed, units_of
from kswap.training.streams import Source, batch_of_one


@dataclass(frozen=True)
class Dampening:
    """What was done."""

    num_weights: int
    """Weights that were looked at: of adapted linears, and of rows of the head that train."""
    num_dampened: int
    """Of these, how many were selected."""
    kept: float
    """Share of the squared norm of the linears' change that the adapter's rank holds; 1 where it
    holds all, or where there is none."""

    def record(self) -> dict[str, float | int]:
        """Return plain values for results.json."""
        return {
            "weights": self.num_weights,
            "dampened": self.num_dampened,
            "held_by_rank": round(self.kept, 6),
        }


@dataclass(frozen=True)
class _Importances:
    """Of each tensor: mean squared gradients, of what is to be forgotten and of what is kept."""

    forget: Sequence[Tensor]
    kept: Sequence[Tensor]


def dampen(
    trainee: Trainee,
    stage: Stage,
    sources: Mapping[Role, Source],
    report: Callable[[int, int], None],
) -> Dampening:
    """Shrink what matters to the classes to forget alone, in place.

    Args:
        trainee: narrowed to what may change in the stage.
        stage: with `dampening`; the gradients are those of its terms.
        sources: training images by role, and what the base answers on them.
        report: called with images done and in all.

    Raises:
        UserError: no weight is selected.
    """
    settings = stage.config.dampening
    assert settings is not None, "the caller asks"
    layers = _layers(trainee)
    heads = [parameter for _, parameter in trainee.moved.head]
    with _open(layers) as weights:
        found = _importances(trainee, stage, sources, [*weights, *heads], report)
    num_dampened = 0
    wanted_square = error_square = 0.0
    for number, layer in enumerate(layers):
        forget, kept = found.forget[number], found.kept[number]
        count = int(selected(forget, kept, selection=settings.selection).sum())
        num_dampened += count
        if count:  # else the adapter stays as it is, bit by bit
            wanted, error = _dampen_linear(layer, forget, kept, settings)
            wanted_square, error_square = wanted_square + wanted, error_square + error
    for parameter, forget, kept in zip(
        heads, found.forget[len(layers) :], found.kept[len(layers) :], strict=True
    ):
        num_dampened += int(selected(forget, kept, selection=settings.selection).sum())
        _dampen_head(parameter, forget, kept, settings)
    if not num_dampened:
        raise UserError(
            f"stages.{stage.kind}.dampening.selection: no weight matters {settings.selection:g} "
            "times more to what is to be forgotten than to what is kept; take a lower one"
        )
    return Dampening(
        sum(map(torch.numel, found.forget)),
        num_dampened,
        1 - error_square / wanted_square if wanted_square else 1.0,
    )


def _layers(trainee: Trainee) -> list[Any]:
    """Return the adapted linears whose adapter trains in the stage, in the order of the model."""
    return [
        module
        for module in trainee.base.modules()
        if isinstance(module, LoraLayer) and module.lora_A[ADAPTER_NAME].weight.requires_grad
    ]


@contextmanager
def _open(layers: Sequence[Any]) -> Iterator[list[nn.Parameter]]:
    """Within the context the weights under the adapter have gradients: those of W + s·B·A."""
    weights = [layer.get_base_layer().weight for layer in layers]
    before = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield weights
    finally:
        for weight, trained in zip(weights, before, strict=True):
            weight.requires_grad_(trained)


def _importances(
    trainee: Trainee,
    stage: Stage,
    sources: Mapping[Role, Source],
    tensors: Sequence[nn.Parameter],
    report: Callable[[int, int], None],
) -> _Importances:
    """Return mean squared gradients over single images.

    In a scene an image has units of several roles: its terms of the role forget are the one loss,
    all its other terms are the other.
    """
    assert stage.config.dampening is not None
    set_modes(trainee.model, checkpointing=trainee.training.gradient_checkpointing)
    view, terms = trainee.views[stage.name], stage.config.terms
    drawn = {role for stream in stage.config.streams.values() for role in stream.roles}
    rows = [
        (role, row)
        for role in ROLES
        if role in drawn and role in sources
        for row in _spread(len(sources[role].images), stage.config.dampening.images)
    ]
    sums = {side: [torch.zeros_like(t) for t in tensors] for side in ("forget", "kept")}
    counts = dict.fromkeys(sums, 0)
    for number, (role, row) in enumerate(rows):
        torch.manual_seed(step_seed(trainee.seed, stage.index, number))
        image = batch_of_one(sources[role], role, row)
        divisors = trainee.task.divisors(image.samples, image.roles, terms, view)
        values = compute_terms(units_of(trainee, stage, image), terms, divisors)
        sides = {
            "forget": [v for n, v in values.items() if set(terms[n].roles) == {"forget"}],
            "kept": [v for n, v in values.items() if set(terms[n].roles) != {"forget"}],
        }
        for side, losses in sides.items():
            if not losses:
                continue
            loss = torch.stack(losses).sum()
            gradients = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
            counts[side] += 1
            for total, gradient in zip(sums[side], gradients, strict=True):
                if gradient is not None:
                    total.addcmul_(gradient, gradient)
        report(number + 1, len(rows))
    return _Importances(
        *([total / max(counts[side], 1) for total in sums[side]] for side in ("forget", "kept"))
    )


def _spread(total: int, most: int) -> list[int]:
    """Return at most so many rows, evenly spaced."""
    rows = np.unique(np.linspace(0, total - 1, min(total, most)).round().astype(np.int64))
    return [int(row) for row in rows]


@torch.no_grad()
def _dampen_linear(
    layer: Any, forget: Tensor, kept: Tensor, settings: DampeningConfig
) -> tuple[float, float]:
    """Put what dampening changes into the adapter; return squared norms, wanted and missed.

    The change is that of the adapter as a whole: what the stages before left in it shares its rank.
    """
    base = layer.get_base_layer().weight
    now = base + layer.get_delta_weight(ADAPTER_NAME)
    limits = {"selection": settings.selection, "strength": settings.strength}
    change = (dampened(now, forget, kept, **limits) - base).float()
    down, up = layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight
    scale = float(layer.scaling[ADAPTER_NAME])
    new_down, new_up = low_rank(change / scale, len(down), importance=forget + kept)
    down.copy_(new_down)
    up.copy_(new_up)
    missed = change - layer.get_delta_weight(ADAPTER_NAME)
    return float(change.square().sum()), float(missed.square().sum())


@torch.no_grad()
def _dampen_head(
    parameter: nn.Parameter, forget: Tensor, kept: Tensor, settings: DampeningConfig
) -> None:
    """Dampen rows of a head; those that do not train have no gradient, and are not selected."""
    limits = {"selection": settings.selection, "strength": settings.strength}
    parameter.copy_(dampened(parameter, forget, kept, **limits))
