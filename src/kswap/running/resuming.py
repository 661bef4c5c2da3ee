"""How a run goes on: its newest checkpoint read, and one written."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from kswap.errors import UserError
from kswap.models import artefact
from kswap.run_folder import RunFolder
from kswap.running.state import RunState
from kswap.training.checkpoint import Position, check_run, load_checkpoint, save_checkpoint
from kswap.training.events import EventLog
from kswap.training.loop import Trainee
from kswap.training.optimiser import optimiser_state


def resume(state: RunState, resume_from: Path, fingerprint: str) -> dict[str, Tensor]:
    """Read the newest checkpoint, if any, into `position`; return its tensors."""
    found = load_checkpoint(resume_from)
    state.accelerator.wait_for_everyone()  # before the first process writes another
    state.position.fingerprint = fingerprint
    if found is None:
        return {}
    tensors, position, notes = found
    for note in notes:
        state.on_note(note)
    if not tensors:
        return {}
    _refuse_others(state.folder.path, position, fingerprint)
    if state.accelerator.is_main_process:
        for note in check_run(state.folder.path, position):
            state.on_note(note)
    else:
        position.events_bytes = 0  # it begins a file of its own
    state.position = position
    state.seconds = {
        **position.seconds,
        "load": position.seconds.get("load", 0) + state.seconds["load"],
    }
    state.on_note(f"going on from stage {position.stage}, step {position.step}")
    return tensors


def part_of(
    tensors: Mapping[str, Tensor], part: Literal["model", "before", "prepared", "frames"]
) -> dict[str, Tensor]:
    """Return what a checkpoint holds of the trained tensors, of the adapter before, of terms."""
    start = f"{part}."
    return {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}


def check_same(folder: RunFolder, fingerprint: str) -> None:
    """Refuse a finished run whose checkpoint says that it is of other images, names or weights.

    Raises:
        UserError: they are others.
    """
    found = load_checkpoint(folder.checkpoints)
    if found is not None and found[0]:
        _refuse_others(folder.path, found[1], fingerprint)


def _refuse_others(path: Path, position: Position, fingerprint: str) -> None:
    if position.fingerprint != fingerprint:
        raise UserError(
            f"output: {path} was begun with other images, class names, processor or base weights; "
            "restore them, or name another folder"
        )


def checkpoint(
    state: RunState,
    trainee: Trainee,
    events: EventLog,
    *,
    optimiser: Any = None,
    before: Mapping[str, Tensor] | None = None,
    prepared: Mapping[str, Tensor] | None = None,
    frames: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint; within a stage, with the optimiser and the adapter it began with."""
    if not state.accelerator.is_main_process:
        return
    begin = time.perf_counter()
    state.position.events_bytes = events.flush()
    state.position.events_sha256 = events.sha256
    state.position.seconds = dict(state.seconds)
    tensors = {f"model.{k}": v for k, v in artefact.trainable_state(trainee.model).items()}
    if optimiser is not None:
        tensors |= optimiser_state(optimiser, trainee.moved)
    for part, own in (("before", before), ("prepared", prepared), ("frames", frames)):
        tensors |= {f"{part}.{name}": tensor for name, tensor in (own or {}).items()}
    if state.accelerator.scaler is not None:
        state.position.scaler = state.accelerator.scaler.state_dict()
    save_checkpoint(state.folder.checkpoints, tensors, state.position)
    state.spent("checkpoint", begin)
