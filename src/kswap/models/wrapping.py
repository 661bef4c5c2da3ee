"""What a model is wrapped in: PEFT, DDP, FSDP, `torch.compile`."""

from __future__ import annotations

from typing import Any

from torch import nn

_PARALLEL = ("DistributedDataParallel", "FullyShardedDataParallel")


def bare(model: nn.Module) -> Any:
    """Return the transformers model inside DDP, FSDP, `torch.compile` and PEFT."""
    inner: Any = model
    while True:
        if hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        elif type(inner).__name__ in _PARALLEL:
            inner = inner.module
        elif hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        else:
            return inner
