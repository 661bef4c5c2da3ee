"""events.jsonl: one line per logged step.

The place where a loss that is not finite is found out.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from kswap.errors import NonFiniteLossError


@dataclass
class EventLog:
    """Lines wait until `flush`, so that a GPU need not be waited for at every step."""

    path: Path
    start_bytes: int = 0
    """Length to cut the file back to (what a killed run wrote behind its last checkpoint)."""
    flush_every: int = 1
    """Lines that wait at most; more than 1 where reading a value waits for a device."""
    on_flush: Callable[[Mapping[str, float], int], None] = lambda values, step: None
    """Called for every line with its numbers (trackers)."""
    last: dict[str, float] = field(default_factory=dict)
    """Terms of the last flushed line."""
    _waiting: list[tuple[dict[str, Any], list[str], Tensor]] = field(default_factory=list)
    _file: IO[bytes] | None = None
    _digest: Any = None

    def open(self) -> None:
        """Open the file and cut it back to `start_bytes`."""
        self.path.touch()
        self._file = self.path.open("r+b")
        self._file.truncate(min(self.start_bytes, self.path.stat().st_size))
        self._digest = hashlib.sha256(self._file.read())
        self._file.seek(0, os.SEEK_END)

    @property
    def sha256(self) -> str:
        """The checksum of the whole file as it was written."""
        assert self._file is not None, "open() comes first"
        return str(self._digest.hexdigest())

    def add(self, line: dict[str, Any], terms: Mapping[str, Tensor]) -> None:
        """Queue a line with its terms (scalar tensors).

        Raises:
            NonFiniteLossError: a term is not finite (on flushing).
        """
        values = torch.stack([value.detach().float() for value in terms.values()])
        self._waiting.append((line, list(terms), values))
        if len(self._waiting) >= self.flush_every:
            self.flush()

    def flush(self) -> int:
        """Write what waits and return the length of the file in bytes."""
        assert self._file is not None, "open() comes first"
        waiting, self._waiting = self._waiting, []
        for line, names, tensor in waiting:
            terms = dict(zip(names, tensor.tolist(), strict=True))
            for name, value in terms.items():
                if not math.isfinite(value):
                    raise NonFiniteLossError(
                        f"stage {line['stage']}, step {line['step']}: term {name!r} is {value}; "
                        "checkpoints/ keeps the last good state, if one was reached; lower the "
                        "learning rate or the term's weight and use another output folder"
                    )
            written = json.dumps({**line, "terms": terms}).encode() + b"\n"
            self._file.write(written)
            self._digest.update(written)
            self.last = terms
            self.on_flush({**terms, "lr": line["lr"]}, line["total_step"])
        self._file.flush()
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
