"""Frames of the model as it trains: how retained classes lie in it by now, looked at now and then.

What the base model makes of retained images is where their classes were. They drift in training,
each its own way, and so do the directions in which images of a class differ; a head that is fitted
to the swapped model goes by where they are (LOG.md, 2026-11-27).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from kswap.objectives.places import is_at
from kswap.objectives.units import Bank, Frame
from kswap.settings import StageConfig


@dataclass
class Renewal:
    """Frames, and the steps at which they are looked at anew."""

    every: int
    look: Callable[[], Mapping[str, Frame]]
    """Leaves the model in evaluation mode."""
    frames: Mapping[str, Frame] = field(default_factory=dict)

    def is_due(self, step: int) -> bool:
        """Look anew before step `step` (from 0), if it is one to do so; return whether it was."""
        if step % self.every:
            return False
        self.frames = self.look()
        return True

    def tensors(self) -> dict[str, Tensor]:
        """Return the frames for a checkpoint."""
        return {
            f"{name}.{one.name}": getattr(frame, one.name).contiguous()
            for name, frame in self.frames.items()
            for one in fields(Frame)
        }


def frames_from(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Frame]:
    """Undo `Renewal.tensors`."""
    names = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
    return {
        name: Frame(**{one.name: tensors[f"{name}.{one.name}"].to(device) for one in fields(Frame)})
        for name in names
    }


def renewed_places(stage: StageConfig, bank: Bank, num_blocks: int) -> list[str]:
    """Return the places, also after whitening, whose frame the terms of a stage go by."""
    terms = [term for term in stage.terms.values() if term.objective == "discrimination"]
    return [
        name for name in bank.places if any(is_at(name, term.layers, num_blocks) for term in terms)
    ]


def frames_of(bank: Bank, places: Sequence[str]) -> dict[str, Frame]:
    """Return the frames of some places of a bank."""
    return {
        name: Frame(**{one.name: getattr(bank.places[name], one.name) for one in fields(Frame)})
        for name in places
    }
