"""What memory a process took is said of it alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHILD = "from kswap.environment import peak_resident_bytes; print(peak_resident_bytes())"
PARENT = f"""
import subprocess, sys
held = b"x" * 400_000_000
subprocess.run([sys.executable, "-c", {CHILD!r}], check=True)
{CHILD}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere getrusage is all there is")
def test_peak_is_not_that_of_the_process_before():
    done = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, check=True)
    child, parent = map(int, done.stdout.split())
    assert 10**6 < child < 200e6
    assert 400e6 < parent < 600e6
