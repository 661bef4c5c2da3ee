"""Packed weights: small error, same bits every time, loadable, and damage is found."""

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from kswap.demo import packing

ASSETS_DIR = Path(packing.__file__).parent / "assets" / "classification"
MODELS = ("base", "reference")


@pytest.fixture
def state_dict() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "linear.weight": torch.randn(5, 7, generator=generator) * torch.logspace(-3, 3, 5)[:, None],
        "zero.weight": torch.zeros(2, 3),
        "conv.weight": torch.randn(4, 3, 2, 2, generator=generator),
        "position": torch.randn(1, 6, 4, generator=generator),
        "linear.bias": torch.randn(5, generator=generator),
        "half.bias": torch.randn(5, generator=generator).half(),
        "num_batches": torch.tensor(3),
    }


def test_round_trip_moves_an_entry_by_at_most_half_its_rows_scale(
    state_dict: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / packing.WEIGHTS_NAME
    packing.pack(state_dict, path)
    got = packing.unpack(path)
    assert got.keys() == state_dict.keys()
    for name, given in state_dict.items():
        if given.ndim in (2, 4):
            half_scale = given.flatten(1).abs().amax(1) / 127 / 2
            error = (got[name] - given).flatten(1).abs().amax(1)
            assert bool((error <= half_scale * (1 + 1e-5)).all()), name
        else:
            assert torch.equal(got[name], given.float() if given.is_floating_point() else given)
        assert got[name].dtype in (torch.float32, torch.int64)


def test_pack_and_unpack_give_the_same_bits_every_time(
    state_dict: dict[str, Tensor], tmp_path: Path
) -> None:
    paths = [tmp_path / "one", tmp_path / "two"]
    packing.pack(state_dict, paths[0])
    packing.pack(dict(reversed(state_dict.items())), paths[1])
    assert paths[0].read_bytes() == paths[1].read_bytes()
    first, second = packing.unpack(paths[0]), packing.unpack(paths[0])
    assert all(torch.equal(first[name], second[name]) for name in state_dict)


def test_pack_refuses_weights_that_are_not_finite(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"head\.weight.*not finite"):
        packing.pack({"head.weight": torch.tensor([[1.0, float("nan")]])}, tmp_path / "weights")


@pytest.mark.parametrize("damage", ["flipped byte", "cut short", "empty", "another's"])
def test_unpack_finds_a_damaged_file(
    state_dict: dict[str, Tensor], tmp_path: Path, damage: str
) -> None:
    path = tmp_path / packing.WEIGHTS_NAME
    packing.pack(state_dict, path)
    content = bytearray(path.read_bytes())
    if damage == "flipped byte":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "cut short":
        path.write_bytes(content[:-10])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        save_file(state_dict, path)
    with pytest.raises(ValueError, match=r"weights-int8\.safetensors is"):
        packing.unpack(path)


def test_write_model_refuses_a_folder_with_files_in_it(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="is not empty"):
        packing.write_model(ASSETS_DIR / "base", tmp_path)


def test_write_model_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    packed_dir, to_dir = tmp_path / "packed", tmp_path / "out" / "model"
    packed_dir.mkdir()
    packing.pack({"head.weight": torch.ones(1, 1)}, packed_dir / packing.WEIGHTS_NAME)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        packing.write_model(packed_dir, to_dir)
    assert list(to_dir.parent.iterdir()) == []


@pytest.mark.parametrize("model_name", MODELS)
def test_written_model_loads_and_answers_the_demos_test_images(
    model_name: str, tmp_path: Path
) -> None:
    """20 images of every class of the model: above 75 %; all of them are in metrics.json."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    packing.write_model(ASSETS_DIR / model_name, tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys()
    model, info = AutoModelForImageClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values()), info
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    names = list(model.config.label2id)
    taken = dict.fromkeys(names, 20)
    images, labels = [], []
    for row in pq.read_table(ASSETS_DIR / "test.parquet").to_pylist():
        if taken.get(row["label"], 0):
            taken[row["label"]] -= 1
            images.append(Image.open(io.BytesIO(row["image"]["bytes"])))
            labels.append(row["label"])
    assert len(images) == 20 * len(names)
    with torch.no_grad():
        answers = model.eval()(**processor(images, return_tensors="pt")).logits.argmax(-1)
    right = [names[i] == label for i, label in zip(answers.tolist(), labels, strict=True)]
    measured = json.loads((ASSETS_DIR / model_name / "metrics.json").read_text(encoding="utf-8"))
    assert measured["test_as_unpacked"]["top1"] >= 85
    assert sum(right) / len(right) >= 0.75
