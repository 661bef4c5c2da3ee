"""Which tensors of a model have a row for every class: found by asking for one class more.

A model of the same config with one class more is laid out without memory; whatever has another
shape there depends on the number of classes: heads of every layer, label embeddings, weights of a
criterion. No names are needed, and a layer that happens to be as wide as there are classes is not
mistaken for a head. Where there is a row more than classes, the last one is "no object".
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kswap.errors import UserError


@dataclass(frozen=True)
class ClassTensor:
    """A parameter or buffer with a row for every class."""

    module: str
    """Name of the module that holds it."""
    name: str
    """Its name there."""
    nothing: bool
    """Whether a row for "no object" comes last."""


def class_tensors(model: PreTrainedModel) -> tuple[ClassTensor, ...]:
    """Return the class tensors of a bare model, tied ones under each of their names.

    Raises:
        UserError: none is found, or one has its classes elsewhere than in its first axis.
    """
    config: Any = model.config
    count = int(config.num_labels)
    wider = _shapes(_laid_out(model, count + 1))
    found = []
    for full, tensor in _tensors(model).items():
        other = wider.get(full)
        if other is None or other == tuple(tensor.shape):
            continue
        rows = tensor.shape[0]
        if other != (rows + 1, *tensor.shape[1:]) or rows not in (count, count + 1):
            raise UserError(
                f"{type(model).__name__}: {full} has shape {tuple(tensor.shape)} for {count} "
                f"classes and {other} for {count + 1}; kswap cannot add a class to it"
            )
        module, _, name = full.rpartition(".")
        found.append(ClassTensor(module, name, rows == count + 1))
    if not found:
        raise UserError(
            f"{type(model).__name__}: nothing in it depends on the number of classes; name a model "
            "with a class head"
        )
    return tuple(found)


def heads_of(tensors: Sequence[ClassTensor], model: nn.Module) -> tuple[str, ...]:
    """Return the names of the linears and 1×1 convolutions among the holders."""
    names = dict.fromkeys(t.module for t in tensors if t.name == "weight")
    return tuple(
        name for name in names if isinstance(model.get_submodule(name), nn.Linear | nn.Conv2d)
    )


@torch.no_grad()
def insert_rows(
    model: PreTrainedModel,
    tensors: Sequence[ClassTensor],
    *,
    num_new: int,
    random: bool,
    seed: int,
) -> None:
    """Add rows behind those of the classes, before that of "no object"; the others stay bit-equal.

    New rows are the mean of the classes': such a class never leads, so that proposals, which are
    chosen by their best class, stay what they are. With `random` the weights of heads are
    Xavier-uniform.
    """
    generator = torch.Generator().manual_seed(seed)

    def change(tensor: Tensor, one: ClassTensor) -> Tensor:
        end = len(tensor) - one.nothing
        holder = model.get_submodule(one.module)
        if random and one.name == "weight" and isinstance(holder, nn.Linear | nn.Conv2d):
            new = torch.empty(num_new, tensor[0].numel())
            nn.init.xavier_uniform_(new, generator=generator)
            new = new.view(num_new, *tensor.shape[1:]).to(tensor)
        else:
            new = tensor[:end].mean(0, keepdim=True).expand(num_new, *tensor.shape[1:])
        return torch.cat([tensor[:end], new, tensor[end:]])

    _change(model, tensors, change)


@torch.no_grad()
def keep_rows(model: PreTrainedModel, tensors: Sequence[ClassTensor], kept: Sequence[int]) -> None:
    """Leave the rows of these classes, and that of "no object"."""

    def change(tensor: Tensor, one: ClassTensor) -> Tensor:
        rows = [*kept, len(tensor) - 1] if one.nothing else list(kept)
        return tensor[rows].clone()

    _change(model, tensors, change)


def _change(model: PreTrainedModel, tensors: Sequence[ClassTensor], change: Any) -> None:
    made: dict[int, Tensor] = {}  # tied tensors stay tied
    before: list[Tensor] = []  # kept, so that no id is used twice
    for one in tensors:
        holder: Any = model.get_submodule(one.module)
        old = getattr(holder, one.name)
        before.append(old)
        if id(old) not in made:
            changed = change(old.detach(), one)
            is_parameter = isinstance(old, nn.Parameter)
            made[id(old)] = (
                nn.Parameter(changed, requires_grad=old.requires_grad) if is_parameter else changed
            )
        setattr(holder, one.name, made[id(old)])
        rows = len(made[id(old)])
        for count in ("out_features", "out_channels", "num_embeddings"):
            if hasattr(holder, count):
                setattr(holder, count, rows)
        if getattr(holder, "padding_idx", None) is not None and one.nothing:
            holder.padding_idx = rows - 1


def _laid_out(model: PreTrainedModel, count: int) -> nn.Module:
    """Return a model of the same kind for `count` classes, on no device if that is possible."""
    config = copy.deepcopy(model.config)
    config.id2label = {index: str(index) for index in range(count)}
    config.label2id = {str(index): index for index in range(count)}
    config.num_labels = count
    model_class: Any = type(model)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it has to say was said of the model itself
        try:
            with torch.device("meta"):
                laid_out: nn.Module = model_class(config)
        except (RuntimeError, NotImplementedError, ValueError):  # values are needed on the way
            laid_out = model_class(copy.deepcopy(config))
    return laid_out


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in _tensors(model).items()}
