"""Forwards are shared out over processes, and everyone has all results in order."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
from torch import distributed, multiprocessing

from kswap import ranks
from kswap.gathering import gathered, gathered_objects, in_order, interleaved, own_batches


def compute(rows: slice) -> dict[str, torch.Tensor]:
    """Of each row a half-precision pair and, for every second one, a unit more: uneven parts."""
    numbers = torch.arange(10)[rows]
    units = torch.cat([numbers.repeat(1 + int(n) % 2) for n in numbers[:1]])
    return {
        "pair": torch.stack([numbers, -numbers], 1).half(),
        "units": units,
        "sure": numbers > 4,
        "none": torch.zeros(0, 3),
    }


def everything(size: int) -> list[dict[str, torch.Tensor]]:
    return list(in_order(10, size, compute))


def _meet(rank: int, world: int, path: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{path}", timedelta(seconds=60), rank=rank, world_size=world
    )
    for size in (1, 3, 4, 20):
        alone = [compute(slice(start, start + size)) for start in range(0, 10, size)]
        found = everything(size)
        for ours, theirs in zip(found, alone, strict=True):
            assert ours.keys() == theirs.keys()
            for name, tensor in theirs.items():
                assert ours[name].dtype == tensor.dtype
                assert torch.equal(ours[name], tensor), (size, name)
        own = [compute(rows) for rows, counts in own_batches(10, size) if counts]
        assert len(own) == len(range(rank, len(alone), world))
        again = interleaved(own)
        assert [p["units"].tolist() for p in again] == [p["units"].tolist() for p in alone]
    assert gathered_objects(rank) == list(range(world))
    only_last = gathered({"x": torch.ones(2)} if rank == world - 1 else None)
    assert len(only_last) == 1
    distributed.destroy_process_group()


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_every_process_has_everything_in_order(world, tmp_path):
    multiprocessing.spawn(_meet, (world, str(tmp_path / "meet")), nprocs=world)


def test_one_process_computes_all_by_itself():
    whole = torch.cat([part["pair"] for part in everything(4)])
    assert whole[:, 0].tolist() == list(range(10))
    assert [counts for _, counts in own_batches(10, 3)] == [True] * 4
    assert gathered(None) == []
    assert gathered_objects("x") == ["x"]


def test_a_sharded_base_has_as_many_forwards_on_every_process(monkeypatch):
    monkeypatch.setattr("kswap.gathering._place", lambda: (1, 2))
    assert [counts for _, counts in own_batches(10, 4)] == [True]
    monkeypatch.setattr(ranks, "_sharding", [True])
    assert [counts for _, counts in own_batches(10, 4)] == [True, False]
