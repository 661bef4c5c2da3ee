"""The class layer: find it, give it rows for learned classes, take rows of forgotten ones away.

A head is a linear whose output reaches the logits with no other linear after it; models distilled
with a teacher token (DeiT, LeViT) have two, whose logits are averaged. Old rows stay bit-equal at
every change.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from kswap.errors import UserError
from kswap.models.class_tensors import class_tensors, heads_of, insert_rows, keep_rows
from kswap.models.rows import class_mean_rows, random_rows
from kswap.models.structure import linear_names, shown
from kswap.models.trace import Node, trace
from kswap.models.wrapping import bare

Head = nn.Linear | nn.Conv2d


def find_heads(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers that answer classes.

    Of a classifier: the linears that produce a bare model's logits, in forward order. Of a
    segmenter or detector: every linear or 1×1 convolution with a row for each class, auxiliary
    layers and proposals included.

    Raises:
        UserError: there is none.
    """
    config: Any = model.config
    if isinstance(model, PreTrainedModel) and not is_classifier(model):
        return heads_of(class_tensors(model), model)
    graph = trace(model)
    logits = [node for name, node in graph.outputs.items() if "logits" in name]
    found: dict[str, int] = {}
    stack, seen = logits, set[Node]()
    while stack:
        node = stack.pop()
        if node in seen or node.kind in ("mix", "input", "constant"):
            continue
        seen.add(node)
        if node.kind != "linear":
            stack.extend(node.parents)
            continue
        linear = model.get_submodule(node.linear)
        if isinstance(linear, nn.Linear) and linear.out_features == config.num_labels:
            found.setdefault(node.linear, node.order)
    if not found:
        raise UserError(
            f"{type(model).__name__}: no linear layer with {config.num_labels} outputs produces "
            "its logits; name a classifier with a linear head (linear layers seen: "
            f"{shown(linear_names(model)[::-1])})"
        )
    return tuple(sorted(found, key=found.__getitem__))


def is_classifier(model: nn.Module) -> bool:
    """Whether an image has one answer as a whole."""
    return "ForImageClassification" in type(model).__name__ or not any(
        part in type(model).__name__ for part in ("Segmentation", "Detection")
    )


def head_linear(model: nn.Module, name: str) -> Head:
    """Return the head that computes: of a bare model, or the trained copy inside a PEFT model."""
    module: Any = bare(model).get_submodule(name)
    if hasattr(module, "modules_to_save"):
        module = module.modules_to_save[module.active_adapter]
    if not isinstance(module, nn.Linear | nn.Conv2d):
        raise TypeError(f"{name} is a {type(module).__name__}, not a linear head")
    return module


