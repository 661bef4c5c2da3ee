"""Processes that other processes of kswap started: they do not outlive them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

WORKS = """
import sys, time
from pathlib import Path
from kswap import cli
begun, ended = map(Path, sys.argv[1:])

def work(words):
    begun.touch()
    time.sleep(120)

cli._dispatch = work
status = cli.main([])
part = ended.with_suffix(".part")
part.write_text(str(status))
part.rename(ended)
"""
STARTS = """
import sys, time
from kswap.benching.processes import started
started(sys.argv[2:], 1, program=("-c", sys.argv[1]))
time.sleep(120)
"""


def appears(path: Path) -> bool:
    end = time.monotonic() + 60
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.05)
    return path.exists()


def test_what_a_killed_process_started_stops_as_at_sigterm(tmp_path):
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    words = [sys.executable, "-c", STARTS, WORKS, str(begun), str(ended)]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as parent:
        assert appears(begun)
        time.sleep(1.5)  # more than a look: a parent that is there ends nothing
        assert not ended.exists()
        parent.kill()
    assert appears(ended)
    assert ended.read_text() == "143"
