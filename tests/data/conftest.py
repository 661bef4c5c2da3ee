"""Fixtures of the data tests: a processor of 8 x 8 pixels, and `build_data` with short words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kswap.config import SwapConfig
from kswap.data import SwapData, build_data

LABELS = {0: "cat", 1: "dog", 2: "frog"}


@pytest.fixture(scope="session")
def processor() -> Any:
    from transformers import ViTImageProcessor

    return ViTImageProcessor(size={"height": 8, "width": 8})


@pytest.fixture
def build(processor: Any) -> Callable[..., SwapData]:
    """`build(learn={...}, forget={...}, data={...}, ...)`: a config from what is given, built."""

    def run(
        *,
        task: Any = "classification",
        id2label: Mapping[int, str] = LABELS,
        fitted_by: Any = None,
        forgotten: tuple[str, ...] = (),
        in_memory: Any = None,
        cache_dir: Path | None = None,
        on_progress: Any = None,
        **config: Any,
    ) -> SwapData:
        order = ("L" if "learn" in config else "") + ("F" if "forget" in config else "")
        return build_data(
            SwapConfig.from_mapping({"model": "m", "order": order, **config}),
            task=task,
            id2label=id2label,
            processor=fitted_by or processor,
            forgotten=forgotten,
            in_memory=in_memory,
            cache_dir=cache_dir,
            on_progress=on_progress,
        )

    return run


def _for_task(build: Callable[..., SwapData], task: str) -> Callable[..., SwapData]:
    from data.scenes import HEIGHT, WIDTH
    from transformers import SegformerImageProcessorPil

    fixed = SegformerImageProcessorPil(size={"height": HEIGHT, "width": WIDTH})

    def run(**config: Any) -> SwapData:
        return build(task=task, **{"fitted_by": fixed, **config})

    return run


@pytest.fixture
def build_masks(build: Callable[..., SwapData]) -> Callable[..., SwapData]:
    """`build` for segmentation, images as large as they are."""
    return _for_task(build, "segmentation")


@pytest.fixture
def build_boxes(build: Callable[..., SwapData]) -> Callable[..., SwapData]:
    """`build` for detection, images as large as they are."""
    return _for_task(build, "detection")


@pytest.fixture(scope="session")
def reducing() -> Any:
    """A processor that takes 0 in masks as `not labelled`."""
    from data.scenes import HEIGHT, WIDTH
    from transformers import SegformerImageProcessorPil

    size = {"height": HEIGHT, "width": WIDTH}
    return SegformerImageProcessorPil(size=size, do_reduce_labels=True)


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, Any]:
    """A source to learn from, of both kinds."""
    from data.scenes import some_scenes, write_coco, write_masks

    learned = some_scenes(12, ("horse", "dog"))
    write_masks(tmp_path / "learn", learned, tag="new")
    write_coco(tmp_path / "boxes", learned, tag="new")
    return {"masks": str(tmp_path / "learn"), "boxes": str(tmp_path / "boxes")}
