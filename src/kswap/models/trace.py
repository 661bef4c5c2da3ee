"""Record one forward pass as a graph of tensors, to read structure from what a model computes.

Why: module names differ from family to family (`mlp.fc1`, `intermediate.dense`, `pwconv1`), and
    shapes alone do not tell an attention projection from a feed-forward linear. What happens
    between two linears does. Every ATen operation of one forward pass is seen with
    `torch.utils._python_dispatch.TorchDispatchMode`; each tensor becomes a `Node` whose kind says
    how tokens flow through it. `structure.py` and `head.py` read the graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from kswap.errors import UserError, brief
from kswap.models.examples import example_inputs

Kind = Literal["input", "constant", "add", "view", "tokenwise", "linear", "mix"]

_COPIES = {
    "clone",
    "_unsafe_view",
    "_reshape_alias",
    "contiguous",
    "copy_",
    "_to_copy",
    "lift_fresh",
}
_NOT_TOKENWISE_VIEWS = {"detach", "as_strided", "unfold"}
_TOKENWISE = {
    *(
        "native_layer_norm",
        "native_group_norm",
        "native_batch_norm",
        "cudnn_batch_norm",
        "batch_norm",
    ),
    *(
        "_native_batch_norm_legit_no_training",
        "_native_batch_norm_legit",
        "_fused_rms_norm",
        "rms_norm",
    ),
    *("native_dropout", "dropout", "glu", "_prelu_kernel", "constant_pad_nd"),
    # Activations that ATen does not tag as pointwise.
    *(
        "hardswish",
        "hardswish_",
        "hardsigmoid",
        "hardtanh",
        "hardtanh_",
        "celu",
        "selu",
        "relu6",
        "prelu",
        "rrelu",
    ),
    # Reductions belong to hand-written norms (RMS norm, ConvNeXt V2's response norm).
    *("mean", "sum", "var_mean", "var", "std", "linalg_vector_norm", "norm"),
}
_ADDITIONS = {"add", "add_"}
_PRODUCTS = {"mul", "mul_"}


@dataclass(eq=False)
class Node:
    """One tensor of the forward pass.

    Kinds: `input` of the model, `constant` (parameters and what is computed from them alone), `add`
        of two data tensors, `view` (same numbers, other shape), `tokenwise` (activations, norms,
        gates, depth-wise convolutions), `linear` (a call of an `nn.Linear`), `mix` (everything
        else: attention, pooling, products with positions …).
    """

    kind: Kind
    op: str
    parents: tuple[Node, ...] = ()
    linear: str = ""
    """Name of the module of a `linear` node."""
    module: str = ""
    """Name of the innermost module that was running."""
    order: int = 0
    """Position in the forward pass."""


@dataclass
class Trace:
    """The graph of one forward pass."""

    nodes: list[Node] = field(default_factory=list)
    outputs: dict[str, Node] = field(default_factory=dict)
    """Tensors the model returned, by field name."""

    def reachable(self, names: Iterable[str]) -> set[Node]:
        """Return every node that the named outputs were computed from."""
        seen: set[Node] = set()
        stack = [self.outputs[name] for name in names]
        while stack:
            node = stack.pop()
            if node not in seen:
                seen.add(node)
                stack.extend(node.parents)
        return seen


def trace(model: nn.Module, inputs: Mapping[str, Tensor] | None = None) -> Trace:
    """Run `model` once in eval mode without gradients and return the graph of what it computed.

    Args:
        model: A bare model, not wrapped by PEFT.
        inputs: Arguments of its forward; a blank-noise image of the config's size when left out.

    Raises:
        UserError: the model cannot run on an image.
    """
    was_training = model.training
    model.eval()
    try:
        if inputs is not None:
            return _run(model, inputs)
        failure = ""
        for candidate in example_inputs(model):
            try:
                return _run(model, candidate)
            except Exception as error:  # a size the model does not take: the next one may fit
                failure = failure or brief(error)
        raise UserError(
            f"{type(model).__name__}: does not run on an image of its own size ({failure}); "
            "check image_size and num_channels in its config.json"
        )
    finally:
        model.train(was_training)


def _run(model: nn.Module, inputs: Mapping[str, Tensor]) -> Trace:
    recorder = _Recorder()
    handles = []
    for name, module in model.named_modules():
        handles.append(
            module.register_forward_pre_hook(recorder.entering(name, module), with_kwargs=True)
        )
        handles.append(
            module.register_forward_hook(recorder.leaving(name, module), always_call=True)
        )
    try:
        for tensor in inputs.values():
            recorder.register(tensor, Node("input", "input"))
        with torch.no_grad(), recorder:
            result = model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return recorder.finish(result)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The dispatch mode: one `Node` for each tensor an operation returns, one for each linear."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace()
        self._node_of: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._modules: list[str] = []
        self._linear_inputs: list[Node] = []

    def entering(self, name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._modules.append(name)
            if isinstance(module, nn.Linear):
                given = args[0] if args else kwargs["input"]
                self._linear_inputs.append(self.node(given))

        return hook

    def leaving(self, name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(module, nn.Linear):
                parent = self._linear_inputs.pop()
                if isinstance(output, Tensor):
                    kind: Kind = "constant" if parent.kind == "constant" else "linear"
                    self.register(output, Node(kind, "linear", (parent,), linear=name))
            self._modules.pop()

        return hook

    def node(self, tensor: Tensor) -> Node:
        """Return the node of a tensor; what no operation made is a parameter or a constant."""
        known = self._node_of.get(tensor)  # type: ignore[no-untyped-call]
        return known if isinstance(known, Node) else self.register(tensor, Node("constant", "leaf"))

    def register(self, tensor: Tensor, node: Node) -> Node:
        node.order = len(self.trace.nodes)
        node.module = self._modules[-1] if self._modules else ""
        self.trace.nodes.append(node)
        self._node_of[tensor] = node
        return node

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if self._linear_inputs:  # inside a linear, which is one node of its own
            return func(*args, **(kwargs or {}))
        parents = tuple(
            self.node(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)
        )
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._record(func, args, parents, tensor)
        return result

    def _record(
        self, func: Any, args: tuple[Any, ...], parents: tuple[Node, ...], made: Tensor
    ) -> None:
        name = str(func.overloadpacket.__name__)
        data = tuple(parent for parent in parents if parent.kind != "constant")
        if not data:
            self.register(made, Node("constant", name, parents))
        elif (
            name in ("addcmul", "addcmul_") and len(parents) == 3 and parents[0].kind != "constant"
        ):
            product = Node("tokenwise", "mul", parents[1:], order=len(self.trace.nodes))
            self.register(made, Node("add", name, (parents[0], product)))
        elif name in _PRODUCTS and len(data) < len(parents) and _differs_by_token(args):
            self.register(made, Node("mix", name, parents))
        else:
            self.register(made, Node(_kind(func, name, args, len(data)), name, parents))

    def finish(self, result: Any) -> Trace:
        named = result.items() if isinstance(result, Mapping) else enumerate(tree_leaves(result))
        for name, value in named:
            if isinstance(value, Tensor):
                self.trace.outputs[str(name)] = self.node(value)
        return self.trace


def _kind(func: Any, name: str, args: tuple[Any, ...], num_data: int) -> Kind:
    if name in _ADDITIONS:
        return "add" if num_data == 2 else "tokenwise"
    if name in _COPIES or _is_view(func):
        return "mix" if name in _NOT_TOKENWISE_VIEWS else "view"
    if name in _TOKENWISE or torch.Tag.pointwise in func.tags:
        return "tokenwise"
    if name == "convolution" and _is_depthwise(args):
        return "tokenwise"
    return "mix"


def _differs_by_token(factors: tuple[Any, ...]) -> bool:
    """Whether both factors have a number for every channel of every token, as positions have.

    A scale (LayerScale) has one for each channel, a mask one for each token.
    """
    one, other = factors[:2]
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    return one.numel() == other.numel() and sum(size > 1 for size in one.shape) > 1


def _is_view(func: Any) -> bool:
    aliases = [argument.alias_info for argument in func._schema.arguments if argument.alias_info]
    return bool(aliases) and not any(alias.is_write for alias in aliases)


def _is_depthwise(args: tuple[Any, ...]) -> bool:
    with contextlib.suppress(IndexError, AttributeError):
        return bool(args[8] > 1 and args[8] == args[0].shape[1])
    return False
