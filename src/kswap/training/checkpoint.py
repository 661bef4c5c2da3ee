"""Resumable state: tensors in one safetensors file, all else in JSON, and a checksum over both.

A checkpoint is a folder that is written under a temporary name, flushed to the disk and renamed, so
that it is there whole or not at all. Random numbers need no state: they are functions of (seed,
stage, step).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from kswap.data import SwapData
from kswap.errors import UserError
from kswap.files import digest_of, write_bytes

_STATE, _META = "state.safetensors", "state.json"
_KEPT = 2


@dataclass
class Position:
    """Where a run stands."""

    stage: int = 1
    """Stage that is under way, from 1; one past the last when all are trained."""
    step: int = 0
    """Steps of that stage that are done."""
    total_steps: int = 0
    """Steps of the finished stages."""
    fingerprint: str = ""
    """Of the base weights and the training images; another one cannot be resumed."""
    events_bytes: int = 0
    """Length of events.jsonl at this point; what is behind it is cut off on resuming."""
    events_sha256: str = ""
    """Of events.jsonl up to there."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of what lies beside the checkpoints and is not written again, by path in the run."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    """Scores of the finished stages, as in results.json."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds spent so far, by phase."""
    num_frozen: int = 0
    """Blocks below those that train in the stage under way."""
    streams: dict[str, Any] = field(default_factory=dict)
    """Where images are read from next that are not kept, by stream and role (`data.streaming`)."""
    scaler: dict[str, float] = field(default_factory=dict)
    """State of the fp16 loss scaler."""
    analysis: dict[str, Any] = field(default_factory=dict)
    """Sums of the stage under way (`training.analysis`)."""


def save_checkpoint(
    checkpoints_dir: Path, tensors: Mapping[str, Tensor], position: Position
) -> Path:
    """Write a checkpoint and prune all but the last two.

    What would come after it is pruned as well: a run goes on from the newest one that is whole, so
    that those were damaged.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    name = f"{position.stage:02d}-{position.step:08d}"
    target, temporary = checkpoints_dir / name, checkpoints_dir / f".{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        content = safetensors.torch.save(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        )
        write_bytes(temporary / _STATE, content)
        place = json.loads(json.dumps(asdict(position)))
        meta = {"sha256": _digest(content, place), "position": place}
        write_bytes(temporary / _META, json.dumps(meta).encode())
        _delete(target)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for later in _folders(checkpoints_dir):
        if later.name > name:
            _delete(later)
    prune(checkpoints_dir, keep=_KEPT)
    return target


def load_checkpoint(checkpoints_dir: Path) -> tuple[dict[str, Tensor], Position, list[str]] | None:
    """Return tensors and position of the newest whole checkpoint, and notes on damaged ones."""
    notes: list[str] = []
    for folder in sorted(_folders(checkpoints_dir), reverse=True):
        try:
            content = (folder / _STATE).read_bytes()
            meta = json.loads((folder / _META).read_text(encoding="utf-8"))
            if _digest(content, meta["position"]) != meta["sha256"]:
                raise ValueError("its checksum is wrong")
            position = Position(**meta["position"])
            return safetensors.torch.load(content), position, notes
        except (OSError, ValueError, KeyError, TypeError) as error:
            notes.append(f"checkpoint {folder} is damaged ({error}) and not used")
    return None if not notes else ({}, Position(), notes)


def check_run(run_dir: Path, position: Position) -> list[str]:
    """Compare what lies beside the checkpoints with what a checkpoint says of it.

    Returns:
        Notes on files that are gone; what is drawn from them is left out.

    Raises:
        UserError: a file is damaged; it is named.
    """
    notes = []
    for name, expected in position.files.items():
        try:
            if digest_of(run_dir / name) != expected:
                raise _damaged(run_dir / name)
        except FileNotFoundError:
            notes.append(f"{run_dir / name} is gone; what is drawn from it is left out")
    events = run_dir / "events.jsonl"
    if position.events_bytes and not events.exists():
        notes.append(f"{events} is gone; the losses of the steps until now are left out")
    elif position.events_bytes:
        with events.open("rb") as file:
            begun = file.read(position.events_bytes)
        if hashlib.sha256(begun).hexdigest() != position.events_sha256:
            raise _damaged(events)
    return notes


def _damaged(path: Path) -> UserError:
    return UserError(
        f"{path}: is damaged (its checksum is not that in the checkpoint); restore it, or delete "
        "checkpoints/ beside it and run the same swap again from its beginning"
    )


def _digest(content: bytes, position: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(content)
    digest.update(json.dumps(position, sort_keys=True).encode())
    return digest.hexdigest()


def prune(checkpoints_dir: Path, *, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what a killed run left half-written."""
    for stale in checkpoints_dir.glob(".*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
    for folder in sorted(_folders(checkpoints_dir))[:-keep]:
        shutil.rmtree(folder, ignore_errors=True)


def _delete(path: Path) -> None:
    """Delete a folder, or a file in its place."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _folders(checkpoints_dir: Path) -> list[Path]:
    return [p for p in checkpoints_dir.glob("[0-9]*-[0-9]*") if p.is_dir()]


def weights_digest(model: Any) -> str:
    """Return a checksum of a model's parameters and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        flat = tensor.detach().cpu().flatten()  # batch norm counts its batches in a scalar
        digest.update(flat.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def fingerprint_of(weights: str, data: SwapData) -> str:
    """Return a checksum of base weights, class names, images and labels, and what is made of them.

    The last by one image as the processor hands it to the model.

    Args:
        weights: `weights_digest` of the base.
        data: of the run.
    """
    digest = hashlib.sha256(weights.encode())
    digest.update(repr(sorted(data.id2label.items())).encode())  # repr escapes lone surrogates
    for role in sorted(data.sets):
        for split in sorted(data.sets[role]):
            images = data.sets[role][split]
            digest.update(f"{role} {split} {images.images.shape}".encode())
            if split == "train":
                digest.update(data.pixels(images.images[:1]).cpu().contiguous().numpy().tobytes())
            digest.update(images.class_ids.tobytes())
            for boxes in images.boxes or ():
                digest.update(boxes.boxes.tobytes() + boxes.class_ids.tobytes())
            for start in range(0, len(images), 1024):
                digest.update(images.images[start : start + 1024].tobytes())
                if images.masks is not None:
                    digest.update(images.masks[start : start + 1024].tobytes())
    for role in sorted(data.streamed):
        digest.update(f"{role} {data.streamed[role].shards.identity}".encode())
    return digest.hexdigest()
