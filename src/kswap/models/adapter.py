"""LoRA on the feed-forward linears, by PEFT, with the head saved beside it.

One adapter serves all stages. A is Kaiming-uniform (a = sqrt 5), B is 0, so that the adapted model
starts as the base bit for bit. PEFT matches module names by suffix; here exactly the named modules
are hit, or it is an error.

A head whose name ends that of another module (`class_embed` beside `enc_out_class_embed`, as in
LW-DETR and RF-DETR) has no name in `modules_to_save` that would not hit both. It gets the wrapper
that PEFT would give it from here, and is saved as the others are; `PeftModel.from_pretrained`
writes it into the base's own layer, as it does with biases and embeddings: the same answers.
"""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import ModulesToSaveWrapper
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from kswap.errors import UserError
from kswap.models.head import head_linear
from kswap.models.structure import FfnBlock, shown
from kswap.settings import AdapterConfig

ADAPTER_NAME = "default"


class AdapterNotMovedError(UserError):
    """A stage has ended and some adapter tensors are what they were when it began."""


def attach(
    model: PreTrainedModel,
    blocks: Sequence[FfnBlock],
    config: AdapterConfig,
    *,
    head_names: Sequence[str],
    seed: int,
    head_train: Literal["new", "all", "none"] = "new",
) -> PeftModel:
    """Wrap `model` by PEFT: LoRA on the linears of `blocks`; the heads are part of the adapter.

    Args:
        model: A bare model, head already extended. It is changed in place.
        blocks: From `find_ffn_blocks`.
        config: Rank, scale, dropout.
        head_names: From `find_heads`.
        seed: Seed of the A matrices; the global generator is untouched.
        head_train: none freezes the heads; for new, also call `freeze_old_rows`.

    Raises:
        RuntimeError: PEFT hit other modules than the named ones.
    """
    was_training = model.training
    linears = [name for block in blocks for name in block.linears]
    own = _ends_of_others(model, head_names)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.rank * config.scale,  # PEFT divides it by r; it need not be whole
        lora_dropout=config.dropout,
        target_modules=f"(?:{'|'.join(map(re.escape, linears))})",  # matched whole
        modules_to_save=[name for name in head_names if name not in own] or None,
    )
    ties = _ties(model, head_names)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT's own init draws from the global generator, and it reads a deprecated property.
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        with without_embeddings(model):
            wrapped = get_peft_model(model, lora, adapter_name=ADAPTER_NAME)
    if not isinstance(wrapped, PeftModel):
        raise TypeError(f"PEFT returned a {type(wrapped).__name__}")
    for name in own:
        _save_with_adapter(wrapped.get_base_model(), name)
    _check_hits(wrapped, linears, head_names)
    tie_heads(wrapped, ties)
    generator = torch.Generator().manual_seed(seed)
    for name in linears:
        down, up = _lora_pair(wrapped, name)
        start = torch.empty(down.shape)
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        with torch.no_grad():
            down.copy_(start)
            up.zero_()
    for name in head_names:
        head_linear(wrapped, name).requires_grad_(head_train != "none")
    return wrapped.train(was_training)


def _ends_of_others(model: nn.Module, heads: Sequence[str]) -> list[str]:
    """Return the heads whose names also end those of modules that are no heads."""
    others = {name for name, _ in model.named_modules(remove_duplicate=False)} - set(heads)
    return [head for head in heads if any(other.endswith(head) for other in others)]


def _save_with_adapter(base: nn.Module, name: str) -> None:
    """Wrap one module as PEFT wraps those in `modules_to_save`."""
    parent_name, _, last = name.rpartition(".")
    parent = base.get_submodule(parent_name)
    wrapper = ModulesToSaveWrapper(getattr(parent, last), ADAPTER_NAME)
    wrapper.set_adapter(ADAPTER_NAME)
    setattr(parent, last, wrapper)


