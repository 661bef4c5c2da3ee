"""The ONNX file computes the model's logits; the function proves it, these tests again."""

import importlib.util
import logging
import sys

import pytest
import torch
from models.families import tiny_inputs, tiny_processor

from kswap.errors import UserError
from kswap.models import export as module
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
@pytest.mark.parametrize("family", ["vit", "dinov2", "swin"])
def test_onnxruntime_gives_the_same_logits(family, built, tmp_path):
    _check(family, built, tmp_path / "model.onnx")


SLOW_FAMILIES = (
    *("deit", "deit-distilled", "beit", "data2vec", "dinov2-swiglu", "dinov2-registers"),
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
