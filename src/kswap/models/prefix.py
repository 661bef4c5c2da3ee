"""What a model computes before the first parameter that trains: found, kept once, played back.

Any model, without a word about its family. Whatever returns before the first trained module is
entered cannot depend on what trains, so that the largest such module calls (embeddings, blocks, a
whole backbone) need not run again: their outputs are kept for each image, and while the prefix
plays they return what is kept. Outputs that nothing behind them reads are not kept; which these
are is found by experiment: NaN is put in their place, and the answers stay what they were. Code
between the modules still runs, on the numbers it is given.

That a model answers the same while its prefix plays is checked on other images before it is used.
Models of which it is not true (outputs whose shape depends on other images of the batch) have no
prefix here, and are trained without one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from kswap.models.wrapping import forwards_replaced

X = TypeVar("X")
Kept = dict[str, Tensor]
"""Outputs of a prefix by name; the first axis is that of the images."""
_TOLERANCE = 1e-5
"""Largest difference of answers while the prefix plays, as a share of the largest answer."""


class _EndOfPrefixError(Exception):
    """The first trained module is about to run."""


@dataclass(frozen=True)
class Trial(Generic[X]):
    """How a model is run to find its prefix, and on what."""

    answers: Callable[[X], Sequence[Tensor]]
    """Does a forward; returns all tensors that anybody makes of it. The same input gives the same
    answers."""
    blank: Callable[[X, float], X]
    """Puts a number in the place of every pixel."""
    count: int
    """Images of `examples` and of `others`."""
    examples: X
    fewer: X
    """`examples` without the last image."""
    others: X


@dataclass(frozen=True)
class _Leaf:
    """One value among the outputs of a call."""

    value: Any = None
    """Of what is the same for all images."""
    axis: int = 0
    """Where the images are."""
    shape: tuple[int, ...] = ()
    """Of one image; (): it is the same for all images."""
    dtype: torch.dtype = torch.float32

    @property
    def num_bytes(self) -> int:
        """Of one image."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def images_first(self, tensor: Tensor) -> Tensor:
        """Return (images, ...) of a tensor with its images along any axis."""
        moved = tensor.detach().movedim(self.axis, 0)
        return moved.reshape(-1, *self.shape).contiguous()

    def restored(self, kept: Tensor) -> Tensor:
        """Undo `images_first`."""
        return kept.flatten(0, 1).movedim(0, self.axis)


@dataclass(frozen=True)
class _Call:
    """One call of a module that does not run while the prefix plays."""

    module: str
    number: int
    """Among the calls of the same module, from 0."""
    leaves: tuple[_Leaf, ...]
    spec: Any
    """Puts leaves together again."""
    is_kept: bool = True
    """Whether something behind it reads its outputs."""

    def named(self) -> Iterator[tuple[str, int, _Leaf]]:
        """Yield name, place and description of what is kept of each image."""
        for place, leaf in enumerate(self.leaves):
            if self.is_kept and leaf.shape:
                yield f"{self.module}:{self.number}:{place}", place, leaf

    def kept_of(self, output: Any) -> Kept:
        """Return what is kept of an output, rows of images."""
        values = pytree.tree_leaves(output)
        return {name: leaf.images_first(values[place]) for name, place, leaf in self.named()}


