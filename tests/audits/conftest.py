"""A finished swap of colours and a reference for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import NEW, OLD, tiny_processor, tiny_vit

import kswap
from kswap.config import SwapConfig


def save_model(folder: Path, names: tuple[str, ...]) -> Path:
    tiny_vit(names).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def swapped_run(base_dir, old_images, new_images, tmp_path_factory) -> Path:
    """Learned yellow and magenta, forgot red."""
    values = {
        "model": str(base_dir),
        "learn": {"data": str(new_images)},
        "forget": {"data": str(old_images), "classes": ["red"]},
        "retain": {"data": str(old_images)},
        "output": str(tmp_path_factory.mktemp("audited") / "run"),
        "training": {"device": "cpu"},
    }
    return kswap.swap(SwapConfig.from_mapping(values)).run_dir


@pytest.fixture
def run_dir(swapped_run, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(swapped_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def reference_dir(tmp_path_factory) -> Path:
    """A model of the classes to retain and to learn, in another order, and one more."""
    names = (*NEW[::-1], *OLD[:0:-1], "violet")
    return save_model(tmp_path_factory.mktemp("reference") / "model", names)


@pytest.fixture
def more_runs(run_dir, tmp_path) -> Callable[[int], list[Path]]:
    """Make runs of the same config with other seeds: weights a little apart."""

    def make(count: int) -> list[Path]:
        runs = [run_dir]
        for seed in range(1, count):
            run = Path(shutil.copytree(run_dir, tmp_path / f"run{seed}"))
            (run / "manifest.json").unlink()  # what changes below is meant to
            config = yaml.safe_load((run / "config.yaml").read_text())
            config |= {"seed": seed, "output": str(run)}
            (run / "config.yaml").write_text(yaml.safe_dump(config))
            results = json.loads((run / "results.json").read_text())
            (run / "results.json").write_text(json.dumps({**results, "seed": seed}))
            shift_weights(run / "model", seed)
            runs.append(run)
        return runs

    return make


def shift_weights(model_dir: Path, seed: int) -> None:
    from safetensors.torch import load_file, save_file

    path, generator = model_dir / "model.safetensors", torch.Generator().manual_seed(seed)
    weights = load_file(path)
    for name in sorted(weights):
        weights[name] += 0.01 * torch.randn(weights[name].shape, generator=generator)
    save_file(weights, path, metadata={"format": "pt"})
