"""Record features on their way through a model: what heads receive, and the stream after blocks.

Blocks are those that `find_ffn_blocks` found by structure; hooks stay for one context only, so that
nothing is recorded, and nothing changes, where nobody asks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from kswap.models.structure import FfnBlock
from kswap.models.wrapping import bare


@dataclass(frozen=True)
class Places:
    """What to record."""

    heads: tuple[str, ...] = ()
    """Heads whose input is recorded."""
    blocks: tuple[tuple[int, FfnBlock], ...] = ()
    """Blocks, with their number from 1, whose output is recorded."""
    num_blocks: int = 0
    """Blocks of the model."""

    def __bool__(self) -> bool:
        return bool(self.heads or self.blocks)


@contextlib.contextmanager
def recorded_features(model: nn.Module, places: Places) -> Iterator[dict[str, Tensor]]:
    """Within the context every forward writes features (images, size) by place, with their graph.

    Args:
        model: bare or wrapped by PEFT.
        places: what to record.

    Yields:
        `head`, `head 2` ... and for block 3 `3 mean` and, where it has a row of tokens, `3 first`:
        the class token of models that have one.
    """
    base = bare(model)
    found: dict[str, Tensor] = {}
    handles = [
        # of PEFT's wrapper where there is one: it is called whichever head it then calls
        base.get_submodule(head).register_forward_pre_hook(_head_hook(found, number))
        for number, head in enumerate(places.heads, start=1)
    ] + [
        base.get_submodule(block.name).register_forward_hook(
            _block_hook(found, number, width_of(base, block))
        )
        for number, block in places.blocks
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Tokens:
    """What heads received and blocks returned in the latest forward, whole."""

    heads: dict[int, Tensor] = field(default_factory=dict)
    """By number, from 1; of a head that is called several times, the last one. Not the stacked
    layers of an auxiliary loss where the head has read the final one by itself: they have passed
    DETR's last norm another number of times."""
    blocks: dict[int, Tensor] = field(default_factory=dict)
    """By number, from 1."""


@contextlib.contextmanager
def recorded_tokens(model: nn.Module, places: Places) -> Iterator[Tokens]:
    """Within the context every forward writes what is at `places`, with its graph, not pooled.

    Heads are recorded with the adapter and, where it is switched off, without.

    Args:
        model: bare or wrapped by PEFT.
        places: what to record.
    """
    base = bare(model)
    tokens = Tokens()

    def receive(number: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            given, earlier = args[0], tokens.heads.get(number)
            if earlier is None or given.ndim <= earlier.ndim:
                tokens.heads[number] = given

        return hook

    def give(number: int) -> Any:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            tokens.blocks[number] = output if isinstance(output, Tensor) else output[0]

        return hook

    handles = [
        layer.register_forward_pre_hook(receive(number))
        for number, name in enumerate(places.heads, start=1)
        for layer in _copies(base.get_submodule(name))
    ]
    handles += [
        base.get_submodule(block.name).register_forward_hook(give(number))
        for number, block in places.blocks
    ]
    try:
        yield tokens
    finally:
        for handle in handles:
            handle.remove()


def _copies(head: Any) -> list[nn.Module]:
    """Return a head, or the base's and the trained ones of a head that PEFT wraps."""
    if not hasattr(head, "modules_to_save"):
        return [head]
    return [head.original_module, *head.modules_to_save.values()]


def _head_hook(found: dict[str, Tensor], number: int) -> Any:
    name = "head" if number == 1 else f"head {number}"

    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        found[name] = args[0].flatten(1)

    return hook


def _block_hook(found: dict[str, Tensor], number: int, width: int) -> Any:
    def hook(_: nn.Module, args: Any, output: Any) -> None:
        stream: Tensor = output if isinstance(output, Tensor) else output[0]
        if stream.ndim == 4:  # a map: channels first or last
            axis = 1 if stream.shape[1] == width else 3
            found[f"{number} mean"] = stream.mean((2, 3) if axis == 1 else (1, 2))
        elif stream.ndim == 3:  # a row of tokens
            found[f"{number} mean"] = stream.mean(1)
            found[f"{number} first"] = stream[:, 0]
        else:
            found[f"{number} mean"] = stream.flatten(1)

    return hook


def width_of(base: Any, block: FfnBlock) -> int:
    """Return the channels of the stream that a block's first feed-forward linear reads."""
    linear = base.get_submodule(block.linears[0])
    return int(getattr(linear, "in_features", 0))
