"""Commands side by side on the machines of a Ray cluster, or of one that is begun here.

A Ray task starts one `kswap` command on its node and waits for it, so that a run is the same
process that it is without Ray: what it writes, its checkpoints and its messages are the same. The
output folder and the data must lie on a file system that all nodes see under one path, and every
node needs kswap in its Python.

A node that is lost is Ray's business: the task is given to another one, where the run goes on from
its last checkpoint. When the bench ends before its runs do, they get SIGTERM, as in `processes`.

Source of the API: https://docs.ray.io/en/latest/ray-core (tasks, cancellation, resources).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kswap._version import __version__
from kswap.benching.execution import Command, OnEnd, RunAll
from kswap.benching.processes import GRACE_S, complaint, end, started
from kswap.errors import Terminated, UserError, printable

_ANSWERS_S = 10.0
"""How long a cluster has to take a connection."""
_LOOK_S = 0.2
"""How often a task looks whether its command has ended; between looks it can be cancelled."""
_ALONE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's switch for a cluster that other machines can reach. Read on import; where it is off, as it
is by default on those systems, all of Ray listens at 127.0.0.1 alone."""
_STORE_BYTES = 80 * 1024**2
"""Ray's least: nothing but words goes through its object store."""


@dataclass(frozen=True)
class Room:
    """How the cluster is shared out."""

    num_jobs: int
    """Runs side by side."""
    num_cpus: int
    """Cores of each."""
    num_gpus: int
    """GPUs of each: 1 where every node has one."""


