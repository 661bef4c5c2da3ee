"""A finished swap of colours and a reference for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
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
