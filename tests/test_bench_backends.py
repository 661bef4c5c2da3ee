"""Where a bench runs: in processes of this machine or on a Ray cluster, and how it is stopped."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import yaml

from kswap.benching import processes, ray_cluster
from kswap.benching.execution import Command
from kswap.cli import main
from kswap.errors import Terminated, UserError
from kswap.signals import Interrupts

WORKS_UNTIL_STOPPED = """#!/bin/sh
# stands for `python -m kswap WORD PATH`
[ "$3" = quick ] && exit 0
trap 'touch "$4.stopped"; exit 143' TERM
touch "$4.begun"
while :; do sleep 0.05; done
"""


def test_sigterm_stops_children_waits_for_them_and_begins_no_other(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(WORKS_UNTIL_STOPPED)
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    names = ("long", "quick", "longer", "never")
    commands = [Command(n, (n if n == "quick" else "run", str(tmp_path / n))) for n in names]
    ended = []

    def on_end(name, problem):
        ended.append((name, problem))
        while not (tmp_path / "long.begun").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Terminated), Interrupts().installed():
        processes.in_processes(2)(commands, on_end)
    assert ended == [("quick", "")]
    begun = {path.stem for path in tmp_path.glob("*.begun")}
    assert {"long"} <= begun <= {"long", "longer"}
    assert {path.stem for path in tmp_path.glob("*.stopped")} == begun


def test_what_a_command_says_last_is_what_went_wrong():
    said = processes.in_processes(1)([Command("odd", ("no-such-command",))], lambda n, p: None)
    assert len(said) == 1
    assert said[0].startswith("odd: kswap: error:")


@pytest.mark.parametrize(
    ("nodes", "jobs", "room"),
    [
        ([(8, 0)], None, (1, 8, 0)),
        ([(8, 0)], 3, (3, 2, 0)),
        ([(8, 0), (4, 0)], None, (2, 4, 0)),
        ([(64, 8), (64, 8)], None, (16, 8, 1)),
        ([(64, 8), (64, 8), (16, 0)], 2, (2, 64, 1)),  # the head without a GPU gets no run
        ([(2, 0)], 9, (9, 1, 0)),
    ],
)
def test_a_cluster_is_shared_out(nodes, jobs, room):
    there = [{"Alive": True, "Resources": {"CPU": c, "GPU": g}} for c, g in nodes]
    dead = {"Alive": False, "Resources": {"CPU": 99.0, "GPU": 99.0}}
    assert ray_cluster.shared_out([*there, dead], jobs) == ray_cluster.Room(*room)


def test_a_cluster_without_cores_is_refused():
    with pytest.raises(UserError, match="no node"):
        ray_cluster.shared_out([{"Alive": True, "Resources": {}}], None)


def test_an_address_where_nothing_answers_is_refused_at_once():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nothing listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=f"nothing answers at '{address}'"):
            ray_cluster.check_address(address)
        taken.listen()
        ray_cluster.check_address(address)
    ray_cluster.check_address("auto")


def test_a_cluster_that_does_not_start_is_one_line(monkeypatch):
    ray = pytest.importorskip("ray")
    for name in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_worker_niceness"):
        monkeypatch.setenv(name, "0")  # and put back behind the test

    def init(**given):
        assert given["address"] == "local"
        raise Exception("The current node timed out\nduring startup.")

    monkeypatch.setattr(ray, "init", init)
    run_all = ray_cluster.on_ray(None, 1)
    assert run_all([], lambda name, problem: None) == []  # nothing to do begins nothing
    with pytest.raises(UserError, match=r"cannot be started .*timed out during startup"):
        run_all([Command("one", ("run", "x"))], lambda name, problem: None)


def test_without_ray_it_is_one_line_and_nothing_runs(values, tmp_path, monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else real(name)
    )
    path = tmp_path / "swap.yaml"
    path.write_text(yaml.safe_dump(values))
    output = tmp_path / "bench"
    assert main(["bench", str(path), "--output", str(output), "--backend", "ray"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "pip install 'kswap[ray]'" in line
    assert not output.exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [(["--backend", "dask"], "dask"), (["--ray-address", "auto"], "--backend ray alone")],
)
def test_bad_backends_are_refused(words, named, values, tmp_path, capsys):
    path = tmp_path / "swap.yaml"
    path.write_text(yaml.safe_dump(values))
    assert main(["bench", str(path), "--output", str(tmp_path / "bench"), *words]) == 2
    assert named in capsys.readouterr().err


def bench(folder, values, *words):
    """Begin `kswap bench` in a process of its own."""
    path = folder / "swap.yaml"
    path.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "kswap", "bench", str(path), "--output", str(folder / "bench")]
    command += ["--presets", "default", "--orders", "J", "--seeds", "0", "1", "--jobs", "2"]
    return subprocess.Popen(
        [*command, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that began the tests in the background has told them to ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.slow
def test_ray_leaves_the_table_that_processes_leave(values, tmp_path):
    pytest.importorskip("ray")
    folders = {}
    for backend in ("processes", "ray"):
        folders[backend] = tmp_path / backend
        folders[backend].mkdir()
        ran = bench(folders[backend], values, "--backend", backend)
        _, said = ran.communicate(timeout=600)
        assert ran.returncode == 0, said
        assert said.count(": done") == 2
    own, other = (
        json.loads((folder / "bench/bench.json").read_text()) for folder in folders.values()
    )
    seconds = ("seconds", "seconds_half")
    assert [{k: v for k, v in row.items() if k not in seconds} for row in own] == [
        {k: v for k, v in row.items() if k not in seconds} for row in other
    ]
    finished = [p.stat().st_mtime_ns for p in folders["ray"].glob("bench/runs/*/results.json")]
    values["learn"]["classes"] = ["yelow"]  # only what is missing runs, and what fails is named
    (folders["ray"] / "bench/runs/default-J-1/results.json").unlink()
    ran = bench(folders["ray"], values, "--backend", "ray")
    _, said = ran.communicate(timeout=600)
    assert ran.returncode == 2
    assert "default-J-1: kswap: error: " in said
    assert "default-J-0: " not in said
    kept = folders["ray"] / "bench/runs/default-J-0/results.json"
    assert kept.stat().st_mtime_ns in finished


@pytest.mark.slow
@pytest.mark.parametrize("stop_by", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("backend", ["processes", "ray"])
def test_a_stopped_bench_leaves_no_child_and_goes_on(backend, stop_by, values, tmp_path):
    psutil = pytest.importorskip("psutil")
    if backend == "ray":
        pytest.importorskip("ray")
    lasts = {"epochs": 1000.0, "min_steps": 100_000, "max_steps": 100_000}
    values["stages"]["joint"] = {**values["stages"]["joint"], **lasts}
    values["training"]["checkpoint_steps"] = 100_000
    running = bench(tmp_path, values, "--backend", backend)
    runs = tmp_path / "bench/runs"
    end = time.monotonic() + 400
    while sum(path.stat().st_size > 500 for path in runs.glob("*/events.jsonl")) < 2:
        assert running.poll() is None, running.communicate()[1]
        if time.monotonic() > end:
            running.terminate()
            pytest.fail(f"no run has begun to train: {running.communicate()[1]}")
        time.sleep(0.2)
    children = psutil.Process(running.pid).children(recursive=True)
    assert len(children) >= 2
    running.send_signal(stop_by)
    try:
        _, said = running.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        for one in [running, *children]:  # nothing is to outlive a test that failed
            one.kill()
        raise
    assert running.returncode == (143 if stop_by == signal.SIGTERM else 130)
    assert said.count("\n") == 1
    assert "the same command goes on" in said
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    for run_dir in runs.iterdir():  # both have saved the step that they were at
        assert len(list((run_dir / "checkpoints").iterdir())) == 1
        assert not list(run_dir.rglob(".*.tmp"))
