"""Killed, stopped, run twice at once, out of disk, out of numbers: nothing is lost and nothing is
half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from dying import die_after
from tiny_runs import tiny_run

import kswap
from kswap import files
from kswap.config import SwapConfig
from kswap.errors import DiskFullError, NonFiniteLossError, UserError
from kswap.run_folder import open_run
from kswap.training.events import EventLog

TIMES = ("seconds", "images_per_s")


def outcome(run_dir: Path) -> tuple:
    """Everything a run leaves that must not depend on its having been killed."""
    results = json.loads((run_dir / "results.json").read_text())
    for key in ("seconds", "peak_memory_bytes"):
        results.pop(key)
    lines = [json.loads(x) for x in (run_dir / "events.jsonl").read_text().splitlines()]
    events = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
    weights = (run_dir / "model/model.safetensors").read_bytes()
    adapter = (run_dir / "adapter/adapter_model.safetensors").read_bytes()
    drawn = {
        f"{path.parent.name}/{path.name}": path.read_bytes()
        for folder in ("arrays", "figures")
        for path in (run_dir / folder).iterdir()
    }
    return results, events, weights, adapter, drawn


def command(values: dict, folder: Path) -> list[str]:
    path = folder / "swap.yaml"
    path.write_text(yaml.safe_dump(values))
    return [sys.executable, "-m", "kswap", "run", str(path)]


@pytest.fixture
def undisturbed(run_of_values):
    return outcome(run_of_values)


class Killed(BaseException):
    """Stands for SIGKILL inside a test process: nothing of ours catches it."""


@pytest.mark.parametrize(
    ("dropout", "depth", "precision"),
    [
        (0.0, "all", "fp32"),
        (0.3, "all", "fp32"),
        (0.3, "last-1", "fp32"),
        (0.3, "auto", "fp32"),
        (0.3, "last-1", "bf16"),
    ],
)
def test_a_run_that_dies_at_any_step_ends_bit_equal(
    values, undisturbed, tmp_path, monkeypatch, dropout, depth, precision
):
    monkeypatch.setattr("kswap.training.device._check_precision", lambda *_: None)
    values["training"]["precision"] = precision  # slow where the processor lacks it, not wrong
    if dropout:  # what is random in a step must be random in the same way after resuming
        values["adapter"] = {"dropout": dropout}
        values["data"] = {"augment": "flip"}
        for kind in ("learn", "forget"):  # below the last block nothing is computed again
            values["stages"][kind]["depth"] = depth
        values["output"] = str(tmp_path / "undisturbed-dropout")
        kswap.swap(SwapConfig.from_mapping(values))
        undisturbed = outcome(Path(values["output"]))
    values["output"] = str(tmp_path / "killed")
    add = EventLog.add
    calls = {"left": 0}

    def dying(self, line, terms):
        add(self, line, terms)
        calls["left"] -= 1
        if calls["left"] == 0:
            raise Killed

    monkeypatch.setattr(EventLog, "add", dying)
    for lives in (
        1,
        3,
        4,
        2,
        5,
        3,
    ):  # steps each attempt gets; it goes on from a checkpoint every 2 steps
        calls["left"] = lives
        try:
            kswap.swap(SwapConfig.from_mapping(values))
        except Killed:
            continue
        break
    calls["left"] = -1
    kswap.swap(SwapConfig.from_mapping(values))
    assert outcome(tmp_path / "killed") == undisturbed


@pytest.mark.parametrize("detector", ["lw-detr", "d-fine"])
def test_heads_that_no_gradient_reaches_do_not_keep_a_run_from_going_on(
    detector, tmp_path, monkeypatch
):
    values = tiny_run("detection", tmp_path, order="L", detector=detector)
    kswap.swap(SwapConfig.from_mapping(values))
    expected = outcome(Path(values["output"]))
    values["output"] = str(tmp_path / "killed")
    with monkeypatch.context() as patch:
        die_after(patch, 2, Killed)  # the state after the first step is saved
        with pytest.raises(Killed):
            kswap.swap(SwapConfig.from_mapping(values))
    assert kswap.swap(SwapConfig.from_mapping(values)).resumed
    assert outcome(tmp_path / "killed") == expected


@pytest.mark.parametrize(
    "where",
    [
        "artefact.save_adapter",
        "artefact.save_merged",
        "draw_figures",
        "write_card",
        "write_results",
    ],
)
def test_a_run_that_dies_while_saving_ends_bit_equal(
    values, undisturbed, tmp_path, monkeypatch, where
):
    values["output"] = str(tmp_path / "killed")

    def die(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(f"kswap.running.saving.{where}", die)
        with pytest.raises(Killed):
            kswap.swap(SwapConfig.from_mapping(values))
    assert not (tmp_path / "killed/results.json").exists()
    kswap.swap(SwapConfig.from_mapping(values))
    assert outcome(tmp_path / "killed") == undisturbed


@pytest.mark.slow
def test_sigkill_and_the_same_command_again_end_bit_equal(values, undisturbed, tmp_path):
    values["output"] = str(tmp_path / "killed")
    words = command(values, tmp_path)
    checkpoints = tmp_path / "killed/checkpoints"
    with subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: any(checkpoints.glob("01-*")), process)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "killed") == undisturbed


@pytest.mark.slow
def test_sigterm_saves_and_leaves_with_143(values, undisturbed, tmp_path):
    values["output"] = str(tmp_path / "stopped")
    words = command(values, tmp_path)
    events = tmp_path / "stopped/events.jsonl"
    with subprocess.Popen(
        words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        wait_for(lambda: events.exists() and events.stat().st_size > 0, process)
        process.terminate()
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 143, said
    assert "stopped by SIGTERM; the state is saved" in said
    assert "Traceback" not in said
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "stopped") == undisturbed


def wait_for(condition, process, limit_s: float = 120) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert process.poll() is None, "the run ended before it could be disturbed"
        assert time.monotonic() < end
        time.sleep(0.005)


def test_two_runs_into_one_folder_the_second_is_refused(values):
    config = SwapConfig.from_mapping(values)
    with (
        open_run(Path(values["output"])),
        pytest.raises(UserError, match="is in use by another run"),
    ):
        kswap.swap(config)
    assert not Path(values["output"]).exists()
    kswap.swap(config)  # the lock is gone with its owner


def test_a_changed_config_is_refused_and_the_field_named(values, finished_run):
    values["stages"]["learn"]["epochs"] = 2
    with pytest.raises(
        UserError, match=r"another config: stages\.learn\.epochs was 5\.0, now 2\.0"
    ):
        kswap.swap(SwapConfig.from_mapping(values))


def test_changed_images_are_refused(values, undisturbed, tmp_path, old_images, monkeypatch):
    mine = tmp_path / "mine"
    shutil.copytree(old_images, mine)
    values["retain"]["data"] = str(mine)
    values["output"] = str(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(
            "kswap.running.saving.write_card", lambda *a, **k: (_ for _ in ()).throw(Killed())
        )
        with pytest.raises(Killed):
            kswap.swap(SwapConfig.from_mapping(values))
    (mine / "blue" / "000.png").unlink()
    with pytest.raises(
        UserError, match="begun with other images, class names, processor or base weights"
    ):
        kswap.swap(SwapConfig.from_mapping(values))


def test_a_full_disk_is_one_line_and_the_checkpoint_is_intact(
    values, undisturbed, tmp_path, monkeypatch
):
    values["output"] = str(tmp_path / "full")
    fsync, left = os.fsync, {"calls": 8}

    def full(descriptor):
        left["calls"] -= 1
        if left["calls"] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError) as caught:
            kswap.swap(SwapConfig.from_mapping(values))
    assert "\n" not in str(caught.value)
    assert any((tmp_path / "full/checkpoints").iterdir())
    kswap.swap(SwapConfig.from_mapping(values))
    assert outcome(tmp_path / "full") == undisturbed


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(values):
    values["stages"]["forget"]["optimiser"] = {"lr": 1e30}
    values["stages"]["forget"]["sparsity"] = {"weight": 0.0}  # its step would zero what explodes
    with pytest.raises(
        NonFiniteLossError, match=r"stage 2-forget, step \d+: term '\w+' is (nan|inf)"
    ):
        kswap.swap(SwapConfig.from_mapping(values))
    from kswap.training.checkpoint import load_checkpoint

    tensors, position, _ = load_checkpoint(Path(values["output"]) / "checkpoints")
    assert position.stage == 2
    assert all(t.isfinite().all() for t in tensors.values())


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\0", b"{}"])
@pytest.mark.parametrize("name", ["config.yaml", "results.json"])
def test_a_damaged_run_folder_is_one_line(values, finished_run, name, content):
    (finished_run / name).write_bytes(content)
    with pytest.raises(UserError, match=r"another folder|run the same swap again|is damaged"):
        kswap.swap(SwapConfig.from_mapping(values))


def test_a_damaged_value_in_the_config_of_a_finished_run_is_not_another_config(
    values, finished_run
):
    path = finished_run / "config.yaml"
    path.write_text(path.read_text().replace("cross_entropy", "cross_enpropy", 1))
    with pytest.raises(UserError, match=r"config\.yaml: is damaged"):
        kswap.swap(SwapConfig.from_mapping(values))


def test_what_is_lost_of_a_finished_run_is_saved_again(values, finished_run):
    before = outcome(finished_run)
    for name in ("model", "adapter"):
        shutil.rmtree(finished_run / name)
        kswap.swap(SwapConfig.from_mapping(values))
        assert outcome(finished_run) == before


def test_what_a_killed_process_did_not_rename_is_removed(values, finished_run):
    of_a_report = f".README.md.{files._host()}-{2**30}.tmp"  # no process has such a number
    own = (".manifest.json.tmp", ".results.json.tmp", "arrays/.examples.json.tmp")
    for name in (*own, of_a_report):
        (finished_run / name).write_text("half")
    kswap.swap(SwapConfig.from_mapping(values))
    assert not list(finished_run.rglob(".*"))


def test_checkpoints_without_their_config_are_not_gone_on_from(values, finished_run):
    (finished_run / "config.yaml").unlink()
    (finished_run / "results.json").unlink()
    with pytest.raises(UserError, match=r"checkpoints of a run whose config\.yaml is gone"):
        kswap.swap(SwapConfig.from_mapping({**values, "seed": 5}))
