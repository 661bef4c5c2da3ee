"""Tokens that nobody reads are left out where that changes nothing, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from models.families import FAMILIES, tiny_inputs
from torch import nn

from kswap.models.adapter import attach
from kswap.models.features import Places, recorded_features
from kswap.models.fused import fused_adapters
from kswap.models.head import find_heads
from kswap.models.loading import quiet
from kswap.models.structure import FfnBlock
from kswap.models.unread import find_unread
from kswap.settings import AdapterConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
ONE_TOKEN = {"deit", "vit", "vit-msn", "deit-distilled"}
"""Families of which it is known that the head reads the class token alone."""
ALL_TOKENS = {"beit", "dinov2", "swin", "convnext", "siglip"}


@pytest.fixture(params=FAMILIES)
def adapted(request, built):
    """Yield the family, a model with an adapter that is not zero, and its blocks."""
    model, blocks = built(request.param)
    with quiet():
        heads = find_heads(model)
        peft_model = attach(model, blocks, AdapterConfig(rank=3), head_names=heads, seed=0).eval()
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))
    return request.param, peft_model, blocks


def unread_of(peft_model, block):
    inputs = tiny_inputs(peft_model.get_base_model(), 1)
    return find_unread(
        peft_model.get_base_model(), block, lambda: [peft_model(**inputs).logits], tolerance=1e-5
    )


def loss_and_gradients(peft_model, inputs):
    trained = [p for p in peft_model.parameters() if p.requires_grad]
    loss = peft_model(**inputs).logits.square().mean()
    return loss.detach(), torch.autograd.grad(loss, trained)


def test_losses_and_gradients_stay(adapted):
    family, peft_model, blocks = adapted
    base = peft_model.get_base_model()
    inputs = tiny_inputs(base, 3)
    before = set(vars(base.get_submodule(blocks[-1].name)))
    with fused_adapters(peft_model):
        unread = unread_of(peft_model, blocks[-1])
        assert family not in ALL_TOKENS or unread is None
        if unread is None:
            assert family not in ONE_TOKEN
            return
        loss, gradients = loss_and_gradients(peft_model, inputs)
        with unread.skipped(base):
            cut, others = loss_and_gradients(peft_model, inputs)
        again, _ = loss_and_gradients(peft_model, inputs)
    assert torch.allclose(cut, loss, rtol=1e-5)
    for ours, theirs in zip(others, gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5 * max(1e-3, float(theirs.abs().max())))
    assert torch.equal(again, loss), "the modules are themselves again"
    assert set(vars(base.get_submodule(blocks[-1].name))) == before


def test_the_work_on_other_tokens_is_not_done(built):
    model, blocks = built("vit")
    unread = find_unread(
        model, blocks[-1], lambda: [model(**tiny_inputs(model, 1)).logits], tolerance=1e-5
    )
    assert unread is not None
    assert unread.num_read == 1
    names = {name.removeprefix(blocks[-1].name + ".") for name in unread.modules}
    assert len(names) == 3, "queries, the projection behind them, the feed-forward network"
    assert not any("k_proj" in name or "key" in name for name in names)
    seen = []
    inner = [model.get_submodule(name) for name in blocks[-1].linears]
    handles = [m.register_forward_hook(lambda _, args, out: seen.append(out.shape)) for m in inner]
    with unread.skipped(model):
        model(**tiny_inputs(model, 4))
    for handle in handles:
        handle.remove()
    assert [tuple(shape[:2]) for shape in seen] == [(4, 1)] * len(inner)


def test_what_is_recorded_is_read(built):
    model, blocks = built("vit")
    places = Places(blocks=((len(blocks), blocks[-1]),), num_blocks=len(blocks))

    def answers():
        with recorded_features(model, places) as found:
            logits = model(**tiny_inputs(model, 1)).logits
        return [logits, *found.values()]

    assert find_unread(model, blocks[-1], answers, tolerance=1e-5) is None


class _Mixing(nn.Module):
    """A block whose attention does nothing yet: what mixes tokens cannot be seen by example."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = nn.Module()
        self.mixer.linear = nn.Linear(4, 4)
        self.mixer.forward = lambda x: self.mixer.linear(x.mean(1, keepdim=True).expand_as(x))
        nn.init.zeros_(self.mixer.linear.weight)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))

    def forward(self, x):
        x = x + self.mixer(x)
        return x + self.net(x)


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = _Mixing()
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.block(x)[:, 0])


def test_what_mixes_tokens_without_showing_it_is_left_alone():
    torch.manual_seed(0)
    model = _Model()
    x = torch.randn(1, 5, 4)
    block = FfnBlock("block", ("block.net.0", "block.net.2"))
    unread = find_unread(model, block, lambda: [model(x)], tolerance=1e-5)
    assert unread is not None
    assert "block.mixer" not in unread.modules
    assert "block.net" in unread.modules
    nn.init.ones_(model.block.mixer.linear.weight)
    with unread.skipped(model), torch.no_grad():
        cut = model(x)
    assert torch.allclose(cut, model(x), atol=1e-6)