def _ties(model: nn.Module, heads: Sequence[str]) -> list[list[str]]:
    """Return the heads that share their weights, in groups."""
    groups: dict[int, list[str]] = {}
    for name in heads:
        groups.setdefault(id(head_linear(model, name).weight), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def tie_heads(peft_model: PeftModel, ties: Sequence[Sequence[str]]) -> None:
    """Let heads that shared their weights share those of their trained copies."""
    for first, *others in ties:
        source = head_linear(peft_model, first)
        for name in others:
            copy = head_linear(peft_model, name)
            copy.weight, copy.bias = source.weight, source.bias


@contextlib.contextmanager
def without_adapter(peft_model: PeftModel) -> Iterator[None]:
    """Within the context the model is its base; behind it what did not train does not train.

    PEFT's own context lets every adapter train when it ends.
    """
    trained = {name: p.requires_grad for name, p in peft_model.named_parameters()}
    try:
        with peft_model.disable_adapter():
            yield
    finally:
        for name, parameter in peft_model.named_parameters():
            parameter.requires_grad_(trained[name])


@contextlib.contextmanager
def without_embeddings(model: PreTrainedModel) -> Iterator[None]:
    """Within the context a model that has no input embeddings says so, instead of raising."""
    if has_embeddings(model):
        yield
        return
    vars(model)["get_input_embeddings"] = nn.Identity
    try:
        yield
    finally:
        del vars(model)["get_input_embeddings"]


def has_embeddings(model: PreTrainedModel) -> bool:
    """Whether a model answers when PEFT asks for its input embeddings; several detectors raise."""
    try:
        model.get_input_embeddings()
    except NotImplementedError:
        return False
    return True


def adapter_groups(
    peft_model: PeftModel, blocks: Sequence[FfnBlock]
) -> dict[str, list[nn.Parameter]]:
    """Return the LoRA matrices of each block: the groups of the group lasso.

    Raises:
        RuntimeError: a LoRA parameter is in no group or in two.
    """
    groups = {
        block.name: [matrix for name in block.linears for matrix in _lora_pair(peft_model, name)]
        for block in blocks
    }
    grouped = [id(matrix) for matrices in groups.values() for matrix in matrices]
    existing = {id(parameter) for parameter in adapter_tensors(peft_model).values()}
    if len(grouped) != len(set(grouped)) or set(grouped) != existing:
        raise RuntimeError(
            f"the blocks hold {len(grouped)} LoRA matrices ({len(set(grouped))} different), "
            f"the model has {len(existing)}; every matrix belongs to exactly one group"
        )
    return groups


def adapter_tensors(peft_model: PeftModel) -> dict[str, nn.Parameter]:
    """Return every LoRA matrix by its parameter name."""
    return {
        name: parameter
        for name, parameter in peft_model.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }


@torch.no_grad()
def adapter_changes(
    peft_model: PeftModel, blocks: Sequence[FfnBlock]
) -> dict[str, list[tuple[float, float]]]:
    """Return for each linear of each block ||scale · B·A||_F, and that divided by ||W||_F."""
    base = peft_model.get_base_model()
    changes: dict[str, list[tuple[float, float]]] = {}
    for block in blocks:
        for name in block.linears:
            layer: Any = base.get_submodule(name)
            norm = float(torch.linalg.vector_norm(layer.get_delta_weight(ADAPTER_NAME)))
            base_weight = dequantize_module_weight(layer.get_base_layer())
            weight = float(torch.linalg.vector_norm(base_weight))
            relative = norm / weight if weight else 0.0
            changes.setdefault(block.name, []).append((norm, relative))
    return changes


def snapshot(peft_model: PeftModel) -> dict[str, Tensor]:
    """Copy every LoRA matrix, to compare with at the end of a stage."""
    return {name: tensor.detach().clone() for name, tensor in adapter_tensors(peft_model).items()}


@torch.no_grad()
def negate(peft_model: PeftModel, before: Mapping[str, Tensor], factor: float) -> None:
    """Turn round what happened to the adapter since a snapshot (task arithmetic), in place.

    B·A becomes the best approximation, at the same rank, of B_0·A_0 - factor · (B·A - B_0·A_0);
    from B_0 = 0 that is exact. Source: Ilharco et al. 2023 (arXiv 2212.04089).
    """
    now = adapter_tensors(peft_model)
    for name, down in now.items():
        if ".lora_A." not in name:
            continue
        up, old_down, old_up = now[_partner(name)], before[name], before[_partner(name)]
        tall = torch.cat([(1 + factor) * old_up.to(up), -factor * up], 1).double()
        wide = torch.cat([old_down.to(down), down]).double()
        left, inner = torch.linalg.qr(tall)
        right, outer = torch.linalg.qr(wide.T)
        u, singular, v = torch.linalg.svd(inner @ outer.T)
        rank = min(len(down), len(singular))  # a layer may be narrower than the adapter's rank
        root = singular[:rank].sqrt()
        up.zero_()[:, :rank] = (left @ u[:, :rank]) * root
        down.zero_()[:rank] = root[:, None] * (v[:rank] @ right.T)


def check_moved(
    before: Mapping[str, Tensor],
    peft_model: PeftModel,
    *,
    stage: str,
    num_steps: int | None = None,
) -> None:
    """Raise unless every LoRA matrix that trains differs from its snapshot.

    Exempt are pairs A, B that are both exactly zero (their group was zeroed by the proximal step),
    and, after a single step from B = 0, the A of that pair, whose gradient is exactly zero then.

    Raises:
        AdapterNotMovedError: it names the tensors.
    """
    now = adapter_tensors(peft_model)
    still = []
    for name, tensor in now.items():
        if not tensor.requires_grad or not torch.equal(tensor.detach(), before[name]):
            continue
        partner = _partner(name)
        if not tensor.any() and not now[partner].any():
            continue
        if num_steps == 1 and ".lora_A." in name and not before[partner].any():
            continue
        still.append(name)
    if still:
        raise AdapterNotMovedError(
            f"stage {stage}: {len(still)} of {len(now)} adapter tensors never moved: "
            f"{shown(still)}; raise the stage's learning rate or number of steps, or give its "
            "terms more weight"
        )


def _partner(name: str) -> str:
    if ".lora_A." in name:
        return name.replace(".lora_A.", ".lora_B.")
    return name.replace(".lora_B.", ".lora_A.")


def _lora_pair(peft_model: PeftModel, name: str) -> tuple[nn.Parameter, nn.Parameter]:
    """Return A (rank, in_features) and B (out_features, rank) of one linear."""
    layer: Any = peft_model.get_base_model().get_submodule(name)
    return layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight


def read_matrices(adapter_dir: Path) -> dict[str, Tensor]:
    """Return the LoRA matrices of a saved adapter by name of linear and of matrix; empty: none.

    Raises:
        UserError: the file is damaged.
    """
    path = adapter_dir / "adapter_model.safetensors"
    if not path.is_file():
        return {}
    try:
        saved = load_file(path)
    except Exception as error:
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}); restore what the run saved"
        ) from None
    start = "base_model.model."
    return {k.removeprefix(start): v for k, v in saved.items() if ".lora_" in k}


