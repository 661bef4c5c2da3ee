"""Objectives against the library's own numbers or a sum by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from kswap.objectives.forgetting import bounded_ce_batch, bounded_ce_sample, masked_distillation
from kswap.objectives.learning import (
    cross_entropy,
    distillation,
    hedged_cross_entropy,
    restricted_distillation,
)
from kswap.objectives.sparsity import group_lasso, num_zero_groups, proximal_step


@pytest.fixture
def logits():
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)


@pytest.fixture
def base():
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(2))


NONE = torch.zeros(3, dtype=torch.bool)


def test_cross_entropy_is_that_of_torch_per_unit(logits):
    ids = torch.tensor([0, 1, 2, 3, 0])
    assert torch.equal(
        cross_entropy(logits, ids), functional.cross_entropy(logits, ids, reduction="none")
    )


def test_batch_bound_holds_for_the_mean_and_sample_bound_for_each_unit():
    # Unit 0 has a loss of about 20 nats, unit 1 of about 0: the mean is above the bound of 5, unit
    # 1 is not.
    logits = torch.tensor([[0.0, 20.0], [0.0, 20.0]], requires_grad=True)
    ids = torch.tensor([0, 1])
    batch = bounded_ce_batch(logits, ids, bound=5.0)
    sample = bounded_ce_sample(logits, ids, bound=5.0)
    assert batch.tolist() == [0.0, 0.0]
    assert sample.tolist() == pytest.approx([0.0, 5.0], abs=1e-4)


def test_batch_bound_is_the_papers_relu_of_bound_minus_mean(logits):
    ids = torch.tensor([0, 1, 2, 3, 0])
    expected = torch.relu(105.0 - functional.cross_entropy(logits, ids))
    assert torch.allclose(bounded_ce_batch(logits, ids, bound=105.0).mean(), expected)


def test_the_bound_is_ln_k_unless_given(logits):
    ids = torch.tensor([0, 1, 2, 3, 0])
    loss = functional.cross_entropy(logits, ids, reduction="none")
    expected = torch.relu(math.log(4) - loss)
    assert torch.allclose(bounded_ce_sample(logits, ids), expected)


def test_masked_distillation_by_hand():
    base = torch.tensor([[2.0, 1.0, 0.0]])
    logits = torch.tensor([[0.5, 0.2, -0.3, 1.0]])
    forgotten = torch.tensor([True, False, False])
    q = torch.tensor([math.e, 1.0]) / (math.e + 1)
    p = logits[0].softmax(-1)[1:3]
    expected = (q * (q / p).log()).sum()
    assert masked_distillation(logits, base, forgotten)[0] == pytest.approx(float(expected))


def test_masked_distillation_is_zero_exactly_where_the_model_answers_the_target(base):
    forgotten = torch.tensor([False, True, False])
    target = base.masked_fill(forgotten, -30.0)
    same = torch.cat([target, torch.full((5, 1), -30.0)], 1)
    assert masked_distillation(same, base, forgotten).abs().max() < 1e-6


def test_gradients_are_finite_and_push_the_forgotten_logit_down(logits, base):
    forgotten = torch.tensor([True, False, False])
    masked_distillation(logits, base, forgotten).sum().backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[:, 0] > 0).all()
    assert (logits.grad[:, 3] > 0).all()  # the new row takes no mass of forget images either


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_distillation_is_kl_of_torch(logits, base, temperature):
    ours = distillation(logits[:, :3], base, temperature=temperature)
    theirs = functional.kl_div(
        (logits[:, :3] / temperature).log_softmax(-1),
        (base / temperature).log_softmax(-1),
        log_target=True,
        reduction="none",
    ).sum(-1)
    assert torch.allclose(ours, theirs * temperature**2, atol=1e-6)


def test_restricted_distillation_ignores_the_new_rows(logits, base):
    changed = logits.detach().clone()
    changed[:, 3] += 100
    assert torch.allclose(
        restricted_distillation(logits, base, NONE), restricted_distillation(changed, base, NONE)
    )
    assert torch.allclose(
        restricted_distillation(logits, base, NONE), distillation(logits[:, :3], base), atol=1e-6
    )


def test_hedged_cross_entropy_is_that_of_torch_with_the_mixed_target(logits, base):
    ids, gone = torch.tensor([3, 3, 3, 3, 1]), torch.tensor([False, True, False])
    old = base.masked_fill(gone, -math.inf).softmax(-1)
    target = 0.7 * functional.one_hot(ids, 4).float()
    target[:, :3] += 0.3 * old
    by_torch = functional.cross_entropy(logits, target, reduction="none")
    ours = hedged_cross_entropy(logits, base, ids, gone, hedge=0.3)
    assert torch.allclose(ours, by_torch, atol=1e-6)
    # Where it is least, the class leads all old ones together by ln(0.7 / 0.3) and no more.
    best = target.log().clamp_min(-30).requires_grad_()
    (gradient,) = torch.autograd.grad(
        hedged_cross_entropy(best, base, ids, gone, hedge=0.3).sum(), best
    )
    assert gradient.abs().max() < 1e-6
    lead = (best[0, 3] - best[0, :3].logsumexp(-1)).item()
    assert lead == pytest.approx(math.log(0.7 / 0.3), abs=1e-5)


def test_group_lasso_is_the_sum_of_group_norms():
    groups = [[torch.ones(2, 2), torch.zeros(3)], [torch.full((1,), 3.0), torch.full((1,), 4.0)]]
    assert group_lasso(groups) == pytest.approx(2 + 5)


def test_the_papers_gradient_is_nan_at_a_zero_group_and_epsilon_mends_it():
    for epsilon, finite in ((0.0, False), (1e-8, True)):
        zero = torch.zeros(3, requires_grad=True)
        group_lasso([[zero]], epsilon=epsilon).backward()
        assert bool(zero.grad.isfinite().all()) is finite


def test_proximal_step_is_the_minimiser_and_reaches_exact_zero():
    long, short = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
    groups = [[long], [short]]
    proximal_step(groups, 1.0)
    assert long.tolist() == pytest.approx([2.4, 3.2])
    assert short.tolist() == [0.0, 0.0]
    assert num_zero_groups(groups) == 1
    proximal_step(groups, 1.0)  # a group that is zero stays zero, without NaN
    assert short.tolist() == [0.0, 0.0]


def test_proximal_step_solves_its_problem():
    # argmin_m 1/2 ||m - v||^2 + t ||m||, found by gradient descent, is what the step gives.
    v = torch.randn(6, generator=torch.Generator().manual_seed(3))
    m = v.clone().requires_grad_()
    optimiser = torch.optim.SGD([m], lr=0.1)
    for _ in range(500):
        optimiser.zero_grad()
        (0.5 * (m - v).square().sum() + 0.7 * m.norm()).backward()
        optimiser.step()
    stepped = [v.clone()]
    proximal_step([stepped], 0.7)
    assert torch.allclose(stepped[0], m.detach(), atol=1e-4)
