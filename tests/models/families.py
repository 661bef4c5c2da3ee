"""Tiny classifiers of many families, from config with a fixed seed.

`FAMILIES[name]()` builds a model of a few thousand weights with five classes,
`tiny_processor(model)` the image processor that fits it, `tiny_inputs(model)` a batch of noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from transformers import PreTrainedModel

NUM_CLASSES = 5
LABELS = {0: "cat", 1: "dog", 2: "car", 3: "tree", 4: "boat"}
_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}


def _build(model_class: Any, config: Any, *, noise: float = 0.05) -> PreTrainedModel:
    config.num_labels = NUM_CLASSES
    config.id2label = dict(LABELS)
    config.label2id = {label: index for index, label in LABELS.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = model_class(config)
        # Some families start with zero heads or layer scales; noise makes every weight matter.
        for parameter in model.parameters():
            parameter.data.add_(noise * torch.randn_like(parameter))
    return model.eval()


def _vision(config_class: Any, **values: Any) -> Any:
    return config_class(vision_config={**_SMALL, **values}, text_config={})


def _without(name: str) -> dict[str, Any]:
    return {key: value for key, value in _SMALL.items() if key != name}


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "vit": lambda: _build(hf.ViTForImageClassification, hf.ViTConfig(**_SMALL)),
    "deit": lambda: _build(hf.DeiTForImageClassification, hf.DeiTConfig(**_SMALL)),
    "deit-distilled": lambda: _build(
        hf.DeiTForImageClassificationWithTeacher, hf.DeiTConfig(**_SMALL)
    ),
    "beit": lambda: _build(
        hf.BeitForImageClassification,
        hf.BeitConfig(**_SMALL, use_relative_position_bias=True, layer_scale_init_value=0.1),
    ),
    "data2vec": lambda: _build(
        hf.Data2VecVisionForImageClassification,
        hf.Data2VecVisionConfig(**_SMALL, use_shared_relative_position_bias=True),
    ),
    "dinov2": lambda: _build(
        hf.Dinov2ForImageClassification,
        hf.Dinov2Config(**_without("intermediate_size"), mlp_ratio=2),
    ),
    "dinov2-swiglu": lambda: _build(
        hf.Dinov2ForImageClassification,
        hf.Dinov2Config(**_without("intermediate_size"), mlp_ratio=2, use_swiglu_ffn=True),
    ),
    "dinov2-registers": lambda: _build(
        hf.Dinov2WithRegistersForImageClassification,
        hf.Dinov2WithRegistersConfig(
            **_without("intermediate_size"), mlp_ratio=2, num_register_tokens=2
        ),
    ),
    "vit-msn": lambda: _build(hf.ViTMSNForImageClassification, hf.ViTMSNConfig(**_SMALL)),
    "ijepa": lambda: _build(hf.IJepaForImageClassification, hf.IJepaConfig(**_SMALL)),
    # h = d: shapes alone cannot tell the feed-forward linears from the attention projections.
    "vit-square": lambda: _build(
        hf.ViTForImageClassification, hf.ViTConfig(**{**_SMALL, "intermediate_size": 32})
    ),
    "siglip": lambda: _build(hf.SiglipForImageClassification, _vision(hf.SiglipConfig)),
    "siglip2": lambda: _build(
        hf.Siglip2ForImageClassification,
        hf.Siglip2Config(
            vision_config={**_without("image_size"), "num_patches": 16}, text_config={}
        ),
    ),
    "clip": lambda: _build(
        hf.CLIPForImageClassification, _vision(hf.CLIPConfig, projection_dim=16)
    ),
    "metaclip2": lambda: _build(
        hf.MetaClip2ForImageClassification, _vision(hf.MetaClip2Config, projection_dim=16)
    ),
    "swin": lambda: _build(
        hf.SwinForImageClassification,
        hf.SwinConfig(
            image_size=32,
            patch_size=4,
            embed_dim=16,
            depths=[1, 2],
            num_heads=[2, 4],
            window_size=4,
            mlp_ratio=2.0,
        ),
    ),
    "swinv2": lambda: _build(
        hf.Swinv2ForImageClassification,
        hf.Swinv2Config(
            image_size=32,
            patch_size=4,
            embed_dim=16,
            depths=[1, 2],
            num_heads=[2, 4],
            window_size=4,
            mlp_ratio=2.0,
        ),
    ),
    "donut-swin": lambda: _build(
        hf.models.donut.modeling_donut_swin.DonutSwinForImageClassification,
        hf.DonutSwinConfig(
            image_size=32,
            patch_size=4,
            embed_dim=16,
            depths=[1, 2],
            num_heads=[2, 4],
            window_size=4,
            mlp_ratio=2.0,
        ),
    ),
    "hiera": lambda: _build(
        hf.HieraForImageClassification,
        hf.HieraConfig(
            image_size=[32, 32],
            patch_size=[7, 7],
            patch_stride=[4, 4],
            patch_padding=[3, 3],
            embed_dim=16,
            depths=[1, 2],
            num_heads=[1, 2],
            mlp_ratio=2.0,
            embed_dim_multiplier=2.0,
            num_query_pool=1,
            query_stride=[2, 2],
            masked_unit_size=[4, 4],
            masked_unit_attention=[True, False],
        ),
    ),
    "pvt": lambda: _build(
        hf.PvtForImageClassification,
        hf.PvtConfig(
            image_size=32,
            num_encoder_blocks=2,
            depths=[1, 1],
            sequence_reduction_ratios=[2, 1],
            hidden_sizes=[16, 32],
            patch_sizes=[4, 2],
            strides=[4, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
        ),
    ),
    "pvt-v2": lambda: _build(
        hf.PvtV2ForImageClassification,
        hf.PvtV2Config(
            image_size=32,
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[16, 32],
            patch_sizes=[7, 3],
            strides=[4, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
        ),
    ),
    "segformer": lambda: _build(
        hf.SegformerForImageClassification,
        hf.SegformerConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[16, 32],
            patch_sizes=[7, 3],
            strides=[4, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            image_size=32,
        ),
    ),
    "mobilevit": lambda: _build(
        hf.MobileViTForImageClassification,
        hf.MobileViTConfig(
            image_size=64,
            patch_size=2,
            hidden_sizes=[16, 24, 32],
            neck_hidden_sizes=[8, 8, 8, 16, 16, 16, 32],
            num_attention_heads=4,
            mlp_ratio=1.5,
        ),
        noise=0.4,  # deep and narrow: less, and the gradient vanishes
    ),
    "levit": lambda: _build(
        hf.LevitForImageClassification,
        hf.LevitConfig(
            image_size=32,
            hidden_sizes=[32, 48],
            num_attention_heads=[2, 3],
            depths=[1, 1],
            key_dim=[8, 8],
            mlp_ratio=[2, 2],
            attention_ratio=[2, 2],
            down_ops=[["Subsample", 8, 4, 4, 2, 2]],
        ),
    ),
    "cvt": lambda: _build(
        hf.CvtForImageClassification,
        hf.CvtConfig(
            num_channels=3,
            patch_sizes=[7, 3],
            patch_stride=[4, 2],
            patch_padding=[2, 1],
            embed_dim=[16, 32],
            num_heads=[1, 2],
            depth=[1, 2],
            mlp_ratio=[2.0, 2.0],
            attention_drop_rate=[0.0, 0.0],
            drop_rate=[0.0, 0.0],
            drop_path_rate=[0.0, 0.0],
            qkv_bias=[True, True],
            cls_token=[False, True],
            qkv_projection_method=["dw_bn", "dw_bn"],
            kernel_qkv=[3, 3],
            padding_kv=[1, 1],
            stride_kv=[2, 2],
            padding_q=[1, 1],
            stride_q=[1, 1],
        ),
    ),
    "focalnet": lambda: _build(
        hf.FocalNetForImageClassification,
        hf.FocalNetConfig(
            image_size=32,
            embed_dim=16,
            depths=[1, 1],
            hidden_sizes=[16, 32],
            focal_levels=[2, 2],
            focal_windows=[3, 3],
            mlp_ratio=2.0,
        ),
    ),
    "convnext": lambda: _build(
        hf.ConvNextForImageClassification,
        hf.ConvNextConfig(image_size=32, num_stages=2, hidden_sizes=[16, 32], depths=[1, 1]),
    ),
    "convnextv2": lambda: _build(
        hf.ConvNextV2ForImageClassification,
        hf.ConvNextV2Config(image_size=32, num_stages=2, hidden_sizes=[16, 32], depths=[1, 1]),
    ),
}


def tiny_processor(model: PreTrainedModel) -> Any:
    """Return the image processor of a tiny model, without torchvision."""
    if model.config.model_type == "siglip2":
        return hf.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    side = image_side(model)
    return hf.ViTImageProcessorPil(size={"height": side, "width": side})


def image_side(model: PreTrainedModel) -> int:
    """Return the side of the square images of a tiny model."""
    config = getattr(model.config, "vision_config", model.config)
    size = getattr(config, "image_size", 32)
    return int(size if isinstance(size, int) else size[0])


def tiny_inputs(model: PreTrainedModel, count: int = 4, seed: int = 1) -> dict[str, torch.Tensor]:
    """Return a batch of noise that the model's forward takes."""
    noise = torch.Generator().manual_seed(seed)
    if model.config.model_type == "siglip2":
        return {
            "pixel_values": torch.randn(count, 16, 3 * 8 * 8, generator=noise),
            "pixel_attention_mask": torch.ones(count, 16, dtype=torch.long),
            "spatial_shapes": torch.tensor([[4, 4]] * count),
        }
    side = image_side(model)
    return {"pixel_values": torch.randn(count, 3, side, side, generator=noise)}
