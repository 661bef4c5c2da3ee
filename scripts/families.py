"""The page docs/families.md, from the tables that the tests of tests/models hold the code to."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from models.expected import EXPECTED_FFN, EXPECTED_HEADS
from models.scene_expected import EXPECTED_CLASS_ROWS, EXPECTED_PARTS

_INTRO = """\
# Families: what LoRA adapts

Made by `make docs` from the tables in `tests/models/expected.py` and
`tests/models/scene_expected.py`, which the tests hold every family to: small models of few blocks,
built from config. Sizes are those of the small models; what matters is which parts have blocks and
how many linears a block has. A block is one group of the group lasso. Nothing here is a list that
the code reads: blocks and heads are found by structure (`models/structure.py`,
`models/class_tensors.py`).

A block that the answers do not depend on is not adapted: BEiT's and Data2Vec's segmentation heads
read four of the hidden states, and blocks behind the last of them are not used.
"""
_REFUSED = """\
## Refused, with a line that says why

| family | why |
|---|---|
| ResNet, PoolFormer, SwiftFormer, MobileViTV2 and their like | no feed-forward network of linears |
| SigLIP 2 with images of any shape (NaFlex) | its image processor gives patches, not images |
| VidEoMT | takes videos |
| OneFormer, DETR for panoptic segmentation | need a text, or answer panoptic questions |
| models whose loss is none of those in `tasks/criteria` | it cannot be split by class |

RF-DETR's own image processor needs torchvision (`pip install torchvision`), and so do timm's
classifiers (`TimmWrapperForImageClassification`, `pip install timm`); ViT, DeiT, CaiT, BEiT,
EVA-02, Swin, MLP-Mixer and ResMLP of timm were tried.
"""


_NOT_SWAPPED = ("siglip2",)
"""Blocks and heads are found, but its inputs are no images."""


def families_page() -> str:
    """Return docs/families.md."""
    parts = [_INTRO, "## Segmentation and detection\n"]
    parts.append("| family | part | blocks | linears of each block (in → out) | rows for classes |")
    parts.append("|---|---|---|---|---|")
    for family, found in EXPECTED_PARTS.items():
        heads = _heads(EXPECTED_CLASS_ROWS[family])
        for part in found:
            name, count = f"{part.name} `{part.at}`", len(part.networks)
            parts.append(f"| {family} | {name} | {count} | {_linears(part.networks)} | {heads} |")
            family = heads = ""
    parts.append("\n## Classification\n")
    parts.append("| family | blocks | linears of each block (in → out) | heads |")
    parts.append("|---|---|---|---|")
    for family, networks in EXPECTED_FFN.items():
        if family in _NOT_SWAPPED:
            continue
        names = ", ".join(f"`{name}`" for name in EXPECTED_HEADS.get(family, ("classifier",)))
        parts.append(f"| {family} | {len(networks)} | {_linears(networks)} | {names} |")
    return "\n".join([*parts, "", _REFUSED])


def _linears(networks: tuple[Any, ...]) -> str:
    """Return the shapes of different blocks, once each, in order."""
    shapes = dict.fromkeys(networks)
    return "; ".join(", ".join(f"{i} → {o}" for i, o in network) for network in shapes)


def _heads(rows: dict[str, int]) -> str:
    """Return the holders of class rows; numbered ones together."""
    alike: dict[str, list[str]] = {}
    for holder in rows:
        name, _, last = holder.rpartition(".")
        alike.setdefault(f"{name}.*" if last.isdigit() else holder, []).append(holder)
    shown = [
        f"`{name}` ({len(held)})" if len(held) > 1 else f"`{held[0]}`"
        for name, held in alike.items()
    ]
    return ", ".join(shown)
