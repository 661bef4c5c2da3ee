"""A checkpoint is there whole or not at all, and a damaged one is found out."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from kswap.errors import DiskFullError
from kswap.files import disk_errors, write_bytes
from kswap.training.checkpoint import Position, load_checkpoint, save_checkpoint


def save(folder, step, value):
    return save_checkpoint(
        folder, {"x": torch.full((2,), float(value))}, Position(stage=1, step=step)
    )


def test_the_newest_is_loaded_and_two_are_kept(tmp_path):
    for step in (25, 50, 100):
        save(tmp_path, step, step)
    tensors, position, notes = load_checkpoint(tmp_path)
    assert (tensors["x"][0], position.step, notes) == (100, 100, [])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["01-00000050", "01-00000100"]


@pytest.mark.parametrize(
    "damage", ["flip", "cut", "no meta", "no state", "bad json", "empty", "step"]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, damage):
    save(tmp_path, 1, 1)
    newest = save(tmp_path, 2, 2)
    state, meta = newest / "state.safetensors", newest / "state.json"
    content = bytearray(state.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        state.write_bytes(content)
    elif damage == "cut":
        state.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        state.write_bytes(b"")
    elif damage == "step":
        meta.write_text(meta.read_text().replace('"step": 2', '"step": 3'))
    elif damage == "bad json":
        meta.write_text("{")
    else:
        (meta if damage == "no meta" else state).unlink()
    tensors, position, notes = load_checkpoint(tmp_path)
    assert (tensors["x"][0], position.step) == (1, 1)
    assert len(notes) == 1
    assert str(newest) in notes[0]


def test_damaged_ones_do_not_outlive_those_that_are_written_after_them(tmp_path):
    for step in (25, 50):
        (save(tmp_path, step, step) / "state.safetensors").write_bytes(b"damaged")
    (tmp_path / "99-00000099").mkdir()
    tensors, position, notes = load_checkpoint(tmp_path)
    assert (tensors, position.step, len(notes)) == ({}, 0, 3)
    for step in (1, 2):
        save(tmp_path, step, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["01-00000001", "01-00000002"]
    assert load_checkpoint(tmp_path)[0]["x"][0] == 2


def test_a_file_in_the_place_of_a_checkpoint_is_replaced(tmp_path):
    (tmp_path / "01-00000001").write_text("x")
    assert (save(tmp_path, 1, 1) / "state.json").is_file()


def test_nothing_there(tmp_path):
    assert load_checkpoint(tmp_path) is None
    assert load_checkpoint(tmp_path / "none") is None


def test_what_a_killed_run_left_half_written_is_not_used(tmp_path):
    save(tmp_path, 1, 1)
    (tmp_path / ".01-00000002.tmp").mkdir()
    assert load_checkpoint(tmp_path)[1].step == 1
    save(tmp_path, 3, 3)
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_leaves_the_last_checkpoint_and_no_rubbish(tmp_path, monkeypatch):
    save(tmp_path, 1, 1)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(DiskFullError, match="the disk is full; free some space"),
        disk_errors("here"),
    ):
        save(tmp_path, 2, 2)
    assert load_checkpoint(tmp_path)[1].step == 1
    assert [p.name for p in tmp_path.iterdir()] == ["01-00000001"]


def test_a_limit_on_the_size_of_files_is_one_line():
    with (
        pytest.raises(DiskFullError, match=r"^here: a file may not grow so large.*ulimit -f"),
        disk_errors("here"),
    ):
        raise OSError(errno.EFBIG, "File too large")


def test_write_bytes_replaces_or_leaves_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes(path, b"one")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        write_bytes(path, b"two")
    assert path.read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
