"""Benchmarks that are stopped: no run that they began goes on without them."""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
WORKS_UNTIL_STOPPED = """#!/bin/sh
# stands for Python: says that it runs, and works until SIGTERM
trap 'touch "$BEGUN/$$.stopped"; exit 143' TERM
touch "$BEGUN/$$"
while :; do sleep 0.05; done
"""
SCRIPT = """
import runpy, sys
from pathlib import Path
script, folder, python, *words = sys.argv[1:]
sys.path.insert(0, str(Path(script).parent))
import records, tables
records.FOLDER = Path(folder) / "records"
tables.RESULTS = Path(folder) / "results.md"
sys.executable = python
sys.argv = [script, *words]
runpy.run_path(script, run_name="__main__")
"""


def lives(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


STOPPED = {
    "methods": (["--jobs", "2", "--seeds", "0", "--output", "OUT"], 2),
    "order_study": (["--jobs", "2", "--seeds", "0", "--output", "OUT"], 2),
    "swaps": (["classification", "--jobs", "2", "--seeds", "0"], 2),
    "strict": (["--jobs", "2", "--seeds", "1", "2"], 2),
    "demo": (["--seeds", "0"], 1),
}
"""Benchmark -> its words, and how many children it has at once."""


@pytest.fixture
def begun(tmp_path):
    """A folder in which children say that they run; what outlives a test that failed is killed."""
    python, folder = tmp_path / "python", tmp_path / "begun"
    python.write_text(WORKS_UNTIL_STOPPED)
    python.chmod(0o755)
    folder.mkdir()
    yield folder
    for path in folder.iterdir():
        if path.name.isdecimal() and lives(int(path.name)):
            os.kill(int(path.name), signal.SIGKILL)


def words_of(script, tmp_path):
    return [str(tmp_path / "out") if word == "OUT" else word for word in STOPPED[script][0]]


def check_stopped(script, begun, status, said):
    pids = [int(path.name) for path in begun.iterdir() if path.name.isdecimal()]
    assert len(pids) == STOPPED[script][1]
    assert {path.stem for path in begun.glob("*.stopped")} == {str(pid) for pid in pids}
    assert not any(map(lives, pids))
    assert status == 143
    assert said.endswith(f"{script}: stopped by SIGTERM; the same command goes on\n")
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "script",
    [pytest.param(s, marks=[] if s == "methods" else [pytest.mark.slow]) for s in STOPPED],
)
def test_a_stopped_benchmark_leaves_no_child(script, begun, tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(BENCHMARKS / f"{script}.py"), str(tmp_path)]
    running = subprocess.Popen(
        [*command, str(tmp_path / "python"), *words_of(script, tmp_path)],
        env={**os.environ, "BEGUN": str(begun), "KSWAP_BENCH": str(tmp_path / "bench")},
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 240
    try:
        while len(list(begun.iterdir())) < STOPPED[script][1] and time.monotonic() < end:
            assert running.poll() is None, running.communicate()[1]
            time.sleep(0.05)
        running.terminate()
        _, said = running.communicate(timeout=60)
        check_stopped(script, begun, running.returncode, said)
    finally:
        running.kill()


@pytest.fixture
def fresh_benchmarks(tmp_path, monkeypatch):
    """Benchmarks are imported anew, to write below `tmp_path`, and forgotten behind the test."""
    monkeypatch.setenv("KSWAP_BENCH", str(tmp_path / "bench"))
    monkeypatch.syspath_prepend(BENCHMARKS)
    names = [path.stem for path in BENCHMARKS.glob("*.py")]
    kept = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    records, tables = map(importlib.import_module, ("records", "tables"))
    monkeypatch.setattr(records, "FOLDER", tmp_path / "records")
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results.md")
    yield
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(kept)


def too_late(signum, frame):
    """Take the place of what would end the test process where a benchmark heeds no SIGTERM."""
    raise AssertionError("SIGTERM came where the benchmark did not handle it")


@pytest.mark.parametrize("script", STOPPED)
def test_every_benchmark_ends_its_children_on_sigterm(
    script, begun, fresh_benchmarks, tmp_path, monkeypatch, capsys
):
    """The same within this process, without the seconds that importing all anew takes."""
    path = str(BENCHMARKS / f"{script}.py")
    monkeypatch.setenv("BEGUN", str(begun))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(sys, "argv", [path, *words_of(script, tmp_path)])
    before, ended = signal.signal(signal.SIGTERM, too_late), threading.Event()

    def stop():
        while len(list(begun.iterdir())) < STOPPED[script][1]:
            if ended.wait(0.05):
                return
        os.kill(os.getpid(), signal.SIGTERM)

    watch = threading.Thread(target=stop)
    watch.start()
    try:
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(path, run_name="__main__")
    finally:
        ended.set()
        watch.join()
        signal.signal(signal.SIGTERM, before)
    check_stopped(script, begun, caught.value.code, capsys.readouterr().err)
