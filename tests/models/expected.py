"""What must be found in each family, written by hand from the modelling code.

`EXPECTED_FFN[name]`: the feed-forward linears, block by block, as (in_features, out_features).
"""

Shapes = tuple[tuple[int, int], ...]


def two(down: int, up: int) -> Shapes:
    return (down, up), (up, down)


def gated(down: int, up: int) -> Shapes:
    return (down, up), (down, up), (up, down)


EXPECTED_FFN: dict[str, tuple[Shapes, ...]] = {
    **dict.fromkeys(
        ("vit", "deit", "deit-distilled", "beit", "data2vec", "vit-msn", "ijepa"),
        (two(32, 48),) * 2,
    ),
    **dict.fromkeys(("siglip", "siglip2", "clip", "metaclip2"), (two(32, 48),) * 2),
    **dict.fromkeys(("dinov2", "dinov2-registers"), (two(32, 64),) * 2),
    # SwiGLU's hidden width: 2/3 of mlp_ratio * d, up to a multiple of 8; 2/3 * 64 gives 48.
    "dinov2-swiglu": (gated(32, 48),) * 2,
    "vit-square": (two(32, 32),) * 2,
    **dict.fromkeys(
        ("swin", "swinv2", "donut-swin", "hiera", "cvt"), (two(16, 32), two(32, 64), two(32, 64))
    ),
    **dict.fromkeys(("pvt", "pvt-v2", "segformer", "focalnet"), (two(16, 32), two(32, 64))),
    # Stages of 2, 4 and 3 blocks are fixed in the family.
    "mobilevit": (two(16, 24),) * 2 + (two(24, 36),) * 4 + (two(32, 48),) * 3,
    # One network in each stage and one after the subsampling between the stages.
    "levit": (two(32, 64), two(48, 96), two(48, 96)),
    **dict.fromkeys(("convnext", "convnextv2"), (two(16, 64), two(32, 128))),
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
