"""What lies below the blocks that train is played back, in every family, with equal answers."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models.families import FAMILIES, tiny_inputs
from models.scene_families import SCENES
from models.test_scenes import ROLES_OF_ROWS, _built, adapted
from scene_examples import examples, view_of
from torch import nn

from kswap.models.adapter import attach
from kswap.models.head import find_heads
from kswap.models.loading import quiet
from kswap.models.prefix import Prefix, Trial, find_prefix
from kswap.settings import AdapterConfig
from kswap.tasks import Examples, find
from kswap.training.prefix_cache import outer_modules

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
WITHOUT = ("dab-detr",)
"""Families that are trained without one: the check of their prefix fails, and says so."""


def freeze_half(peft_model: Any, blocks: Any) -> tuple[int, set[str]]:
    """Freeze the adapter of the first half of the blocks; return what ends the prefix."""
    base = peft_model.get_base_model()
    count = len(blocks) // 2
    for block in blocks[:count]:
        base.get_submodule(block.name).requires_grad_(False)
    names = [block.name for block in blocks]
    trainee = SimpleNamespace(model=peft_model, base=base)
    return count, outer_modules(trainee, names)


def kept_modules(prefix: Prefix) -> list[str]:
    return [call.module for call in prefix.calls if call.is_kept]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_classifier_answers_the_same_with_its_prefix_played(family, built):
    model, blocks = built(family)
    with quiet():
        heads = find_heads(model)
        peft_model = attach(model, blocks, AdapterConfig(rank=2), head_names=heads, seed=0).eval()
    count, ends = freeze_half(peft_model, blocks)
    one, two = tiny_inputs(model, 3, seed=1), tiny_inputs(model, 3, seed=2)
    fewer = {name: values[:2] for name, values in one.items()}
    trial = Trial(
        lambda inputs: [peft_model(**inputs).logits],
        lambda inputs, v: {**inputs, "pixel_values": torch.full_like(inputs["pixel_values"], v)},
        3,
        one,
        fewer,
        two,
    )
    base = peft_model.get_base_model()
    prefix = find_prefix(base, ends, trial)
    assert prefix is not None
    assert not prefix.reads_pixels
    assert len(kept_modules(prefix)) <= 2
    kept = prefix.record(base, lambda: peft_model(**two))
    assert sum(values[0].nbytes for values in kept.values()) == prefix.bytes_per_image
    ran: list[str] = []
    hooks = [
        base.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
        for block in blocks[:count]
        for name in block.linears
    ]
    nothing = {**two, "pixel_values": torch.zeros_like(two["pixel_values"])}
    with prefix.playing(base, kept):
        played = peft_model(**nothing).logits
    assert not ran, "a frozen block was computed"
    truth = peft_model(**two).logits
    assert ran, "without the context everything is computed"
    for hook in hooks:
        hook.remove()
    assert torch.allclose(played, truth, atol=1e-5)
    assert not torch.equal(truth, peft_model(**nothing).logits)
    trained = [p for p in peft_model.parameters() if p.requires_grad]
    with prefix.playing(base, kept):
        ours = torch.autograd.grad(peft_model(**nothing).logits.square().sum(), trained)
    theirs = torch.autograd.grad(peft_model(**two).logits.square().sum(), trained)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * max(1.0, float(b.abs().max())))


def scenes(seed: int, count: int = 3) -> Examples:
    one = examples(ids=(0, 3, 4))
    rows = torch.arange(count) % 2
    noise = torch.Generator().manual_seed(seed)
    assert one.masks is not None
    assert one.boxes is not None
    assert one.box_ids is not None
    assert one.crowd is not None
    return replace(
        one,
        pixels=torch.randn(count, *one.pixels.shape[1:], generator=noise),
        class_ids=one.class_ids[rows],
        roles=one.roles[rows],
        complete=one.complete[rows],
        masks=one.masks[rows],
        boxes=tuple(one.boxes[row] for row in rows),
        box_ids=tuple(one.box_ids[row] for row in rows),
        crowd=tuple(one.crowd[row] for row in rows),
    )


FEW = ("mask2former", "segformer", "eomt", "rt-detr", "deformable-detr-two-stage-swin", "dab-detr")
"""Of scenes, in the default tests: one of each kind."""
few_families = [pytest.param(f, marks=[] if f in FEW else [pytest.mark.slow]) for f in SCENES]


@pytest.mark.parametrize("family", few_families)
def test_the_units_of_a_scene_are_the_same_with_the_prefix_played(family):
    peft_model, _, blocks, _ = adapted(family)
    task, view = find(_built(family)[0].task), view_of(ROLES_OF_ROWS, 5)
    _, ends = freeze_half(peft_model, blocks)
    base = peft_model.get_base_model()

    def answers(given: Examples) -> list[torch.Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            units = task.units(peft_model, given, None, view)
        return [t for u in units for t in (u.logits, u.own) if t is not None]

    def blank(given: Examples, value: float) -> Examples:
        return replace(given, pixels=torch.full_like(given.pixels, value))

    prefix = find_prefix(
        base, ends, Trial(answers, blank, 3, scenes(1), scenes(1, count=2), scenes(2))
    )
    if family in WITHOUT:
        assert prefix is None
        return
    assert prefix is not None
    assert not prefix.reads_pixels
    five = scenes(7, count=5)
    kept = prefix.record(base, lambda: answers(five))
    with prefix.playing(base, kept):
        played = answers(blank(five, 0.0))
    for ours, theirs in zip(played, answers(five), strict=True):
        near = 1e-4 * max(1.0, float(theirs.detach().abs().max()))
        assert torch.allclose(ours, theirs, atol=near)


class Shared(nn.Module):
    """A module that runs before and after what trains, beside one that looks at the batch."""

    def __init__(self, *, looks_at_batch: bool = False) -> None:
        super().__init__()
        self.first, self.norm, self.block = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)
        self.looks_at_batch = looks_at_batch
        self.requires_grad_(False)
        self.block.requires_grad_(True)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        stream = self.norm(self.first(pixel_values))
        if self.looks_at_batch:
            stream = self.first(stream - 2 * stream.mean(0))
        return self.norm(self.block(stream) + pixel_values)


def toy(model: nn.Module) -> Prefix | None:
    inputs = [torch.randn(n, 4, generator=torch.Generator().manual_seed(n)) for n in (3, 2, 4)]
    trial = Trial(lambda x: [model(x)], torch.full_like, 3, inputs[0], inputs[0][:2], inputs[2][:3])
    return find_prefix(model, {"block"}, trial)


def test_a_module_that_runs_again_behind_the_prefix_runs_there():
    torch.manual_seed(0)
    model = Shared()
    prefix = toy(model)
    assert prefix is not None
    assert kept_modules(prefix) == ["norm"]
    assert prefix.reads_pixels  # they are added behind the block
    x = torch.randn(5, 4)
    kept = prefix.record(model, lambda: model(x))
    with prefix.playing(model, kept):
        played = model(x)
    assert torch.allclose(played, model(x), atol=1e-6)
    assert "forward" not in vars(model.norm)


def test_answers_that_depend_on_the_batch_have_no_prefix():
    torch.manual_seed(0)
    model = Shared(looks_at_batch=True)
    assert toy(model) is None


def test_what_trains_all_the_same_is_not_kept():
    torch.manual_seed(0)
    model = Shared()
    model.first.requires_grad_(True)  # trains, and is not among the modules that end the prefix
    assert toy(model) is None


def test_a_model_whose_ends_are_never_reached_has_no_prefix():
    torch.manual_seed(0)
    model = Shared()
    model.unused = nn.Linear(2, 2)
    trial = Trial(lambda x: [model(x)], torch.full_like, 3, *(torch.randn(n, 4) for n in (3, 2, 3)))
    assert find_prefix(model, {"unused"}, trial) is None
