"""A demo over seeds, written to docs/results.md.

    python benchmarks/demo.py [classification|segmentation|detection] [--seeds 0 1 2]

Each seed is one `kswap demo TASK` in a process of its own, one after the other, with all
cores: its seconds are those a user sees.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from tables import write_section

from kswap.benching import table

CACHE = Path(os.environ.get("KSWAP_BENCH", Path.home() / ".cache/kswap-data/bench"))


def main() -> int:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    tasks = ["classification", "segmentation", "detection"]
    parser.add_argument("task", nargs="?", choices=tasks, default=tasks[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    found = []
    for seed in arguments.seeds:
        to = CACHE / f"demo-{arguments.task}-{seed}"
        words = [
            "demo",
            arguments.task,
            "--output",
            str(to),
            "--seed",
            str(seed),
            "--audit",
            "none",
        ]
        done = subprocess.run([sys.executable, "-m", "kswap", *words])
        if done.returncode:
            return done.returncode
        found.append(json.loads((to / "results.json").read_text()))
    rows = table.rows({f"kswap demo {arguments.task}": found})
    write_section(f"demo {arguments.task}", table.markdown(rows, timed=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
