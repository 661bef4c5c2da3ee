"""Tokens of the last block that nobody reads: found by experiment, and not computed.

Most vision transformers answer from one token, the class token. What the last block makes of the
others is then thrown away, and so is the work of its queries, of its output projection and of its
feed-forward network on them: most of a block. Which tokens are read is not taken from the family
of a model but tried: NaN in the place of the others must leave all that a stage looks at as it is.
Modules that work on each token by itself then get the read ones alone, and give zeros for the rest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional

from kswap.models.prefix import same_answers
from kswap.models.structure import FfnBlock
from kswap.models.wrapping import forwards_replaced

_READ = (1, 2)
"""How many first tokens a head may read: a class token, a distillation token behind it."""
Answers = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class Unread:
    """What of a model need not see all tokens."""

    modules: tuple[str, ...]
    """Work on each token by itself; nobody reads what they give for other tokens."""
    num_read: int
    """First tokens that are read."""

    def skipped(self, base: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which the modules see read tokens alone, and give 0 for the others.

        Args:
            base: the bare model.
        """
        modules = map(base.get_submodule, self.modules)
        return forwards_replaced({m: _cut(m.forward, self.num_read) for m in modules})


@torch.no_grad()
def find_unread(
    base: nn.Module, block: FfnBlock, answers: Answers, *, tolerance: float
) -> Unread | None:
    """Return what of a block need not see all tokens; None: all of them are read.

    Args:
        base: the bare model.
        block: its last one.
        answers: does a forward, the same each time; returns all tensors that are made use of.
        tolerance: largest difference by rounding, as a share of the largest answer.
    """
    candidates = dict(_candidates(base, block))
    with _watched(candidates, tolerance) as token_wise:
        truth = answers()

    def unread(module: nn.Module, count: int) -> bool:
        with _blanked(module, count) as could:
            same = same_answers(answers(), truth)
        return same and bool(could) and all(could)

    whole = base.get_submodule(block.name)
    num_read = next((count for count in _READ if unread(whole, count)), None)
    if num_read is None:
        return None
    found: list[str] = []
    for name, module in candidates.items():
        within = _is_within(name, found)
        if not within and num_read in token_wise[name] and unread(module, num_read):
            found.append(name)
    result = Unread(tuple(found), num_read)
    with result.skipped(base):
        return result if found and same_answers(answers(), truth, tolerance) else None


def _candidates(base: nn.Module, block: FfnBlock) -> Iterator[tuple[str, nn.Module]]:
    """Yield linears of a block, and modules that hold feed-forward linears alone, outer first.

    Whatever else is in a block may mix tokens, even where an example does not show it.
    """
    inside = [
        (f"{block.name}.{name}", module)
        for name, module in base.get_submodule(block.name).named_modules()
        if name
    ]
    linears: list[str] = []
    for name, module in inside:
        if isinstance(module, nn.Linear | LoraLinear) and not _is_within(name, linears):
            linears.append(name)
    for name, module in inside:
        held = {linear for linear in linears if _is_within(linear, [name])}
        mixes = any("Conv" in type(part).__name__ for part in module.modules())
        if name in linears or (held and held <= set(block.linears) and not mixes):
            yield name, module


def _is_within(name: str, others: Sequence[str]) -> bool:
    return any(name.startswith(f"{other}.") for other in others)


@contextlib.contextmanager
def _watched(
    modules: Mapping[str, nn.Module], tolerance: float
) -> Iterator[dict[str, tuple[int, ...]]]:
    """Tell of each module for how many first tokens it gives the same without the others.

    Of one that is called more than once, or with anything but tokens: for none.
    """
    found: dict[str, tuple[int, ...]] = dict.fromkeys(modules, ())
    called: set[str] = set()

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            again = name in called
            called.add(name)
            found[name] = ()
            if again or kwargs or len(args) != 1:
                return
            pair = (args[0], output)
            if not all(isinstance(one, Tensor) and one.ndim == 3 for one in pair):
                return
            if args[0].shape[:2] == output.shape[:2]:
                found[name] = tuple(
                    count
                    for count in _READ
                    if same_answers(
                        [module.forward(args[0][:, :count])], [output[:, :count]], tolerance
                    )
                )

        return hook

    handles = [
        module.register_forward_hook(watch(name), with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _blanked(module: nn.Module, count: int) -> Iterator[list[bool]]:
    """Put NaN in the place of all tokens but the first `count`; tell of each call if it could."""
    could: list[bool] = []

    def blank(_: nn.Module, args: Any, output: Any) -> Any:
        tokens = output if isinstance(output, Tensor) else output[0]
        could.append(isinstance(tokens, Tensor) and tokens.ndim == 3 and tokens.shape[1] > count)
        if not could[-1]:
            return output
        tokens = tokens.clone()
        tokens[:, count:] = torch.nan
        return tokens if isinstance(output, Tensor) else (tokens, *output[1:])

    handle = module.register_forward_hook(blank)
    try:
        yield could
    finally:
        handle.remove()


def _cut(forward: Callable[..., Any], num_read: int) -> Callable[..., Any]:
    def cut(tokens: Any, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or tokens.ndim != 3 or tokens.shape[1] <= num_read:
            return forward(tokens, *args, **kwargs)
        rest = tokens.shape[1] - num_read
        return functional.pad(forward(tokens[:, :num_read]), (0, 0, 0, rest))

    return cut
