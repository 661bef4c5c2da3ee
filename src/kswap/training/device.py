"""Where and in which precision a run computes; refuses what the hardware cannot do."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from kswap.environment import peak_resident_bytes
from kswap.errors import UserError
from kswap.settings import TrainingConfig

_PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}


def make_accelerator(training: TrainingConfig, run_dir: Path) -> Accelerator:
    """Return an Accelerator on the device and in the precision asked for.

    Raises:
        UserError: the device is not there, the precision cannot be had on it, a tracker is not
        installed.
    """
    device = _pick_device(training)
    _check_precision(training, device)
    for tracker in training.trackers:
        if not any(importlib.util.find_spec(name) for name in _PACKAGES[tracker]):
            raise UserError(
                f"training.trackers: {tracker!r} is not installed; "
                f"pip install {_PACKAGES[tracker][0]}"
            )
    if AcceleratorState._shared_state:  # a run before this one in the same process had its own
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision="no" if training.precision == "fp32" else training.precision,
        log_with=list(training.trackers) or None,
        project_dir=str(run_dir),
    )
    if training.trackers:
        accelerator.init_trackers("kswap")
    return accelerator


def _pick_device(training: TrainingConfig) -> str:
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if training.device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[training.device]:
        raise UserError(
            f"training.device: {training.device!r} is not there; take 'auto' or one of "
            f"{', '.join(name for name, here in there.items() if here)}"
        )
    return training.device


def _check_precision(training: TrainingConfig, device: str) -> None:
    precision = training.precision
    can = {
        "fp32": True,
        "bf16": torch.cuda.is_bf16_supported()
        if device == "cuda"
        else device == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        "fp16": device == "cuda",
    }
    if not can[precision]:
        raise UserError(
            f"training.precision: {precision!r} cannot be computed on this {device}; take "
            f"{' or '.join(name for name, able in can.items() if able)}"
        )


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turn too little memory, on whatever device, into one clear line.

    Raises:
        UserError: an allocation failed.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = " ".join(str(error).split())
        small = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not small and "can't allocate memory" not in text:
            raise
        raise UserError(
            f"the memory is too small ({text[:200]}); lower the streams' batch_size, "
            "training.eval_batch_size or adapter.rank, or raise training.accumulation, and name "
            "another output folder"
        ) from error


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory of this process: of the GPU where it is used, else resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak_resident_bytes()
