"""SIGTERM in every phase, two processes in one folder, a clock that goes back, folders that may not
be written to."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import tiny_runs
import yaml
from chaos.__main__ import draw
from chaos.cases import Case, clone, differences
from chaos.victims import PHASES, START, Mark, Moment, at_phase, command
from tiny_runs import TASKS

pytestmark = pytest.mark.slow
OF_A_RUN = [START, *(p for p in PHASES if p not in ("export", "features", "audits"))]


def within(phase: str, marks: list[Mark], drawing: random.Random) -> Moment:
    """Return a random moment of a phase."""
    places = [n for n, mark in enumerate(marks[:-1]) if mark.phase == phase]
    if phase == START:  # the first marks are before the command has begun
        places = places[2:]
    nth = drawing.randrange(len(places))
    gap = marks[places[nth] + 1].seconds - marks[places[nth]].seconds
    return at_phase(phase, nth, drawing.uniform(0, gap))


@pytest.mark.parametrize("phase", OF_A_RUN)
def test_sigterm_ends_a_run_with_143_and_the_same_command_goes_on(
    case_of, tmp_path, drawing, phase
):
    case: Case = case_of(TASKS[OF_A_RUN.index(phase) % len(TASKS)])
    run_dir = tmp_path / "run"
    words = case.words(run_dir)
    moment = within(phase, case.ended.marks, drawing)
    ended = command(words, tmp_path / "log", moment=moment, stop_by=signal.SIGTERM)
    assert "Traceback" not in ended.said
    if phase == START and ended.status == -signal.SIGTERM:
        return  # before it could say anything: the shell says 143
    if ended.status:
        assert ended.status == 143, ended.said
        assert "stopped by SIGTERM; the state is saved" in ended.said
    again = command(words, tmp_path / "again.log")
    assert again.status == 0, again.said
    assert differences(run_dir, case) == []


@pytest.mark.parametrize("name", ["export", "report", "audit", "evaluate"])
def test_sigterm_ends_a_command_with_143(case_of, tmp_path, drawing, name):
    case: Case = case_of("classification")
    run_dir = clone(case, tmp_path / "run")
    to = ["--to", tmp_path / "exported"] if name == "export" else []
    words = [name, run_dir, *to]
    marks = command(words, tmp_path / "log").marks
    if name == "export":
        words[-1] = tmp_path / "again"
    _, moment = draw([m for m in marks if m.what != "begins"], drawing)
    ended = command(words, tmp_path / "log", moment=moment, stop_by=signal.SIGTERM)
    assert "Traceback" not in ended.said
    assert ended.status in (143, 0, -signal.SIGTERM), ended.said
    left = {p.name for p in tmp_path.iterdir()} - {"run", "exported", "log", "again"}
    assert not left
    if not (name == "export" and (tmp_path / "again").exists()):
        again = command(words, tmp_path / "log")
        assert again.status == 0, again.said


def test_two_runs_at_once_into_one_folder(case_of, tmp_path, drawing):
    case: Case = case_of("classification")
    run_dir = tmp_path / "run"
    words = case.words(run_dir)
    second = []

    def also() -> None:
        second.append(command(words, tmp_path / "second.log"))

    for phase, nth in ((START, 2), ("stage", drawing.randrange(5)), ("results", 0)):
        second.clear()
        moment = at_phase(phase, nth, 0.0)
        first = command(words, tmp_path / "first.log", moment=moment, stop_by=also)
        ends = sorted((first.status, *(one.status for one in second)))
        assert ends in ([0, 0], [0, 2]), [first.said, second]
        if 2 in ends:
            said = first.said if first.status else second[0].said
            assert "is in use by another run" in said
        assert differences(run_dir, case) == []
        shutil.rmtree(run_dir)


def test_an_audit_waits_for_no_run(case_of, tmp_path):
    case: Case = case_of("classification")
    run_dir = clone(case, tmp_path / "run")
    words = ["audit", run_dir]
    second = []
    first = command(
        words,
        tmp_path / "first.log",
        moment=at_phase("features", 0, 0.0),
        stop_by=lambda: second.append(command(words, tmp_path / "second.log")),
    )
    assert (first.status, second[0].status) == (0, 2), first.said
    assert "is in use by another run" in second[0].said


def backwards() -> None:
    """Let every look at the clock be a minute before the last."""
    now = [2_000_000_000.0]

    def time_s() -> float:
        now[0] -= 60
        return now[0]

    time.time = time_s
    time.time_ns = lambda: int(time_s() * 1e9)


def test_a_clock_that_goes_back_changes_nothing(case_of, tmp_path, drawing):
    case: Case = case_of("classification")
    run_dir = tmp_path / "run"
    words = case.words(run_dir)
    for phase in ("checkpoint", "evaluation", "stage"):
        moment = within(phase, case.ended.marks, drawing)
        command(words, tmp_path / "log", moment=moment, within=backwards)
        for path in run_dir.rglob("*"):
            when = drawing.choice([0, 1, time.time() + 1e8])
            os.utime(path, (when, when))
    ended = command(words, tmp_path / "log", within=backwards)
    assert ended.status == 0, ended.said
    assert differences(run_dir, case) == []


def read_only(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)


def test_models_and_data_may_lie_where_nothing_can_be_written(small_disk, case_of, tmp_path):
    case: Case = case_of("classification")
    values = tiny_runs.tiny_run("classification", small_disk)
    read_only(small_disk)
    values = {**case.values, **{k: values[k] for k in ("model", "learn", "forget", "retain")}}
    path = tmp_path / "swap.yaml"
    path.write_text(yaml.safe_dump({**values, "output": str(tmp_path / "run")}))
    ended = command(["run", path], tmp_path / "log")
    assert ended.status == 0, ended.said


@pytest.mark.parametrize("name", ["run", "report", "audit", "export", "evaluate", "predict"])
def test_a_run_that_cannot_be_written_to(small_disk, case_of, tmp_path, name):
    case: Case = case_of("classification")
    run_dir = small_disk / "run"
    words: list[str | Path] = [name, run_dir]
    if name == "run":
        words = [*case.words(run_dir)]
    else:
        clone(case, run_dir)
    if name == "export":
        words += ["--to", small_disk / "exported"]
    if name == "predict":
        words.append(next(case.folder.rglob("*.png")))
    read_only(small_disk)
    ended = command(words, tmp_path / "log")
    assert "Traceback" not in ended.said
    if name in ("evaluate", "predict"):
        assert ended.status == 0, ended.said
        return
    assert ended.status == 2, ended.said
    assert "cannot be written to" in ended.said.splitlines()[-1]
