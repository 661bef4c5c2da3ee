"""What audits cost beside the swap they audit, on a demo; written to docs/audits.md.

    python benchmarks/audit_cost.py [classification] [--levels quick standard strict]

`kswap demo TASK --audit none`, then `kswap audit RUN` at each level with the demo's reference, each
in a process of its own; what the last of them says. Seconds are the processor's, so that what else
the machine does falls on neither side, and those of the clock beside them. Then the size of
report.html and, where Chromium is (`make test-browser`), the time until it has opened: the median
of five.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from commands import measured, stoppable
from tables import write_section

from kswap.run_folder import read_results

TASKS = ("classification", "segmentation", "detection")
LEVELS = ("quick", "standard", "strict")
CHROMIUM = Path("/usr/bin/chromium")
OPENINGS = 5


def opening_s(page: Path) -> float | None:
    """Return the median seconds until Chromium has loaded a page; None: there is no Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if not CHROMIUM.exists():
        return None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        taken = []
        for _ in range(OPENINGS):
            tab = browser.new_page()
            begin = time.perf_counter()
            tab.goto(page.as_uri(), wait_until="load")
            taken.append(time.perf_counter() - begin)
            tab.close()
        browser.close()
    return statistics.median(taken)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, then write the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", nargs="?", choices=TASKS, default=TASKS[0])
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=LEVELS[:2])
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        swap = measured("demo", arguments.task, "--output", str(run), "--audit", "none")
        lines = [
            f"`kswap demo {arguments.task}`, seed 0, {os.cpu_count()} processors; each command "
            "with its start, loading and report:",
            "",
            "| command | processor, s | clock, s | processor / swap | verdict |",
            "|---|---:|---:|---:|---|",
            f"| the swap (`--audit none`) | {swap.processor_s:.0f} | {swap.clock_s:.0f} | 1 | |",
        ]
        for level in arguments.levels:
            cost = measured("audit", str(run), "--level", level)
            ratio = cost.processor_s / swap.processor_s
            audit = read_results(run)["audit"]
            lines.append(
                f"| `--level {level}` | {cost.processor_s:.0f} | {cost.clock_s:.0f} | "
                f"{ratio:.2f} | {audit['verdict']['level']} |"
            )
            print(lines[-1], flush=True)
        scores = read_results(run)["stages"][-1]["scores"]
        told = ", ".join(f"{role} {100 * score:.1f}" for role, score in scores.items())
        lines += ["", f"Scores {told}. What the audits of level {level} say:", ""]
        lines += ["| audit | outcome | why |", "|---|---|---|"]
        for name, finding in audit["audits"].items():
            lines.append(
                f"| {name} {finding['title']} | {finding['status']} | {finding['reason']} |"
            )
        page = run / "report.html"
        opened = opening_s(page)
        shown = (
            "not opened, as there is no Chromium" if opened is None else f"opens in {opened:.2f} s"
        )
        lines += ["", f"`report.html`: {page.stat().st_size / 1e6:.2f} MB; {shown}."]
    write_section(f"cost {arguments.task}", "\n".join(lines), page="audits.md")
    return 0


if __name__ == "__main__":
    sys.exit(stoppable(main))
