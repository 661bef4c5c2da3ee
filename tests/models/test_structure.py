"""Feed-forward linears are found by structure: in every family, never in part, no attention."""

from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from models.expected import EXPECTED_FFN, NOT_FFN
from models.families import FAMILIES
from torch import Tensor, nn

from kswap.errors import UserError
from kswap.models.examples import example_inputs
from kswap.models.structure import find_ffn_blocks


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_equal_the_hand_written_table(family, built):
    model, blocks = built(family)
    shapes = tuple(
        tuple(
            (model.get_submodule(name).in_features, model.get_submodule(name).out_features)
            for name in block.linears
        )
        for block in blocks
    )
    assert shapes == EXPECTED_FFN[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_attention_projection_and_no_head_among_them(family, built):
    _, blocks = built(family)
    names = [name for block in blocks for name in block.linears]
    assert len(names) == len(set(names))
    for block in blocks:
        for name in block.linears:
            assert name.startswith(block.name + ".")
            # Only the part inside the block tells: "cvt.encoder" holds the letters of other words.
            assert not any(part in NOT_FFN for part in name.removeprefix(block.name).split("."))


def _detector(model_class, config_class, **values):
    backbone = hf.RTDetrResNetConfig if "RTDetr" in config_class.__name__ else hf.ResNetConfig
    stages = values.pop("stages", ["stage2", "stage3", "stage4"])
    config = config_class(
        backbone_config=backbone(
            embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], out_features=stages
        ),
        d_model=32,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        decoder_layers=2,
        # h = d: the hard case for anything that goes by shapes
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=6,
        **values,
    )
    return model_class(config).eval()


