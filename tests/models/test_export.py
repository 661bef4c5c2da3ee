"""The ONNX file computes the model's logits; the function proves it, these tests again."""

import importlib.util
import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from criteria_models import MASKS, SIDE
from models.families import tiny_inputs, tiny_processor

from kswap.errors import UserError
from kswap.models import export as module
from kswap.models.checks import repair_config
from kswap.models.export import export_onnx
from kswap.models.head import extend_head

needs_onnx = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None
    or importlib.util.find_spec("onnxscript") is None,
    reason="onnx extra is not installed",
)


def _check(family, built, path):
    import onnxruntime

    model, _ = built(family)
    extend_head(model, {**model.config.id2label, 5: "horse"}, init="random", seed=0)
    export_onnx(model, tiny_processor(model), path)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        pixels = tiny_inputs(model, count)["pixel_values"]
        (answer,) = session.run(["logits"], {"pixel_values": pixels.numpy()})
        with torch.no_grad():
            expected = model(pixel_values=pixels).logits
        assert torch.allclose(torch.from_numpy(answer), expected, rtol=0, atol=1e-4)


@needs_onnx
@pytest.mark.parametrize("family", ["dinov2", "swin"])
def test_onnxruntime_gives_the_same_logits(family, built, tmp_path):
    _check(family, built, tmp_path / "model.onnx")


SLOW_FAMILIES = (  # of a ViT test_cli.py exports a whole run
    *("vit", "deit", "deit-distilled", "beit", "data2vec", "dinov2-swiglu", "dinov2-registers"),
    *("siglip", "clip", "swinv2", "hiera", "pvt", "pvt-v2", "segformer", "mobilevit", "levit"),
    *("cvt", "focalnet", "convnext"),
)


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("family", SLOW_FAMILIES)
def test_more_families(family, built, tmp_path):
    _check(family, built, tmp_path / "model.onnx")


@needs_onnx
def test_a_failure_leaves_nothing_and_says_why(built, tmp_path, monkeypatch):
    def broken(*_):
        raise ValueError("cannot trace")

    monkeypatch.setattr(module, "_EXPORTERS", {"first": broken, "second": broken})
    model, _ = built("vit")
    with pytest.raises(RuntimeError, match="first: ValueError: cannot trace; second"):
        export_onnx(model, tiny_processor(model), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@needs_onnx
def test_a_failure_says_its_cause_without_colours_and_advice(built, tmp_path, monkeypatch):
    def first(*_):
        try:
            raise TypeError("\x1b[1mcannot guard\x1b[0m on\x1b[38;5;9m Eq(u0, 1)\n\nSee https://x")
        except TypeError as error:
            raise ValueError("\x1b[96mThis is step 1/3\x1b[0m of\n- Debug it") from error

    def second(*_):
        raise KeyError

    monkeypatch.setattr(module, "_EXPORTERS", {"first": first, "second": second})
    model, _ = built("vit")
    with pytest.raises(RuntimeError) as caught:
        export_onnx(model, tiny_processor(model), tmp_path / "model.onnx")
    assert str(caught.value) == (
        "ViTForImageClassification cannot be exported to ONNX "
        "(first: TypeError: cannot guard on Eq(u0, 1); second: KeyError)"
    )


@needs_onnx
@pytest.mark.parametrize("family", MASKS)
def test_mask_classifiers_have_no_export(family, tmp_path):
    model = MASKS[family]()
    repair_config(model)
    with pytest.raises(RuntimeError) as caught:
        export_onnx(model, SimpleNamespace(size={"height": SIDE, "width": SIDE}), tmp_path / "m")
    assert str(caught.value) == (
        f"{type(model).__name__} cannot be exported to ONNX (it answers with class_queries_logits "
        "and masks_queries_logits, not with logits alone)"
    )
    assert list(tmp_path.iterdir()) == []


@needs_onnx
def test_a_size_that_the_model_does_not_take(built, tmp_path):
    model, _ = built("vit")
    processor = SimpleNamespace(size={"height": 24, "width": 24})
    with pytest.raises(RuntimeError, match=r"no images of \(24, 24\) pixels: ValueError: "):
        export_onnx(model, processor, tmp_path / "model.onnx")


def test_packed_patches_have_no_export(built, tmp_path):
    model, _ = built("siglip2")
    with pytest.raises(UserError, match="packed patches"):
        export_onnx(model, tiny_processor(model), tmp_path / "model.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_it_names_the_fix(package, built, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, package)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    model, _ = built("vit")
    with pytest.raises(UserError, match=r"pip install 'kswap\[onnx\]'"):
        export_onnx(model, tiny_processor(model), tmp_path / "model.onnx")


def test_the_exporters_log_is_kept_away(caplog):
    log = logging.getLogger("torch.onnx.exporter")
    with module._silent():
        log.warning("torchvision is not installed")
    assert not caplog.records
    log.warning("again")
    assert len(caplog.records) == 1
