"""Benchmarks that are stopped: no run that they began goes on without them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
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


@pytest.mark.parametrize(
    ("script", "words", "number"),
    [
        ("methods", ["--jobs", "2", "--seeds", "0", "--output", "OUT"], 2),
        pytest.param(
            "order_study",
            ["--jobs", "2", "--seeds", "0", "--output", "OUT"],
            2,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "swaps", ["classification", "--jobs", "2", "--seeds", "0"], 2, marks=pytest.mark.slow
        ),
        ("strict", ["--jobs", "2", "--seeds", "1", "2"], 2),
        ("demo", ["--seeds", "0"], 1),
    ],
)
def test_a_stopped_benchmark_leaves_no_child(script, words, number, tmp_path):
    python, begun = tmp_path / "python", tmp_path / "begun"
    python.write_text(WORKS_UNTIL_STOPPED)
    python.chmod(0o755)
    begun.mkdir()
    words = [str(tmp_path / "out") if word == "OUT" else word for word in words]
    command = [sys.executable, "-c", SCRIPT, str(BENCHMARKS / f"{script}.py"), str(tmp_path)]
    running = subprocess.Popen(
        [*command, str(python), *words],
        env={**os.environ, "BEGUN": str(begun), "KSWAP_BENCH": str(tmp_path / "bench")},
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 240
    try:
        while len(list(begun.iterdir())) < number and time.monotonic() < end:
            assert running.poll() is None, running.communicate()[1]
            time.sleep(0.05)
        running.terminate()
        _, said = running.communicate(timeout=60)
        pids = [int(path.name) for path in begun.iterdir() if path.name.isdecimal()]
        assert len(pids) == number
        assert {path.stem for path in begun.glob("*.stopped")} == {str(pid) for pid in pids}
        assert not any(map(lives, pids))
        assert running.returncode == 143
        assert said.endswith(f"{script}: stopped by SIGTERM; the same command goes on\n")
        assert "Traceback" not in said
    finally:  # nothing is to outlive a test that failed
        running.kill()
        for path in begun.iterdir():
            if path.name.isdecimal() and lives(int(path.name)):
                os.kill(int(path.name), signal.SIGKILL)
