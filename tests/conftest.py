"""Tiny things all tests share: a base model on disk, folders of pictures, a config that swaps in
seconds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes on two cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import numpy as np
import pytest
from PIL import Image

OLD = ("red", "green", "blue", "cyan")
NEW = ("magenta", "yellow")
COLOURS = {
    "red": (200, 30, 30),
    "green": (30, 200, 30),
    "blue": (30, 30, 200),
    "cyan": (30, 200, 200),
    "yellow": (200, 200, 30),
    "magenta": (200, 30, 200),
}


def write_colours(folder: Path, names: tuple[str, ...], *, count: int, size: int = 20) -> Path:
    """Write `count` noisy pictures of every colour, one folder a class."""
    for name in names:
        noise = np.random.default_rng(sorted(COLOURS).index(name))
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.array(COLOURS[name]) + noise.integers(-30, 30, (size, size, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / name / f"{number:03d}.png")
    return folder


def tiny_vit(names: tuple[str, ...] = OLD) -> Any:
    """Return a ViT of two blocks and 32 px with random weights of a fixed seed."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(
            image_size=32,
            patch_size=16,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            id2label=dict(enumerate(names)),
            label2id={name: number for number, name in enumerate(names)},
        )
    ).eval()


def tiny_processor() -> Any:
    """Return the image processor of `tiny_vit`."""
    from transformers import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": 32, "width": 32})


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny classifier of OLD."""
    folder = tmp_path_factory.mktemp("base") / "vit"
    tiny_vit().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def old_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of the classes the base knows."""
    return write_colours(tmp_path_factory.mktemp("old") / "images", OLD, count=12)


@pytest.fixture(scope="session")
def new_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of classes it does not know."""
    return write_colours(tmp_path_factory.mktemp("new") / "images", NEW, count=12)


def tiny_values(base_dir: Path, old_images: Path, new_images: Path, output: Path) -> dict[str, Any]:
    """Return a config that learns yellow and magenta, forgets red and retains the rest."""
    stage = {"epochs": 5.0, "max_steps": 6, "optimiser": {"lr": 1e-2}}
    return {
        "model": str(base_dir),
        "learn": {"data": str(new_images)},
        "forget": {"data": str(old_images), "classes": ["red"]},
        "retain": {"data": str(old_images)},
        "output": str(output),
        "stages": {kind: {"min_steps": 1, **stage} for kind in ("learn", "forget", "joint")},
        "training": {"checkpoint_steps": 2, "device": "cpu"},
    }


@pytest.fixture
def values(base_dir: Path, old_images: Path, new_images: Path, tmp_path: Path) -> dict[str, Any]:
    """A config of `tiny_values` whose run folder is not there yet."""
    return tiny_values(base_dir, old_images, new_images, tmp_path / "run")


@pytest.fixture(scope="session")
def run_of_values(
    base_dir: Path, old_images: Path, new_images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What the run of `values` leaves, to be read; `finished_run` is for tests that change it."""
    import kswap
    from kswap.config import SwapConfig

    output = tmp_path_factory.mktemp("values") / "run"
    return kswap.swap(
        SwapConfig.from_mapping(tiny_values(base_dir, old_images, new_images, output))
    ).run_dir


@pytest.fixture
def finished_run(run_of_values: Path, values: dict[str, Any], tmp_path: Path) -> Iterator[Path]:
    """The run of `values`, finished; what a test changes of it is put right behind the test."""
    kept = shutil.copytree(run_of_values, tmp_path / "kept")
    values["output"] = str(run_of_values)  # a run belongs to its path
    yield run_of_values
    shutil.rmtree(run_of_values)
    shutil.move(kept, run_of_values)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs draw no figures and no page: half their time, where a test asks about neither.

    A drawing that failed would be a note here, no failure; tests of reports look at what is drawn.
    """
    for draw in ("draw_figures", "write_report"):
        monkeypatch.setattr(f"kswap.running.saving.{draw}", lambda *_: None)
