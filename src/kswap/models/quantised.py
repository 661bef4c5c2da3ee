"""The base held in 8 or 4 bits while an adapter trains on it (QLoRA), by bitsandbytes.

Quantised are the linears within transformer blocks, attention and feed-forward alike: there lies
nearly all of the weight. Whatever trains (LoRA, the head) and whatever predicts, embeds or pools
stays in single precision. 4 bits: NormalFloat with double quantisation (Dettmers et al. 2023,
arXiv 2305.14314); 8 bits: LLM.int8 (Dettmers et al. 2022, arXiv 2208.07339).

Nothing quantised is ever saved. A finished adapter is put onto the base in full precision, which
is what `adapter/` names and what `model/` is merged from.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from kswap.errors import UserError
from kswap.models.answering import remember_answers
from kswap.models.loading import Loaded, load_weights
from kswap.models.structure import FfnBlock
from kswap.ranks import shards_base
from kswap.settings import BaseWeights, TrainingConfig


def check_base_weights(training: TrainingConfig, device: torch.device, *, in_memory: bool) -> None:
    """Refuse what the base cannot be held in here.

    Args:
        training: says in what, and which device was asked for.
        device: what a run has.
        in_memory: whether the model was given as an object.

    Raises:
        UserError: there is no GPU, or no bitsandbytes, the base is sharded, or the model has no
            files to read.
    """
    bits = training.base_weights
    if bits == "fp32":
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"training.base_weights: {bits!r} needs bitsandbytes, which is not installed; "
            "pip install 'kswap[quantise]', or take fp32"
        )
    if device.type != "cuda" and not (device.type == "cpu" and training.device == "cpu"):
        raise UserError(
            f"training.base_weights: {bits!r} is meant for a GPU (CUDA or ROCm), and here is none; "
            "take fp32, or add training.device: cpu to have it slowly on the processor"
        )
    if shards_base():
        raise UserError(
            f"training.base_weights: {bits!r} cannot be sharded; take distributed_type: MULTI_GPU "
            "in the config file of accelerate, or fp32"
        )
    if in_memory:
        raise UserError(
            f"training.base_weights: {bits!r} reads the model from its files, and this one was "
            "passed in memory; save it and name the folder in model, or take fp32"
        )


def load_quantised(
    loaded: Loaded,
    bits: BaseWeights,
    *,
    blocks: Sequence[FfnBlock],
    device: torch.device,
    compute: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Return the base once more, in eval mode on a device, its blocks' linears in 8 or 4 bits.

    Args:
        loaded: the same model in full precision.
        bits: `8bit` or `4bit`.
        blocks: from `find_ffn_blocks` on it.
        device: of the quantised model.
        compute: what 4-bit products are computed in; LLM.int8 computes in half precision always.

    Raises:
        UserError: the weights cannot be loaded so.
        RuntimeError: other linears were quantised than those of the blocks.
    """
    # it says on every call that inputs become half precision, which is how LLM.int8 works
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    plain = [name for name, module in loaded.model.named_modules() if type(module) is nn.Linear]
    inside = tuple(f"{block.name}." for block in blocks)
    wanted = {name for name in plain if name.startswith(inside)}
    how = BitsAndBytesConfig(
        load_in_8bit=bits == "8bit",
        load_in_4bit=bits == "4bit",
        llm_int8_skip_modules=[name for name in plain if name not in wanted],
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    place = torch.cuda.current_device() if device.type == "cuda" else device.type
    model = load_weights(
        loaded.source,
        loaded.task,
        revision=loaded.commit,
        quantization_config=how,
        device_map={"": device.index if device.index is not None else place},
    )
    remember_answers(model, loaded.processor)
    names = set(quantised_linears(model))
    if not names or not names <= wanted:  # a name that ends another's is left out with it
        raise RuntimeError(
            f"bitsandbytes quantised {len(names)} linears, of which {len(names - wanted)} are in "
            f"no block; {len(wanted)} were meant"
        )
    if device.type == "cpu":
        keep_differentiable(model)
    return model.eval()


def keep_differentiable(model: nn.Module) -> None:
    """Keep 4-bit linears from repacking their weights at the first scoring on a processor.

    Where the processor has AVX512-BF16, a forward pass in eval mode without gradients lays the
    weight out anew, for good, for a product that has no backward pass and, in bitsandbytes 0.50,
    takes inputs of fewer shapes. An adapter trains behind each scoring, so the layout has to stay.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def quantised_linears(model: nn.Module) -> list[str]:
    """Return the names of the linears whose weights are quantised."""
    return [name for name, module in model.named_modules() if is_quantised(module)]


def is_quantised(module: Any) -> bool:
    """Whether a layer's weight is held in 8 or 4 bits by bitsandbytes."""
    return type(getattr(module, "weight", None)).__name__ in ("Params4bit", "Int8Params")
