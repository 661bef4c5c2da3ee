"""Run a model's forward with labels, but take what its loss would have been computed from.

The models of transformers compute their loss inside forward: detectors by the settable
`model.loss_function`, mask classifiers by `model.get_loss_dict`. For one forward either is replaced
by a function that notes its arguments, so that no loss is computed twice.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kswap.errors import UserError
from kswap.models.wrapping import bare


@dataclass
class Captured:
    """The arguments of every call, in order, by name."""

    calls: list[dict[str, Any]] = field(default_factory=list)

    def one(self, model: nn.Module) -> dict[str, Any]:
        """Return the last call's arguments; there must be one."""
        if not self.calls:
            name = type(bare(model)).__name__
            raise UserError(f"{name} computes no loss from labels; name a model that does")
        return self.calls[-1]


@contextlib.contextmanager
def captured_loss(model: nn.Module) -> Iterator[Captured]:
    """Within the context a detector's forward with labels notes what its loss is called with."""
    base = bare(model)
    captured = Captured()
    signature = inspect.signature(base.loss_function)

    def note(*args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor], None]:
        captured.calls.append(_by_name(signature, args, kwargs))
        return torch.zeros((), device=base.device), {}, None

    with _replaced(base, "_loss_function", note):
        yield captured


@contextlib.contextmanager
def captured_loss_dict(model: nn.Module) -> Iterator[Captured]:
    """Within the context a mask classifier's forward notes what its criterion is called with."""
    base = bare(model)
    captured = Captured()
    signature = inspect.signature(base.get_loss_dict)

    def note(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
        captured.calls.append(_by_name(signature, args, kwargs))
        return {"none": torch.zeros((), device=base.device)}

    with _replaced(base, "get_loss_dict", note):
        yield captured


@contextlib.contextmanager
def _replaced(base: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of the instance; afterwards it is as it was, or gone again."""
    had, before = name in vars(base), vars(base).get(name)
    vars(base)[name] = value
    try:
        yield
    finally:
        if had:
            vars(base)[name] = before
        else:
            del vars(base)[name]


def _by_name(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return {**bound.arguments, **bound.arguments.get("kwargs", {})}


def floats(value: Tensor) -> Tensor:
    """Return half precision as fp32, the rest as it is: losses are computed at least in fp32."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
