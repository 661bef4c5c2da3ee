"""Forwards that do not train, shared out: of several processes each computes its own batches.

Batches stay what one process would compute, so that results are equal bit for bit; process r takes
every world_size-th one, beginning with r. Results are gathered batch by batch, in their order,
padded to the longest. One process alone computes, and gathers, nothing else than it always did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from kswap.ranks import shards_base

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
Part = dict[str, "Tensor"]
"""What a batch gives, by name, on the CPU."""


def batches(length: int, size: int) -> list[slice]:
    """Cut range(length) into slices of at most `size`."""
    return [slice(start, start + size) for start in range(0, length, size)]


def own_batches(length: int, size: int) -> Iterator[tuple[slice, bool]]:
    """Yield the slices that this process computes, and whether they count.

    Where the base is sharded every process has to do the same number of forwards, as each of them
    takes part in all: those that do not count make up for that.
    """
    whole = batches(length, size)
    rank, world = _place()
    for turn in range(math.ceil(len(whole) / world)):
        mine = turn * world + rank
        if mine < len(whole):
            yield whole[mine], True
        elif shards_base():
            yield whole[-1], False


def in_order(length: int, size: int, compute: Callable[[slice], Part]) -> Iterator[Part]:
    """Yield what `compute` returns of every batch of range(length), in order, on every process.

    Args:
        length: how many images.
        size: of a batch.
        compute: from rows to tensors on the CPU; the same names for every batch, of any shape.
    """
    if _place()[1] == 1:
        yield from map(compute, batches(length, size))
        return
    whole = batches(length, size)
    own = own_batches(length, size)
    for _ in range(math.ceil(len(whole) / _place()[1])):
        rows, counts = next(own, (None, False))
        part = compute(rows) if rows is not None else None
        yield from gathered(part if counts else None)


def gathered(part: Part | None) -> list[Part]:
    """Return the parts of all processes in order, on the CPU; those that have none are left out.

    Every process must call it at the same place.
    """
    import torch
    from accelerate import PartialState
    from torch import distributed

    if _place()[1] == 1:
        return [] if part is None else [part]
    device = PartialState().device
    own = {name: tensor.contiguous() for name, tensor in (part or {}).items()}
    about = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in own.items()]
    told: list[Any] = gathered_objects(None if part is None else about)
    flat = [tensor.flatten().view(torch.uint8) for tensor in own.values()]
    mine = torch.cat(flat) if flat else torch.zeros(0, dtype=torch.uint8)
    sizes = [sum(_num_bytes(*what[1:]) for what in one or ()) for one in told]
    padded = torch.zeros(max(*sizes, 1), dtype=torch.uint8, device=device)
    padded[: len(mine)] = mine.to(device)
    everyones = [torch.empty_like(padded) for _ in told]
    distributed.all_gather(everyones, padded)
    return [
        _cut(raw[:size].cpu(), one)
        for raw, size, one in zip(everyones, sizes, told, strict=True)
        if one is not None
    ]


def gathered_objects(value: T) -> list[T]:
    """Return what every process gives, in order: small things, for tensors see `gathered`."""
    from torch import distributed

    world = _place()[1]
    if world == 1:
        return [value]
    told: list[Any] = [None] * world
    distributed.all_gather_object(told, value)
    return told


def interleaved(own: Sequence[Part]) -> list[Part]:
    """Return the parts of all batches in order, from those that `own_batches` gave each process."""
    rounds = max(gathered_objects(len(own)))
    return [
        part for turn in range(rounds) for part in gathered(own[turn] if turn < len(own) else None)
    ]


def joined(parts: Sequence[Mapping[str, Tensor]]) -> Part:
    """Lay the parts of several batches end to end; nothing, where there are none."""
    import torch

    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}


def _cut(raw: Tensor, about: Sequence[tuple[str, Any, tuple[int, ...]]]) -> Part:
    found: Part = {}
    place = 0
    for name, dtype, shape in about:
        size = _num_bytes(dtype, shape)
        # a copy begins at an address that any type may begin at
        found[name] = raw[place : place + size].clone().view(dtype).view(shape)
        place += size
    return found


def _num_bytes(dtype: Any, shape: tuple[int, ...]) -> int:
    return int(math.prod(shape)) * int(dtype.itemsize)


def _place() -> tuple[int, int]:
    """Return the number of this process and how many there are, once they have met."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()
