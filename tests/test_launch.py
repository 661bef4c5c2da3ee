"""Accelerate's config files in docs/launch start what they say; sharded runs are equal."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from test_ranks import assert_same_run, launch, write_config

from kswap import ranks
from kswap.cli import main
from kswap.errors import UserError

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "docs/launch").glob("*.yaml"))
STREAMS = {
    role: {"batch_size": size} for role, size in {"learn": 3, "retain": 3, "forget": 1}.items()
}
"""Seven images a step: two processes that accumulate have four and three micro-batches."""


def run_as_documented(name: str, config: Path, to: Path, *words: str):
    """Run the command that the file opens with."""
    text = (ROOT / "docs/launch" / name).read_text(encoding="utf-8")
    found = re.search(r"#   accelerate (launch --config_file \S+ -m kswap run) swap.yaml", text)
    assert found is not None
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", *found[1].split()]
    command += [str(config), "--output", str(to), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=300, cwd=ROOT
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_accelerate_reads_the_file(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == {"gpus": 8, "nodes": 16, "cpu": 2}[path.stem.split("-")[0]]
    assert config.num_machines == (2 if "nodes" in path.stem else 1)
    if "fsdp" in path.stem:
        assert config.fsdp_config["fsdp_version"] == 2
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    assert f"docs/launch/{path.name}" in page
    assert f"docs/launch/{path.name}" in path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_two_processes_on_the_cpu(tmp_path):
    path = write_config("classification", tmp_path)
    one = launch(path, tmp_path / "one", processes=1)
    assert one.returncode == 0, one.stderr
    two = run_as_documented("cpu-2.yaml", path, tmp_path / "two", "--training.device", "cpu")
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("after stage") == 1, "one run, not two of the same"
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "more", "words"),
    [
        (
            "classification",
            {"sparsity": {"weight": 0.01, "method": "subgradient"}, "streams": STREAMS},
            {"accumulation": 4, "eval_batch_size": 5},
        ),
        ("classification", {"depth": "last-1"}, {"gradient_checkpointing": "true"}),
        ("segmentation", {}, {}),
        ("detection", {}, {}),
    ],
)
def test_a_sharded_base_loses_what_a_whole_one_loses(task, more, words, tmp_path):
    path = write_config(task, tmp_path, **more)
    options = [w for name, value in words.items() for w in (f"--training.{name}", str(value))]
    one = launch(path, tmp_path / "one", *options, processes=1)
    assert one.returncode == 0, one.stderr
    two = run_as_documented("cpu-2-fsdp.yaml", path, tmp_path / "two", *options)
    assert two.returncode == 0, two.stderr
    assert two.stderr.count("the base is sharded (FSDP)") == 1
    assert_same_run(tmp_path / "one", tmp_path / "two")
    names = ("model/config.json", "adapter/adapter_config.json")
    ours, theirs = ([(tmp_path / run / n).read_text() for n in names] for run in ("one", "two"))
    assert ours == theirs, "nothing that is saved speaks of sharding"


@pytest.mark.slow
def test_a_sharded_run_goes_on_from_what_one_process_left(tmp_path, monkeypatch):
    path = write_config("classification", tmp_path)
    for module in ("kswap.running.saving", "kswap.training.checkpoint"):
        monkeypatch.setattr(f"{module}.prune", lambda *_, **__: None)  # all checkpoints stay
    for name in ("whole", "run"):
        assert main(["run", str(path), "--output", str(tmp_path / name)]) == 0
    for name in ("results.json", "manifest.json"):
        (tmp_path / "run" / name).unlink()
    for folder in (tmp_path / "run/checkpoints").iterdir():
        if folder.name > "01-00000001":
            shutil.rmtree(folder)
    two = run_as_documented("cpu-2-fsdp.yaml", path, tmp_path / "run")
    assert two.returncode == 0, two.stderr
    assert "going on from stage 1, step 1" in two.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "fsdp_version: 1 is not supported"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
            "fsdp_offload_params: true is not supported",
        ),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "distributed_type: DEEPSPEED is not supported"),
    ],
)
def test_what_is_not_supported_is_refused(environment, said, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=said), ranks.own_sharding():
        pass
    assert not ranks.shards_base()


def test_the_request_to_shard_is_taken_out_of_the_environment(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    for world, shards in (("2", True), ("1", False)):
        monkeypatch.setenv("WORLD_SIZE", world)
        with ranks.own_sharding() as found:
            assert found is shards
            assert ranks.shards_base() is shards
            assert "ACCELERATE_USE_FSDP" not in os.environ
        assert os.environ["ACCELERATE_USE_FSDP"] == "true"
        assert not ranks.shards_base()


def test_the_configs_name_no_more_than_they_need():
    """Options of FSDP that kswap does not heed would promise something."""
    assert FILES
    for path in FILES:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert set(values.get("fsdp_config", {})) <= {"fsdp_version"}
