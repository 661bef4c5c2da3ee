"""Objectives of the methods to compare with: by hand or against torch; their presets train."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from kswap.objectives.baselines import (
    nearest_class,
    negative_ce,
    negative_distillation,
    random_labels,
    uniform,
)


@pytest.fixture
def logits():
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def base():
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(2))


FORGOTTEN = torch.tensor([False, True, False])


def test_negative_ce_is_ascent(logits):
    ids = torch.tensor([0, 1, 2, 3, 0])
    expected = -functional.cross_entropy(logits, ids, reduction="none")
    assert torch.equal(negative_ce(logits, ids), expected)


def test_negative_distillation_is_minus_kl_of_torch(logits, base):
    theirs = functional.kl_div(
        (logits[:, :3] / 4).log_softmax(-1),
        (base / 4).log_softmax(-1),
        log_target=True,
        reduction="none",
    ).sum(-1)
    ours = negative_distillation(logits[:, :3], base, temperature=4.0)
    assert torch.allclose(ours, -16 * theirs, atol=1e-5)


def test_random_labels_are_every_kept_class_equally_often():
    # Row 0 answers class 0, row 2 class 2: the loss tells which one was drawn.
    logits = torch.tensor([[1.0, 5.0, 3.0, 9.0]]).expand(3000, -1)
    noise = torch.rand(3000, generator=torch.Generator().manual_seed(0))
    loss = random_labels(logits, torch.ones(3000).long(), FORGOTTEN, noise)
    kinds, counts = torch.unique(loss, return_counts=True)
    expected = [-float(logits[0].log_softmax(-1)[c]) for c in (2, 0)]
    assert kinds.tolist() == pytest.approx(expected)
    assert (counts / 3000).tolist() == pytest.approx([0.5, 0.5], abs=0.03)


def test_random_labels_where_every_class_is_forgotten_are_other_classes():
    logits = torch.tensor([[1.0, 5.0, 3.0]]).expand(100, -1)
    noise = torch.linspace(0, 0.999, 100)
    everything = torch.ones(3, dtype=torch.bool)
    loss = random_labels(logits, torch.ones(100).long(), everything, noise)
    own = -float(logits[0].log_softmax(-1)[1])
    assert not any(value == pytest.approx(own) for value in loss.tolist())


def test_uniform_is_ln_k_at_certainty_and_0_at_a_guess():
    flat = torch.tensor([[0.0, 0.0, 0.0, -50.0]])
    assert float(uniform(flat, 3)) == pytest.approx(0, abs=1e-6)
    logits = torch.tensor([[4.0, 0.0, 0.0]])
    p = logits.softmax(-1)[0]
    assert float(uniform(logits, 3)) == pytest.approx(float((-math.log(3) - p.log()).mean()))


def test_nearest_class_is_the_bases_second_choice(logits):
    base = torch.tensor([[1.0, 9.0, 3.0], [5.0, 9.0, 3.0], [2.0, 1.0, 9.0]])
    found = nearest_class(logits[:3], base, torch.tensor([1, 1, 2]), FORGOTTEN)
    expected = functional.cross_entropy(logits[:3], torch.tensor([2, 0, 0]), reduction="none")
    assert torch.equal(found, expected)
