"""One undisturbed tiny swap of each task, made when first asked for."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from chaos.cases import Case, prepare
from chaos.victims import preload

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "1"))
"""How often each random disturbance is drawn."""


@pytest.fixture(scope="session")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Of a task its undisturbed run."""
    preload()
    folder: Path = tmp_path_factory.mktemp("chaos")
    return functools.cache(lambda task: prepare(task, folder / task))


@pytest.fixture
def drawing(request: pytest.FixtureRequest) -> random.Random:
    """Return random numbers of the test's own seed."""
    return random.Random(request.node.name)
