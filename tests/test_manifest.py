"""The manifest of a run names what is damaged, also while results.json is being replaced."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys

import pytest

from kswap import files, manifest
from kswap.cli import main
from kswap.config import SwapConfig
from kswap.errors import Terminated, UserError
from kswap.files import write_folder
from kswap.manifest import check_files, damaged_files, write_with_manifest
from kswap.signals import Interrupts


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "README.md").write_text("mine")
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "events.jsonl").write_text("{}\n")
    write_with_manifest(tmp_path, b'{"a": 1}', anew=True)
    return tmp_path


@pytest.mark.parametrize("name", ["model/config.json", "config.yaml", "results.json"])
def test_a_changed_file_is_named(run_dir, name):
    check_files(run_dir, "model", "config.yaml", "results.json")
    (run_dir / name).write_text("other")
    with pytest.raises(UserError, match="is damaged") as caught:
        check_files(run_dir, "model", "config.yaml", "results.json")
    assert str(run_dir / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_may_be_missing(run_dir):
    (run_dir / "events.jsonl").unlink()
    assert damaged_files(run_dir, "events.jsonl", may_miss=True) == []
    assert damaged_files(run_dir, "events.jsonl") == ["events.jsonl"]


def test_what_anybody_may_edit(run_dir):
    (run_dir / "model" / "README.md").write_text("yours")
    check_files(run_dir, "model")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sha256": {}, "own": "x"}'])
def test_a_damaged_manifest_is_named(run_dir, content):
    (run_dir / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json: is damaged"):
        check_files(run_dir, "model")


def test_without_a_manifest_nothing_is_compared(run_dir):
    (run_dir / "manifest.json").unlink()
    (run_dir / "model" / "config.json").write_text("other")
    check_files(run_dir, "model")
    write_with_manifest(run_dir, b"{}", anew=False)
    assert not (run_dir / "manifest.json").exists()


def test_a_process_that_dies_while_results_are_replaced_leaves_a_whole_run(run_dir, monkeypatch):
    writes = manifest.write_bytes
    for lives in range(4):
        left = [lives]

        def dying(path, content, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            writes(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(manifest, "write_bytes", dying)
            try:
                write_with_manifest(run_dir, f'{{"a": {lives}}}'.encode(), anew=False)
            except KeyboardInterrupt:
                assert lives < 3
        check_files(run_dir, "model", "config.yaml", "results.json")
    assert json.loads((run_dir / "results.json").read_text()) == {"a": 3}


def test_what_a_killed_process_left_beside_a_folder_is_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    alive = f"{manifest_host()}-1"
    for owner in (f"{manifest_host()}-{dead.pid}", alive, f"elsewhere-{dead.pid}"):
        (tmp_path / f".to.new-{owner}").mkdir()
    write_folder(tmp_path / "to", lambda folder: None)
    assert {p.name for p in tmp_path.iterdir()} == {
        "to",
        f".to.new-{alive}",
        f".to.new-elsewhere-{dead.pid}",
    }


def manifest_host() -> str:
    from kswap import files

    return files._host()


def test_a_signal_behind_the_last_step_is_not_lost():
    interrupts = Interrupts()
    with interrupts.installed(), pytest.raises(Terminated), interrupts.deferring():
        signal.raise_signal(signal.SIGTERM)


def test_sigterm_ends_any_command_with_143(monkeypatch, capsys):
    monkeypatch.setattr("kswap.cli._schema", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert main(["schema"]) == 143
    assert "nothing is half-written" in capsys.readouterr().err


def test_a_read_only_disk_is_one_line(run_dir, monkeypatch):
    from kswap.report import page

    def read_only(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(page, "read_results", lambda _: {})
    monkeypatch.setattr(page, "draw_figures", read_only)
    with pytest.raises(UserError, match="cannot be written to"):
        page.draw_report(run_dir)


def test_a_key_with_a_line_break_is_one_line():
    with pytest.raises(UserError) as caught:
        SwapConfig.from_mapping({"model": "m", "learn": {"\n": None}})
    assert "\n" not in str(caught.value)


def test_two_processes_that_write_one_file_do_not_take_each_others(tmp_path, monkeypatch):
    path, processes = tmp_path / "README.md", iter((1, 2, 3))
    monkeypatch.setattr(files.os, "getpid", lambda: next(processes))
    flush = files.os.fsync

    def meanwhile(descriptor):
        monkeypatch.setattr(files.os, "fsync", flush)
        files.write_bytes(path, b"the other's")
        flush(descriptor)

    monkeypatch.setattr(files.os, "fsync", meanwhile)
    files.write_bytes(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]
