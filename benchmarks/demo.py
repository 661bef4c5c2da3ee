"""The demo over seeds, written to docs/results.md.

    python benchmarks/demo.py [--seeds 0 1 2]

Each seed is one `kswap demo classification` in a process of its own, one after the other, with all
cores: its seconds are those a user sees.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from tables import stage_rows, stage_table, write_section

CACHE = Path(os.environ.get("KSWAP_BENCH", Path.home() / ".cache/kswap-data/bench"))


def main() -> int:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    found = []
    for seed in parser.parse_args().seeds:
        to = CACHE / f"demo-{seed}"
        words = ["demo", "classification", "--output", str(to), "--seed", str(seed)]
        done = subprocess.run([sys.executable, "-m", "kswap", *words])
        if done.returncode:
            return done.returncode
        found.append(json.loads((to / "results.json").read_text()))
    write_section("demo", stage_table(stage_rows("`kswap demo`", found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
