"""Activations that are computed again in the backward pass, for less memory (transformers)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from transformers.modeling_layers import GradientCheckpointingLayer

from kswap.errors import UserError, brief
from kswap.settings import TrainingConfig


def enable_checkpointing(model: Any) -> None:
    """Recompute activations in the backward pass; transformers 5.2x renamed the method."""
    _checkpointing(model, "enable")({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            recompute = module._gradient_checkpointing_func
            module._gradient_checkpointing_func = partial(_without_dropout, recompute)


def _without_dropout(recompute: Any, layer_call: Any, *args: Any, **kwargs: Any) -> Any:
    """Recompute a layer as it is in evaluation mode.

    Its `training` flag is set so that it is recomputed at all (`set_modes`); layers that read the
    flag themselves, such as those of DETR, would drop out activations of what is frozen.
    """
    layer = layer_call.args[0] if layer_call.args else layer_call.func.__self__

    def call(*inputs: Any, **more: Any) -> Any:
        layer.training = False
        try:
            return layer_call(*inputs, **more)
        finally:
            layer.training = True

    return recompute(call, *args, **kwargs)


def _checkpointing(model: Any, verb: str) -> Callable[..., None]:
    renamed = getattr(model, f"activation_checkpointing_{verb}", None)
    found: Callable[..., None] = renamed or getattr(model, f"gradient_checkpointing_{verb}")
    return found


def check_checkpointing(model: Any, training: TrainingConfig) -> None:
    """Refuse `gradient_checkpointing` for a model of which nothing can be recomputed.

    Raises:
        UserError: transformers cannot do it for this model.
    """
    if not training.gradient_checkpointing:
        return
    try:
        enable_checkpointing(model)
        _checkpointing(model, "disable")()  # PEFT would add hooks that not every model bears
    except ValueError as error:
        raise UserError(
            "training.gradient_checkpointing: true, but transformers cannot do it for this model "
            f"({brief(error)}); set it to false, and raise training.accumulation for less memory"
        ) from None
