"""A sharded base answers, and gives the adapter gradients, as a whole one does."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
import torch
from criteria_models import SIDE
from models.families import FAMILIES, tiny_inputs
from models.scene_families import SCENES
from torch import Tensor, distributed, multiprocessing
from torch.distributed.tensor import DTensor

from kswap.models import adapter, head
from kswap.models.checks import repair_config
from kswap.models.class_tensors import class_tensors
from kswap.models.fused import fused_adapters
from kswap.models.sharding import shard
from kswap.models.structure import find_ffn_blocks
from kswap.settings import AdapterConfig


def outputs(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return all answers of a model, end to end."""
    found = model(**inputs)
    names = ("logits", "pred_boxes", "class_queries_logits", "masks_queries_logits")
    parts = [getattr(found, name, None) for name in names]
    return torch.cat([part.flatten().float() for part in parts if part is not None])


def adapted(base: Any, blocks: Any, heads: Any) -> Any:
    """Return it as a run does: one class more, LoRA that is not nothing."""
    labels = {**base.config.id2label, len(base.config.id2label): "one more"}
    head.extend_head(base, labels, init="random", seed=0, heads=heads)
    wrapped = adapter.attach(base, blocks, AdapterConfig(rank=2), head_names=heads, seed=0)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for matrix in adapter.adapter_tensors(wrapped).values():
            matrix.add_(0.1 * torch.randn(matrix.shape, generator=noise))
    return wrapped.eval()


def gradients(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    with fused_adapters(model):
        outputs(model, inputs).square().mean().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def near(ours: Tensor, theirs: Tensor) -> bool:
    size = max(1e-3, float(theirs.detach().abs().max()))
    return torch.allclose(ours, theirs, rtol=0, atol=1e-5 * size)


def compare(family: str) -> None:
    base = (FAMILIES | SCENES)[family]()
    repair_config(base)  # as loading does
    if family in FAMILIES:
        inputs = tiny_inputs(base)
    else:
        inputs = {"pixel_values": torch.randn(2, 3, SIDE, SIDE)}
    blocks, heads = find_ffn_blocks(base), head.find_heads(base)
    if family in FAMILIES:
        apart = [f"{name}.{kind}" for name in heads for kind in ("weight", "bias")]
    else:
        apart = [f"{one.module}.{one.name}" for one in class_tensors(base)]
    whole = copy.deepcopy(base)
    shard(base, [b.name for b in blocks], apart=apart, device=torch.device("cpu"))
    assert type(base).__name__ == type(whole).__name__
    cut = [p for p in base.parameters() if isinstance(p, DTensor)]
    kept = sum(p.to_local().numel() for p in cut)
    assert kept < 0.7 * sum(p.numel() for p in cut), "half of what is cut stays here"
    assert len(cut) >= len(list(base.parameters())) - len(apart)
    with torch.no_grad():
        assert near(outputs(base, inputs), outputs(whole, inputs)), "answers of the base"
    sharded, plain = (adapted(model, blocks, heads) for model in (base, whole))
    for _ in range(2):
        ours, theirs = gradients(sharded, inputs), gradients(plain, inputs)
        assert ours.keys() == theirs.keys()
        for name, gradient in theirs.items():
            assert near(ours[name], gradient), name
    with torch.no_grad(), adapter.without_adapter(sharded), adapter.without_adapter(plain):
        assert near(outputs(sharded, inputs), outputs(plain, inputs)), "answers without adapter"


def _meet(rank: int, families: list[str], path: str) -> None:
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{path}", timedelta(seconds=120), rank=rank, world_size=2
    )
    failures = {}
    for family in families:
        torch.manual_seed(0)
        try:
            compare(family)
        except Exception as error:
            failures[family] = f"{type(error).__name__}: {str(error)[:300]}"
    distributed.destroy_process_group()
    assert not failures, "\n".join(f"{family}: {why}" for family, why in failures.items())


SOME = ["vit", "swin", "dinov2", "mask2former", "segformer", "rt-detr"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "families",
    [
        pytest.param(SOME, id="some"),
        pytest.param([f for f in FAMILIES if f not in SOME], id="classifiers"),
        pytest.param([f for f in SCENES if f not in SOME], id="scenes"),
    ],
)
def test_a_sharded_model_is_the_whole_one(families, tmp_path):
    multiprocessing.spawn(_meet, (families, str(tmp_path / "meet")), nprocs=2)
