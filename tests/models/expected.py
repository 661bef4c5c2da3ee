"""What must be found in each family, written by hand from the modelling code.

`EXPECTED_FFN[name]`: the feed-forward linears, block by block, as (in_features, out_features).
"""

Shapes = tuple[tuple[int, int], ...]


def _two(down: int, up: int) -> Shapes:
    return (down, up), (up, down)


def _gated(down: int, up: int) -> Shapes:
    return (down, up), (down, up), (up, down)


EXPECTED_FFN: dict[str, tuple[Shapes, ...]] = {
    **dict.fromkeys(
        ("vit", "deit", "deit-distilled", "beit", "data2vec", "vit-msn", "ijepa"),
        (_two(32, 48),) * 2,
    ),
    **dict.fromkeys(("siglip", "siglip2", "clip", "metaclip2"), (_two(32, 48),) * 2),
    **dict.fromkeys(("dinov2", "dinov2-registers"), (_two(32, 64),) * 2),
    # SwiGLU's hidden width: 2/3 of mlp_ratio * d, up to a multiple of 8; 2/3 * 64 gives 48.
    "dinov2-swiglu": (_gated(32, 48),) * 2,
    "vit-square": (_two(32, 32),) * 2,
    **dict.fromkeys(
        ("swin", "swinv2", "donut-swin", "hiera", "cvt"), (_two(16, 32), _two(32, 64), _two(32, 64))
    ),
    **dict.fromkeys(("pvt", "pvt-v2", "segformer", "focalnet"), (_two(16, 32), _two(32, 64))),
    # Stages of 2, 4 and 3 blocks are fixed in the family.
    "mobilevit": (_two(16, 24),) * 2 + (_two(24, 36),) * 4 + (_two(32, 48),) * 3,
    # One network in each stage and one after the subsampling between the stages.
    "levit": (_two(32, 64), _two(48, 96), _two(48, 96)),
    **dict.fromkeys(("convnext", "convnextv2"), (_two(16, 64), _two(32, 128))),
}
EXPECTED_HEADS: dict[str, tuple[str, ...]] = {
    "deit-distilled": ("cls_classifier", "distillation_classifier"),
    "levit": ("classifier.linear",),
}
NOT_FFN = (
    "attention",
    "attn",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "out_proj",
    "qkv",
    "query",
    "key",
    "value",
    "modulation",
    "reduction",
    "classifier",
    "pooler",
    "embeddings",
)
"""Parts of the names that the modelling code gives to everything but feed-forward linears."""
