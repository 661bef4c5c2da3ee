"""Fused LoRA linears answer and learn as PEFT's do, and leave alone what they cannot do."""

from __future__ import annotations

import pytest
import torch
from models.families import FAMILIES, tiny_inputs

from kswap.models.adapter import attach, without_adapter
from kswap.models.fused import _reached_rows, fused_adapters
from kswap.models.head import find_heads
from kswap.models.loading import quiet
from kswap.settings import AdapterConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def adapted(built, family, **options):
    model, blocks = built(family)
    with quiet():
        heads = find_heads(model)
        config = AdapterConfig(rank=3, **{"scale": 0.7, **options})
        peft_model = attach(model, blocks, config, head_names=heads, seed=0).eval()
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))
    return peft_model


def loss_and_gradients(peft_model, inputs):
    trained = [p for p in peft_model.parameters() if p.requires_grad]
    loss = peft_model(**inputs).logits.square().mean()
    return loss.detach(), torch.autograd.grad(loss, trained)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_pefts(family, built):
    peft_model = adapted(built, family)
    inputs = tiny_inputs(peft_model.get_base_model(), 3)
    loss, gradients = loss_and_gradients(peft_model, inputs)
    with fused_adapters(peft_model):
        fused, others = loss_and_gradients(peft_model, inputs)
    assert torch.allclose(fused, loss, rtol=1e-5)
    for ours, theirs in zip(others, gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5 * max(1e-3, float(theirs.abs().max())))
    again, _ = loss_and_gradients(peft_model, inputs)
    assert torch.equal(again, loss), "PEFT's own forward is back"


def count_pefts(peft_model, inputs):
    """Return how many LoRA linears PEFT computes: their A is called."""
    called = []
    for name, module in peft_model.named_modules():
        if name.endswith("lora_A.default"):
            module.register_forward_hook(lambda *_: called.append(1))
    with fused_adapters(peft_model):
        peft_model(**inputs)
    return len(called)


def test_every_linear_is_fused(built):
    peft_model = adapted(built, "vit")
    assert count_pefts(peft_model, tiny_inputs(peft_model.get_base_model())) == 0


@pytest.mark.parametrize("what", ["dropout", "autocast", "half"])
def test_what_cannot_be_fused_is_computed_by_peft(what, built):
    peft_model = adapted(built, "vit", dropout=0.5 if what == "dropout" else 0.0)
    inputs = tiny_inputs(peft_model.get_base_model())
    if what == "half":
        peft_model.to(torch.bfloat16)
        inputs = {name: values.to(torch.bfloat16) for name, values in inputs.items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=what == "autocast"):
        assert count_pefts(peft_model, inputs) == 4


def test_the_base_answers_within_its_context(built):
    peft_model = adapted(built, "vit")
    inputs = tiny_inputs(peft_model.get_base_model())
    with torch.no_grad():
        with without_adapter(peft_model):
            base = peft_model(**inputs).logits
        with fused_adapters(peft_model), without_adapter(peft_model):
            assert torch.equal(peft_model(**inputs).logits, base)
        assert not torch.allclose(peft_model(**inputs).logits, base)


def test_what_did_not_train_does_not_train_behind_the_bases_context(built):
    peft_model = adapted(built, "vit")
    frozen = [p for name, p in peft_model.named_parameters() if "layers.0" in name]
    for parameter in frozen:
        parameter.requires_grad_(False)
    trained = {name: p.requires_grad for name, p in peft_model.named_parameters()}
    with without_adapter(peft_model):
        pass
    assert {name: p.requires_grad for name, p in peft_model.named_parameters()} == trained


@pytest.mark.parametrize(("family", "reads"), [("vit", "one token"), ("dinov2", "all tokens")])
def test_tokens_that_no_gradient_reaches_are_left_out(family, reads, built, monkeypatch):
    peft_model = adapted(built, family)
    inputs = tiny_inputs(peft_model.get_base_model(), 3)
    found = []

    def looking(at_y):
        found.append((_reached_rows(at_y), len(at_y)))
        return found[-1][0]

    monkeypatch.setattr("kswap.models.fused._reached_rows", looking)
    with fused_adapters(peft_model):
        loss_and_gradients(peft_model, inputs)
    left = [None if rows is None else rows.tolist() for rows, _ in found]
    num_tokens = found[0][1] // 3
    firsts = [0, num_tokens, 2 * num_tokens]
    last_block = [firsts] * 2 if reads == "one token" else [None] * 2
    assert left == last_block + [None] * (len(found) - 2)


def test_a_gradient_that_is_nowhere_or_not_a_number():
    nowhere = torch.zeros(200, 8)
    assert _reached_rows(nowhere).tolist() == []
    broken = nowhere.clone()
    broken[7, 7] = torch.nan
    assert _reached_rows(broken).tolist() == [7]
    assert _reached_rows(torch.ones(200, 8)) is None
    half = nowhere.clone()
    half[::2] = 1
    assert _reached_rows(half) is None
