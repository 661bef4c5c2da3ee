"""What is written is read by plain PEFT and transformers to the same logits, without kswap."""

import ast
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from models.families import FAMILIES, LABELS, tiny_inputs, tiny_processor
from peft import PeftModel
from PIL import Image
from transformers import AutoConfig, AutoModelForImageClassification, pipeline

from kswap.files import write_folder
from kswap.models.adapter import adapter_tensors, attach
from kswap.models.artefact import (
    load_trainable_state,
    merged_model,
    save_adapter,
    save_merged,
    save_model,
    trainable_state,
)
from kswap.models.head import extend_head, find_heads
from kswap.models.loading import load_base, quiet
from kswap.settings import AdapterConfig

# PEFT asks transformers for a deprecated property when it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
NEW = {**LABELS, 5: "horse", 6: "ship"}
NOTES = {"forgotten": ["cat"], "learned": ["horse", "ship"], "version": "0"}


def swapped(built, family, to_dir):
    """Return a PEFT model as after training, its processor, and the name of its base."""
    model, blocks = built(family)
    processor = tiny_processor(model)
    base = save_model(model, to_dir / "base", processor=processor)
    model = load_base(str(base)).model
    extend_head(model, NEW, init="random", seed=0)
    peft_model = attach(
        model, blocks, AdapterConfig(rank=2), head_names=find_heads(model), seed=0
    ).eval()
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in peft_model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=noise))
    return peft_model, processor, base


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_round_trip_through_peft(family, built, tmp_path):
    peft_model, processor, base = swapped(built, family, tmp_path)
    inputs = tiny_inputs(peft_model.get_base_model())
    folder = save_adapter(
        peft_model, tmp_path / "run" / "adapter", base_name=str(base), processor=processor
    )
    with quiet():
        config = AutoConfig.from_pretrained(folder)
        model = AutoModelForImageClassification.from_pretrained(
            base, config=config, ignore_mismatched_sizes=True
        )
        again = PeftModel.from_pretrained(model, folder).eval()
    assert torch.allclose(logits(again, inputs), logits(peft_model, inputs), rtol=0, atol=1e-5)
    assert again.config.id2label == NEW


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_model_answers_like_the_adapted_one(family, built, tmp_path):
    peft_model, processor, _ = swapped(built, family, tmp_path)
    inputs = tiny_inputs(peft_model.get_base_model())
    before = {name: tensor.clone() for name, tensor in peft_model.state_dict().items()}
    expected = logits(peft_model, inputs)
    folder = save_merged(peft_model, tmp_path / "model", processor=processor, kswap=NOTES)
    assert all(
        torch.equal(before[name], tensor) for name, tensor in peft_model.state_dict().items()
    )
    assert torch.equal(logits(peft_model, inputs), expected)
    loaded = load_base(str(folder))
    assert torch.allclose(logits(loaded.model, inputs), expected, rtol=0, atol=1e-5)
    assert loaded.id2label == NEW
    assert loaded.forgotten == ("cat",)
    assert loaded.model.config.kswap == NOTES
    assert type(loaded.processor) is type(processor)


