"""Tiny detectors and segmenters, from config with a fixed seed, for the tests of their losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from transformers.models.rf_detr.configuration_rf_detr import RfDetrDinov2Config

SIDE = 64


def build(model_class: Any, config: Any, *, noise: float = 0.05) -> Any:
    config.num_labels = 5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config)
        for parameter in model.parameters():
            parameter.data.add_(noise * torch.randn_like(parameter))
    return model.eval()


def resnet(*stages: str, kind: Any = hf.ResNetConfig) -> Any:
    return kind(
        embedding_size=8,
        hidden_sizes=[8, 12, 16, 24],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=list(stages),
    )


def swin() -> Any:
    return hf.SwinConfig(
        image_size=SIDE,
        patch_size=4,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[2, 2, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


LAYERS: dict[str, Any] = {
    "encoder_layers": 1,
    "decoder_layers": 3,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_queries": 9,
}
DETR: dict[str, Any] = {"use_timm_backbone": False, "d_model": 32, **LAYERS}
VIT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": SIDE,
    "patch_size": 16,
}
RT: dict[str, Any] = {
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [12, 16, 24],
    "encoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "d_model": 32,
    "num_queries": 9,
    "decoder_in_channels": [32, 32, 32],
    "decoder_ffn_dim": 48,
    "decoder_n_points": 2,
    "decoder_layers": 3,
    "decoder_attention_heads": 4,
    "num_denoising": 6,
}
LW: dict[str, Any] = {
    "d_model": 32,
    "num_queries": 9,
    "decoder_layers": 3,
    "decoder_self_attention_heads": 4,
    "decoder_cross_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "decoder_n_points": 2,
    "group_detr": 3,
}
LEVELS = ("stage2", "stage3", "stage4")
EOMT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 16,
    "num_blocks": 2,
    "num_queries": 9,
    "num_upscale_blocks": 1,
    "train_num_points": 50,
    "num_register_tokens": 2,
}


def detr(model: Any, config: Any, **values: Any) -> Any:
    backbone = resnet(*LEVELS) if "num_feature_levels" in values else resnet("stage4")
    return build(model, config(backbone_config=backbone, **DETR, **values))


def rt_detr(model: Any, config: Any, **values: Any) -> Any:
    backbone = resnet(*LEVELS, kind=hf.RTDetrResNetConfig)
    return build(model, config(backbone_config=backbone, **{**RT, **values}))


def tipsv2() -> Any:
    """Its head is a linear that reads a map with the channels last."""
    backbone = hf.Tipsv2VisionConfig(
        **{key: value for key, value in VIT.items() if key != "intermediate_size"},
        mlp_ratio=2,
        out_indices=[1, 2, 3, 4],
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    config = hf.Tipsv2DptConfig(
        backbone_config=backbone, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=16
    )
    model = build(hf.Tipsv2DptForSemanticSegmentation, config)
    # It starts with convolutions whose answers are in the hundreds.
    model.decoder.head.weight.data /= 1000
    return model


def maskformer(**values: Any) -> Any:
    decoder = hf.DetrConfig(backbone_config=resnet("stage4"), **DETR)
    config = hf.MaskFormerConfig(
        backbone_config=swin(),
        decoder_config=decoder,
        fpn_feature_size=32,
        mask_feature_size=32,
        **values,
    )
    return build(hf.MaskFormerForInstanceSegmentation, config)


DETECTORS: dict[str, Callable[[], Any]] = {
    "detr": lambda: detr(hf.DetrForObjectDetection, hf.DetrConfig),
    "detr-auxiliary": lambda: detr(hf.DetrForObjectDetection, hf.DetrConfig, auxiliary_loss=True),
    "table-transformer": lambda: detr(
        hf.TableTransformerForObjectDetection, hf.TableTransformerConfig, auxiliary_loss=True
    ),
    "yolos": lambda: build(
        hf.YolosForObjectDetection,
        hf.YolosConfig(**{**VIT, "image_size": [SIDE, SIDE]}, num_detection_tokens=9),
    ),
    "conditional-detr": lambda: detr(
        hf.ConditionalDetrForObjectDetection, hf.ConditionalDetrConfig, auxiliary_loss=True
    ),
    "deformable-detr": lambda: detr(
        hf.DeformableDetrForObjectDetection,
        hf.DeformableDetrConfig,
        num_feature_levels=3,
        auxiliary_loss=True,
    ),
    "deformable-detr-two-stage": lambda: detr(
        hf.DeformableDetrForObjectDetection,
        hf.DeformableDetrConfig,
        num_feature_levels=3,
        auxiliary_loss=True,
        two_stage=True,
        with_box_refine=True,
        two_stage_num_proposals=9,
    ),
    "dab-detr": lambda: build(
        hf.DabDetrForObjectDetection,
        hf.DabDetrConfig(
            backbone_config=resnet("stage4"),
            use_timm_backbone=False,
            hidden_size=32,
            auxiliary_loss=True,
            **LAYERS,
        ),
    ),
    "rt-detr": lambda: rt_detr(hf.RTDetrForObjectDetection, hf.RTDetrConfig),
    "rt-detr-v2": lambda: rt_detr(hf.RTDetrV2ForObjectDetection, hf.RTDetrV2Config),
    "d-fine": lambda: rt_detr(
        hf.DFineForObjectDetection, hf.DFineConfig, decoder_n_points=[2, 2, 2]
    ),
    "deimv2": lambda: rt_detr(
        hf.Deimv2ForObjectDetection, hf.Deimv2Config, decoder_n_points=[2, 2, 2]
    ),
    "rf-detr": lambda: build(
        hf.RfDetrForObjectDetection,
        hf.RfDetrConfig(
            backbone_config=RfDetrDinov2Config(
                image_size=SIDE,
                patch_size=16,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                mlp_ratio=2,
                out_features=["stage1", "stage2"],
                num_windows=1,
            ),
            **LW,
        ),
    ),
    "lw-detr": lambda: build(
        hf.LwDetrForObjectDetection,
        hf.LwDetrConfig(
            backbone_config=hf.LwDetrViTConfig(
                image_size=SIDE,
                patch_size=16,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                mlp_ratio=2,
                window_block_indices=[0],
                out_indices=[1, 2],
                num_windows=4,
            ),
            projector_scale_factors=[1.0],
            **LW,
        ),
    ),
}
MASKS: dict[str, Callable[[], Any]] = {
    "mask2former": lambda: build(
        hf.Mask2FormerForUniversalSegmentation,
        hf.Mask2FormerConfig(
            backbone_config=swin(),
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=48,
            encoder_layers=1,
            decoder_layers=3,
            dim_feedforward=48,
            num_attention_heads=4,
            num_queries=9,
            train_num_points=50,
        ),
    ),
    "maskformer": maskformer,
    "maskformer-auxiliary": lambda: maskformer(use_auxiliary_loss=True),
    "eomt": lambda: build(hf.EomtForUniversalSegmentation, hf.EomtConfig(**EOMT, mlp_ratio=2)),
    "eomt-dinov3": lambda: build(
        hf.EomtDinov3ForUniversalSegmentation, hf.EomtDinov3Config(**EOMT, intermediate_size=48)
    ),
}
SEMANTIC: dict[str, Any] = {
    "out_indices": [1, 2, 3, 4],
    "pool_scales": (1, 2),
    "use_auxiliary_head": True,
    "auxiliary_channels": 8,
}
PER_PIXEL: dict[str, Callable[[], Any]] = {
    "segformer": lambda: build(
        hf.SegformerForSemanticSegmentation,
        hf.SegformerConfig(
            depths=[1] * 4,
            hidden_sizes=[8, 16, 16, 24],
            num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=16,
        ),
    ),
    "beit": lambda: build(hf.BeitForSemanticSegmentation, hf.BeitConfig(**VIT, **SEMANTIC)),
    "data2vec": lambda: build(
        hf.Data2VecVisionForSemanticSegmentation, hf.Data2VecVisionConfig(**VIT, **SEMANTIC)
    ),
    "mobilevit": lambda: build(
        hf.MobileViTForSemanticSegmentation,
        hf.MobileViTConfig(
            image_size=SIDE,
            patch_size=2,
            hidden_sizes=[16, 24, 32],
            neck_hidden_sizes=[8, 8, 8, 16, 16, 16, 32],
            num_attention_heads=4,
            mlp_ratio=1.5,
            aspp_out_channels=16,
            atrous_rates=[2, 2, 2],
        ),
        noise=0.4,  # deep and narrow: less, and the gradient vanishes
    ),
    "upernet": lambda: build(
        hf.UperNetForSemanticSegmentation,
        hf.UperNetConfig(
            backbone_config=swin(),
            hidden_size=16,
            pool_scales=(1, 2),
            auxiliary_in_channels=64,
            auxiliary_channels=8,
        ),
    ),
    "dpt": lambda: build(
        hf.DPTForSemanticSegmentation,
        hf.DPTConfig(
            **VIT,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=16,
        ),
    ),
    "sapiens2": lambda: build(
        hf.Sapiens2ForSemanticSegmentation,
        hf.Sapiens2Config(
            **{**VIT, "image_size": [SIDE, SIDE]},
            num_key_value_heads_per_layer=[4] * 4,
            head_config={"upsample_out_channels": [16], "conv_out_channels": [16]},
        ),
    ),
    "tipsv2": tipsv2,
}
