"""The classification demo over seeds, written to docs/results.md.

    python benchmarks/demo.py [--seeds 0 1 2]

The scene demos are the rows `default-LF` of `benchmarks/swaps.py segmentation | detection`.
Each seed is one `kswap demo classification` in a process of its own, one after the other, with all
cores: its seconds are those a user sees.
"""

from __future__ import annotations

import argparse
import json
import sys

from commands import run, stoppable
from tables import CACHE, section, write_section

from kswap.benching.references import yardsticks_beside


def main() -> int:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    found = []
    for seed in arguments.seeds:
        to = CACHE / f"demo-classification-{seed}"
        words = ["demo", "classification", "--output", str(to), "--seed", str(seed)]
        words += ["--audit", "none"]
        if status := run(*words):
            return status
        found.append(json.loads((to / "results.json").read_text()))
    folders = [CACHE / f"demo-classification-{seed}" for seed in arguments.seeds]
    yardsticks = yardsticks_beside(folders, CACHE / "demo-references.json")
    write_section("demo classification", section({"kswap demo": found}, yardsticks, timed=True))
    return 0


if __name__ == "__main__":
    sys.exit(stoppable(main))
