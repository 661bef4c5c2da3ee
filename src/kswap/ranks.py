"""Which of several processes this is, as `accelerate launch` and `torchrun` say it.

Every process does the same run on its share of each batch; the first one alone writes into the run
folder, prints and asks trackers. The others keep what they would write in a folder of their own,
which is removed.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


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
