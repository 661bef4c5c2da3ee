"""Find the feed-forward linears of every transformer block from what the model computes.

A feed-forward network is **a residual branch that is computed token by token and holds at least two
linears in series**: in `z = x + f(x)` every path from `f(x)` back to the residual stream passes
only linears, activations, gates, norms, scales, dropout, reshapes and depth-wise convolutions (PVT
v2, SegFormer). Attention fails (softmax, matrix products of data, sampling), so its d→d projections
are never taken; scales of positions fail (DAB-DETR adds positions times a network); prediction
heads (box predictors, mask embedders) fail, as they are not added to their own input; gates
(SwiGLU) pass; layers in a row, and attention beside the network (parallel blocks) pass too. Own
design; see `trace.py` for the graph.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from kswap.errors import UserError
from kswap.models.trace import Node, Trace, trace

_SHOWN = 12
_ATTENTION_OPS = ("scaled_dot_product", "grid_sampler")
_DATA_PRODUCTS = {"bmm", "baddbmm", "matmul", "einsum"}


@dataclass(frozen=True)
class FfnBlock:
    """One transformer block: a group of the group lasso."""

    name: str
    """Full module name of the block."""
    linears: tuple[str, ...]
    """Full module names of its feed-forward linears, in forward order."""


def find_ffn_blocks(
    model: nn.Module, inputs: Mapping[str, Tensor] | None = None
) -> tuple[FfnBlock, ...]:
    """Return a bare model's transformer blocks and their feed-forward linears, in forward order.

    Args:
        model: A transformers model, not wrapped by PEFT. It is run once on one image, in eval mode.
        inputs: Arguments of its forward; noise of the config's image size when left out.

    Raises:
        UserError: no block was found, or only some of the transformer blocks have such linears.
    """
    graph = trace(model, inputs)
    used = graph.reachable(_prediction_names(graph))
    linears_of: dict[str, dict[str, None]] = {}
    taken: set[str] = set()
    for branch in sorted(_ffn_branches(graph, used), key=lambda names: names[0][0]):
        names = [name for _, name in branch if name not in taken]
        if names:
            taken.update(names)
            linears_of.setdefault(_block_name(model, names), {}).update(dict.fromkeys(names))
    blocks = tuple(FfnBlock(name, tuple(linears)) for name, linears in linears_of.items())
    if not blocks:
        raise UserError(
            f"{type(model).__name__}: no transformer block has a feed-forward network of linear "
            "layers; name a model of another family (linear layers seen: "
            f"{shown(linear_names(model))})"
        )
    bare = _attention_without_ffn(model, graph, used, taken)
    if bare:
        raise UserError(
            f"{type(model).__name__}: {len(bare)} of its transformer blocks have no feed-forward "
            f"network of linear layers ({shown(bare)}), only {len(blocks)} have; kswap adapts "
            "every block or none, so name a model of another family (linear layers seen: "
            f"{shown(linear_names(model))})"
        )
    return blocks


def linear_names(model: nn.Module) -> list[str]:
    """Return the names of all linear modules."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def shown(names: Collection[str]) -> str:
    """Join names for an error line, the first ones only."""
    listed = ", ".join(list(names)[:_SHOWN]) or "none"
    return f"{listed} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else listed


def _prediction_names(graph: Trace) -> list[str]:
    """Outputs that predictions are read from; hidden states beside them do not count."""
    marks = ("logits", "boxes", "masks")
    named = [name for name in graph.outputs if any(mark in name for mark in marks)]
    return named or list(graph.outputs)


def _ffn_branches(graph: Trace, used: set[Node]) -> Iterable[list[tuple[int, str]]]:
    """Yield the linears (order, name) of every feed-forward branch of every residual stream."""
    additions = [node for node in graph.nodes if node.kind == "add" and node in used]
    fed: set[Node] = set()  # additions whose sum goes on in the same residual stream
    for node in additions:
        for parent in node.parents:
            end = _strip(parent)[-1]
            if end.kind == "add":
                fed.add(end)
    for root in additions:
        if root in fed:
            continue
        stream, terms = _stream(root)
        for term in terms:
            linears = _tokenwise_linears(term, stream)
            if linears is not None:
                yield sorted((node.order, node.linear) for node in linears)


