"""Commands of benchmarks: what one takes, and that none outlives the benchmark that began it."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from kswap.benching.processes import end
from kswap.errors import Terminated, UserError, closest
from kswap.signals import Interrupts


@dataclass(frozen=True)
class Cost:
    """Of one command."""

    processor_s: float
    clock_s: float


def positive(text: str) -> int:
    """Read a number from 1 up, for argparse."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 up")
    return int(text)


def check_known(option: str, given: Iterable[object], known: Iterable[object]) -> None:
    """Refuse what would choose nothing.

    Raises:
        UserError: a value of the option is none of those known.
    """
    names = [str(one) for one in known]
    for value in map(str, given):
        if value not in names:
            raise UserError(f"{option}: {value!r} is not there; closest: {closest(value, names)}")


def stoppable(main: Callable[[], int]) -> int:
    """Run a benchmark and return its exit status; SIGTERM ends it as an exception does.

    So whoever waits for children (`processes.in_processes`, `run`, `subprocess.run`) ends them too,
    where Python by itself would leave them behind.
    """
    name = Path(sys.argv[0]).stem
    try:
        with Interrupts().installed():
            return main()
    except UserError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    except Terminated as stop:
        print(f"{name}: stopped by SIGTERM; the same command goes on", file=sys.stderr)
        return int(str(stop.code))
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the same command goes on", file=sys.stderr)
        return 130


def run(*words: str, quiet: bool = False) -> int:
    """Run `kswap` with these words in a process of its own and return its exit status."""
    child = subprocess.Popen(
        [sys.executable, "-m", "kswap", *words],
        stdout=subprocess.DEVNULL if quiet else None,
        stdin=subprocess.DEVNULL,
    )
    try:
        return child.wait()
    finally:
        end(child)


def measured(*words: str) -> Cost:
    """Run `kswap` with these words in a process of its own and return what it took."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    status = run(*words, quiet=True)
    if status:
        raise subprocess.CalledProcessError(status, ["kswap", *words])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(spent, time.perf_counter() - begin)
