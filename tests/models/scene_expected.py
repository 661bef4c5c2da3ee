"""What must be found in segmenters and detectors, written by hand from the modelling code.

docs/families.md is made of this table.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.expected import Shapes, gated, two


@dataclass(frozen=True)
class Part:
    """Transformer blocks of one part of a model."""

    name: str
    """backbone, pixel decoder, encoder or decoder."""
    at: str
    """Where they are: the start of their module names."""
    networks: tuple[Shapes, ...]
    """The feed-forward linears of each, (in_features, out_features)."""


def _decoder(at: str = "model.decoder.layers", layers: int = 3) -> Part:
    return Part("decoder", at, (two(32, 48),) * layers)


_SWIN = (two(16, 64), two(32, 128), two(64, 256), two(128, 512))
_DETR = (Part("encoder", "model.encoder.layers", (two(32, 48),)), _decoder())
_RT_DETR = (Part("encoder", "model.encoder.aifi", (two(32, 48),)), _decoder())
_LW_DETR = (Part("backbone", "model.backbone", (two(32, 64),) * 2), _decoder())
_MASKFORMER = _decoder("model.transformer_module.decoder.layers")
_MASKFORMER_SWIN = (Part("backbone", "model.pixel_level_module.encoder", _SWIN), _MASKFORMER)


def _mask2former(encoder_layers: int) -> tuple[Part, ...]:
    """The first layer of `decoder_layers` answers from the queries alone."""
    pixels = "model.pixel_level_module.decoder.encoder.layers"
    return (
        Part("pixel decoder", pixels, (two(32, 48),) * encoder_layers),
        _decoder("model.transformer_module.decoder.layers", 2),
    )


EXPECTED_PARTS: dict[str, tuple[Part, ...]] = {
    "mask2former": (Part("backbone", "model.pixel_level_module.encoder", _SWIN), *_mask2former(1)),
    "mask2former-resnet": _mask2former(2),
    "maskformer": _MASKFORMER_SWIN,
    "maskformer-auxiliary": _MASKFORMER_SWIN,
    "maskformer-resnet": (_MASKFORMER,),
    "eomt": (Part("encoder", "layers", (two(32, 64),) * 3),),
    "eomt-dinov3": (Part("encoder", "layers", (two(32, 48),) * 3),),
    "segformer": (
        Part("encoder", "segformer.stages", (two(8, 32), two(16, 64), two(16, 64), two(24, 96))),
    ),
    "upernet": (Part("backbone", "backbone", _SWIN),),
    "upernet-convnext": (
        Part("backbone", "backbone", (two(8, 32), two(16, 64), two(16, 64), two(24, 96))),
    ),
    # Their heads count the embedding as the first of `out_indices`: the fourth block is not read.
    "beit": (Part("encoder", "beit.layers", (two(32, 48),) * 3),),
    "data2vec": (Part("encoder", "data2vec_vision.encoder.layer", (two(32, 48),) * 3),),
    "mobilevit": (
        Part(
            "encoder",
            "mobilevit.encoder.layer",
            (two(16, 24),) * 2 + (two(24, 36),) * 4 + (two(32, 48),) * 3,
        ),
    ),
    "dpt": (Part("encoder", "dpt.encoder.layer", (two(32, 48),) * 4),),
    "sapiens2": (Part("encoder", "model.model.layer", (gated(32, 48),) * 4),),
    "tipsv2": (Part("backbone", "backbone.encoder.layer", (two(32, 64),) * 4),),
    **dict.fromkeys(
        (
            *("detr", "detr-auxiliary", "table-transformer", "conditional-detr", "dab-detr"),
            *("deformable-detr", "deformable-detr-two-stage"),
        ),
        _DETR,
    ),
    "deformable-detr-two-stage-swin": (Part("backbone", "model.backbone", _SWIN), *_DETR),
    "yolos": (Part("encoder", "vit.encoder.layer", (two(32, 48),) * 4),),
    **dict.fromkeys(("rt-detr", "rt-detr-v2", "d-fine"), _RT_DETR),
    "deimv2": (
        _RT_DETR[0],
        Part("decoder", "model.decoder.layers", (gated(32, 24),) * 3),
    ),
    **dict.fromkeys(("lw-detr", "rf-detr"), _LW_DETR),
}

_ONE_NOTHING = {"class_labels_classifier": 6}
_MASK_CLASSES = {"class_predictor": 6, "criterion": 6}
_TWO_HEADS = {"decode_head.classifier": 5, "auxiliary_head.classifier": 5}


def _every(name: str, count: int) -> dict[str, int]:
    return {f"{name}.{index}": 5 for index in range(count)}


_RT_DETR_HEADS = {
    "model.denoising_class_embed": 6,
    "model.enc_score_head": 5,
    **_every("model.decoder.class_embed", 3),
}
_D_FINE_HEADS = {**_RT_DETR_HEADS, **_every("class_embed", 3)}
_TWO_STAGE = {**_every("model.decoder.class_embed", 4), **_every("class_embed", 4)}
_LW_DETR_HEADS = {**_every("model.enc_out_class_embed", 3), "class_embed": 5}
EXPECTED_CLASS_ROWS: dict[str, dict[str, int]] = {
    **dict.fromkeys(("detr", "detr-auxiliary", "table-transformer"), _ONE_NOTHING),
    "conditional-detr": {"class_labels_classifier": 5},
    "dab-detr": {"class_embed": 5},
    "deformable-detr": _every("class_embed", 3),
    **dict.fromkeys(("deformable-detr-two-stage", "deformable-detr-two-stage-swin"), _TWO_STAGE),
    "yolos": {"class_labels_classifier.layers.2": 6},
    "rt-detr": _RT_DETR_HEADS,
    **dict.fromkeys(("rt-detr-v2", "d-fine", "deimv2"), _D_FINE_HEADS),
    **dict.fromkeys(("lw-detr", "rf-detr"), _LW_DETR_HEADS),
    **dict.fromkeys(
        (
            *("mask2former", "mask2former-resnet", "maskformer", "maskformer-auxiliary"),
            *("maskformer-resnet", "eomt", "eomt-dinov3"),
        ),
        _MASK_CLASSES,
    ),
    "segformer": {"decode_head.classifier": 5},
    **dict.fromkeys(("beit", "data2vec", "upernet", "upernet-convnext"), _TWO_HEADS),
    "mobilevit": {"segmentation_head.classifier.convolution": 5},
    "dpt": {"head.head.4": 5, "auxiliary_head.head.4": 5},
    "sapiens2": {"decode_head.predictor": 5},
    "tipsv2": {"decoder.head": 5},
}
"""Module -> rows for five classes; the sixth is "no object"."""
