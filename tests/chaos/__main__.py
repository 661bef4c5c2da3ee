"""Kill runs and commands at random moments, go on with the same command, compare with undisturbed.

    PYTHONPATH=tests python -m chaos --kills 100 --output runs/chaos

Half of the moments are drawn by phase (each as likely as the other, however short), half by time
(any moment of the run as likely as the other). Every third run is killed a second time while it
goes on. Written are a table (task × phase × kills × ended equal) and OUTPUT/chaos.json; whatever
did not end equal is kept in OUTPUT.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import tiny_runs
from chaos.cases import Case, clone, differences, digest, prepare
from chaos.victims import Ended, Mark, Moment, at_phase, at_time, command, preload

COMMANDS = ("run", "run", "export", "run", "run", "report", "run", "run", "audit", "run")
"""What is killed, in turn, of every task; the others than run are given on a finished run."""
_AGAIN = 3
"""Every so-manieth run is killed once more."""
_FRESH = 20
"""Every so-manieth kill hits a process of its own, not a fork."""


@dataclass(frozen=True)
class Kill:
    """One kill, and how the same command ended afterwards."""

    task: str
    command: str
    phase: str
    drawn_by: str
    seconds: float
    differing: tuple[str, ...]
    """Files that were not as in the undisturbed run; also what was half-written after the kill."""


def main(words: Sequence[str] | None = None) -> int:
    """Return 0 if every kill ended equal."""
    parser = argparse.ArgumentParser(description="SIGKILL at random moments")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/chaos"))
    arguments = parser.parse_args(words)
    begin = time.monotonic()
    shutil.rmtree(arguments.output, ignore_errors=True)
    preload()
    drawing = random.Random(arguments.seed)
    output = arguments.output.resolve()  # lines of a table hold paths from where it lies
    cases = [prepare(task, output / task) for task in tiny_runs.TASKS]
    kills: list[Kill] = []
    number = 0
    while len(kills) < arguments.kills:
        case = cases[number % len(cases)]
        folder = arguments.output / "disturbed" / f"{number:04d}"
        folder.mkdir(parents=True)
        name = COMMANDS[number // len(cases) % len(COMMANDS)]
        left = arguments.kills - len(kills)
        made = (
            _kill_run(case, folder, drawing, number, left)
            if name == "run"
            else _kill_command(case, name, folder, drawing)
        )
        kills += made
        if not any(kill.differing for kill in made):
            shutil.rmtree(folder)
        number += 1
    seconds = time.monotonic() - begin
    print(table(kills))
    unequal = sum(bool(kill.differing) for kill in kills)
    print(f"{len(kills)} kills in {seconds:.0f} s; {len(kills) - unequal} ended equal")
    found = {
        "seed": arguments.seed,
        "kills": len(kills),
        "equal": len(kills) - unequal,
        "seconds": round(seconds, 1),
        "each": [asdict(kill) for kill in kills],
    }
    (arguments.output / "chaos.json").write_text(json.dumps(found, indent=1))
    for kill in kills:
        if kill.differing:
            print(f"NOT equal: {kill}")
    return 1 if unequal else 0


def draw(marks: Sequence[Mark], drawing: random.Random) -> tuple[str, Moment]:
    """Return how a moment was drawn, and the moment, from the marks of an undisturbed command."""
    if drawing.random() < 0.5:
        return "time", at_time(drawing.uniform(0, marks[-1].seconds))
    phases = sorted({mark.phase for mark in marks})
    phase = drawing.choice(phases)
    places = [n for n, mark in enumerate(marks) if mark.phase == phase]
    nth = drawing.randrange(len(places))
    here = marks[places[nth]]
    following = marks[min(places[nth] + 1, len(marks) - 1)]
    return "phase", at_phase(phase, nth, drawing.uniform(0, following.seconds - here.seconds))


def _kill_run(
    case: Case, folder: Path, drawing: random.Random, number: int, left: int
) -> list[Kill]:
    run_dir = folder / "run"
    words = case.words(run_dir)
    found = []
    lives = 2 if number % _AGAIN == 0 and left > 1 else 1
    for life in range(lives):
        drawn_by, moment = draw(case.ended.marks, drawing)
        if number % _FRESH == _FRESH - 1 and life == 0:
            ended = _fresh(words, folder, drawing.uniform(0, 3 * case.ended.seconds + 8))
            drawn_by = "time, own process"
        else:
            ended = command(words, folder / f"life-{life}.log", moment=moment)
        if ended.status == -signal.SIGKILL:
            found.append((drawn_by, ended))
        else:
            assert ended.status == 0, ended.said
    last = command(words, folder / "last.log")
    differing = [f"status {last.status}"] if last.status else differences(run_dir, case)
    return [
        Kill(case.task, "run", ended.phase, drawn_by, ended.seconds, tuple(differing))
        for drawn_by, ended in found
    ]


def _fresh(words: Sequence[str], folder: Path, after_s: float) -> Ended:
    """Kill a process that imports everything itself."""
    begin = time.monotonic()
    with (folder / "fresh.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "kswap", *words], stdout=log, stderr=log)
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    said = (folder / "fresh.log").read_text(errors="replace")
    return Ended(process.returncode, said, time.monotonic() - begin)


def _kill_command(case: Case, name: str, folder: Path, drawing: random.Random) -> list[Kill]:
    """Kill export, report or audit of a finished run; nothing half-written is taken as whole."""
    expected_dir = case.folder / f"after-{name}"
    if not expected_dir.exists():
        expected_dir.mkdir()
        clone(case, expected_dir / "run")
        ended = command(_words(name, expected_dir), expected_dir / "log")
        assert ended.status == 0, ended.said
        (expected_dir / "marks.json").write_text(json.dumps([asdict(m) for m in ended.marks]))
    marks = [Mark(**mark) for mark in json.loads((expected_dir / "marks.json").read_text())]
    clone(case, folder / "run")
    words = _words(name, folder)
    drawn_by, moment = draw(marks, drawing)
    ended = command(words, folder / "killed.log", moment=moment)
    if ended.status != -signal.SIGKILL:
        return []
    before = contents(case.undisturbed)
    after = contents(expected_dir / "run")
    differing = [
        f"{path} after the kill"
        for path, found in contents(folder / "run").items()
        if found not in (before.get(path), after.get(path))
    ]
    exported = folder / "exported"
    whole = contents(expected_dir / "exported")
    if exported.exists():
        differing += ["exported/ after the kill"] if contents(exported) != whole else []
    again = command(words, folder / "again.log")
    refused = name == "export" and "exists already" in again.said
    if again.status and not (refused and not differing):
        differing.append(f"status {again.status}")
    differing += [
        path for path, found in after.items() if contents(folder / "run").get(path) != found
    ]
    if name == "export" and contents(exported) != whole:
        differing.append("exported/")
    left = {p.name for p in folder.iterdir()} - {"run", "exported", "killed.log", "again.log"}
    differing += sorted(left)
    return [Kill(case.task, name, ended.phase, drawn_by, ended.seconds, tuple(differing))]


def _words(name: str, folder: Path) -> list[str | Path]:
    to = ["--to", folder / "exported"] if name == "export" else []
    return [name, folder / "run", *to]


def contents(folder: Path) -> dict[str, str]:
    """Return what is in the files of a folder, but for times and unfinished files."""
    found = {}
    for path in sorted(folder.rglob("*")) if folder.exists() else ():
        inside = str(path.relative_to(folder))
        if not path.is_file() or any(part.startswith(".") for part in Path(inside).parts):
            continue
        if inside == "results.json":
            try:
                values = json.loads(path.read_text())
                values["audit"].pop("seconds", None)
                found[inside] = json.dumps(values, sort_keys=True)
            except ValueError:
                found[inside] = "half-written"
        elif inside not in ("report.html", "manifest.json"):  # they hold times
            found[inside] = digest(path)
        elif inside == "report.html":
            found[inside] = str(path.read_text().rstrip().endswith("</html>"))
    return found


def table(kills: Sequence[Kill]) -> str:
    """Return task × phase: kills, and how many of them ended equal."""
    total = Counter((kill.task, kill.command, kill.phase) for kill in kills)
    equal = Counter((k.task, k.command, k.phase) for k in kills if not k.differing)
    lines = [f"{'task':16}{'command':10}{'phase':14}{'kills':>6}{'equal':>7}"]
    lines += [
        f"{task:16}{name:10}{phase:14}{number:6}{equal[task, name, phase]:7}"
        for (task, name, phase), number in sorted(total.items())
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
