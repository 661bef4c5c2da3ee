"""SIGTERM: leave at once where nothing is lost, or at the end of the step while training."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from kswap.errors import Terminated


class Interrupts:
    """Whether SIGTERM was received; while `deferred`, it is only noted."""

    def __init__(self) -> None:
        self.deferred = False
        self.received = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.received = True
        if not self.deferred:
            raise Terminated

    @contextlib.contextmanager
    def installed(self) -> Iterator[Interrupts]:
        """Handle SIGTERM within the block; do nothing outside the main thread.

        Signals reach the main thread only.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = signal.signal(signal.SIGTERM, self._handle)
        try:
            yield self
        finally:
            signal.signal(signal.SIGTERM, before)

    @contextlib.contextmanager
    def deferring(self) -> Iterator[None]:
        """Note SIGTERM within the block; whoever defers looks at `received`.

        Raises:
            Terminated: it was received and not looked at.
        """
        self.deferred = True
        try:
            yield
        finally:
            self.deferred = False
        if self.received:
            raise Terminated
