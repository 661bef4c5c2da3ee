"""AdamW over the adapter and the rows of the head, its schedule, and its state as named tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kswap.settings import OptimiserConfig


@dataclass(frozen=True)
class Trainables:
    """What the optimiser moves."""

    adapter: Sequence[tuple[str, nn.Parameter]]
    """LoRA matrices by name."""
    head: Sequence[tuple[str, nn.Parameter]]
    """Trainable parameters of the head by name."""

    @property
    def named(self) -> list[tuple[str, nn.Parameter]]:
        """All of them."""
        return [*self.adapter, *self.head]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All of them without their names."""
        return [parameter for _, parameter in self.named]


def make_optimiser(moved: Trainables, config: OptimiserConfig) -> torch.optim.Optimizer:
    """AdamW; head rows have no weight decay, so that frozen rows (zero gradient) stay bit-equal."""
    groups = [
        {"params": [p for _, p in moved.adapter], "weight_decay": config.weight_decay},
        {"params": [p for _, p in moved.head], "weight_decay": 0.0},
    ]
    fused = moved.parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, fused=fused)


def learning_rate(config: OptimiserConfig, step: int, num_steps: int) -> float:
    """Return the rate of step `step` (from 0) of `num_steps`."""
    warmup = round(config.warmup_fraction * num_steps)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, num_steps - warmup)
    if config.schedule == "constant":
        return config.lr
    share = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.final_lr + (config.lr - config.final_lr) * share


def optimiser_state(optimiser: Any, moved: Trainables) -> dict[str, Tensor]:
    """Return the state as tensors by name, for a checkpoint."""
    return {
        f"optimiser.{key}.{name}": value
        for name, parameter in moved.named
        for key, value in optimiser.state[parameter].items()
    }


def load_optimiser_state(optimiser: Any, moved: Trainables, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimiser_state` returned.

    A parameter that no gradient has reached has no state: heads of several layers or groups that
    answer nothing where the model trains as it predicts (D-FINE, LW-DETR, two-stage DETRs).
    """
    for name, parameter in moved.named:
        state = {
            key: tensors[f"optimiser.{key}.{name}"].to(parameter.device).clone()
            for key in ("step", "exp_avg", "exp_avg_sq")
            if f"optimiser.{key}.{name}" in tensors
        }
        if state:
            optimiser.state[parameter] = state
