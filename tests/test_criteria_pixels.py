"""Heads that give every pixel a class: the library's loss, and which labels count for nothing."""

from __future__ import annotations

import pytest
import torch
from criteria_labels import INPUTS, assert_same, library_loss
from criteria_models import PER_PIXEL, SIDE

from kswap.models.head import extend_head
from kswap.tasks.criteria import IGNORED, decompose


@pytest.mark.parametrize("family", PER_PIXEL)
def test_pixels(family: str) -> None:
    labels = torch.randint(0, 5, (3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    labels[0, :20] = labels[1] = 255
    ours = assert_same(PER_PIXEL[family](), labels)
    assert not ours.layers[-1].loss[labels == 255].any()


def test_what_the_config_ignores_counts_for_nothing() -> None:
    model = PER_PIXEL["segformer"]()
    model.config.semantic_loss_ignore_index = 2
    labels = torch.randint(0, 5, (3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    ours = assert_same(model, labels)
    assert not ours.layers[-1].loss[labels == 2].any()
    assert ours.layers[-1].loss[labels != 2].all()


@pytest.mark.parametrize("family", PER_PIXEL)
def test_class_255_is_a_class_where_there_are_more(family: str) -> None:
    """255 is the library's default for what is not labelled, made for masks of bytes."""
    model = PER_PIXEL[family]()
    extend_head(
        model,
        {**model.config.id2label, **{row: f"new {row}" for row in range(5, 300)}},
        init="random",
        seed=0,
    )
    labels = torch.full((3, SIDE, SIDE), 255)
    labels[0] = 254
    labels[1] = IGNORED
    ours = decompose(model, INPUTS, labels)
    model.config.semantic_loss_ignore_index = model.config.loss_ignore_index = IGNORED
    expected = library_loss(model, labels)
    assert ours.layers[-1].loss[2].all()
    assert not ours.layers[-1].loss[1].any()
    torch.testing.assert_close(ours.total(), expected, rtol=1e-5, atol=1e-6)
