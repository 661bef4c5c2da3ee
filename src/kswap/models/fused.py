"""LoRA at the price of the bare linear: one product forward, one backward.

PEFT computes x·Wᵀ and s·(x·Aᵀ)·Bᵀ and adds them, and autograd comes back the same two ways: at
rank 16 the extra products are small, but each of them reads and writes whole activations. Here the
weight is W + s·B·A, put together for every call (a product of rank r, far less than the linear's
own), so that activations are touched once; gradients of A and B go through the r columns of x·Aᵀ
and of dy·B. Tokens that no gradient reaches are left out. The numbers are PEFT's up to rounding.

In single precision only: rounded to bfloat16, W + s·B·A would lose what B·A adds.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional

from kswap.models.wrapping import forwards_replaced


class _FusedLinear(torch.autograd.Function):
    """y = x·(W + s·B·A)ᵀ + b, of which A, B and x get gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
    ) -> Tensor:
        """Return y (..., out) of x (..., in)."""
        ctx.save_for_backward(x, weight, down, up)
        ctx.scale = scale
        return functional.linear(x, torch.addmm(weight, up, down, alpha=scale), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Return gradients of x, A and B."""
        x, weight, down, up = ctx.saved_tensors
        at_y, rows = gradients[0].flatten(0, -2), x.flatten(0, -2)
        reached = _reached_rows(at_y)
        if reached is not None:
            at_y, rows = at_y[reached], rows[reached]
        at_x = at_down = at_up = None
        if ctx.needs_input_grad[0]:
            at_x = at_y @ torch.addmm(weight, up, down, alpha=ctx.scale)
            if reached is not None:
                at_x = at_x.new_zeros(x.numel() // x.shape[-1], x.shape[-1]).index_copy_(
                    0, reached, at_x
                )
            at_x = at_x.view(x.shape)
        if ctx.needs_input_grad[3]:
            at_down = (at_y @ up).T @ rows * ctx.scale
        if ctx.needs_input_grad[4]:
            at_up = at_y.T @ (rows @ down.T) * ctx.scale
        return at_x, None, None, at_down, at_up, None


def _reached_rows(at_y: Tensor) -> Tensor | None:
    """Return which rows a gradient reaches; None: most of them, or it costs more to know.

    Where the head reads one token, as most vision transformers' does, no gradient reaches the other
    tokens in the last block. A few numbers say whether it is worth looking; only on the CPU, for a
    GPU would have to be waited for.
    """
    if at_y.device.type != "cpu":
        return None
    looked_at = at_y[:: max(1, len(at_y) // 64), :4]
    if 2 * int(looked_at.any(-1).sum()) > len(looked_at):
        return None
    reached = (at_y != 0).any(-1).nonzero()[:, 0]
    return reached if 2 * len(reached) < len(at_y) else None


def fused_adapters(model: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which LoRA linears compute as one linear, where that is the same.

    Not where there is dropout before A, where weights are quantised or not in single precision, and
    not under autocast: there PEFT's own forward runs.

    Args:
        model: wrapped by PEFT.
    """
    return forwards_replaced({m: _forward_of(m) for m in model.modules() if _can_fuse(m)})


def _can_fuse(layer: nn.Module) -> bool:
    if type(layer) is not LoraLinear or "forward" in vars(layer):
        return False
    module: Any = layer
    base = module.get_base_layer()
    names = module.active_adapters
    return (
        type(base) is nn.Linear
        and base.weight.dtype == torch.float32
        and not base.weight.requires_grad
        and len(names) == 1
        and not module.use_dora[names[0]]
        and isinstance(module.lora_dropout[names[0]], nn.Identity)
        and not module.lora_bias[names[0]]
    )


def _forward_of(module: Any) -> Callable[..., Tensor]:
    peft_forward = module.forward
    base, name = module.get_base_layer(), module.active_adapters[0]
    down, up = module.lora_A[name], module.lora_B[name]

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        plain = x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
        if args or kwargs or not plain or module.disable_adapters or module.merged or x.ndim < 2:
            result: Tensor = peft_forward(x, *args, **kwargs)
            return result
        scale = float(module.scaling[name])
        own: Any = _FusedLinear
        fused: Tensor = own.apply(x, base.weight, base.bias, down.weight, up.weight, scale)
        return fused

    return forward