def check_ray() -> None:
    """Refuse to go on without Ray.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError(
            "--backend: 'ray' needs Ray, which is not installed; pip install 'kswap[ray]', or take "
            "--backend processes"
        )


def check_address(address: str) -> None:
    """Refuse an address where nothing answers, for which Ray takes minutes.

    Raises:
        UserError: nothing listens at `HOST:PORT`; other forms are Ray's to judge.
    """
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdigit() or int(port) > 65535:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWERS_S).close()
    except OSError as error:
        raise UserError(
            f"--ray-address: nothing answers at {address!r} ({error.strerror or error}); begin a "
            "cluster with `ray start --head`, correct the address, or take --backend processes"
        ) from None


def on_ray(address: str | None, num_jobs: int | None) -> RunAll:
    """Return what runs commands on a Ray cluster.

    Args:
        address: of a cluster (`HOST:6379`, `auto`); None: one of this machine alone, which is begun
            for the commands and ended after them.
        num_jobs: commands side by side; None: one for each GPU, or for each node where there is
            none.
    """

    def run_all(commands: Sequence[Command], on_end: OnEnd) -> list[str]:
        if not commands:
            return []
        with _connected(address) as ray:
            room = shared_out(ray.nodes(), num_jobs)
            return _run(ray, commands, room, on_end)

    return run_all


def shared_out(nodes: Sequence[Mapping[str, Any]], num_jobs: int | None) -> Room:
    """Return how many runs there are side by side, and what each gets.

    Args:
        nodes: what `ray.nodes()` says.
        num_jobs: as of `on_ray`.

    Raises:
        UserError: no node has a core to give.
    """
    alive = [node["Resources"] for node in nodes if node.get("Alive")]
    cores = [int(resources.get("CPU", 0)) for resources in alive]
    gpus = [int(resources.get("GPU", 0)) for resources in alive]
    if not any(cores):
        raise UserError("--ray-address: no node of the cluster has a core to give; add one to it")
    with_gpus = sum(1 for have in gpus if have)
    able = [own for own, have in zip(cores, gpus, strict=True) if own and (have or not with_gpus)]
    jobs = num_jobs or sum(gpus) or len(able)
    on_each = -(-jobs // max(1, len(able)))
    return Room(jobs, max(1, min(able, default=1) // on_each), 1 if with_gpus else 0)


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Within the context Ray is connected to a cluster; SIGTERM stays ours."""
    check_ray()
    if address is not None:
        check_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would send statistics home
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # it warns that this changes
    if address is None:
        os.environ[_ALONE] = "0"
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves runs beside others
    before = signal.getsignal(signal.SIGTERM)
    import ray

    own = {"address": "local", "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    try:
        ray.init(
            **(own if address is None else {"address": address}),
            log_to_driver=False,
            logging_level="CRITICAL",
        )
    except SystemExit:  # of Ray's own handler of SIGTERM
        raise Terminated from None
    except Exception as error:  # Ray raises bare ones, as where a busy machine is too slow for it
        ray.shutdown()
        what = "cannot be reached" if address else "(a local one) cannot be started"
        raise UserError(
            f"--ray-address: the Ray cluster {address or ''} {what} "
            f"({printable(str(error))[:160]}); begin one with `ray start --head`, correct the "
            "address, or take --backend processes"
        ) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray has put its own in place
    try:
        here = ray.util.get_node_ip_address()
        if address is None and not here.startswith(("127.", "::1")):
            raise UserError(
                f"--ray-address: a local Ray cluster would listen at {here}, as Ray was imported "
                "before kswap could forbid it; begin one with `ray start` and give its address"
            )
        yield ray
    finally:
        ray.shutdown()


def _run(ray: Any, commands: Sequence[Command], room: Room, on_end: OnEnd) -> list[str]:
    """Keep as many tasks going as there is room for; return what went wrong, a line each."""
    task = ray.remote(num_cpus=room.num_cpus, num_gpus=room.num_gpus)(_call_there)
    waiting, going, problems = list(commands), dict[Any, Command](), list[str]()
    try:
        while waiting or going:
            while waiting and len(going) < room.num_jobs:
                command = waiting.pop(0)
                words = (command.words, room.num_cpus, str(Path.cwd()), __version__)
                going[task.remote(*words)] = command
            for done in ray.wait(list(going), num_returns=1)[0]:
                command = going.pop(done)
                problem = _answer_of(ray, done) or _unseen(command)
                on_end(command.name, problem)
                problems += [f"{command.name}: {problem}"] if problem else []
    except BaseException as end:
        for one in going:
            ray.cancel(one)
        if going:  # each stops its command first
            ray.wait(list(going), num_returns=len(going), timeout=GRACE_S + 5)
        if isinstance(end, SystemExit):  # while Ray waits it turns ours into one of its own
            raise Terminated from None
        raise
    return problems


def _answer_of(ray: Any, done: Any) -> str:
    """Return what a task said of its command, or what Ray says of the task."""
    try:
        said: str = ray.get(done)
    except ray.exceptions.RayError as error:
        return f"Ray lost it ({type(error).__name__}: {printable(str(error))[:200]})"
    return said


def _unseen(command: Command) -> str:
    """Return what is wrong where a command has left its files on a disk of its own node."""
    for path in command.leaves:
        if not Path(path).exists():
            return (
                f"it ended on its node, but {path} is not seen here; --output must lie on a file "
                "system that all nodes share"
            )
    return ""


def _call_there(words: Sequence[str], threads: int, folder: str, version: str) -> str:
    """Run a command on this node; return its last line of complaint, if it failed.

    It is ended when the task is cancelled, which Ray does by a KeyboardInterrupt.

    Args:
        words: what follows `kswap`.
        threads: of its own.
        folder: where the bench was begun; relative paths of the data mean that.
        version: of kswap there.
    """
    if version != __version__:
        return f"the node {_node()} has kswap {__version__}, not {version}; install the same"
    if not Path(folder).is_dir():
        return f"the node {_node()} has no folder {folder}; all nodes must share it"
    child = started(words, threads, folder=folder)
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.append((child.stderr or sys.stdin).read()))
    reader.start()
    try:
        while child.poll() is None:
            time.sleep(_LOOK_S)
    finally:
        end(child)
        reader.join()
    return complaint(child.returncode, "".join(said))


def _node() -> str:
    return os.uname().nodename
