"""Objects and pixels with classes by chance, and the library's own loss of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from criteria_models import SIDE
from torch import Tensor

from kswap.tasks.criteria import Decomposed, decompose

PIXELS = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
INPUTS = {"pixel_values": PIXELS}


def boxes(counts: Sequence[int], seed: int = 3) -> list[dict[str, Tensor]]:
    noise = torch.Generator().manual_seed(seed)
    return [
        {
            "class_labels": torch.randint(0, 5, (count,), generator=noise),
            "boxes": torch.cat(
                [
                    torch.rand(count, 2, generator=noise) * 0.4 + 0.3,
                    torch.rand(count, 2, generator=noise) * 0.3 + 0.1,
                ],
                1,
            ),
        }
        for count in counts
    ]


def masks(counts: Sequence[int], seed: int = 3) -> list[dict[str, Tensor]]:
    noise = torch.Generator().manual_seed(seed)
    return [
        {
            "class_labels": torch.randint(0, 5, (count,), generator=noise),
            "masks": (torch.rand(count, SIDE, SIDE, generator=noise) > 0.6).float(),
        }
        for count in counts
    ]


def library_loss(model: Any, labels: Any, **inputs: Any) -> Tensor:
    """What the model computes by itself."""
    inputs = inputs or dict(INPUTS)
    if isinstance(labels, Tensor) or "boxes" in labels[0]:
        inputs["labels"] = labels
    else:
        inputs["mask_labels"] = [image["masks"] for image in labels]
        inputs["class_labels"] = [image["class_labels"] for image in labels]
        if getattr(model.config, "model_type", "") == "maskformer":
            inputs["output_hidden_states"] = True  # else the library stacks None
    loss: Tensor = model(**inputs).loss
    return loss


def gradient(model: Any, loss: Tensor) -> Tensor:
    """All gradients in one row."""
    model.zero_grad()
    loss.backward()
    rows = [p.new_zeros(p.shape) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([row.flatten() for row in rows])


def assert_same(model: Any, labels: Any) -> Decomposed:
    """Our summands equal the library's loss, and their gradients its gradients."""
    torch.manual_seed(5)
    loss = library_loss(model, labels)
    wanted = gradient(model, loss)
    torch.manual_seed(5)
    ours = decompose(model, INPUTS, labels)
    torch.testing.assert_close(ours.total(), loss, rtol=1e-5, atol=1e-7)
    found = gradient(model, ours.total())
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4
    return ours
