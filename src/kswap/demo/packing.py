"""Keeps a model's weights in a quarter of their size, so that the demo's models fit in the package.

What: linear and convolution weights become int8 with one float32 scale per output row (symmetric,
round to nearest: an entry moves by at most half its row's scale); everything else stays float32.
A digest over all tensors lies in the file, so damage is found. Why: the demo runs where no hub can
be reached. Source: per-channel weight quantisation as in Jacob et al. 2018 (arXiv:1712.05877).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from kswap.files import write_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

WEIGHTS_NAME = "weights-int8.safetensors"
"""The packed weights of a folder; its other files are `CONFIG_NAMES`."""

CONFIG_NAMES = ("config.json", "preprocessor_config.json")
"""The files of a transformers folder that go along unchanged."""

SCALE_SUFFIX = "::scale"
"""Marks the scales of an int8 tensor; no parameter of a torch module can have this in its name."""

DIGEST_KEY = "kswap-int8-rows-sha256"
"""The file's one metadata entry (more than one would be written in no fixed order)."""


def pack(state_dict: Mapping[str, Tensor], path: Path) -> None:
    """Write `state_dict` to `path`: matrices and kernels as int8 rows, other floats as float32."""
    import torch
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    for name, given in state_dict.items():
        tensor = given.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float32)
            if not bool(torch.isfinite(tensor).all()):
                msg = f"{name} has values that are not finite; only finite weights can be packed"
                raise ValueError(msg)
            if tensor.ndim in (2, 4):
                tensor, scale = _quantise(tensor)
                tensors[name + SCALE_SUFFIX] = scale
        tensors[name] = tensor.contiguous()
    _write(path, save(tensors, metadata={DIGEST_KEY: _digest(tensors)}))


def unpack(path: Path) -> dict[str, Tensor]:
    """Return the weights of a file that `pack` wrote; ValueError when it is not whole."""
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except SafetensorError as error:
        msg = f"{path} is damaged ({error}); reinstall kswap or make its assets again"
        raise ValueError(msg) from error
    if DIGEST_KEY not in metadata:
        msg = f"{path} is no file of kswap.demo.packing.pack; write it with pack"
        raise ValueError(msg)
    if metadata[DIGEST_KEY] != _digest(tensors):
        msg = f"{path} is damaged (its digest differs); reinstall kswap or make its assets again"
        raise ValueError(msg)
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(SCALE_SUFFIX):
            continue
        scale = tensors.get(name + SCALE_SUFFIX)
        if scale is None:
            weights[name] = tensor
        else:
            weights[name] = tensor.to(torch.float32) * _per_row(scale, tensor.ndim)
    return weights


def write_model(packed_dir: Path, to_dir: Path) -> None:
    """Write the packed model as an ordinary transformers folder; all of it appears at once.

    `to_dir` must not exist yet or be empty, so that no other folder is overwritten.
    """
    from safetensors.torch import save

    if to_dir.exists() and any(to_dir.iterdir()):
        msg = f"{to_dir} is not empty; name a new folder or delete it first"
        raise ValueError(msg)
    weights = unpack(packed_dir / WEIGHTS_NAME)

    def write(folder: Path) -> None:
        for name in CONFIG_NAMES:
            shutil.copyfile(packed_dir / name, folder / name)
        (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))

    write_folder(to_dir, write)


def _quantise(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 values and the scale (rows,) of `tensor` (rows, ...); a zero row has scale 1."""
    import torch

    largest = tensor.flatten(1).abs().amax(1)
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    values = torch.round(tensor / _per_row(scale, tensor.ndim)).clamp(-127, 127)
    return values.to(torch.int8), scale


def _per_row(scale: Tensor, ndim: int) -> Tensor:
    """Shape (rows,) scales so that they multiply a tensor of `ndim` dimensions by its rows."""
    return scale.reshape(-1, *[1] * (ndim - 1))


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Write under a temporary name and rename, so that no half file is ever found at `path`."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(path)
