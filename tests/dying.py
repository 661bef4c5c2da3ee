"""Runs that end in the middle of a stage, as if their process had been killed."""

from __future__ import annotations

from typing import Any

import pytest

from kswap.training.events import EventLog


def die_after(monkeypatch: pytest.MonkeyPatch, steps: int, error: type[BaseException]) -> None:
    """Let `error` end a run, once, when so many more steps have been logged."""
    add, left = EventLog.add, [steps]

    def dying(self: EventLog, line: Any, terms: Any) -> None:
        add(self, line, terms)
        left[0] -= 1
        if left[0] == 0:
            raise error

    monkeypatch.setattr(EventLog, "add", dying)
