"""Files that were cut off or in which one bit is another: named and refused or written anew, never
used."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from chaos.cases import ROUNDS, Case, clone, differences
from chaos.victims import Ended, Mark, command
from tiny_runs import TASKS

pytestmark = pytest.mark.slow

READ: dict[str, tuple[str, ...]] = {
    "evaluate": ("config.yaml", "results.json", "manifest.json", "adapter", "model"),
    "export": ("config.yaml", "manifest.json", "adapter", "model"),
    "predict": ("manifest.json", "model"),
    "report": ("results.json", "events.jsonl", "arrays", "manifest.json"),
    "audit": (
        *("config.yaml", "results.json", "events.jsonl", "arrays"),
        *("manifest.json", "adapter", "model"),
    ),
}
"""Command -> what of a finished run it must not take when it is damaged."""


def flip(path: Path, drawing: random.Random) -> None:
    """Change one bit."""
    content = bytearray(path.read_bytes())
    content[drawing.randrange(len(content))] ^= 1 << drawing.randrange(8)
    path.write_bytes(content)


def cut(path: Path, drawing: random.Random) -> None:
    """Leave the beginning."""
    content = path.read_bytes()
    path.write_bytes(content[: drawing.randrange(len(content))])


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (flip, cut)


def files_of(path: Path) -> list[Path]:
    """Return a file, or the files of a folder, but for what anybody may edit."""
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file() and p.name != "README.md")


def words_of(name: str, case: Case, run_dir: Path) -> list[str | Path]:
    image = next(case.folder.rglob("*.png"))
    more = {"export": ["--to", run_dir.with_name("exported")], "predict": [image]}
    return [name, run_dir, *more.get(name, [])]


def is_named(ended: Ended, path: Path) -> None:
    assert ended.status == 2, (path.name, ended.said)
    assert "Traceback" not in ended.said
    error = ended.said.splitlines()[-1]
    assert error.startswith("kswap: error:"), ended.said
    assert str(path) in error, (path, error)


@pytest.mark.parametrize("name", READ)
def test_of_a_finished_run(case_of, tmp_path, drawing, name):
    case: Case = case_of(TASKS[list(READ).index(name) % len(TASKS)])
    for number in range(ROUNDS):
        for part in READ[name]:
            for damage in DAMAGES:
                run_dir = clone(case, tmp_path / f"{number}-{part}-{damage.__name__}")
                path = drawing.choice(files_of(run_dir / part))
                damage(path, drawing)
                is_named(command(words_of(name, case, run_dir), tmp_path / "log"), path)
                shutil.rmtree(run_dir)


class Restored:
    """A run folder that is what it was again before each use."""

    def __init__(self, case: Case, folder: Path, *, until: Callable[[list[Mark]], float | None]):
        self.case, self.path = case, folder / "run"
        self.words = case.words(self.path)
        self._log = folder / "log"
        ended = command(self.words, self._log, moment=until)
        assert ended.status in (0, -9), ended.said
        self._kept = folder / "kept"
        shutil.copytree(self.path, self._kept)

    def damaged(self, part: str, drawing: random.Random) -> Path:
        """Damage one file of `part` in a fresh copy; return its path."""
        shutil.rmtree(self.path)
        shutil.copytree(self._kept, self.path)
        path = drawing.choice(files_of(self.path / part))
        drawing.choice(DAMAGES)(path, drawing)
        return path

    def go_on(self) -> Ended:
        """Give the same command."""
        return command(self.words, self._log)


@pytest.fixture
def finished(case_of, tmp_path) -> Restored:
    return Restored(case_of("classification"), tmp_path, until=lambda marks: None)


@pytest.fixture
def half(case_of, tmp_path) -> Restored:
    """Killed when it began to train its second stage."""

    def in_second_stage(marks: list[Mark]) -> float | None:
        begun = [m for m in marks if m.phase == "stage" and m.what == "enters"]
        return 0.0 if len(begun) == 2 else None

    return Restored(case_of("classification"), tmp_path, until=in_second_stage)


@pytest.mark.parametrize("part", ["adapter", "model"])
def test_what_a_finished_run_can_save_again_it_does(finished, drawing, part):
    for _ in range(ROUNDS):
        path = finished.damaged(part, drawing)
        ended = finished.go_on()
        assert ended.status == 0, ended.said
        assert str(path) in ended.said
        assert differences(finished.path, finished.case) == []


@pytest.mark.parametrize(
    "part", ["config.yaml", "results.json", "events.jsonl", "arrays", "manifest.json"]
)
def test_what_it_cannot_is_refused_when_it_is_given_again(finished, drawing, part):
    for _ in range(ROUNDS):
        path = finished.damaged(part, drawing)
        ended = finished.go_on()
        # a value of the config is named by its key, with what it was
        is_named(ended, finished.path if "another config" in ended.said else path)


@pytest.mark.parametrize("part", ["config.yaml", "events.jsonl", "arrays"])
def test_an_unfinished_run_does_not_go_on_from_what_is_damaged(half, drawing, part):
    for _ in range(ROUNDS):
        path = half.damaged(part, drawing)
        ended = half.go_on()
        is_named(ended, half.path if "another config" in ended.said else path)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(half, drawing):
    newest = max((half.path / "checkpoints").iterdir()).name
    for number in range(ROUNDS * 2):
        part = ("state.safetensors", "state.json")[number % 2]
        path = half.damaged(f"checkpoints/{newest}/{part}", drawing)
        ended = half.go_on()
        assert ended.status == 0, ended.said
        assert str(path.parent) in ended.said
        assert differences(half.path, half.case) == []


def test_without_any_whole_checkpoint_it_begins_again(half, drawing):
    folders = [half.damaged("checkpoints", drawing).parent]
    folders += [p for p in folders[0].parent.iterdir() if p not in folders]
    for folder in folders[1:]:
        cut(folder / "state.safetensors", drawing)
    ended = half.go_on()
    assert ended.status == 0, ended.said
    assert all(str(folder) in ended.said for folder in folders)
    assert differences(half.path, half.case) == []


def test_decoded_images_that_a_killed_run_left_are_not_used(half, drawing):
    half.damaged("cache", drawing)
    for path in (half.path / "cache").iterdir():
        flip(path, drawing)
    ended = half.go_on()
    assert ended.status == 0, ended.said
    assert differences(half.path, half.case) == []
