"""Tiny segmenters and detectors of every family, with names, and the processors that fit them.

`SCENES[name]()` builds a model of five classes; the builders that the tests of the criteria share
are in `criteria_models.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import transformers as hf
from criteria_models import (
    DETECTORS,
    DETR,
    MASKS,
    PER_PIXEL,
    SIDE,
    build,
    resnet,
    swin,
)
from models.families import LABELS
from PIL import Image
from transformers import PreTrainedModel

_LEVELS = ["stage1", "stage2", "stage3", "stage4"]


def _swin(*stages: str) -> Any:
    config = swin()
    config.out_features = list(stages)
    return config


def _mask2former(backbone: Any) -> Any:
    return build(
        hf.Mask2FormerForUniversalSegmentation,
        hf.Mask2FormerConfig(
            backbone_config=backbone,
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=48,
            encoder_layers=2,
            decoder_layers=3,
            dim_feedforward=48,
            num_attention_heads=4,
            num_queries=9,
            train_num_points=50,
        ),
    )


_MORE: dict[str, Callable[[], Any]] = {
    "mask2former-resnet": lambda: _mask2former(resnet(*_LEVELS)),
    "maskformer-resnet": lambda: build(
        hf.MaskFormerForInstanceSegmentation,
        hf.MaskFormerConfig(
            backbone_config=resnet(*_LEVELS),
            decoder_config=hf.DetrConfig(backbone_config=resnet("stage4"), **DETR),
            fpn_feature_size=32,
            mask_feature_size=32,
        ),
    ),
    "upernet-convnext": lambda: build(
        hf.UperNetForSemanticSegmentation,
        hf.UperNetConfig(
            backbone_config=hf.ConvNextConfig(
                hidden_sizes=[8, 16, 16, 24], depths=[1, 1, 1, 1], out_features=_LEVELS
            ),
            hidden_size=16,
            pool_scales=(1, 2),
            auxiliary_in_channels=16,
            auxiliary_channels=8,
        ),
    ),
    "deformable-detr-two-stage-swin": lambda: build(
        hf.DeformableDetrForObjectDetection,
        hf.DeformableDetrConfig(
            backbone_config=_swin("stage2", "stage3", "stage4"),
            **DETR,
            num_feature_levels=3,
            auxiliary_loss=True,
            two_stage=True,
            with_box_refine=True,
            two_stage_num_proposals=9,
        ),
    ),
}
SCENES: dict[str, Callable[[], Any]] = {**MASKS, **PER_PIXEL, **DETECTORS, **_MORE}
_PROCESSORS: dict[str, Any] = {
    "detr": hf.DetrImageProcessorPil,
    "table-transformer": hf.DetrImageProcessorPil,
    "yolos": hf.YolosImageProcessorPil,
    **dict.fromkeys(("conditional_detr", "dab-detr"), hf.ConditionalDetrImageProcessorPil),
    # RF-DETR's own needs torchvision.
    **dict.fromkeys(("deformable_detr", "lw_detr", "rf_detr"), hf.DeformableDetrImageProcessorPil),
    **dict.fromkeys(("rt_detr", "rt_detr_v2", "d_fine", "deimv2"), hf.RTDetrImageProcessorPil),
    "mask2former": hf.Mask2FormerImageProcessorPil,
    "maskformer": hf.MaskFormerImageProcessorPil,
    "eomt": hf.EomtImageProcessorPil,
    "eomt_dinov3": hf.EomtImageProcessorPil,
    **dict.fromkeys(("segformer", "upernet", "sapiens2"), hf.SegformerImageProcessorPil),
    **dict.fromkeys(("beit", "data2vec-vision"), hf.BeitImageProcessorPil),
    "mobilevit": hf.MobileViTImageProcessorPil,
    **dict.fromkeys(("dpt", "tipsv2_dpt"), hf.DPTImageProcessorPil),
}


def scene_model(family: str) -> PreTrainedModel:
    """Build a model whose five classes have names."""
    model: PreTrainedModel = SCENES[family]()
    model.config.id2label = dict(LABELS)
    model.config.label2id = {label: index for index, label in LABELS.items()}
    return model


def scene_processor(model: PreTrainedModel) -> Any:
    """Return an image processor of the model's family that makes images of its size."""
    processor = _PROCESSORS[model.config.model_type]
    size = {"height": SIDE, "width": SIDE}
    if processor is hf.EomtImageProcessorPil:
        return processor(size={"shortest_edge": SIDE, "longest_edge": SIDE}, do_pad=True)
    if processor is hf.MobileViTImageProcessorPil:
        return processor(size={"shortest_edge": SIDE}, crop_size=size)
    return processor(size=size)


def picture() -> Image.Image:
    """Return a small picture."""
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
