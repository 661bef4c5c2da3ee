"""Objectives of sigmoid heads against a sum over coins by hand."""

from __future__ import annotations

import math

import pytest
import torch

from kswap.objectives import OBJECTIVES, Units
from kswap.objectives.sigmoid import (
    distillation,
    hedged_cross_entropy,
    masked_distillation,
    nearest_class,
    restricted_distillation,
)
from kswap.settings import TermConfig

LOGITS = torch.tensor([[1.0, -2.0, 0.5, 3.0], [-1.0, 0.0, 2.0, -3.0]])
BASE = torch.tensor([[2.0, -1.0, 0.3], [-2.0, -1.0, 4.0]])
GONE = torch.tensor([False, False, True])


def coin(q: float, logit: float) -> float:
    """Return the cross-entropy of a coin of probability q and one of sigmoid(logit)."""
    p = 1 / (1 + math.exp(-logit))
    return -q * math.log(p) - (1 - q) * math.log(1 - p)


def entropy(q: float) -> float:
    return 0.0 if q in (0.0, 1.0) else -q * math.log(q) - (1 - q) * math.log(1 - q)


def sigmoids(unit: int) -> list[float]:
    return BASE[unit].sigmoid().tolist()


@pytest.mark.parametrize("unit", [0, 1])
def test_distillations_are_sums_of_divergences(unit):
    q = [*sigmoids(unit), 0.0]
    logits = LOGITS[unit].tolist()
    plain = [coin(a, b) - entropy(a) for a, b in zip(q, logits, strict=True)]
    assert distillation(LOGITS, BASE)[unit] == pytest.approx(sum(plain), abs=1e-5)
    no = coin(0.01, logits[2]) - entropy(0.01)  # the base doubts all three
    masked = [*plain[:2], no, plain[3]]
    assert masked_distillation(LOGITS, BASE, GONE)[unit] == pytest.approx(sum(masked), abs=1e-5)
    kept = restricted_distillation(LOGITS, BASE, GONE)[unit]
    assert kept == pytest.approx(sum(plain[:2]), abs=1e-5)


def test_a_forgotten_class_is_no_surer_a_no_than_the_surest_of_the_base():
    base = torch.tensor([[1.0, -6.0, 3.0], [2.0, -1.0, -8.0]])
    surest = base.min(-1).values
    logits = torch.cat([base.where(~GONE, surest[:, None]), torch.full((2, 1), -60.0)], -1)
    assert masked_distillation(logits, base, GONE).tolist() == pytest.approx([0.0, 0.0], abs=1e-5)
    lower = logits.clone()
    lower[:, 2] -= 3.0
    assert (masked_distillation(lower, base, GONE) > 1e-4).all()


@pytest.mark.parametrize(("unit", "truth"), [(0, 3), (1, -1)])
def test_hedged_target_is_the_truth_and_the_base_without_forgotten_classes(unit, truth):
    ids = torch.full((2,), truth)
    target = [0.3 * q for q in (*sigmoids(unit)[:2], 0.01, 0.0)]
    if truth >= 0:
        target[truth] += 0.7
    expected = sum(coin(q, x) for q, x in zip(target, LOGITS[unit].tolist(), strict=True))
    found = hedged_cross_entropy(LOGITS, BASE, ids, GONE, hedge=0.3)
    assert found[unit] == pytest.approx(expected, abs=1e-5)


def test_nearest_class_is_one_that_the_base_says_yes_to():
    # Unit 0: class 0 is left and is a yes. Unit 1: of what is left the base says no to all.
    found = nearest_class(LOGITS, BASE, torch.tensor([2, 2]), GONE)
    for unit, label in ((0, 0), (1, -1)):
        logits = LOGITS[unit].tolist()
        expected = sum(coin(float(c == label), x) for c, x in enumerate(logits))
        assert found[unit] == pytest.approx(expected, abs=1e-5)
    own = nearest_class(LOGITS, BASE, torch.tensor([0, 0]), GONE)
    assert own[0] == pytest.approx(sum(coin(0.0, x) for x in LOGITS[0].tolist()), abs=1e-5)


@pytest.mark.parametrize("name", ["hedged_cross_entropy", "nearest_class"])
def test_units_of_sigmoids_get_them_with_units_that_show_nothing(name):
    units = Units(
        class_ids=torch.tensor([2, -1]),
        roles=torch.zeros(2, dtype=torch.long),
        forgotten=GONE,
        logits=LOGITS,
        base_logits=BASE,
        weight=torch.tensor([2.0, 0.5]),
        sigmoid=True,
    )
    term = TermConfig(roles=("retain",), objective=name)
    found = OBJECTIVES[name](units, term, 1.0)
    function = {"hedged_cross_entropy": hedged_cross_entropy, "nearest_class": nearest_class}[name]
    options = {"hedge": term.hedge} if name == "hedged_cross_entropy" else {}
    plain = function(LOGITS, BASE, units.class_ids, GONE, **options)
    assert found.tolist() == pytest.approx((plain * units.weight).tolist())