@contextlib.contextmanager
def recorded_head_inputs(
    model: nn.Module, heads: Sequence[str], *, whole: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Within the context every forward writes the features each head receives, with their graph.

    Args:
        model: Bare or wrapped by PEFT.
        heads: From `find_heads`.
        whole: Leave the features in their shape; else (batch, in_features).

    Yields:
        Head name -> features of the head's latest call; a head that is not called has none.
    """
    features: dict[str, Tensor] = {}

    def recorder(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            given = args[0]
            features[name] = given if whole or given.ndim == 2 else given.flatten(1)

        return hook

    handles = [head_linear(model, name).register_forward_pre_hook(recorder(name)) for name in heads]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()


def extend_head(
    model: nn.Module,
    id2label: Mapping[int, str],
    *,
    init: Literal["random", "mean"],
    seed: int,
    heads: Sequence[str] | None = None,
) -> None:
    """Append one row for each new class to every head, in place; the config's label maps follow.

    Rows that start from class means do so later, when these are known: see `set_new_rows`.

    Args:
        model: A bare model.
        id2label: The whole map after the extension; old ids keep their names.
        init: Start of the new rows of a segmenter or detector, see `insert_rows`; those of a
            classifier are random (`rows.random_rows`).
        seed: Seed of random rows.
        heads: From `find_heads`; found again (one more forward) when left out.

    Raises:
        ValueError: the map does not extend the model's.
    """
    config: Any = model.config
    num_old = int(config.num_labels)
    _check_extension(config, id2label)
    num_new = len(id2label) - num_old
    if isinstance(model, PreTrainedModel) and not is_classifier(model):
        tensors = class_tensors(model)
        insert_rows(model, tensors, num_new=num_new, random=init == "random", seed=seed)
        _set_labels(model, dict(id2label), num_old)
        return
    generator = torch.Generator().manual_seed(seed)
    names = find_heads(model) if heads is None else heads
    for name in names if num_new else ():
        head = _linear(model, name)
        new_weight, new_bias = random_rows(num_new, head.in_features, generator)
        weight = torch.cat([head.weight.detach(), new_weight.to(head.weight)])
        bias = None
        if head.bias is not None:
            bias = torch.cat([head.bias.detach(), new_bias.to(head.bias)])
        _replace_rows(head, weight, bias)
    _set_labels(model, dict(id2label), num_old)


def drop_rows(model: nn.Module, class_ids: Collection[int]) -> None:
    """Remove the rows of these classes from every head, in place; the rest are numbered anew.

    Raises:
        ValueError: an id is not in the model, or no class would be left.
    """
    config: Any = model.config
    labels = {int(key): str(value) for key, value in config.id2label.items()}
    unknown = sorted(set(class_ids) - set(labels))
    if unknown:
        raise ValueError(
            f"class ids {unknown} are not in the model; ids go from 0 to {len(labels) - 1}"
        )
    kept = [index for index in sorted(labels) if index not in set(class_ids)]
    if not kept:
        raise ValueError(f"all {len(labels)} classes would be dropped; leave at least one")
    if isinstance(model, PreTrainedModel) and not is_classifier(model):
        keep_rows(model, class_tensors(model), kept)
        _set_labels(model, {new: labels[old] for new, old in enumerate(kept)}, len(labels))
        return
    for name in find_heads(model):
        head = _linear(model, name)
        bias = None if head.bias is None else head.bias.detach()[kept].clone()
        _replace_rows(head, head.weight.detach()[kept].clone(), bias)
    _set_labels(model, {new: labels[old] for new, old in enumerate(kept)}, len(labels))


def freeze_old_rows(
    model: nn.Module, names: Sequence[str], num_old: int, *, num_new: int | None = None
) -> list[RemovableHandle]:
    """Zero the gradient of all rows of the heads but the new ones at every backward.

    New are the rows behind the first `num_old`: `num_new` of them, or all. To the others AdamW
    without weight decay then adds exactly 0, so that they stay bit-equal.

    Returns:
        Handles; `.remove()` lets the rows train again.
    """

    def keep(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[:num_old] = 0
        if num_new is not None:
            gradient[num_old + num_new :] = 0
        return gradient

    return [
        parameter.register_hook(keep)  # type: ignore[no-untyped-call]
        for name in names
        for parameter in head_linear(model, name).parameters()
        if parameter.requires_grad
    ]


def _linear(model: nn.Module, name: str) -> nn.Linear:
    head = head_linear(model, name)
    assert isinstance(head, nn.Linear), "heads of classifiers are linears"
    return head


def _check_extension(config: Any, id2label: Mapping[int, str]) -> None:
    old = {int(key): str(value) for key, value in config.id2label.items()}
    if sorted(id2label) != list(range(len(id2label))):
        raise ValueError(
            f"id2label has ids {sorted(id2label)}; they must be 0, 1, 2 … without a gap"
        )
    moved = [key for key, value in old.items() if id2label.get(key) != value]
    if moved:
        raise ValueError(
            f"id2label renames or drops class {moved[0]} ({old[moved[0]]!r}); "
            "an extension keeps old classes"
        )


def _replace_rows(head: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    head.weight = nn.Parameter(weight, requires_grad=head.weight.requires_grad)
    if bias is not None:
        head.bias = nn.Parameter(bias, requires_grad=head.bias.requires_grad)
    head.out_features = len(weight)


def _set_labels(model: nn.Module, id2label: dict[int, str], num_before: int) -> None:
    """Write the label maps into the config, and the count wherever a module keeps it."""
    config: Any = model.config
    config.id2label = id2label
    config.label2id = {label: index for index, label in id2label.items()}
    if getattr(config, "label_names", None) is not None:  # timm's, read in place of id2label
        config.label_names = list(id2label.values())
    config.num_labels = len(id2label)  # most configs count id2label, PVT's keeps its own number
    for module in model.modules():
        if vars(module).get("num_labels") == num_before:
            vars(module)["num_labels"] = len(id2label)


@torch.no_grad()
def set_new_rows(
    model: nn.Module,
    name: str,
    *,
    num_old: int,
    class_means: Tensor,
    centre: Tensor,
    lead: bool = True,
) -> None:
    """Start the rows behind the first `num_old` from class means, in place; see `class_mean_rows`.

    A head is extended before the first stage, and the features of its new classes are known later:
    a stage that forgets before the first one that learns changes them.

    Args:
        model: A bare or PEFT model.
        name: From `find_heads`.
        num_old: Rows that stay as they are.
        class_means: (num_new, in_features), in the order of the new ids.
        centre: (in_features,).
        lead: Whether every new row leads the old ones at its own mean.
    """
    head = head_linear(model, name)
    bias = None if head.bias is None else head.bias[:num_old]
    old = head.weight[:num_old].flatten(1)
    weight, new_bias = class_mean_rows(old, bias, class_means, centre, lead=lead)
    new = slice(num_old, num_old + len(class_means))  # behind them there may be "no object"
    head.weight[new] = weight.to(head.weight).view_as(head.weight[new])
    if head.bias is not None:
        head.bias[new] = new_bias.to(head.bias)
