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
            id2label=id2label,
            processor=fitted_by or processor,
            forgotten=forgotten,
            in_memory=in_memory,
            cache_dir=cache_dir,
            on_progress=on_progress,
        )

    return run
