"""Places where features are looked at: what the head receives, and the stream after a block."""

from __future__ import annotations

import math
from collections.abc import Sequence


def block_number(share: float, num_blocks: int) -> int:
    """Return the block, from 1, at a share of the depth; 1 is the last one."""
    return max(1, math.ceil(share * num_blocks - 1e-9))


def is_at(name: str, layers: Sequence[str | float], num_blocks: int) -> bool:
    """Whether a place (`head`, `3 first` ...) is one that a term's `layers` name."""
    if "all" in layers:
        return True
    if name.startswith("head"):
        return "head" in layers
    number = int(name.split()[0])
    return any(
        number == block_number(layer, num_blocks) for layer in layers if not isinstance(layer, str)
    )


def block_numbers(layers: Sequence[str | float], num_blocks: int) -> list[int]:
    """Return the numbers, from 1, of the blocks that `layers` name."""
    return [n for n in range(1, num_blocks + 1) if is_at(f"{n} mean", layers, num_blocks)]
