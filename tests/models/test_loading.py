"""What loads, and what is refused: one line with the value, the rule and the fix."""

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
import transformers as hf
from models.families import FAMILIES, LABELS, tiny_inputs, tiny_processor
from safetensors.torch import load_file, save_file

from kswap.errors import UserError
from kswap.models.artefact import load, save_model
from kswap.models.checks import check_folder
from kswap.models.loading import from_objects, load_base


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return the folder of a sound tiny ViT."""
    model = FAMILIES["vit"]()
    return save_model(
        model, tmp_path_factory.mktemp("base") / "vit", processor=tiny_processor(model)
    )


@pytest.fixture
def folder(saved, tmp_path):
    """Return a copy of it to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def edit(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(
        json.dumps({key: value for key, value in {**config, **values}.items() if value is not None})
    )


def weights(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_sound_folder_loads(saved):
    model = FAMILIES["vit"]()
    loaded = load_base(str(saved))
    assert loaded.id2label == LABELS
    assert (loaded.task, loaded.forgotten, loaded.source, loaded.commit) == (
        "classification",
        (),
        str(saved),
        None,
    )
    assert not loaded.model.training
    assert all(p.dtype == torch.float32 for p in loaded.model.parameters())
    with torch.no_grad():
        inputs = tiny_inputs(model)
        assert torch.equal(loaded.model(**inputs).logits, model(**inputs).logits)


def test_config_json_of_a_timm_model_describes_its_processor(folder):
    (folder / "preprocessor_config.json").unlink()
    edit(folder, pretrained_cfg={"input_size": [3, 32, 32]})
    check_folder(folder)


def test_a_processor_is_saved_without_the_code_that_its_folder_names(folder, tmp_path):
    path = folder / "preprocessor_config.json"
    values = json.loads(path.read_text()) | {"auto_map": {"AutoImageProcessor": "code.Processor"}}
    path.write_text(json.dumps(values))
    loaded = load_base(str(folder))
    saved_again = save_model(loaded.model, tmp_path / "again", processor=loaded.processor)
    assert "auto_map" not in json.loads((saved_again / "preprocessor_config.json").read_text())


def test_half_precision_weights_are_widened(saved, folder):
    weights(folder, lambda tensors: tensors.update({k: v.half() for k, v in tensors.items()}))
    edit(folder, dtype="float16")
    assert all(p.dtype == torch.float32 for p in load_base(str(folder)).model.parameters())


def test_what_an_earlier_swap_forgot_is_known(folder):
    edit(folder, kswap={"forgotten": ["cat", "gone"], "learned": ["boat"]})
    assert load_base(str(folder)).forgotten == ("cat",)


def test_nothing_is_printed(saved, capfd):
    load_base(str(saved))
    assert capfd.readouterr() == ("", "")


def test_objects_are_copied():
    model = FAMILIES["swin"]()
    processor = tiny_processor(model)
    loaded = from_objects(model.train(), processor)
    assert loaded.model is not model
    assert loaded.processor is processor
    assert loaded.id2label == LABELS
    assert model.training
    assert not loaded.model.training
    assert next(loaded.model.parameters()).data_ptr() != next(model.parameters()).data_ptr()


def _other_task(folder: Path) -> None:
    config = hf.ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
        encoder_stride=8,
    )
    hf.ViTForMaskedImageModeling(config).save_pretrained(folder)


def _text_model(folder: Path) -> None:
    config = hf.BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=40,
    )
    hf.BertForMaskedLM(config).save_pretrained(folder)


def _backbone(folder: Path) -> None:
    FAMILIES["vit"]().vit.save_pretrained(folder)


def _disguised(folder: Path) -> None:
    _backbone(folder)
    edit(folder, architectures=["ViTForImageClassification"])


def _headless(folder: Path) -> None:
    edit(folder, architectures=None)
    weights(folder, lambda tensors: tensors.pop("classifier.bias"))


def _no_second_network(folder: Path) -> None:
    def drop(tensors):
        for key in [key for key in tensors if ".1.mlp." in key or "1.intermediate" in key]:
            del tensors[key]

    weights(folder, drop)


def _two_labels(folder: Path) -> None:
    edit(folder, id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1})


