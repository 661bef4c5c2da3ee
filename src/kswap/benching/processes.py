"""Commands side by side on this machine, each in a process of its own.

Whatever ends the wait for them (SIGTERM, Ctrl-C, an error) ends them too: each gets SIGTERM, upon
which a run saves its state at the end of its step, and is waited for. Children stay in the process
group, so that a terminal's Ctrl-C and hang-up reach them as well; and they look whether this
process is still there, since SIGKILL leaves it no time to tell them.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from kswap.benching.execution import Command, OnEnd, RunAll
from kswap.signals import PARENT

GRACE_S = 60.0
"""A child that has not ended so long after SIGTERM is killed, as it is at once when a second signal
comes meanwhile. Runs go on from their last checkpoint then."""
_LOOK_S = 0.2
"""Between two looks at signals: one that comes just before a wait begins does not end it."""
KSWAP = ("-m", "kswap")
T = TypeVar("T")


class Children:
    """Processes that are running, all of which can be stopped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self.stopped = False

    def call(self, words: Sequence[str], threads: int, *, program: Sequence[str] = KSWAP) -> str:
        """Run `kswap` with these words; return its last line of complaint, if it failed.

        Args:
            words: what follows `kswap`.
            threads: of its own.
            program: what Python runs in the place of `kswap`, such as a script.
        """
        with self._lock:
            if self.stopped:
                return "was not begun"
            child = started(words, threads, program=program)
            self._running.add(child)
        try:
            _, said = child.communicate()
        finally:
            with self._lock:
                self._running.discard(child)
        return complaint(child.returncode, said)

    def results(self, work: Sequence[Callable[[], T]], num_jobs: int) -> list[T]:
        """Return what each piece of work gives, so many done side by side, in threads.

        Whatever ends this early, a signal or what a piece raises, stops the children.
        """
        with concurrent.futures.ThreadPoolExecutor(num_jobs) as pool:
            try:
                futures = [pool.submit(piece) for piece in work]
                left = set(futures)
                while left:
                    done, left = concurrent.futures.wait(
                        left, _LOOK_S, concurrent.futures.FIRST_COMPLETED
                    )
                    for one in done:
                        one.result()
                return [one.result() for one in futures]
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Send SIGTERM to all, let no other begin, and wait until all have ended."""
        with self._lock:
            self.stopped = True
            running = set(self._running)
        for child in running:
            child.terminate()
        try:
            end = time.monotonic() + GRACE_S
            for child in running:
                child.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        finally:  # also when a second signal ended the wait
            for child in running:
                child.kill()


def in_processes(num_jobs: int) -> RunAll:
    """Return what runs commands here, so many side by side, which share out the cores."""

    def run_all(commands: Sequence[Command], on_end: OnEnd) -> list[str]:
        children = Children()

        def run(command: Command) -> str:
            problem = children.call(command.words, threads_each(num_jobs))
            if children.stopped:
                return ""
            on_end(command.name, problem)
            return f"{command.name}: {problem}" if problem else ""

        work = [functools.partial(run, command) for command in commands]
        return [problem for problem in children.results(work, num_jobs) if problem]

    return run_all


def threads_each(num_jobs: int) -> int:
    """Return how many threads each of so many processes gets.

    That is its share of the processors that this process may run on, or fewer where the user's
    OMP_NUM_THREADS says so.
    """
    share = max(1, _num_processors() // num_jobs)
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # "4,2": by nesting
    return min(share, int(wanted)) if wanted.isdecimal() and int(wanted) else share


def _num_processors() -> int:
    """Return how many processors this process may run on: a container or taskset may say few."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def started(
    words: Sequence[str],
    threads: int,
    *,
    folder: str | None = None,
    program: Sequence[str] = KSWAP,
) -> subprocess.Popen[str]:
    """Start `kswap` with these words; what it complains of can be read from its `stderr`.

    Args:
        words: what follows `kswap`.
        threads: of its own.
        folder: where it runs; None: here.
        program: what Python runs in the place of `kswap`.
    """
    return subprocess.Popen(
        [sys.executable, *program, *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), PARENT: str(os.getpid())},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="backslashreplace",
    )


def end(child: subprocess.Popen[Any]) -> None:
    """Send SIGTERM to a child that is running, wait for it, and kill it if it takes too long."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(GRACE_S)
        finally:
            child.kill()


def complaint(status: int, said: str) -> str:
    """Return what a command that ended with this status said last; "" where it succeeded."""
    if status == 0:
        return ""
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit status {status}"
