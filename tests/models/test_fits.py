"""Whether a model takes the images of its processor, and labels with them; else: why not."""

import pytest
import torch
import transformers as hf
from criteria_models import DETECTORS, LEVELS, MASKS, PER_PIXEL, RT, SIDE, VIT, build, resnet
from models.families import FAMILIES, tiny_inputs

from kswap.errors import UserError
from kswap.models.checks import repair_config
from kswap.models.fits import check_fits

SCENES = {**DETECTORS, **MASKS, **PER_PIXEL}
SOUND = [name for name in (*FAMILIES, *SCENES) if name != "siglip2"]
"""Packed patches, which SigLIP 2 takes, come with their shapes."""


def refusal(model, size=(SIDE, SIDE), *, channels=3):
    with pytest.raises(UserError) as caught:
        check_fits(model, torch.zeros(1, channels, *size), "some/model")
    text = str(caught.value)
    assert text.startswith("model: 'some/model' ")
    assert "\n" not in text
    assert len(text) < 500
    return text


@pytest.mark.parametrize("name", SOUND)
def test_sound_models_pass_and_stay_as_they_are(name):
    model = {**FAMILIES, **SCENES}[name]().eval()
    repair_config(model)
    images = torch.zeros(1, 3, SIDE, SIDE) if name in SCENES else tiny_inputs(model)["pixel_values"]
    before, random = dict(vars(model)), torch.get_rng_state()
    check_fits(model, images, name)
    assert vars(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_size_that_does_not_fit_is_one_of_the_processor():
    text = refusal(FAMILIES["vit"]().eval(), (48, 48))
    assert "cannot take images of (48, 48) pixels" in text
    assert "correct size or crop_size in preprocessor_config.json" in text


def _query_that_is_learned():
    config = hf.RTDetrConfig(
        backbone_config=resnet(*LEVELS, kind=hf.RTDetrResNetConfig),
        **{**RT, "num_denoising": 0},
        learn_initial_query=True,
    )
    return build(hf.RTDetrForObjectDetection, config)


def _averaged_projection():
    config = FAMILIES["cvt"]().config
    config.qkv_projection_method = ["avg"] * len(config.depth)
    return build(hf.CvtForImageClassification, config)


def _no_auxiliary_masks():
    config = MASKS["mask2former"]().config
    config.use_auxiliary_loss = False
    return build(hf.Mask2FormerForUniversalSegmentation, config)


BROKEN = {
    "rt-detr": (
        _query_that_is_learned,
        "AttributeError: 'Embedding' object has no attribute 'tile' (modeling_rt_detr.py, line ",
    ),
    "cvt": (_averaged_projection, "has no attribute 'convolution_projection' (modeling_cvt.py, "),
    "mask2former": (_no_auxiliary_masks, "TypeError: 'NoneType' object is not iterable"),
}


@pytest.mark.parametrize("family", BROKEN)
def test_a_model_that_takes_no_image_at_all_is_not_one_of_a_wrong_size(family):
    make, why = BROKEN[family]
    model = make()
    text = refusal(model)
    assert f"({type(model).__name__}) takes no images of its image processor" in text
    assert why in text
    assert "crop_size" not in text


def test_channels_are_not_a_size():
    text = refusal(FAMILIES["vit"]().eval(), channels=4)
    assert "crop_size" not in text
    assert "channel" in text


def test_a_model_whose_input_is_no_image():
    config = hf.ImageGPTConfig(n_embd=32, n_layer=1, n_head=4, n_positions=64)
    text = refusal(build(hf.ImageGPTForImageClassification, config), (8, 8))
    assert "takes input_ids, not pixel_values" in text


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: 9 bytes")])
def test_too_little_memory_is_said(error, monkeypatch):
    model = FAMILIES["vit"]().eval()

    def forward(pixel_values):
        raise error

    monkeypatch.setattr(model, "forward", forward)
    assert "there is too little memory for it to take images of (64, 64) pixels" in refusal(model)


def test_labels_are_tried_where_something_is_learned():
    config = hf.YolosConfig(
        **{**VIT, "image_size": [SIDE, SIDE]}, num_detection_tokens=9, auxiliary_loss=True
    )
    model = build(hf.YolosForObjectDetection, config)
    text = refusal(model)
    assert "(YolosForObjectDetection) answers images but cannot be trained" in text
    assert "with labels raises TypeError: linear(): argument 'input'" in text
    with torch.no_grad():
        check_fits(model, torch.zeros(1, 3, SIDE, SIDE), "some/model")  # it can predict
