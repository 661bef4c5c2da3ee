"""The figures of the paper, corrected: what each layer does in a stage (`training.analysis`).

- How far each feed-forward linear has moved: ||scale · B·A||_F, and relative to the base's weight.
  (The paper plots ||A|| + ||B||, which holds the start of A as well.)
- Gradients of the terms of each role by themselves, before clipping, on the LoRA matrices of each
  block: the running mean of |gradient| over the steps looked at, and the cosine between roles.
- How many groups of the group lasso are exactly zero.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kswap.files import write_bytes
from kswap.objectives.sparsity import num_zero_groups
from kswap.settings import TermConfig

Figure = dict[str, Any]
"""{"title", "x_label", "y_label", "x": [...], "series": {name: [...]}}."""


@dataclass
class Analysis:
    """Gradients of one stage, looked at every so many steps, and what is left of them."""

    groups: Mapping[str, Sequence[nn.Parameter]]
    """Block -> its LoRA matrices."""
    every: int
    """Steps from one look to the next."""
    kept: dict[str, Any] = field(default_factory=dict)
    """Sums so far, plain values: a checkpoint holds them."""
    seconds: float = 0.0
    """Time spent looking."""
    _now: dict[str, list[Tensor]] = field(default_factory=dict)

    def looks_at(self, step: int) -> bool:
        """Whether step `step` (from 0) is looked at."""
        return step % self.every == 0

    def look(self, values: Mapping[str, Tensor], terms: Mapping[str, TermConfig]) -> None:
        """Take the gradient of each role's terms of a micro-batch; the graph stays as it is."""
        begin = time.perf_counter()
        by_roles: dict[str, list[Tensor]] = {}
        for name, value in values.items():
            if name in terms:
                by_roles.setdefault(" and ".join(terms[name].roles), []).append(value)
        parameters = [p for group in self.groups.values() for p in group]
        moved = [p for p in parameters if p.requires_grad]
        for roles, losses in by_roles.items():
            loss = torch.stack(losses).sum()
            found = torch.autograd.grad(loss, moved, retain_graph=True, allow_unused=True)
            gradients = {id(p): g for p, g in zip(moved, found, strict=True) if g is not None}
            flat = [
                gradients[id(p)].detach() if id(p) in gradients else torch.zeros_like(p)
                for p in parameters
            ]
            sums = self._now.get(roles)
            self._now[roles] = (
                flat if sums is None else [a + b for a, b in zip(sums, flat, strict=True)]
            )
        self.seconds += time.perf_counter() - begin

    def close(self, step: int) -> None:
        """Add the gradients of the whole batch of step `step` to the running means."""
        begin = time.perf_counter()
        zero = num_zero_groups(self.groups.values())
        self.kept.setdefault("zero groups", []).append([step + 1, zero])
        of_block = {roles: self._by_block(flat) for roles, flat in sorted(self._now.items())}
        for roles, blocks in of_block.items():
            self._add("gradient", roles, [float(b.abs().mean()) for b in blocks])
        for one, other in itertools.combinations(of_block, 2):
            pairs = zip(of_block[one], of_block[other], strict=True)
            cosines = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in pairs]
            self._add("cosine", f"{one}, {other}", cosines)
        self._now = {}
        self.seconds += time.perf_counter() - begin

    def _by_block(self, flat: Sequence[Tensor]) -> list[Tensor]:
        rest = iter(flat)
        return [
            torch.cat([next(rest).flatten().float() for _ in group])
            for group in self.groups.values()
        ]

    def _add(self, kind: str, name: str, values: Sequence[float]) -> None:
        count, sums = self.kept.setdefault(kind, {}).get(name, (0, [0.0] * len(values)))
        self.kept[kind][name] = [count + 1, [a + b for a, b in zip(sums, values, strict=True)]]

    def figures(self, moved: Mapping[str, Sequence[tuple[float, float]]]) -> list[Figure]:
        """Return the figures of the stage.

        Args:
            moved: block -> for each of its linears, in forward order, the norm of its change and
                that relative to the base's weight (`adapter_changes`).
        """
        blocks = list(range(1, len(self.groups) + 1))
        zero = self.kept.get("zero groups", [])
        return [
            _figure("Change of the layers", "‖scale · B·A‖_F", blocks, _of_linears(moved, 0)),
            _figure("Relative change of the layers", "‖ΔW‖ / ‖W‖", blocks, _of_linears(moved, 1)),
            _figure(
                "Gradient by role, before clipping",
                "log₁₀ mean |gradient|",
                blocks,
                {n: [_log10(v) for v in m] for n, m in self._means("gradient").items()},
            ),
            _figure(
                "Cosine between the gradients of roles", "cosine", blocks, self._means("cosine")
            ),
            {
                "title": "Groups that are exactly zero",
                "x_label": "step",
                "y_label": "groups",
                "x": [step for step, _ in zero],
                "series": {"zero groups": [count for _, count in zero]},
            },
        ]

    def _means(self, kind: str) -> dict[str, list[float]]:
        found = self.kept.get(kind, {})
        return {name: [value / count for value in sums] for name, (count, sums) in found.items()}


def _figure(
    title: str, y_label: str, blocks: list[int], series: dict[str, list[float | None]] | Any
) -> Figure:
    return {"title": title, "x_label": "block", "y_label": y_label, "x": blocks, "series": series}


def _of_linears(
    moved: Mapping[str, Sequence[tuple[float, float]]], which: int
) -> dict[str, list[float | None]]:
    """Return a series for each place in a block; None where a block has fewer linears."""
    most = max(map(len, moved.values()), default=0)
    return {
        f"linear {place + 1}": [
            block[place][which] if place < len(block) else None for block in moved.values()
        ]
        for place in range(most)
    }


def _log10(value: float) -> float | None:
    """Return the logarithm; None for a gradient of exactly 0."""
    return float(torch.tensor(value, dtype=torch.float64).log10()) if value > 0 else None


def write_figures(arrays_dir: Path, stage: str, figures: Sequence[Figure]) -> Path:
    """Write arrays/analysis-STAGE.json, whole or not at all."""
    arrays_dir.mkdir(exist_ok=True)
    path = arrays_dir / f"analysis-{stage}.json"
    write_bytes(path, json.dumps(list(figures), ensure_ascii=False).encode())
    return path
