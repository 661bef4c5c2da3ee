"""The model of a run: the base where it trains, and the base with head and adapter extended."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch

from kswap.errors import UserError
from kswap.models import adapter as adapters
from kswap.models import head, structure
from kswap.models.class_tensors import class_tensors
from kswap.models.quantised import load_quantised, quantised_linears
from kswap.models.sharding import shard
from kswap.ranks import shards_base
from kswap.running.state import RunState


def base_model(state: RunState) -> Any:
    """Return the base where it trains, in what `training.base_weights` says."""
    bits = state.config.training.base_weights
    if bits == "fp32":  # one that is sharded goes to its devices part by part
        return (
            state.loaded.model if shards_base() else state.loaded.model.to(state.accelerator.device)
        )
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}
    model = load_quantised(
        state.loaded,
        bits,
        blocks=structure.find_ffn_blocks(state.loaded.model),
        device=state.accelerator.device,
        compute=half.get(state.config.training.precision, torch.float32),
    )
    count = len(quantised_linears(model))
    state.on_note(
        f"the base is held in {bits} while it trains ({count} linears); what is saved is the "
        "adapter on the base in full precision"
    )
    return model


def shard_base(state: RunState, model: Any) -> Any:
    """Leave this process its part of the base, in place.

    Returns:
        The first process's copy of the whole base, on the CPU; None on the others.
    """
    if state.config.training.analysis:
        raise UserError(
            "training.analysis: true looks at gradients in one process, and with "
            "distributed_type: FSDP none has the whole base; set it to false, or take MULTI_GPU"
        )
    whole = copy.deepcopy(model) if state.accelerator.is_main_process else None
    if state.task.name == "classification":
        apart = [f"{name}.{kind}" for name in state.heads for kind in ("weight", "bias")]
    else:
        apart = [f"{one.module}.{one.name}" for one in class_tensors(model)]
    shard(
        model,
        [block.name for block in state.blocks],
        apart=apart,
        device=state.accelerator.device,
    )
    if state.config.training.prefix_cache:
        state.on_note(
            "the base is sharded (FSDP): all blocks run at every step, also those below the "
            "ones that train"
        )
    return whole


def adapted(state: RunState, model: Any) -> Any:
    """Extend the head of a bare model, in place, and wrap it by PEFT."""
    scenes = state.task.name != "classification"
    init: Literal["random", "mean"] = (
        "mean" if scenes and state.config.head.init == "class-mean" else "random"
    )
    head.extend_head(
        model, state.data.id2label, init=init, seed=state.config.seed, heads=state.heads
    )
    swapped = adapters.attach(
        model,
        state.blocks,
        state.config.adapter,
        head_names=state.heads,
        head_train=state.config.head.train,
        seed=state.config.seed,
    )
    if state.config.head.train == "new":
        head.freeze_old_rows(
            swapped,
            state.heads,
            state.data.num_base_classes,
            num_new=len(state.data.class_ids.get("learn", ())),
        )
    return swapped