def _no_processor(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


def _broken_processor(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text("{")


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 4096)


def _missing_shard(folder: Path) -> None:
    index = {
        "metadata": {},
        "weight_map": {"classifier.weight": "model-00001-of-00002.safetensors"},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def _as_a_run(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "config.json").rename(folder / "model" / "config.json")


REFUSALS = {
    "a run": (_as_a_run, "is a run, not a model; name the model it left, '.*/model'"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "broken config": (lambda f: (f / "config.json").write_text('{"model_type": '), "config.json"),
    "binary config": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json"),
    "list config": (lambda f: (f / "config.json").write_text("[1, 2]"), "config.json"),
    "empty config": (lambda f: (f / "config.json").write_text("{}"), "config.json"),
    "no model type": (lambda f: edit(f, model_type=None), "model_type"),
    "strange model type": (lambda f: edit(f, model_type="vit9", architectures=None), "'vit9'"),
    "wrong type in config": (lambda f: edit(f, hidden_size="wide"), "hidden_size"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights"),
    "pickled weights": (_pickled, r"pytorch_model.bin.*save_pretrained"),
    "truncated weights": (_truncated, "damaged or cut off"),
    "garbage weights": (_garbage, "damaged or cut off"),
    "missing shard": (_missing_shard, "model-00001-of-00002"),
    "no processor": (_no_processor, "no preprocessor_config.json"),
    "broken processor": (_broken_processor, "image processor"),
    "other task": (_other_task, "ViTForMaskedImageModeling"),
    "text model": (_text_model, "BertForMaskedLM"),
    "backbone": (_backbone, "ViTModel"),
    "backbone in disguise": (_disguised, "lacks .*made up"),
    "no architecture, no head": (_headless, "classifier.bias"),
    "missing block": (_no_second_network, "lacks"),
    "more layers than the config": (lambda f: edit(f, num_hidden_layers=1), "no place for"),
    "second head": (
        lambda f: weights(f, lambda t: t.update({"decoder.weight": torch.ones(2)})),
        "decoder.weight.*dropped",
    ),
    "fewer labels than rows": (_two_labels, "classifier.(bias|weight).* shape"),
    "num_labels beside id2label": (
        lambda f: edit(f, num_labels=9),
        "num_labels 9 but id2label has 5",
    ),
    "labels with a gap": (
        lambda f: edit(f, id2label={"0": "a", "2": "b"}, label2id=None),
        "without a gap",
    ),
    "labels no mapping": (lambda f: edit(f, id2label="cat"), "id2label"),
    "quantised": (lambda f: edit(f, quantization_config={"load_in_8bit": True}), "quantised"),
    "remote code": (lambda f: edit(f, auto_map={"AutoConfig": "code.Config"}), "auto_map"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "PEFT adapter"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_one_line(case, folder):
    spoil, message = REFUSALS[case]
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_base(str(folder))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 900


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is no model"),
        ("./nowhere", "no folder './nowhere'"),
        ("/nowhere/at/all", "no folder"),
        ("~/nowhere-at-all", "no folder"),
        ("models/vit/base", "no folder"),
    ],
)
def test_paths_that_lead_nowhere(name, message):
    with pytest.raises(UserError, match=message):
        load_base(name)


def test_a_file_is_no_folder(saved):
    with pytest.raises(UserError, match="is a file"):
        load_base(str(saved / "config.json"))


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model"])
def test_the_hub_out_of_reach(name, monkeypatch, capfd):
    def unknown(*_):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("kswap.models.loading.getproxies", dict)
    monkeypatch.setattr("socket.getaddrinfo", unknown)
    with pytest.raises(UserError, match="the hub cannot be reached") as caught:
        load_base(name)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (torch.nn.Linear(2, 2), "not a transformers model"),
        (
            hf.ViTModel(
                hf.ViTConfig(
                    hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=32
                )
            ),
            "ViTModel",
        ),
    ],
)
def test_objects_that_are_no_classifier(model, message):
    with pytest.raises(UserError, match=message):
        from_objects(model, object())


def test_an_object_with_a_head_that_its_class_does_not_make():
    model = FAMILIES["vit"]()
    model.classifier = torch.nn.Sequential(torch.nn.LayerNorm(32), torch.nn.Linear(32, 5))
    with pytest.raises(UserError, match=r"\(classifier.0.bias, .* not loaded again") as caught:
        from_objects(model, tiny_processor(model))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_objects_of_every_family(family):
    model = FAMILIES[family]()
    random = torch.get_rng_state()
    assert from_objects(model, tiny_processor(model)).id2label == LABELS
    assert torch.equal(random, torch.get_rng_state())


def test_objects_without_a_processor():
    with pytest.raises(UserError, match="processor"):
        from_objects(FAMILIES["vit"](), None)


def test_load_wants_a_finished_run(saved, tmp_path):
    with pytest.raises(UserError, match="finished run"):
        load(tmp_path)
    shutil.copytree(saved, tmp_path / "model")
    model, processor = load(tmp_path)
    assert model.config.id2label == LABELS
    assert processor.size["height"] == 32