@torch.no_grad()
def continue_from(peft_model: PeftModel, matrices: Mapping[str, Tensor]) -> None:
    """Take an adapter out of the weights it was merged into and attach it there, trainable.

    The function of the model stays: W = (W − scale·B·A) + scale·B·A.

    Args:
        peft_model: from `attach` on the merged model, with the adapter's rank and scale.
        matrices: from `read_matrices`.

    Raises:
        UserError: the adapter is not of this model's linears.
    """
    base = peft_model.get_base_model()
    layers = {name: m for name, m in base.named_modules() if isinstance(m, LoraLayer)}
    wanted = {f"{name}.lora_{side}.weight" for name in layers for side in "AB"}
    if wanted != set(matrices):
        odd = shown(sorted(wanted ^ set(matrices)))
        raise UserError(f"adapter: {odd} missing or too many; restore what the run saved")
    for name, layer in layers.items():
        for side, matrix in zip("AB", _lora_pair(peft_model, name), strict=True):
            saved = matrices[f"{name}.lora_{side}.weight"]
            if saved.shape != matrix.shape:
                raise UserError(
                    f"adapter: {name} has the shape {tuple(saved.shape)}, not "
                    f"{tuple(matrix.shape)}; restore what the run saved"
                )
            matrix.copy_(saved)
        layer.get_base_layer().weight -= layer.get_delta_weight(ADAPTER_NAME)


def _check_hits(peft_model: PeftModel, linears: Collection[str], heads: Collection[str]) -> None:
    base = peft_model.get_base_model()
    adapted = {name for name, module in base.named_modules() if isinstance(module, LoraLayer)}
    saved = {
        name for name, module in base.named_modules() if isinstance(module, ModulesToSaveWrapper)
    }
    for what, hit, wanted in (("LoRA", adapted, set(linears)), ("the head", saved, set(heads))):
        if hit != wanted:
            raise RuntimeError(
                f"PEFT put {what} on the wrong modules: {shown(sorted(hit - wanted))} too many, "
                f"{shown(sorted(wanted - hit))} missing"
            )