def _swin():
    return hf.SwinConfig(
        image_size=64,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


_PLAIN = {"use_timm_backbone": False, "use_pretrained_backbone": False, "encoder_layers": 2}
_ENCODER_DECODER = [
    *("model.encoder.layers.0", "model.encoder.layers.1"),
    *("model.decoder.layers.0", "model.decoder.layers.1"),
]
_SWIN_IN_MASK2FORMER = "model.pixel_level_module.encoder.swin.encoder.layers"
OTHER_TASKS = {
    "yolos": (
        lambda: hf.YolosForObjectDetection(
            hf.YolosConfig(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=32,
                image_size=[64, 64],
                patch_size=16,
                num_detection_tokens=5,
            )
        ).eval(),
        ["vit.encoder.layer.0", "vit.encoder.layer.1"],
    ),
    "detr": (
        lambda: _detector(hf.DetrForObjectDetection, hf.DetrConfig, stages=["stage4"], **_PLAIN),
        _ENCODER_DECODER,
    ),
    "deformable-detr": (
        lambda: _detector(
            hf.DeformableDetrForObjectDetection,
            hf.DeformableDetrConfig,
            num_feature_levels=3,
            two_stage=True,
            with_box_refine=True,
            **_PLAIN,
        ),
        _ENCODER_DECODER,
    ),
    "rt-detr": (
        lambda: _detector(
            hf.RTDetrForObjectDetection,
            hf.RTDetrConfig,
            encoder_hidden_dim=32,
            encoder_in_channels=[16, 16, 32],
            decoder_in_channels=[32, 32, 32],
            num_denoising=0,
        ),
        ["model.encoder.aifi.0.layers.0", "model.decoder.layers.0", "model.decoder.layers.1"],
    ),
    "mask2former": (
        lambda: hf.Mask2FormerForUniversalSegmentation(
            hf.Mask2FormerConfig(
                backbone_config=_swin(),
                feature_size=32,
                mask_feature_size=32,
                hidden_dim=32,
                encoder_feedforward_dim=32,
                encoder_layers=1,
                decoder_layers=3,
                dim_feedforward=32,
                num_attention_heads=4,
                num_queries=5,
            )
        ).eval(),
        [
            *(f"{_SWIN_IN_MASK2FORMER}.{stage}.blocks.0" for stage in range(4)),
            "model.pixel_level_module.decoder.encoder.layers.0",
            "model.transformer_module.decoder.layers.0",
            "model.transformer_module.decoder.layers.1",
        ],
    ),
}


@pytest.mark.parametrize("family", OTHER_TASKS)
def test_detectors_and_segmenters(family):
    """No box predictor, mask embedder, reference-point or query network is a block."""
    build, names = OTHER_TASKS[family]
    blocks = find_ffn_blocks(build())
    assert [block.name for block in blocks] == names
    assert all(len(block.linears) == 2 for block in blocks)
    linears = [name for block in blocks for name in block.linears]
    wrong = ("proj", "attn", "bbox", "embed", "class", "head", "query", "reference", "sampling")
    assert not [name for name in linears if any(part in name.rsplit(".", 1)[-1] for part in wrong)]


class _ParallelBlock(nn.Module):
    """Attention beside the feed-forward network, both added in one sum: (attn + ffn) + x."""

    def __init__(self, width: int, *, macaron: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Sequential(nn.Linear(width, width), nn.Hardswish(), nn.Linear(width, width))
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.before = (
            nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Linear(8, width)) if macaron else None
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.before is not None:
            x = torch.addcmul(x, self.before(x), torch.tensor(0.5))  # x + 0.5 * before(x)
        y = self.norm(x)
        mixed = (self.q(y) @ self.k(y).transpose(1, 2)).softmax(-1) @ self.v(y)
        return self.out(mixed) + self.first(y) + x


class _Toy(nn.Module):
    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.config = hf.ViTConfig(image_size=8, num_labels=3)
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.towers = nn.ModuleList(_ParallelBlock(16, **options) for _ in range(2))
        self.pose = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        self.classes = nn.Linear(16, 3)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        x = self.patch(pixel_values).flatten(2).transpose(1, 2)
        for tower in self.towers:
            x = tower(x)
        pooled = x.mean(1)
        return {"logits": self.classes(pooled), "other": self.pose(pooled)}


def test_a_family_nobody_has_seen_with_parallel_blocks():
    blocks = find_ffn_blocks(_Toy())
    assert [block.linears for block in blocks] == [
        (f"towers.{index}.first.0", f"towers.{index}.first.2") for index in range(2)
    ]


def test_two_networks_in_one_block_are_one_group():
    blocks = find_ffn_blocks(_Toy(macaron=True))
    assert [block.name for block in blocks] == ["towers.0", "towers.1"]
    assert [len(block.linears) for block in blocks] == [4, 4]


def test_the_image_size_of_a_timm_model(built):
    model, _ = built("vit")
    # where a TimmWrapper has it
    model.config = SimpleNamespace(pretrained_cfg={"input_size": [3, 40, 48]})
    assert next(example_inputs(model))["pixel_values"].shape == (1, 3, 40, 48)


def test_an_unused_network_is_no_block(built):
    """SigLIP's attention pooling has a feed-forward network that its classifier never reads."""
    model, blocks = built("siglip")
    assert any("vision_model.head.mlp" in name for name, _ in model.named_modules())
    assert not [name for block in blocks for name in block.linears if ".head." in name]


class _ConvFfn(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


def test_some_blocks_without_linears_is_an_error_that_names_them(built):
    model, _ = built("vit")
    model.vit.layers[1].mlp = _ConvFfn(32)
    with pytest.raises(UserError, match=r"vit\.layers\.1\b") as caught:
        find_ffn_blocks(model)
    assert "\n" not in str(caught.value)


NOT_FOUND = {
    "swiftformer": lambda: hf.SwiftFormerForImageClassification(
        hf.SwiftFormerConfig(image_size=32, depths=[1, 1], embed_dims=[8, 16])
    ),
    "poolformer": lambda: hf.PoolFormerForImageClassification(
        hf.PoolFormerConfig(hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1])
    ),
    "resnet": lambda: hf.ResNetForImageClassification(
        hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    ),
}


@pytest.mark.parametrize("family", NOT_FOUND)
def test_convolutional_networks_are_an_error_that_names_candidates(family):
    model = NOT_FOUND[family]().eval()
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    with pytest.raises(UserError) as caught:
        find_ffn_blocks(model)
    assert last[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_without_images_is_an_error():
    config = hf.ImageGPTConfig(n_embd=32, n_layer=1, n_head=2)
    with pytest.raises(UserError, match="pixel_values"):
        find_ffn_blocks(hf.ImageGPTForImageClassification(config))


def test_tracing_leaves_no_trace(built):
    model, _ = built("vit")
    model.train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    find_ffn_blocks(model)
    assert model.training
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