def test_what_an_adapter_folder_holds(built, tmp_path):
    peft_model, processor, _ = swapped(built, "vit", tmp_path)
    folder = save_adapter(
        peft_model, tmp_path / "adapter", base_name="owner/base", processor=processor
    )
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.json",
        "preprocessor_config.json",
    }
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "owner/base"
    assert config["peft_type"] == "LORA"
    assert 'from_pretrained("owner/base", config=config' in (folder / "README.md").read_text()
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    save_adapter(peft_model, folder, base_name="owner/base", processor=processor)
    assert first == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_recipe_names_any_base(built, tmp_path):
    name = 'bases: "best" #1\\é'
    peft_model, processor, _ = swapped(built, "vit", tmp_path)
    folder = save_adapter(peft_model, tmp_path / "adapter", base_name=name, processor=processor)
    recipe = (folder / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(recipe.split("---\n")[1]) == {"base_model": name, "library_name": "peft"}
    code = ast.parse(recipe.split("```python\n")[1].split("```")[0])
    assert name in {node.value for node in ast.walk(code) if isinstance(node, ast.Constant)}


def test_the_recipe_asks_for_a_base_that_has_no_name(built, tmp_path):
    peft_model, processor, _ = swapped(built, "vit", tmp_path)
    base = peft_model.get_base_model()
    base.name_or_path, name = "", type(base).__name__
    folder = save_adapter(peft_model, tmp_path / "adapter", base_name=name, processor=processor)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "base_model" not in text
    assert 'from_pretrained("FOLDER OF THE BASE", config=config' in text
    assert "a ViTForImageClassification that was given in memory" in text
    config = json.loads((folder / "adapter_config.json").read_text())
    assert not config["base_model_name_or_path"]


def test_an_adapter_whose_head_is_frozen_still_holds_the_head(built, tmp_path):
    model, blocks = built("vit")
    extend_head(model, NEW, init="random", seed=0)
    peft_model = attach(
        model, blocks, AdapterConfig(), head_names=["classifier"], seed=0, head_train="none"
    )
    names = trainable_state(peft_model)
    assert any("classifier" in name for name in names)


def test_the_old_base_is_refused_by_peft_not_answered_wrongly(built, tmp_path):
    """The reason for the config line of the recipe: the shapes differ, and PEFT says so."""
    peft_model, processor, base = swapped(built, "vit", tmp_path)
    folder = save_adapter(
        peft_model, tmp_path / "adapter", base_name=str(base), processor=processor
    )
    with quiet():
        model = AutoModelForImageClassification.from_pretrained(base)
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(model, folder)


_STRANGER = """
import sys, re, torch
from pathlib import Path
from PIL import Image
from transformers import pipeline
run = Path(sys.argv[1])
readme = (run / "adapter" / "README.md").read_text()
exec(re.search(r"```python\\n(.*?)```", readme, re.S).group(1))
answers = torch.load(run / "expected.pt", weights_only=True)
with torch.no_grad():
    logits = model(pixel_values=answers["pixels"]).logits
difference = (logits - answers["logits"]).abs().max().item()
image = Image.open(run / "image.png")
direct = model(**processor(image, return_tensors="pt")).logits.softmax(-1)[0]
said = pipeline("image-classification", model=str(run / "model"))(image, top_k=7)
assert not [name for name in sys.modules if name.split(".")[0] == "kswap"]
assert difference < 1e-5, difference
for answer in said:
    index = config.label2id[answer["label"]]
    assert abs(answer["score"] - direct[index].item()) < 1e-5
print("same")
"""


@pytest.mark.slow  # test_swap.py does the same with what a whole run leaves
@pytest.mark.parametrize("family", ["vit", "swin"])
def test_a_process_without_kswap_reads_both(family, built, tmp_path):
    """The recipe of the README is executed as it stands, and the pipeline names the right
    classes."""
    peft_model, processor, base = swapped(built, family, tmp_path)
    inputs = tiny_inputs(peft_model.get_base_model())
    save_adapter(peft_model, tmp_path / "adapter", base_name=str(base), processor=processor)
    save_merged(peft_model, tmp_path / "model", processor=processor, kswap=NOTES)
    torch.save(
        {"pixels": inputs["pixel_values"], "logits": logits(peft_model, inputs)},
        tmp_path / "expected.pt",
    )
    _image().save(tmp_path / "image.png")
    done = subprocess.run(
        [sys.executable, "-c", _STRANGER, str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("same")


@pytest.mark.parametrize("family", ["deit", "dinov2", "beit", "siglip", "pvt"])
def test_the_pipeline_names_the_classes(family, built, tmp_path):
    peft_model, processor, _ = swapped(built, family, tmp_path)
    folder = save_merged(peft_model, tmp_path / "model", processor=processor, kswap=NOTES)
    with quiet():
        answers = pipeline("image-classification", model=str(folder))(_image(), top_k=7)
    expected = logits(peft_model, processor(_image(), return_tensors="pt"))[0]
    assert [NEW[index] for index in expected.argsort(descending=True).tolist()] == [
        a["label"] for a in answers
    ]


def test_trainable_state_round_trip_is_strict(built, tmp_path):
    peft_model, _, _ = swapped(built, "deit-distilled", tmp_path)
    state = trainable_state(peft_model)
    assert len(state) == len(adapter_tensors(peft_model)) + 4
    with torch.no_grad():
        for tensor in peft_model.parameters():
            tensor.add_(1)
    load_trainable_state(peft_model, state)
    assert all(
        torch.equal(state[name], tensor) for name, tensor in trainable_state(peft_model).items()
    )
    name = next(iter(state))
    for wrong in ({k: v for k, v in state.items() if k != name}, {**state, "other": torch.ones(1)}):
        with pytest.raises(ValueError, match="does not fit"):
            load_trainable_state(peft_model, wrong)
    with pytest.raises(ValueError, match="has shape"):
        load_trainable_state(peft_model, {**state, name: torch.ones(1)})


def test_a_folder_is_old_or_new_never_half(tmp_path):
    target = tmp_path / "model"
    write_folder(target, lambda folder: (folder / "a").write_text("old"))

    def fails(folder):
        (folder / "a").write_text("new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder(target, fails)
    assert (target / "a").read_text() == "old"
    write_folder(target, lambda folder: (folder / "b").write_text("new"))
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "b"]


def test_merged_model_carries_notes(built, tmp_path):
    peft_model, _, _ = swapped(built, "vit", tmp_path)
    merged = merged_model(peft_model, kswap=NOTES)
    assert merged.config.kswap == NOTES
    assert not hasattr(peft_model.get_base_model().config, "kswap")


def _image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (48, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
