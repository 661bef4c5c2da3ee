"""Objectives of the methods to compare with: by hand or against torch; their presets train."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from dying import die_after
from safetensors.torch import load_file
from torch.nn import functional

import kswap
from kswap.config import SwapConfig
from kswap.errors import UserError
from kswap.objectives.baselines import (
    nearest_class,
    negative_ce,
    negative_distillation,
    random_labels,
    uniform,
)
from kswap.objectives.consolidation import consolidation
from kswap.training.preparing import salient

pytestmark = pytest.mark.usefixtures("undrawn")


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


def test_consolidation_by_hand():
    now, anchor = torch.tensor([1.0, 3.0], requires_grad=True), torch.tensor([0.0, 1.0])
    fisher = torch.tensor([2.0, 0.5])
    value = consolidation([(now, anchor, fisher)])
    assert float(value.detach()) == pytest.approx(0.5 * (2 * 1 + 0.5 * 4))
    value.backward()
    assert now.grad.tolist() == pytest.approx([2.0, 1.0])


def test_salient_entries_are_the_largest_and_ties_are_in():
    gradient = torch.tensor([[0.0, -5.0], [2.0, 1.0]])
    assert salient(gradient, 0.5).tolist() == [[False, True], [True, False]]
    assert salient(gradient, 1.0).all()
    assert salient(gradient, 1e-6).sum() == 1
    assert salient(torch.zeros(3), 0.5).all()  # A, while B is 0


def runs(values, name, **forget):
    output = Path(values["output"]).with_name(name)
    stages = {**values["stages"], "forget": {**values["stages"]["forget"], **forget}}
    settings = {**values, "stages": stages, "output": str(output)}
    kswap.swap(SwapConfig.from_mapping(settings))
    return load_file(output / "adapter" / "adapter_model.safetensors")


def lora(saved):
    return {name: tensor for name, tensor in saved.items() if ".lora_" in name}


def changes(saved):
    """Return B·A of every layer."""
    pairs = [(n, n.replace(".lora_A.", ".lora_B.")) for n in saved if ".lora_A." in n]
    return {down: saved[up] @ saved[down] for down, up in pairs}


def test_saliency_lets_that_share_of_every_tensor_move(values):
    values["order"] = "LF"
    values["head"] = {"train": "none"}
    learnt = runs({**values, "order": "L"}, "learn")
    masked = runs(values, "masked", saliency=0.25, sparsity={"weight": 0.0})
    for name, tensor in lora(masked).items():
        moved = float((tensor != learnt[name]).float().mean())
        assert moved == pytest.approx(0.25, abs=0.02), name


def test_consolidation_holds_the_adapter(values):
    plain = changes(runs(values, "plain"))
    held = changes(runs(values, "held", consolidation=1e6))
    before = changes(runs({**values, "order": "L"}, "before"))
    far = {name: float((plain[name] - before[name]).norm()) for name in plain}
    near = {name: float((held[name] - before[name]).norm()) for name in plain}
    assert sum(near.values()) < sum(far.values())


def test_task_arithmetic_turns_the_change_round(values):
    values["order"] = "F"
    sparsity = {"weight": 0.0}
    terms = {"forget": {"roles": ["forget"], "objective": "cross_entropy"}}
    there = changes(runs(values, "there", terms=terms, sparsity=sparsity))
    back = changes(runs(values, "back", terms=terms, sparsity=sparsity, negate=2.0))
    assert any(change.abs().max() > 1e-3 for change in there.values())
    for name, change in there.items():
        assert torch.allclose(back[name], -2.0 * change, atol=1e-5)


def test_task_arithmetic_does_not_turn_round_what_is_learnt(values):
    values["stages"]["joint"]["negate"] = 1.0
    with pytest.raises(UserError, match=r"stages\.joint\.negate: 1\.0 would also turn round"):
        kswap.swap(SwapConfig.from_mapping({**values, "order": "J"}))


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.mark.parametrize(
    "forget",
    [
        {"saliency": 0.5, "consolidation": 10.0},
        {"terms": {"like": {"roles": ["forget"], "objective": "impersonation", "layers": ["all"]}}},
        {"renew_steps": 3, "terms": {"blur": {
            "roles": ["forget"], "objective": "discrimination", "layers": ["all"], "whiten": True
        }}},
    ],
)  # fmt: skip
def test_what_a_stage_was_prepared_with_survives_a_kill(values, monkeypatch, forget):
    values["training"] = {**values["training"], "analysis": True, "analysis_steps": 2}
    undisturbed = runs(values, "undisturbed", **forget)
    die_after(monkeypatch, 9, Killed)
    with pytest.raises(Killed):
        runs(values, "killed", **forget)
    resumed = runs(values, "killed", **forget)
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
    arrays = [
        (Path(values["output"]).with_name(name) / "arrays" / "analysis-2-forget.json").read_bytes()
        for name in ("undisturbed", "killed")
    ]
    assert arrays[0] == arrays[1]
