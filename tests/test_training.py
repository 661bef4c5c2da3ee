"""The loop: what must not change the result does not, and what must, does."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from conftest import OLD, tiny_vit
from criteria_labels import INPUTS, boxes, gradient
from criteria_models import DETECTORS
from safetensors.torch import load_file

import kswap
from kswap.config import SwapConfig
from kswap.errors import UserError
from kswap.settings import OptimiserConfig, TrainingConfig
from kswap.tasks.criteria import decompose
from kswap.training.loop import set_modes, step_seed
from kswap.training.optimiser import learning_rate
from kswap.training.recomputing import check_checkpointing, enable_checkpointing

pytestmark = pytest.mark.usefixtures("undrawn")


def adapter_of(values: dict, name: str, **changes) -> dict[str, torch.Tensor]:
    """Run a swap with some values changed and return what it trained."""
    output = str(Path(values["output"]).with_name(name))
    training = {**values["training"], **changes.pop("training", {})}
    kswap.swap(
        SwapConfig.from_mapping({**values, **changes, "training": training, "output": output})
    )
    return load_file(f"{output}/adapter/adapter_model.safetensors")


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert set(one) == set(other)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def terms_of(values: dict, name: str) -> list[dict[str, float]]:
    lines = (Path(values["output"]).with_name(name) / "events.jsonl").read_text().splitlines()
    return [json.loads(line)["terms"] for line in lines]


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(values):
    one = adapter_of(values, "one")
    assert difference(one, adapter_of(values, "two")) == 0
    assert difference(one, adapter_of(values, "three", seed=1)) > 0
    assert terms_of(values, "one") == terms_of(values, "two")


def test_accumulation_equals_the_big_batch(values):
    for stage in values["stages"].values():
        stage["optimiser"] = {"lr": 1e-3}  # Adam's first steps magnify rounding
    whole = adapter_of(values, "whole")
    cut = adapter_of(values, "cut", training={"accumulation": 3})
    assert difference(whole, cut) < 1e-4
    for one, other in zip(terms_of(values, "whole"), terms_of(values, "cut"), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)


def test_gradient_checkpointing_changes_memory_not_results(values, monkeypatch):
    from transformers import modeling_layers

    calls = []
    plain = adapter_of(values, "plain")
    original = modeling_layers.GradientCheckpointingLayer.__call__

    def counting(self, *args, **kwargs):
        calls.append(self.gradient_checkpointing and self.training)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(modeling_layers.GradientCheckpointingLayer, "__call__", counting)
    saving = adapter_of(values, "saving", training={"gradient_checkpointing": True})
    assert any(calls), "no layer recomputed its activations"
    assert difference(plain, saving) < 1e-5


@pytest.mark.parametrize("family", ["detr", "conditional-detr", "deformable-detr"])
def test_layers_that_are_recomputed_do_not_drop_out(family):
    model = DETECTORS[family]()
    assert model.config.dropout > 0
    plain = decompose(model, INPUTS, boxes((2, 0, 1)))
    enable_checkpointing(model)
    set_modes(model, checkpointing=True)
    recomputed = decompose(model, INPUTS, boxes((2, 0, 1)))
    assert torch.equal(recomputed.total(), plain.total())
    found, wanted = gradient(model, recomputed.total()), gradient(model, plain.total())
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_of_a_model_that_has_none_is_refused():
    training = TrainingConfig(gradient_checkpointing=True)
    model = tiny_vit(OLD)
    check_checkpointing(model, training)
    assert not any(getattr(one, "gradient_checkpointing", False) for one in model.modules())
    with pytest.raises(UserError, match="transformers cannot do it for this model") as error:
        check_checkpointing(DETECTORS["dab-detr"](), training)
    assert "\n" not in str(error.value)


def test_a_weight_of_zero_is_a_term_left_out(values):
    zero = {
        "learn": {
            "terms": {"spare": {"roles": ["retain"], "objective": "cross_entropy", "weight": 0}}
        }
    }
    stages = {kind: {**values["stages"][kind], **zero.get(kind, {})} for kind in values["stages"]}
    assert difference(adapter_of(values, "one"), adapter_of(values, "two", stages=stages)) == 0


def test_every_step_is_one_forward(values, monkeypatch):
    from kswap.tasks.classification import Classification

    forwards = []
    original = Classification.units

    def counting(self, model, examples, teacher, view):
        if torch.is_grad_enabled():  # not those that look for what need not be computed
            forwards.append(len(examples))
        return original(self, model, examples, teacher, view)

    monkeypatch.setattr(Classification, "units", counting)
    adapter_of(values, "run")
    assert len(forwards) == len(terms_of(values, "run"))


def test_group_lasso_makes_groups_exactly_zero_and_zero_groups_are_counted(values):
    sparse = {"sparsity": {"weight": 1e3, "method": "proximal"}}
    stages = {kind: {**values["stages"][kind], **sparse} for kind in values["stages"]}
    trained = adapter_of(values, "sparse", stages=stages)
    lora = [tensor for name, tensor in trained.items() if "lora_" in name]
    assert lora
    assert not any(tensor.any() for tensor in lora)
    results = json.loads((Path(values["output"]).with_name("sparse") / "results.json").read_text())
    assert results["groups"] == {"total": 2, "zero": 2}


def test_the_papers_group_lasso_is_a_term_of_the_loss(values):
    adapter_of(values, "paper", preset="paper")
    assert all("group_lasso" in terms for terms in terms_of(values, "paper"))


def test_an_adapter_that_never_moves_is_an_error_that_names_it(values, monkeypatch):
    from kswap.models import adapter
    from kswap.models.adapter import AdapterNotMovedError

    attach = adapter.attach

    def frozen(*args, **kwargs):
        model = attach(*args, **kwargs)
        next(p for n, p in model.named_parameters() if "lora_B" in n).requires_grad_(False)
        return model

    monkeypatch.setattr(adapter, "attach", frozen)
    with pytest.raises(AdapterNotMovedError, match=r"stage 1-learn: 1 of 8 .*lora_B"):
        adapter_of(values, "frozen")


@pytest.mark.parametrize(
    ("train", "moves"), [("new", (False, True)), ("all", (True, True)), ("none", (False, False))]
)
def test_which_rows_of_the_head_train(values, base_dir, train, moves):
    trained = adapter_of(values, "run", head={"train": train, "init": "random"})
    start = adapter_of(values, "start", head={"train": "none", "init": "random"})
    name = next(n for n in trained if n.endswith("classifier.weight"))
    changed = (trained[name] != start[name]).any(1)
    assert (bool(changed[:4].any()), bool(changed[4:].all())) == moves


def test_bf16_trains(values):
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        values["training"]["precision"] = "bf16"
        with pytest.raises(kswap.UserError, match="bf16"):
            adapter_of(values, "half")
        return
    stages = {kind: {**s, "max_steps": 1} for kind, s in values["stages"].items()}
    half = adapter_of(values, "half", stages=stages, training={"precision": "bf16"})
    full = adapter_of(values, "full", stages=stages)
    assert 0 < difference(half, full) < 0.1
    assert all(tensor.dtype == torch.float32 for tensor in half.values())


def test_learning_rate_by_hand():
    config = OptimiserConfig(lr=1.0, final_lr=0.1, schedule="cosine", warmup_fraction=0.2)
    rates = [learning_rate(config, step, 10) for step in range(10)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rates[6] == pytest.approx(0.55)
    assert all(a > b for a, b in itertools.pairwise(rates[2:]))
    flat = OptimiserConfig(lr=1.0, schedule="constant")
    assert learning_rate(flat, 9, 10) == 1.0
    line = OptimiserConfig(lr=1.0, schedule="linear")
    assert learning_rate(line, 5, 10) == pytest.approx(0.5)


def test_seeds_of_steps_differ():
    seeds = {
        step_seed(s, stage, step) for s in range(3) for stage in range(1, 4) for step in range(50)
    }
    assert len(seeds) == 3 * 3 * 50
