"""Builds the small models of the scene demos, feeds them scenes, and scores them.

What: a Swin (width 48, 2-2-2-2 blocks) that is shared by a dense classifier (pretraining only), a
Mask2Former with an explicit background class, and an RT-DETR, all for 96 px; targets made from
scenes; mIoU and AP50. Why so small: a CPU core trains 20 to 25 images a second.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from scenes import Scene, box, index_mask
from torch import Tensor, nn
from transformers import (
    AutoBackbone,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    RTDetrConfig,
    RTDetrForObjectDetection,
    SwinConfig,
)
from transformers.models.mask2former.image_processing_pil_mask2former import (
    Mask2FormerImageProcessorPil,
)
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

IMAGE_SIZE = 96
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
EMBED_DIM, HIDDEN_DIM, FFN_DIM = 48, 96, 384
NUM_DENSE = 48
"""Side of the label map of the dense classifier."""
BACKGROUND = "background"


def swin_config(stages: Sequence[int]) -> SwinConfig:
    """Return the backbone's config that hands over these of its stages 1 to 4."""
    return SwinConfig(
        image_size=IMAGE_SIZE,
        patch_size=4,
        embed_dim=EMBED_DIM,
        depths=[2, 2, 2, 2],
        num_heads=[2, 4, 8, 16],
        window_size=4,
        drop_path_rate=0.0,
        out_features=[f"stage{n}" for n in stages],
    )


class DenseClassifier(nn.Module):
    """The backbone with a small pyramid head that names the class of every fourth pixel."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = [BACKGROUND, *names]
        self.backbone = AutoBackbone.from_config(swin_config((1, 2, 3, 4)))
        self.lateral = nn.ModuleList(nn.Conv2d(c, 64, 1) for c in self.backbone.channels)
        self.mix = nn.Conv2d(64, 64, 3, padding=1)
        self.classify = nn.Conv2d(64, len(self.names), 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (images, classes, NUM_DENSE, NUM_DENSE)."""
        maps = self.backbone(pixels).feature_maps
        size = maps[0].shape[-2:]
        laid = [conv(m) for conv, m in zip(self.lateral, maps, strict=True)]
        total = sum(nn.functional.interpolate(m, size=size, mode="bilinear") for m in laid)
        logits = self.classify(nn.functional.gelu(self.mix(nn.functional.gelu(total))))
        return nn.functional.interpolate(logits, size=(NUM_DENSE, NUM_DENSE), mode="bilinear")


def make_segmenter(names: Sequence[str]) -> Mask2FormerForUniversalSegmentation:
    """Return a fresh Mask2Former for background and these classes."""
    names = [BACKGROUND, *names]
    config = Mask2FormerConfig(
        backbone_config=swin_config((1, 2, 3, 4)),
        feature_size=HIDDEN_DIM,
        mask_feature_size=HIDDEN_DIM,
        hidden_dim=HIDDEN_DIM,
        encoder_feedforward_dim=FFN_DIM,
        dim_feedforward=FFN_DIM,
        encoder_layers=2,
        decoder_layers=4,  # transformers builds one fewer
        num_attention_heads=4,
        num_queries=20,
        train_num_points=1024,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    return Mask2FormerForUniversalSegmentation(config)


def make_detector(names: Sequence[str]) -> RTDetrForObjectDetection:
    """Return a fresh RT-DETR for these classes."""
    config = RTDetrConfig(
        backbone_config=swin_config((2, 3, 4)),
        encoder_in_channels=[EMBED_DIM * 2, EMBED_DIM * 4, EMBED_DIM * 8],
        encoder_hidden_dim=HIDDEN_DIM,
        decoder_in_channels=[HIDDEN_DIM] * 3,
        d_model=HIDDEN_DIM,
        encoder_ffn_dim=FFN_DIM,
        decoder_ffn_dim=FFN_DIM,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        decoder_layers=3,
        hidden_expansion=0.5,
        num_queries=30,
        num_denoising=24,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    return RTDetrForObjectDetection(config)


def make_processor(task: str) -> Mask2FormerImageProcessorPil | RTDetrImageProcessorPil:
    """Return the image processor that is saved beside a model: a fixed size, ImageNet's colours."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    options = {"size": size, "do_normalize": True, "image_mean": MEAN, "image_std": STD}
    if task == "detection":
        return RTDetrImageProcessorPil(**options)
    return Mask2FormerImageProcessorPil(**options, num_labels=None, size_divisor=32)


def to_pixels(scenes: Sequence[Scene]) -> Tensor:
    """Return normalised float pictures (images, 3, IMAGE_SIZE, IMAGE_SIZE), as processors do."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    images = [
        np.asarray(Image.fromarray(s.image).resize(size, Image.Resampling.BILINEAR)) for s in scenes
    ]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def dense_loss(model: DenseClassifier, scenes: Sequence[Scene]) -> Tensor:
    """Return the mean cross-entropy over the pixels of the label maps."""
    numbers = {name: i for i, name in enumerate(model.names)}
    size = (NUM_DENSE, NUM_DENSE)
    maps = [
        np.asarray(Image.fromarray(index_mask(s, numbers)).resize(size, Image.Resampling.NEAREST))
        for s in scenes
    ]
    labels = torch.from_numpy(np.stack(maps)).long()
    return nn.functional.cross_entropy(model(to_pixels(scenes)), labels)


def segmenter_loss(model: Mask2FormerForUniversalSegmentation, scenes: Sequence[Scene]) -> Tensor:
    """Return Mask2Former's own loss; one mask per class that is present, background too."""
    numbers = model.config.label2id
    masks, classes = [], []
    for scene in scenes:
        index = index_mask(scene, numbers)
        present = np.unique(index)
        masks.append(torch.from_numpy((index == present[:, None, None]).astype(np.float32)))
        classes.append(torch.from_numpy(present).long())
    return model(to_pixels(scenes), mask_labels=masks, class_labels=classes).loss


def detector_loss(model: RTDetrForObjectDetection, scenes: Sequence[Scene]) -> Tensor:
    """Return RT-DETR's own loss, with its denoising queries."""
    numbers = model.config.label2id
    labels = []
    for scene in scenes:
        kept = [i for i, name in enumerate(scene.names) if name in numbers]
        corners = torch.tensor([box(scene.masks[i]) for i in kept]).reshape(-1, 4).float()
        corners = corners / scene.image.shape[0]
        centre, extent = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        class_labels = torch.tensor([numbers[scene.names[i]] for i in kept]).long()
        labels.append({"class_labels": class_labels, "boxes": torch.cat([centre, extent], 1)})
    return model(to_pixels(scenes), labels=labels).loss


def copy_rows(old: nn.Module, new: nn.Module, old_names: list[str], new_names: list[str]) -> None:
    """Copy all weights of `old` into `new`; of class layers the rows of the classes in both.

    A class layer is a tensor that has one row per class, or one more (no object), in both models.
    """
    rows = [(old_names.index(n), i) for i, n in enumerate(new_names) if n in old_names]
    state, source = new.state_dict(), old.state_dict()
    for key, tensor in state.items():
        given = source.get(key)
        if given is None:
            continue
        extra = tensor.shape[0] - len(new_names) if tensor.ndim else -1
        if tensor.ndim and extra in (0, 1) and given.shape[0] == len(old_names) + extra:
            for old_row, new_row in rows:
                tensor[new_row] = given[old_row]
            if extra:
                tensor[-1] = given[-1]
        elif tensor.shape == given.shape:
            tensor.copy_(given)
        else:
            msg = f"{key}: {tuple(given.shape)} does not fit {tuple(tensor.shape)}"
            raise ValueError(msg)
