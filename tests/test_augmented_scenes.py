"""Where images are augmented the base model answers at every step, by the model that trains."""

from __future__ import annotations

import json

import pytest
import torch
from criteria_models import DETECTORS, MASKS, PER_PIXEL, SIDE
from tiny_runs import tiny_run

import kswap
from kswap.models import adapter, head, structure
from kswap.settings import AdapterConfig
from kswap.tasks import Examples, find

pytestmark = pytest.mark.usefixtures("undrawn")

MODELS = {
    "rt-detr": ("detection", DETECTORS["rt-detr"]),
    "detr": ("detection", DETECTORS["detr"]),
    "mask2former": ("segmentation", MASKS["mask2former"]),
    "segformer": ("segmentation", PER_PIXEL["segformer"]),
}


@pytest.mark.parametrize(
    "augment", [pytest.param("flip", marks=pytest.mark.slow), "flip-crop-colour"]
)
@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_a_run_with_augmented_scenes(task, augment, tmp_path):
    values = {**tiny_run(task, tmp_path), "data": {"augment": augment}}
    results = kswap.swap(kswap.SwapConfig.from_mapping(values)).results
    lines = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    assert len(results["stages"]) == 3
    assert all(line["terms"]["keep"] > 0 for line in lines if line["step"] == 2)


@pytest.mark.parametrize("name", list(MODELS))
def test_the_model_without_its_adapter_answers_as_the_base_did(name):
    task_name, build = MODELS[name]
    torch.manual_seed(0)
    model, task = build().eval(), find(task_name)
    num_base = model.config.num_labels
    pixels = torch.randn(2, 3, SIDE, SIDE)
    zeros = torch.zeros(2, dtype=torch.long)
    examples = Examples(pixels, zeros, zeros, zeros.bool())
    with torch.no_grad():
        before = task.teach(model, examples)
    names = {row: str(row) for row in range(num_base + 2)}
    blocks, heads = structure.find_ffn_blocks(model), head.find_heads(model)
    head.extend_head(model, dict(model.config.id2label) | {
        row: name for row, name in names.items() if row >= num_base
    }, init="mean", seed=0)  # fmt: skip
    swapped = adapter.attach(model, blocks, AdapterConfig(), head_names=heads, seed=0)
    swapped.eval()
    with torch.no_grad():
        for parameter in swapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        with swapped.disable_adapter():
            after = task.teach(swapped, examples, num_base=num_base)
        moved = task.teach(swapped, examples, num_base=num_base)
    assert {k: v.shape for k, v in after.items()} == {k: v.shape for k, v in before.items()}
    for key, value in before.items():
        # What is kept in half precision may be rounded to the next number on either side.
        near = 1e-4 if value.dtype == torch.float32 else 1e-3
        assert torch.allclose(after[key].float(), value.float(), atol=near), key
        assert not torch.allclose(moved[key].float(), value.float(), atol=near), key
