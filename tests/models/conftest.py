"""Families built once; tests change copies."""

import copy
import functools
from collections.abc import Callable

import pytest
from models.families import FAMILIES
from transformers import PreTrainedModel

from kswap.models.structure import FfnBlock, find_ffn_blocks


@functools.cache
def _built(family: str) -> tuple[PreTrainedModel, tuple[FfnBlock, ...]]:
    model = FAMILIES[family]()
    return model, find_ffn_blocks(model)


@pytest.fixture(scope="session")
def built() -> Callable[[str], tuple[PreTrainedModel, tuple[FfnBlock, ...]]]:
    """Return a copy of a family's model and its blocks."""

    def build(family: str) -> tuple[PreTrainedModel, tuple[FfnBlock, ...]]:
        model, blocks = _built(family)
        return copy.deepcopy(model), blocks

    return build
