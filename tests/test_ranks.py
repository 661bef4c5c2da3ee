"""Several processes do one run: each its share of every batch, the first one alone writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_runs import tiny_run


def write_config(task: str, folder: Path, **more) -> Path:
    values = tiny_run(task, folder)
    values["stages"] = {kind: {**stage, **more} for kind, stage in values["stages"].items()}
    path = folder / "swap.yaml"
    path.write_text(yaml.safe_dump({**values, "output": str(folder / "one")}), encoding="utf-8")
    return path


def launch(path: Path, to: Path, *words: str, processes: int = 2) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    command += ["kswap", "run", str(path), "--output", str(to), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def events_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def assert_same_run(one: Path, two: Path) -> None:
    for ours, theirs in zip(events_of(one), events_of(two), strict=True):
        assert ours["terms"].keys() == theirs["terms"].keys()
        for name, value in ours["terms"].items():
            assert value == pytest.approx(theirs["terms"][name], rel=1e-5, abs=1e-6), name
    ours = load_file(one / "adapter/adapter_model.safetensors")
    for name, values in load_file(two / "adapter/adapter_model.safetensors").items():
        assert torch.allclose(values, ours[name], atol=1e-4), name
    stages = [json.loads((run / "results.json").read_text())["stages"] for run in (one, two)]
    for ours, theirs in zip(*stages, strict=True):
        assert ours["scores"] == pytest.approx(theirs["scores"])


@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("classification", {}),
        ("classification", {"sparsity": {"weight": 0.01, "method": "subgradient"}}),
        ("classification", {"depth": "last-1"}),
        ("detection", {}),
        ("segmentation", {}),
    ],
)
@pytest.mark.slow
def test_two_processes_lose_what_one_loses(task, more, tmp_path):
    path = write_config(task, tmp_path, **more)
    one = launch(path, tmp_path / "one", processes=1)
    assert one.returncode == 0, one.stderr
    two = launch(path, tmp_path / "two")
    assert two.returncode == 0, two.stderr
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert two.stdout.count("after stage") == 1, "only the first process prints"
    again = launch(path, tmp_path / "two")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("after stage") == 1, "a finished run is shown by the first one"


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_two_processes_keep_the_views_that_one_keeps(task, tmp_path):
    path = write_config(task, tmp_path, depth="last-1")
    words = ("--data.augment", "flip", "--training.eval_batch_size", "5")
    for name, processes in (("one", 1), ("two", 2)):
        run = launch(path, tmp_path / name, *words, processes=processes)
        assert run.returncode == 0, run.stderr
        assert "is kept in memory" in run.stderr
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_two_processes_go_on_from_what_one_left(tmp_path):
    path = write_config("classification", tmp_path)
    whole = launch(path, tmp_path / "whole", processes=1)
    assert whole.returncode == 0, whole.stderr
    begun = launch(path, tmp_path / "run", processes=1)
    assert begun.returncode == 0, begun.stderr
    for name in ("results.json", "manifest.json"):
        (tmp_path / "run" / name).unlink()
    newest = sorted((tmp_path / "run/checkpoints").iterdir())[-1]
    two = launch(path, tmp_path / "run")
    assert two.returncode == 0, two.stderr
    assert newest.exists()
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
def test_a_refusal_ends_all_processes_with_one_line(tmp_path):
    path = write_config("classification", tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes.txt").write_text("mine")
    two = launch(path, tmp_path / "taken")
    assert two.returncode != 0
    assert two.stderr.count("which is not of a run") == 1
    assert "Traceback" not in two.stderr.split("torch/distributed")[0]
