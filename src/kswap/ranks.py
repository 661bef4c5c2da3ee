"""Which of several processes this is, as `accelerate launch` and `torchrun` say it.

Every process does the same run on its share of each batch; the first one alone writes into the run
folder, prints and asks trackers. The others keep what they would write in a folder of their own,
which is removed.

`accelerate launch` with `distributed_type: FSDP` asks for the base to be sharded over the
processes. kswap does that itself (`kswap.models.sharding`), so the request is taken out of the
environment for the length of a run: Accelerate's own way wants model and optimiser at once, and
transformers would load empty weights on all processes but the first.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kswap.errors import UserError

_ASKED, _UNKNOWN = "ACCELERATE_USE_FSDP", ("DEEPSPEED", "MEGATRON_LM")
_sharding: list[bool] = []


def rank() -> int:
    """Return the number of this process, from 0."""
    return _number("RANK", 0)


def world_size() -> int:
    """Return how many processes do this run."""
    return max(1, _number("WORLD_SIZE", 1))


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


@contextlib.contextmanager
def own_output(output: Path) -> Iterator[Path]:
    """Yield where this process writes: the first one to `output`, the others elsewhere."""
    if rank() == 0:
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="kswap-rank-") as folder:
        yield Path(folder) / "run"


@contextlib.contextmanager
def own_sharding() -> Iterator[bool]:
    """Yield whether the base is to be sharded over the processes; within, nobody else does it.

    Raises:
        UserError: it is asked for in a way that kswap does not know.
    """
    for name in _UNKNOWN:
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
            raise UserError(
                f"distributed_type: {name} is not supported; take MULTI_GPU, or FSDP with "
                "fsdp_version 2, in the config file of accelerate"
            )
    asked = os.environ.get(_ASKED, "")
    is_asked = asked.lower() in ("true", "1")
    if is_asked:
        _check_fsdp()
        del os.environ[_ASKED]
    _sharding.append(is_asked and world_size() > 1)
    try:
        yield _sharding[-1]
    finally:
        _sharding.pop()
        if is_asked:
            os.environ[_ASKED] = asked


def shards_base() -> bool:
    """Return whether the run under way has its base sharded over the processes."""
    return bool(_sharding) and _sharding[-1]


def _check_fsdp() -> None:
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise UserError(
            f"fsdp_version: {version} is not supported; write `fsdp_version: 2` under fsdp_config "
            "in the config file of accelerate"
        )
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "").lower() == "true":
        raise UserError(
            "fsdp_offload_params: true is not supported; set it to false in the config file of "
            "accelerate, and take more processes if the base does not fit"
        )
