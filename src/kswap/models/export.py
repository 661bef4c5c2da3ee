"""Write a classifier as one ONNX file, and prove that onnxruntime computes the same logits from it.

PyTorch's exporter through `torch.export` goes first, models it cannot trace fall back to the
TorchScript one. The batch axis is dynamic, the image size is the processor's.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kswap.errors import UserError, brief
from kswap.models.examples import example_inputs
from kswap.models.loading import quiet

_OPSET = 18
_TOLERANCE = 1e-4
_CHECKED_BATCHES = (1, 3)
_COLOUR = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
"""What tells a terminal to change colour; the exporters' messages have such."""


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=pixel_values).logits
        return logits


def export_onnx(model: PreTrainedModel, processor: Any, to_path: str | Path) -> Path:
    """Write one ONNX file: pixel_values (batch, channels, height, width) to logits (batch, K).

    Raises:
        UserError: onnx, onnxscript or onnxruntime is not installed.
        RuntimeError: the model has no logits, no exporter takes it, or onnxruntime's logits differ
            by more than 1e-4.
    """
    _need_onnx()
    to_path = Path(to_path)
    to_path.parent.mkdir(parents=True, exist_ok=True)
    partial = to_path.with_name(f".{to_path.name}.{os.getpid()}.onnx")
    wrapped = _Logits(model).eval()
    pixels = _example(model, processor)
    _need_logits(model, pixels)
    failures = []
    try:
        for name, export in _EXPORTERS.items():
            try:
                with _silent():
                    export(wrapped, pixels, partial)
                difference = _difference(wrapped, pixels, partial)
            except Exception as error:  # the other exporter may take it
                failures.append(f"{name}: {_cause(error)}")
                continue
            if difference <= _TOLERANCE:
                partial.replace(to_path)
                return to_path
            failures.append(f"{name}: logits differ by {difference:.2g} (allowed {_TOLERANCE:g})")
    finally:
        partial.unlink(missing_ok=True)
    raise RuntimeError(f"{type(model).__name__} cannot be exported to ONNX ({'; '.join(failures)})")


def _need_onnx() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"ONNX export needs {package}, which is not installed; pip install 'kswap[onnx]'"
            )


def _example(model: PreTrainedModel, processor: Any) -> Tensor:
    """Return two images of noise in the size the processor makes."""
    size = getattr(processor, "crop_size", None) or getattr(processor, "size", None) or {}
    pixels = next(example_inputs(model))["pixel_values"]
    if pixels.ndim != 4:
        raise UserError(
            f"{type(model).__name__}: takes packed patches, not images; it has no ONNX export"
        )
    height, width = pixels.shape[-2:]
    with contextlib.suppress(KeyError, TypeError):
        height, width = int(size["height"]), int(size["width"])
    noise = torch.Generator().manual_seed(0)
    return torch.randn(2, pixels.shape[1], height, width, generator=noise)


def _need_logits(model: PreTrainedModel, pixels: Tensor) -> None:
    """Refuse a model that answers with other tensors, such as masks and classes of queries."""
    try:
        with torch.no_grad():
            answers = model(pixel_values=pixels[:1])
    except Exception as error:  # a size that the model does not take
        raise RuntimeError(
            f"{type(model).__name__} cannot be exported to ONNX (it takes no images of "
            f"{tuple(pixels.shape[-2:])} pixels: {_cause(error)})"
        ) from error
    if "logits" not in answers:
        own = [name for name in answers if name.endswith("logits")] or list(answers)
        raise RuntimeError(
            f"{type(model).__name__} cannot be exported to ONNX (it answers with "
            f"{' and '.join(own[:2])}, not with logits alone)"
        )


def _by_torch_export(wrapped: nn.Module, pixels: Tensor, path: Path) -> None:
    torch.onnx.export(
        wrapped,
        (pixels,),
        str(path),
        input_names=["pixel_values"],
        output_names=["logits"],
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
        opset_version=_OPSET,
        external_data=False,
        dynamo=True,
        verbose=False,
    )


def _by_torchscript(wrapped: nn.Module, pixels: Tensor, path: Path) -> None:
    torch.onnx.export(
        wrapped,
        (pixels,),
        str(path),
        input_names=["pixel_values"],
        output_names=["logits"],
        dynamic_axes={"pixel_values": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=_OPSET,
        dynamo=False,
    )


_EXPORTERS: dict[str, Callable[[nn.Module, Tensor, Path], None]] = {
    "torch.export": _by_torch_export,
    "TorchScript": _by_torchscript,
}


def _difference(wrapped: nn.Module, pixels: Tensor, path: Path) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in _CHECKED_BATCHES:
        images = (
            pixels[:1].repeat(batch, 1, 1, 1) * torch.linspace(1, 0.5, batch)[:, None, None, None]
        )
        with torch.no_grad():
            expected = wrapped(images)
        (logits,) = session.run(["logits"], {"pixel_values": images.numpy()})
        worst = max(worst, float((torch.from_numpy(logits) - expected).abs().max()))
    return worst


@contextlib.contextmanager
def _without_log() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the exporters' progress lines and warnings away from the user."""
    with (
        _without_log(),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        quiet(),
    ):
        warnings.simplefilter("ignore")
        yield


def _cause(error: BaseException) -> str:
    """Return what an error comes from, its type and its first line: advice follows below that."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
    few = lines[:2] if lines and lines[0].endswith(":") else lines[:1]
    return f"{type(error).__name__}: {brief(' '.join(few))}" if few else type(error).__name__
