"""The summands of single units add up to the loss that transformers computes, for every family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as hf
from criteria_labels import INPUTS, PIXELS, assert_same, boxes, masks
from criteria_models import DETECTORS, MASKS, PER_PIXEL, SIDE, VIT, build, detr
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional

from kswap.errors import UserError
from kswap.tasks.criteria import (
    IGNORED,
    Normaliser,
    decompose,
    normaliser,
    outputs_only,
)
from kswap.tasks.criteria.terms import quality_aware

COUNTS = {"some": (2, 0, 3), "none": (0, 0, 0), "more objects than queries": (12, 1, 0)}


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("family", DETECTORS)
def test_detectors(family: str, counts: Sequence[int]) -> None:
    model = DETECTORS[family]()
    if hasattr(model.config, "group_detr"):
        model.config.group_detr = 1  # a model in evaluation mode has one; the criterion misses that
    ours = assert_same(model, boxes(counts))
    final = ours.layers[-1]
    for image, count in enumerate(counts):
        chosen = final.matched[image][final.matched[image] >= 0]
        assert chosen.unique().numel() == len(chosen) == min(count, final.matched.shape[1])
    assert not final.fit_loss[final.matched < 0].any()


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize(
    "family", ["rt-detr", "rt-detr-v2", "d-fine", "deimv2", "lw-detr", "rf-detr"]
)
def test_training_mode(family: str, counts: Sequence[int]) -> None:
    """Denoising queries, groups of queries and distributions of edges, as the library has them."""
    ours = assert_same(DETECTORS[family]().train(), boxes(counts))
    assert len(ours.layers) > 3


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_loss_without_dense_matching(counts: Sequence[int]) -> None:
    model = DETECTORS["deimv2"]().train()
    model.config.use_dense_one_to_one, model.config.mal_alpha = False, 0.7
    assert_same(model, boxes(counts))


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("family", MASKS)
def test_mask_classifiers(family: str, counts: Sequence[int]) -> None:
    ours = assert_same(MASKS[family](), masks(counts))
    assert ours.nothing
    assert not ours.layers[-1].fit_loss[ours.layers[-1].matched < 0].any()


FAMILIES = {
    **{name: (build, boxes) for name, build in DETECTORS.items()},
    **{name: (build, masks) for name, build in MASKS.items()},
}


NOT_ADDITIVE = {"mask2former", "eomt", "eomt-dinov3", "deimv2"}
"""Random points; how many queries fit boxes is only known of a part."""


@pytest.mark.parametrize("family", sorted({*FAMILIES, *PER_PIXEL} - NOT_ADDITIVE))
def test_micro_batches_add_up(family: str) -> None:
    """Parts of a batch that know the counts of the whole yield the loss of the whole.

    Added up, as in accumulation, or averaged, as over processes.
    """
    if family in PER_PIXEL:
        model: Any = PER_PIXEL[family]()
        labels: Any = torch.randint(0, 5, (3, SIDE, SIDE))
        labels[1, :50] = IGNORED
    else:
        make, objects = FAMILIES[family]
        model, labels = make(), objects((2, 0, 3))
    whole = decompose(model, INPUTS, labels).total()
    parts = (slice(0, 2), slice(2, 3))
    counts = sum((normaliser(labels[part]) for part in parts), Normaliser())
    assert counts == normaliser(labels)
    for shares in (1, 2):
        split = [
            decompose(
                model, {"pixel_values": PIXELS[part]}, labels[part], replace(counts, shares=shares)
            ).total()
            for part in parts
        ]
        torch.testing.assert_close(sum(split) / shares, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", [*FAMILIES, *PER_PIXEL])
def test_outputs_are_those_of_the_final_layer(family: str) -> None:
    model = {**DETECTORS, **MASKS, **PER_PIXEL}[family]()
    labels: Any = torch.zeros(3, SIDE, SIDE, dtype=torch.long)
    if family in FAMILIES:
        labels = FAMILIES[family][1]((1, 0, 2))
    final: Any = decompose(model, INPUTS, labels).layers[-1]
    logits, shapes = outputs_only(model, INPUTS)
    torch.testing.assert_close(logits, final.logits)
    if family in FAMILIES:
        torch.testing.assert_close(shapes, final.boxes if family in DETECTORS else final.masks)
    else:
        assert shapes is None


@pytest.mark.parametrize("family", ["detr", "mask2former", "maskformer", "eomt"])
def test_class_weight_turns_nats_into_shares(family: str) -> None:
    make, objects = FAMILIES[family]
    labels = objects((2, 0, 3))
    for layer in decompose(make(), INPUTS, labels).layers:
        last = layer.logits.shape[-1] - 1
        class_ids = torch.full_like(layer.matched, last)
        for image, one in enumerate(labels):
            found = layer.matched[image] >= 0
            class_ids[image][found] = one["class_labels"][layer.matched[image][found]]
        nats = functional.cross_entropy(layer.logits.mT, class_ids, reduction="none")
        torch.testing.assert_close(layer.class_weight * nats, layer.class_loss)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("family", ["yolos", "rt-detr", "mask2former", "segformer"])
def test_works_inside_peft(family: str) -> None:
    model = {**DETECTORS, **MASKS, **PER_PIXEL}[family]()
    labels: Any = torch.randint(0, 5, (3, SIDE, SIDE))
    if family in FAMILIES:
        labels = FAMILIES[family][1]((1, 0, 2))
    torch.manual_seed(5)
    bare = decompose(model, INPUTS, labels).total()
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.endswith((".fc1", ".dense"))
    ]
    wrapped = get_peft_model(model, LoraConfig(target_modules=targets))
    torch.manual_seed(5)
    inside = decompose(wrapped, INPUTS, labels).total()
    torch.testing.assert_close(inside, bare)
    inside.backward()
    assert any(p.grad is not None for n, p in wrapped.named_parameters() if "lora_B" in n)
    torch.testing.assert_close(outputs_only(wrapped, INPUTS)[0], outputs_only(model, INPUTS)[0])


@pytest.mark.parametrize("family", ["detr", "deformable-detr", "d-fine", "rf-detr", "mask2former"])
def test_half_precision(family: str) -> None:
    """Under autocast the forward is in half precision, the loss is not."""
    make, objects = FAMILIES[family]
    model, labels = make(), objects((1, 0, 2))
    with torch.autocast("cpu", torch.bfloat16):
        ours = decompose(model, INPUTS, labels)
    for layer in ours.layers:
        assert layer.logits.dtype == layer.class_loss.dtype == layer.fit_loss.dtype == torch.float32
    full = decompose(model, INPUTS, labels).total()
    torch.testing.assert_close(ours.total(), full, rtol=0.2, atol=0.1)
    ours.total().backward()


def test_saturated_logits_stay_finite() -> None:
    """LW-DETR's own loss takes the logarithm of a probability that has become zero."""
    logits = torch.full((1, 2, 3), 200.0, requires_grad=True)
    place = torch.tensor([0]), torch.tensor([1]), torch.tensor([2])
    loss = quality_aware(logits, place, torch.tensor([0.5]), alpha=0.25).sum()
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_boxes_that_are_not_numbers_give_a_loss_that_is_none() -> None:
    model = DETECTORS["detr"]()
    with torch.no_grad():
        model.bbox_predictor.layers[-1].bias.fill_(float("nan"))
    assert decompose(model, INPUTS, boxes((1, 0, 2))).total().isnan()


def test_nothing_stays_replaced() -> None:
    model = DETECTORS["detr"]()
    before = model.loss_function
    with pytest.raises(TypeError):
        decompose(model, {**INPUTS, "unknown": 1, "pixel_mask": 3}, boxes((1, 0, 1)))
    assert model.loss_function is before
    segmenter = MASKS["eomt"]()
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        decompose(segmenter, {"pixel_values": PIXELS[:, :1]}, masks((1, 0, 1)))
    assert "get_loss_dict" not in vars(segmenter)


def test_model_that_computes_no_loss_is_named() -> None:
    class NoLossForObjectDetection(hf.DetrForObjectDetection):
        def forward(self, pixel_values: Tensor, labels: Any = None) -> Any:
            return super().forward(pixel_values)

    with pytest.raises(UserError, match="NoLossForObjectDetection computes no loss from labels"):
        decompose(detr(NoLossForObjectDetection, hf.DetrConfig), INPUTS, boxes((1, 0, 2)))


def test_unknown_loss_is_named() -> None:
    model = build(hf.ViTForImageClassification, hf.ViTConfig(**VIT))
    with pytest.raises(UserError, match=r"ViTForImageClassification: its loss \(For.*Mask2Former"):
        outputs_only(model, INPUTS)