def _strip(node: Node) -> list[Node]:
    """Follow views back to the tensor they show; the last element is that tensor."""
    path = [node]
    while node.kind == "view":
        data = [parent for parent in node.parents if parent.kind != "constant"]
        if len(data) != 1:
            break
        node = data[0]
        path.append(node)
    return path


def _stream(root: Node) -> tuple[set[Node], list[Node]]:
    """Return all partial sums of a residual stream, and the terms that were added to it."""
    stream: set[Node] = set()
    terms: list[Node] = []
    stack = [root]
    while stack:
        node = stack.pop()
        if node in stream:
            continue
        path = _strip(node)
        stream.update(path)
        if path[-1].kind == "add":
            stack.extend(path[-1].parents)
        else:
            terms.append(node)
    return stream, terms


def _tokenwise_linears(term: Node, stream: set[Node]) -> list[Node] | None:
    """Return the linears between a term and the stream it reads; None if it is no such branch."""
    own = set(_strip(term))
    linears: list[Node] = []
    seen: set[Node] = set()
    reads_stream = False
    stack = [term]
    while stack:
        node = stack.pop()
        if node in seen or node.kind == "constant":
            continue
        seen.add(node)
        if node in stream and node not in own:
            reads_stream = True
            continue
        if node.kind in ("mix", "input"):
            return None
        if node.kind == "linear":
            linears.append(node)
        stack.extend(node.parents)
    in_series = any(_feeds_linear(node, seen, stream - own) for node in linears)
    return linears if reads_stream and in_series else None


def _feeds_linear(sink: Node, branch: set[Node], stream: set[Node]) -> bool:
    """Whether another linear of the branch lies before `sink`."""
    stack, seen = list(sink.parents), set[Node]()
    while stack:
        node = stack.pop()
        if node in seen or node not in branch or node in stream:
            continue
        if node.kind == "linear":
            return True
        seen.add(node)
        stack.extend(node.parents)
    return False


def _block_name(model: nn.Module, names: list[str]) -> str:
    """Return the innermost list element that holds all the linears, or their common parent."""
    parts = [name.split(".")[:-1] for name in names]
    common: list[str] = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return _list_element(model, ".".join(common)) or ".".join(common)


def _list_element(model: nn.Module, name: str) -> str:
    """Return the innermost module at or above `name` that is an element of a list, or ''."""
    parts = name.split(".") if name else []
    for end in range(len(parts), 0, -1):
        parent = model.get_submodule(".".join(parts[: end - 1]))
        if isinstance(parent, nn.ModuleList | nn.Sequential):
            return ".".join(parts[:end])
    return ""


def _attention_without_ffn(
    model: nn.Module, graph: Trace, used: set[Node], taken: set[str]
) -> list[str]:
    """Return list elements that attend, hold no feed-forward network, and are followed by none."""
    attending = dict.fromkeys(
        _list_element(model, node.module) for node in graph.nodes if node in used and _attends(node)
    )
    bare = []
    for element in attending:
        if not element:
            continue  # an attention outside every list is a pooling head, not a block
        parent, _, index = element.rpartition(".")
        beside = f"{parent}.{int(index) + 1}" if index.isdigit() else ""
        follows = beside not in attending and any(name.startswith(beside + ".") for name in taken)
        if not follows and not any(name.startswith(element + ".") for name in taken):
            bare.append(element)
    return bare


def _attends(node: Node) -> bool:
    if node.kind != "mix":
        return False
    if any(mark in node.op for mark in _ATTENTION_OPS):
        return True
    data = [parent for parent in node.parents if parent.kind != "constant"]
    return (
        node.op in _DATA_PRODUCTS
        and len(data) >= 2
        and any(_from_softmax(parent) for parent in data)
    )


def _from_softmax(node: Node) -> bool:
    while node.kind in ("view", "tokenwise") and node.parents:
        data = [parent for parent in node.parents if parent.kind != "constant"]
        if not data:
            return False
        node = data[0]
    return "softmax" in node.op
