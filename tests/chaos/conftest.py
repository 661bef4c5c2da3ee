"""One undisturbed tiny swap of each task, made when first asked for."""

from __future__ import annotations

import functools
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chaos.cases import Case, prepare
from chaos.victims import preload


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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no `mount` here")
    if done.returncode:
        pytest.skip(f"a disk cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
