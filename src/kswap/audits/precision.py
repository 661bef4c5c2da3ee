"""A9: does rounding bring it back? The model as deployment would change it.

Weights in bf16, int8 and int4 (each row of a matrix or kernel its own scale, round to nearest),
with noise, and with the smallest 30 % and 50 % of every matrix set to 0. Quantisation is known to
undo unlearning that moved weights little (Zhang et al., ICLR 2025): what a fine-tuned model gained
on its base may be smaller than a step of the grid. Scores and few-shot restoring (A6) at each are
compared with the same for the reference. Numbers are rounded; the arithmetic stays fp32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kswap.audits.findings import Cell, Finding, Interval, Table, missing, not_available
from kswap.audits.probe import lacking
from kswap.audits.restore import features_of, restore_from
from kswap.audits.scores import KEPT_SHARE
from kswap.audits.statistics import difference, t_interval
from kswap.audits.subjects import NO_FORGET, Answers, Case, Subject, SubjectName

TITLE = "Precision"
QUESTION = "Does rounding bring it back?"
VARIANTS = ("bf16", "int8", "int4", "noise 5 %", "pruned 30 %", "pruned 50 %")
_SHOTS = 5
_MARGIN = 0.05
_METHOD = f"class means of {_SHOTS} images"

Look = Callable[[SubjectName, str], Subject]
"""Returns what a model makes of the same images with its weights changed; "fp32": unchanged."""


@torch.no_grad()
def changed(weight: Tensor, variant: str, generator: torch.Generator) -> Tensor:
    """Return a weight as a variant has it, in its own type.

    Args:
        weight: (rows, ...).
        variant: of VARIANTS.
        generator: of the noise.
    """
    rows = weight.flatten(1)
    if variant == "bf16":
        return weight.to(torch.bfloat16).to(weight.dtype)
    if variant.startswith("int"):
        most = 2 ** (int(variant[3:]) - 1) - 1
        scale = rows.abs().amax(1, keepdim=True) / most
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        return (torch.round(rows / scale).clamp(-most, most) * scale).view_as(weight)
    share = float(variant.split()[1]) / 100
    if variant.startswith("noise"):
        noise = torch.randn(rows.shape, generator=generator).to(rows)
        return (rows + share * rows.square().mean(1, keepdim=True).sqrt() * noise).view_as(weight)
    flat = weight.abs().flatten()
    count = int(share * flat.numel())
    if not count:
        return weight.clone()
    return torch.where(weight.abs() <= flat.kthvalue(count).values, torch.zeros(()), weight)


@contextlib.contextmanager
def as_variant(model: nn.Module, variant: str, *, seed: int) -> Iterator[None]:
    """Within the context the matrices and kernels of a model are as a variant has them."""
    kept: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    try:
        for name, parameter in model.named_parameters():
            if variant != "fp32" and parameter.ndim in (2, 4) and parameter.is_floating_point():
                kept[name] = parameter.data
                parameter.data = changed(parameter.data, variant, generator).to(parameter)
        yield
    finally:
        for name, parameter in model.named_parameters():
            if name in kept:
                parameter.data = kept[name]


def audit(case: Case, look: Look) -> Finding:
    """Score and restore every variant of the swapped model and of the reference."""
    if not case.forgets:
        return missing(TITLE, QUESTION, NO_FORGET)
    if why := lacking(case.swapped):
        return missing(TITLE, QUESTION, why)
    names: list[SubjectName] = ["swapped"]
    if case.reference is not None and case.reference_level != "R3":
        names.append("reference")
    seen = {
        name: {variant: look(name, variant) for variant in ("fp32", *VARIANTS)} for name in names
    }
    restored = {
        name: {variant: _restored(subject, case.seed) for variant, subject in of.items()}
        for name, of in seen.items()
    }
    table = Table(
        f"Weights as deployment changes them; restored: {_METHOD}",
        (
            "weights",
            *(
                f"{what}, {case.column(name)}"
                for name in names
                for what in ("forget", "retain", "forget restored")
            ),
        ),
    )
    for variant in ("fp32", *VARIANTS):
        cells: list[Cell | Interval] = []
        for name in names:
            cells += [_score(seen[name][variant], role) for role in ("forget", "retain")]
            cells.append(_mean(restored[name][variant]))
        if len(names) == 1:
            cells.append(not_available("no reference"))
        table.rows.append([variant, *cells])
    if len(names) == 1:
        table = replace(table, columns=(*table.columns, case.column("reference")))
    before = case.base.of("forget", "test")
    most = KEPT_SHARE * (float(before.hits().mean()) if before is not None else 0.0)
    back = [v for v in VARIANTS if _number(seen["swapped"][v], "forget") > most]
    gains = _gains(restored) if len(names) == 2 else {}
    worse = [v for v, gain in gains.items() if gain.above(_MARGIN)]
    parts = [
        f"{what}: {', '.join(which)}"
        for what, which in (
            ("more than 5 % of the base's score is back at", back),
            ("restored by more than the reference gains at", worse),
        )
        if which
    ]
    reason = "; ".join(parts) or "no variant answers or restores more than the reference's"
    if not case.decides:
        reason = f"{case.without_decision()}; {reason}" if parts else case.without_decision()
    values: dict[str, Any] = {
        name: {v: _number(subject, "forget") for v, subject in of.items()}
        for name, of in seen.items()
    }
    status, reason = case.decision(reason, failed=bool(back or worse))
    return Finding(TITLE, QUESTION, status, reason, (table,), (), {**values, "gains": gains})


def _restored(subject: Subject, seed: int) -> list[NDArray[np.bool_]] | None:
    """Return which test units of forgotten classes are right after restoring, by draw."""
    if lacking(subject):
        return None
    layer = list(_answers(subject).layers)[-1]
    found = restore_from(features_of(subject, layer), seed=seed, head=None, shots=(_SHOTS,))
    return found[_METHOD][0] if _METHOD in found else None


def _answers(subject: Subject) -> Answers:
    answers = subject.of("forget", "test")
    assert answers is not None
    return answers


def _gains(
    restored: Mapping[SubjectName, Mapping[str, list[NDArray[np.bool_]] | None]],
) -> dict[str, Interval]:
    """Return by how much more a variant restores than fp32, beyond the reference's gain."""
    gains = {}
    for variant in VARIANTS:
        four = [restored[n][v] for n in ("swapped", "reference") for v in (variant, "fp32")]
        means = [np.mean(hits, 0) for hits in four if hits is not None]
        if len(means) == 4:
            gains[variant] = difference(
                means[0] - means[1], means[2] - means[3], num_tests=len(VARIANTS)
            )
    return gains


def _number(subject: Subject, role: Any) -> float:
    answers = subject.of(role, "test")
    return 0.0 if answers is None else float(answers.hits().mean())


def _score(subject: Subject, role: Any) -> Cell | Interval:
    return _number(subject, role) if subject.of(role, "test") else not_available("no images")


def _mean(hits: list[NDArray[np.bool_]] | None) -> Cell | Interval:
    if hits is None:
        return not_available(f"fewer than {_SHOTS} train images of a class")
    return t_interval([float(draw.mean()) for draw in hits])
