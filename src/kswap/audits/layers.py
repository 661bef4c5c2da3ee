"""What comes out of every transformer block, pooled over the tokens that stand for a unit.

Blocks are found by structure (`models.structure`), never by name; what their outputs are is read
from the shapes (`models.tokens`). Everything is pooled inside the forward, so that memory stays
flat.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from kswap.models.structure import find_ffn_blocks

_CLASS_TOKEN = re.compile(r"(^|[._])(cls_token|class_embedding|cls_pos_embed)$")


@dataclass(frozen=True)
class Tap:
    """A block whose output is recorded."""

    module: str
    label: str
    """How tables name it: block 1, block 2 …, in forward order."""
    width: int
    """Channels of its tokens."""


def find_taps(model: nn.Module) -> tuple[Tap, ...]:
    """Return the blocks of a bare model, in forward order."""
    taps = []
    for number, block in enumerate(find_ffn_blocks(model), start=1):
        first = model.get_submodule(block.linears[0])
        taps.append(Tap(block.name, f"block {number}", int(first.in_features)))  # type: ignore[arg-type]
    return tuple(taps)


def has_class_token(model: nn.Module) -> bool:
    """Whether the first token stands for the whole image."""
    return any(_CLASS_TOKEN.search(name) for name, _ in model.named_parameters())


@contextlib.contextmanager
def tapped(
    model: nn.Module, taps: Sequence[Tap], record: Callable[[Tap, Tensor], None]
) -> Iterator[None]:
    """Within the context `record` gets what every block returns."""

    def hook_of(tap: Tap) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            first = output[0] if isinstance(output, list | tuple) else output
            if isinstance(first, Tensor):
                record(tap, first.detach().float())

        return hook

    handles = [model.get_submodule(tap.module).register_forward_hook(hook_of(tap)) for tap in taps]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
