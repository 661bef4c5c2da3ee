"""A kswap command in a process of its own that can be killed at a chosen moment.

Importing the libraries takes longer than a tiny run, so it is done once: each command runs in a
fork of this process, with its standard streams in a file. The fork tells through a pipe which phase
begins (a table of functions below) and which file it is about to touch (an audit hook of the
interpreter). The one who watches it kills it from outside, so that it is stopped anywhere: in the
middle of a write, of a matrix product, between two system calls.
"""

from __future__ import annotations

import importlib
import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PHASES: dict[str, tuple[str, ...]] = {
    "loading": ("kswap.swapping:load_base",),
    "images": ("kswap.swapping:build_data", "kswap.audits.work:build_data"),
    "image cache": ("kswap.data.store:FileStore.gather",),
    "fingerprint": ("kswap.running.run:fingerprint_of",),
    "evaluation": ("kswap.running.run:scored", "kswap.running.stages:scored"),
    "base outputs": ("kswap.running.knowledge:Knowledge.answers",),
    "stage": ("kswap.running.stages:train_stage",),
    "checkpoint": ("kswap.running.stages:checkpoint",),
    "adapter": ("kswap.models.artefact:save_adapter",),
    "merge": ("kswap.models.artefact:save_merged",),
    "figures": ("kswap.running.saving:draw_figures", "kswap.report.page:draw_figures"),
    "report": ("kswap.running.saving:write_report", "kswap.report.page:write_report"),
    "results": ("kswap.running.saving:write_results", "kswap.auditing:write_results"),
    "export": ("kswap.exporting:write_folder",),
    "features": ("kswap.auditing:look_at",),
    "audits": ("kswap.auditing:run_audits",),
}
"""Phase -> the functions within which a process is in it; the innermost counts."""
START = "start"
"""Before and between all phases."""
TOUCHES = frozenset(["open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"])
"""Events of the interpreter's audit hook that a kill may follow."""


@dataclass(frozen=True)
class Mark:
    """What a command said: it is in `phase`, and does `what`."""

    seconds: float
    """Since the command was started."""
    phase: str
    what: str


@dataclass
class Ended:
    """How a command ended."""

    status: int
    """Exit status; negative: the signal that ended it."""
    said: str
    """What it wrote to its standard streams."""
    seconds: float
    marks: list[Mark] = field(default_factory=list)

    @property
    def phase(self) -> str:
        """The phase it was in at the end."""
        return self.marks[-1].phase if self.marks else START


Moment = Callable[[list[Mark]], float | None]
"""From what was said so far to the seconds (since the last mark) after which it is to be stopped.

None: not yet."""


def preload() -> None:
    """Import what commands import, here, once."""
    import datasets
    import transformers

    for name in sorted({where.split(":")[0] for many in PHASES.values() for where in many}):
        importlib.import_module(name)
    importlib.import_module("kswap.report.table")
    importlib.import_module("kswap.report.audit_tables")
    importlib.import_module("kswap.predicting")
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


def command(
    words: Sequence[str | Path],
    log_path: Path,
    *,
    moment: Moment | None = None,
    stop_by: signal.Signals | Callable[[], Any] = signal.SIGKILL,
    within: Callable[[], Any] | None = None,
    limit_s: float = 300,
) -> Ended:
    """Run `kswap WORDS` and wait for its end; disturb it once, at `moment`.

    Args:
        words: of the command line.
        log_path: takes what the command writes to its standard streams.
        moment: asked after every mark; None: the command is left alone.
        stop_by: a signal that it gets, or what is done to it.
        within: called in the process before the command begins.
        limit_s: a command that takes longer hangs, and is an AssertionError.
    """
    reading, writing = os.pipe()
    begin = time.monotonic()
    sys.stdout.flush()
    with warnings.catch_warnings():  # of Python 3.12: threads there are idle and are not used
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os.close(reading)
        _run([str(word) for word in words], log_path, writing, within)
    os.close(writing)
    try:
        marks = _watch(pid, reading, begin, moment, stop_by, limit_s)
    finally:
        os.close(reading)
    _, ended = os.waitpid(pid, 0)
    status = os.waitstatus_to_exitcode(ended)
    said = log_path.read_text(errors="replace")
    assert time.monotonic() - begin < limit_s, f"hangs in {marks[-1:]}: {said[-500:]}"
    return Ended(status, said, time.monotonic() - begin, marks)


def _watch(
    pid: int,
    reading: int,
    begin: float,
    moment: Moment | None,
    stop_by: signal.Signals | Callable[[], Any],
    limit_s: float,
) -> list[Mark]:
    marks: list[Mark] = []
    buffer = b""
    end = begin + limit_s
    due: float | None = None
    sent = False
    while True:
        left = max(0.0, (end if due is None else min(due, end)) - time.monotonic())
        ready, _, _ = select.select([reading], [], [], left)
        if ready:
            found = os.read(reading, 65536)
            if not found:
                return marks
            *lines, buffer = (buffer + found).split(b"\n")
            for line in lines:
                seconds, phase, what = line.decode(errors="replace").split("\t", 2)
                marks.append(Mark(float(seconds) - begin, phase, what))
                if moment is not None and due is None and not sent:
                    after = moment(marks)
                    due = None if after is None else begin + marks[-1].seconds + after
        now = time.monotonic()
        if due is not None and now >= due:
            os.kill(pid, stop_by) if isinstance(stop_by, signal.Signals) else stop_by()
            due, sent = None, True
        elif now >= end:
            os.kill(pid, signal.SIGKILL)
            return marks


def _run(words: list[str], log_path: Path, writing: int, within: Callable[[], Any] | None) -> None:
    """Be the command; never return."""
    status = 1
    try:
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - ends with the process
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        sys.argv = ["kswap", *words]
        warnings.simplefilter("ignore")  # pytest makes errors of them
        _tell(writing)
        if within is not None:
            within()
        from kswap.cli import main

        status = main(words)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _tell(writing: int) -> None:
    """Write a mark at every change of phase and before every change of a file."""
    within = [START]

    def mark(what: str) -> None:
        line = f"{time.monotonic()}\t{within[-1]}\t{what}"
        os.write(writing, line.replace("\n", " ").encode(errors="replace") + b"\n")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in TOUCHES:
            return
        if event == "open":
            _, mode, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
            if not writes and not (isinstance(mode, str) and set(mode) & set("wa+x")):
                return
        mark(f"{event} {arguments[0]}")

    for phase, places in PHASES.items():
        for place in places:
            _wrap(place, phase, within, mark)
    mark("begins")
    sys.addaudithook(hook)


def _wrap(place: str, phase: str, within: list[str], mark: Callable[[str], None]) -> None:
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    function = getattr(owner, name)

    def told(*arguments: Any, **named: Any) -> Any:
        within.append(phase)
        mark("enters")
        try:
            return function(*arguments, **named)
        finally:
            within.pop()
            mark("left")

    setattr(owner, name, told)


def at_phase(phase: str, nth: int, after_s: float) -> Moment:
    """Return the moment `after_s` seconds after the `nth` mark (from 0) within `phase`."""
    seen = 0

    def moment(marks: list[Mark]) -> float | None:
        nonlocal seen
        if marks[-1].phase == phase:
            seen += 1
            if seen > nth:
                return after_s
        return None

    return moment


def at_time(after_s: float) -> Moment:
    """Return the moment `after_s` seconds after the command began."""
    return lambda marks: max(0.0, after_s - marks[-1].seconds)
