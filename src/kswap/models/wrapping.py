"""What a model is wrapped in (PEFT, DDP, FSDP, `torch.compile`); other forwards and modes in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
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


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Within the context a model is in evaluation mode; then each module is in its own again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def forwards_replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Within the context modules compute otherwise; then as before, also where contexts nest."""
    before = {module: vars(module).get("forward") for module in forwards}
    for module, forward in forwards.items():
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module, earlier in before.items():
            if earlier is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = earlier