@dataclass(frozen=True)
class Prefix:
    """The part of a model that need not run again."""

    calls: tuple[_Call, ...]
    """In the order in which they return."""
    trained: frozenset[str]
    """Modules the first call of which ends the prefix."""
    reads_pixels: bool = True
    """Whether code between modules reads the pixels, so that they are needed all the same."""

    @property
    def bytes_per_image(self) -> int:
        """What is kept of one image."""
        return sum(leaf.num_bytes for call in self.calls for _, _, leaf in call.named())

    @torch.no_grad()
    def record(self, base: nn.Module, run: Callable[[], Any]) -> Kept:
        """Run a model up to the end of its prefix and return what is kept, rows of images.

        Args:
            base: the bare model (under PEFT: what it wraps).
            run: starts a forward; it does not come to its end.
        """
        found: Kept = {}
        wanted = {(call.module, call.number): call for call in self.calls if call.is_kept}

        def keep(name: str, number: int, entered: int, output: Any) -> None:
            if (name, number) in wanted:
                found.update(wanted[name, number].kept_of(output))

        with _watched(base, {call.module for call in self.calls}, self.trained, keep):
            run()
        return found

    @contextlib.contextmanager
    def listening(self, base: nn.Module) -> Iterator[list[Kept]]:
        """Within the context every whole forward of a bare model adds what is kept of it.

        Yields:
            One entry a forward, on the CPU, in their order.
        """
        heard: list[Kept] = []
        wanted = {(call.module, call.number): call for call in self.calls if call.is_kept}
        counts: dict[str, int] = {}

        def begin(_: nn.Module, args: Any) -> None:
            counts.clear()
            heard.append({})

        def leave(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, args: Any, output: Any) -> None:
                number = counts.get(name, 0)
                counts[name] = number + 1
                if (name, number) in wanted:
                    kept = wanted[name, number].kept_of(output)
                    heard[-1].update({key: rows.cpu() for key, rows in kept.items()})

            return hook

        names = dict.fromkeys(call.module for call in self.calls if call.is_kept)
        handles = [base.get_submodule(n).register_forward_hook(leave(n)) for n in names]
        handles.append(base.register_forward_pre_hook(begin))
        try:
            yield heard
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def following(self, model: nn.Module, base: nn.Module, kept: Kept) -> Iterator[None]:
        """Within the context forwards take the rows of what is kept one after the other.

        Args:
            model: what is called, with `pixel_values` by name: bare or wrapped.
            base: the bare model.
            kept: of all images that forwards will see, in their order.
        """
        place = 0
        inside: list[Any] = []

        def begin(_: nn.Module, args: Any, kwargs: Any) -> None:
            nonlocal place
            pixels = kwargs["pixel_values"]
            rows = slice(place, place + len(pixels))
            place += len(pixels)
            now = {name: values[rows].to(pixels.device) for name, values in kept.items()}
            inside.append(self.playing(base, now))
            inside[-1].__enter__()

        def end(_: nn.Module, args: Any, output: Any) -> None:
            inside.pop().__exit__(None, None, None)

        handles = [
            model.register_forward_pre_hook(begin, with_kwargs=True),
            model.register_forward_hook(end, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def playing(
        self, base: nn.Module, kept: Kept, *, nothing: float = 0.0
    ) -> contextlib.AbstractContextManager[None]:
        """Return a context in which one forward takes the outputs of the prefix from what is kept.

        Args:
            base: the bare model, in the modes it was recorded in.
            kept: of the images of the batch, on the device of the model.
            nothing: number in the place of outputs that are not kept.
        """
        by_module: dict[str, list[_Call]] = {}
        for call in sorted(self.calls, key=lambda call: call.number):
            by_module.setdefault(call.module, []).append(call)
        modules = {base.get_submodule(name): calls for name, calls in by_module.items()}
        return forwards_replaced(
            {m: _player(m.forward, calls, kept, nothing) for m, calls in modules.items()}
        )


def find_prefix(
    base: nn.Module, trained: Collection[str], trial: Trial[X], *, read: Collection[str] = ()
) -> Prefix | None:
    """Return the prefix of a model; None, where it has none that can be played.

    Args:
        base: the bare model, in the modes it trains in.
        trained: modules that hold what trains.
        trial: how to run it.
        read: modules whose outputs are read from outside, by hooks.
    """
    calls = _frozen_calls(base, frozenset(trained), trial)
    if not calls or not set(read) <= {call.module for call in calls}:
        return None
    prefix = Prefix(calls, frozenset(trained))
    with torch.no_grad():
        truth = trial.answers(trial.examples)
        kept = prefix.record(base, lambda: trial.answers(trial.examples))

        def plays(prefix: Prefix, examples: X) -> bool:
            return same_answers(
                _played(prefix, base, trial, examples, kept, nothing=torch.nan), truth
            )

        for place in reversed(range(len(calls))):
            fewer = _without(prefix, place)
            useful = prefix.calls[place].module not in read
            if useful and fewer.bytes_per_image and plays(fewer, trial.examples):
                prefix = fewer
        alone = prefix.record(base, lambda: trial.answers(trial.fewer))
        if not same_answers(
            list(alone.values()), [kept[name][: trial.count - 1] for name in alone]
        ):
            return None  # outputs depend on the other images of a batch
        if plays(prefix, trial.blank(trial.examples, torch.nan)):
            prefix = replace(prefix, reads_pixels=False)
        truth = trial.answers(trial.others)
        kept = prefix.record(base, lambda: trial.answers(trial.others))
        blank = trial.others if prefix.reads_pixels else trial.blank(trial.others, 0.0)
        if not kept or not same_answers(
            _played(prefix, base, trial, blank, kept, nothing=0.0), truth
        ):
            return None
    return prefix


def _frozen_calls(
    base: nn.Module, trained: frozenset[str], trial: Trial[X]
) -> tuple[_Call, ...] | None:
    """Return the largest calls that return before a trained module is entered.

    None: their outputs cannot be kept by image, or depend on what trains all the same.
    """
    logs: list[list[tuple[str, int, int, Any]]] = []
    for inputs in (trial.examples, trial.fewer):
        log: list[tuple[str, int, int, Any]] = []

        def keep(*found: Any, log: list[Any] = log) -> None:
            log.append(found)

        names = {name for name, _ in base.named_modules() if name}
        with torch.enable_grad(), _watched(base, names, trained, keep):
            trial.answers(inputs)
            return None  # it came to its end: nothing that trains was called
        logs.append(log)
    if [found[:3] for found in logs[0]] != [found[:3] for found in logs[1]]:
        return None
    calls = []
    for place, (name, number, entered, output) in enumerate(logs[0]):
        if any(later[2] < entered for later in logs[0][place + 1 :]):
            continue  # a call within one that returns as well
        values, spec = pytree.tree_flatten(output)
        others, _ = pytree.tree_flatten(logs[1][place][3])
        if len(values) != len(others):
            return None
        leaves = [_leaf(*pair, trial.count) for pair in zip(values, others, strict=True)]
        if None in leaves:
            return None
        calls.append(_Call(name, number, tuple(leaf for leaf in leaves if leaf), spec))
    return tuple(calls)


def _leaf(value: Any, other: Any, count: int) -> _Leaf | None:
    """Describe a value from its forms for `count` images and for one fewer; None: that fails."""
    if not isinstance(value, Tensor):
        return _Leaf(value) if type(value) is type(other) and value == other else None
    if value.requires_grad or not isinstance(other, Tensor) or value.ndim != other.ndim:
        return None
    axes = [n for n, (a, b) in enumerate(zip(value.shape, other.shape, strict=True)) if a != b]
    if not axes:
        return _Leaf(value.clone()) if torch.equal(value, other) else None
    axis = axes[0]
    each, rest = divmod(value.shape[axis], count)
    if len(axes) > 1 or rest or other.shape[axis] != each * (count - 1):
        return None
    shape = (each, *value.shape[:axis], *value.shape[axis + 1 :])
    return _Leaf(None, axis, shape, value.dtype)


def _player(
    forward: Callable[..., Any], calls: Sequence[_Call], kept: Kept, nothing: float
) -> Callable[..., Any]:
    """Return a forward that plays the first calls of a module, and runs those behind them."""
    waiting = iter(calls)
    some = next(iter(kept.values()))

    def play(*args: Any, **kwargs: Any) -> Any:
        call = next(waiting, None)
        if call is None:
            return forward(*args, **kwargs)
        found = {place: kept[name] for name, place, _ in call.named()}
        values: list[Any] = []
        for place, leaf in enumerate(call.leaves):
            if place in found:
                values.append(leaf.restored(found[place]))
            elif leaf.shape:
                value = nothing if leaf.dtype.is_floating_point else 0
                shape = (len(some), *leaf.shape)
                values.append(leaf.restored(some.new_full(shape, value, dtype=leaf.dtype)))
            else:
                same = isinstance(leaf.value, Tensor)
                values.append(leaf.value.clone() if same else leaf.value)
        return pytree.tree_unflatten(values, call.spec)

    return play


def _played(
    prefix: Prefix, base: nn.Module, trial: Trial[X], examples: X, kept: Kept, *, nothing: float
) -> Sequence[Tensor] | None:
    """Return the answers while the prefix plays; None where the model fails on what it is given."""
    try:
        with prefix.playing(base, kept, nothing=nothing):
            return trial.answers(examples)
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ):
        return None


def same_answers(
    found: Sequence[Tensor] | None, truth: Sequence[Tensor], tolerance: float = _TOLERANCE
) -> bool:
    """Return whether tensors are equal up to rounding; NaN equals NaN alone.

    Args:
        found: compared with `truth`; None is equal to nothing.
        truth: the same number of tensors.
        tolerance: largest difference, as a share of the largest number of a tensor.
    """
    if found is None or len(found) != len(truth):
        return False
    for one, other in zip(found, truth, strict=True):
        if one.shape != other.shape:
            return False
        size = float(other.float().nan_to_num(0, 0, 0).abs().max()) if other.numel() else 0.0
        near = tolerance * max(size, 1e-6)
        if not torch.allclose(one.float(), other.float(), rtol=0, atol=near, equal_nan=True):
            return False
    return True


def _without(prefix: Prefix, place: int) -> Prefix:
    calls = list(prefix.calls)
    calls[place] = replace(calls[place], is_kept=False)
    return replace(prefix, calls=tuple(calls))


@contextlib.contextmanager
def _watched(
    base: nn.Module,
    names: Collection[str],
    ends: Collection[str],
    on_return: Callable[[str, int, int, Any], None],
) -> Iterator[None]:
    """Within the context calls are reported when they return, until one of `ends` is entered.

    Reported are name, number among the calls of the module, when it was entered, and output.
    """
    clock = 0
    counts: dict[str, int] = {}
    entered: dict[str, list[int]] = {}

    def enter(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any) -> None:
            nonlocal clock
            clock += 1
            entered.setdefault(name, []).append(clock)

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            number = counts.get(name, 0)
            counts[name] = number + 1
            on_return(name, number, entered[name].pop(), output)

        return hook

    def end(_: nn.Module, args: Any) -> None:
        raise _EndOfPrefixError

    handles = []
    for name in names:
        module = base.get_submodule(name)
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave(name)))
    handles += [base.get_submodule(name).register_forward_pre_hook(end) for name in ends]
    try:
        yield
    except _EndOfPrefixError:
        pass
    finally:
        for handle in handles:
            handle.remove()
