"""SIGTERM: leave at once where nothing is lost, or at the end of the step while training.

A process that was started by another of kswap (`kswap bench`) takes the end of that one for a
SIGTERM: a parent that was killed outright cannot send one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from kswap.errors import Terminated

PARENT = "KSWAP_PARENT"
"""Environment: the process whose end is to end this one."""
_LOOK_S = 1.0
"""Between two looks at it."""


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


def end_with_parent() -> None:
    """Send SIGTERM to this process once the parent that asked for it has ended."""
    # Taken out, or children of this process would look for a parent that is not theirs.
    said = os.environ.pop(PARENT, "")
    if said.isdecimal():
        threading.Thread(target=_watch, args=(int(said),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)
