"""The disk fills up at random moments: one line, status 2, the last checkpoint whole; and when
there is space again the same command ends as if nothing had been."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest
from chaos.__main__ import draw
from chaos.cases import ROUNDS, Case, clone, differences
from chaos.victims import Ended, command
from tiny_runs import TASKS

from kswap.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow


def fill(disk: Path) -> None:
    """Leave no byte free."""
    with contextlib.suppress(OSError), (disk / "ballast").open("ab", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))
    with contextlib.suppress(OSError), (disk / "ballast").open("ab", buffering=0) as file:
        while True:
            file.write(bytes(1))


def is_refused_in_one_line(ended: Ended) -> None:
    assert ended.status == 2, ended.said
    assert "Traceback" not in ended.said
    errors = [line for line in ended.said.splitlines() if line.startswith("kswap: error:")]
    assert len(errors) == 1, ended.said
    assert "disk is full" in errors[0]


def test_at_any_write_of_a_run(case_of, small_disk, tmp_path, drawing):
    refused = 0
    for number in range(ROUNDS * len(TASKS) * 2):
        case: Case = case_of(TASKS[number % len(TASKS)])
        run_dir = small_disk / f"run-{number}"
        words = case.words(run_dir)
        _, moment = draw(case.ended.marks, drawing)
        ended = command(
            words, tmp_path / "full.log", moment=moment, stop_by=lambda: fill(small_disk)
        )
        if ended.status:  # otherwise nothing was left to be written
            is_refused_in_one_line(ended)
            refused += 1
        found = load_checkpoint(run_dir / "checkpoints")
        assert found is None or not found[2], "a checkpoint is damaged"
        assert not list(run_dir.rglob("*.tmp"))
        (small_disk / "ballast").unlink(missing_ok=True)
        again = command(words, tmp_path / "again.log")
        assert again.status == 0, again.said
        assert differences(run_dir, case) == []
    assert refused


@pytest.mark.parametrize("name", ["export", "report", "audit"])
def test_while_a_command_writes(case_of, small_disk, tmp_path, drawing: random.Random, name):
    case: Case = case_of("classification")
    run_dir = clone(case, small_disk / "run")
    to = ["--to", small_disk / "exported"] if name == "export" else []
    before = (run_dir / "results.json").read_bytes()
    fill(small_disk)
    ended = command([name, run_dir, *to], tmp_path / "full.log")
    is_refused_in_one_line(ended)
    assert (run_dir / "results.json").read_bytes() == before
    assert not (small_disk / "exported").exists()
    (small_disk / "ballast").unlink()
    again = command([name, run_dir, *to], tmp_path / "again.log")
    assert again.status == 0, again.said
