"""How many answers a detector gives about one image, which its image processor decides.

Of every pair of a query and a class RT-DETR's processor keeps the best ones, as many as there are
queries; Deformable DETR's keeps a hundred. Where a model has fewer queries than that, its scores
depend on it. The processor is asked, so that no family is named here.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

MOST_ANSWERS = 100
"""That COCO's mAP counts of one image."""
_QUERIES, _CLASSES = 5, 3
_NAME = "kswap_answers_per_query"


def remember_answers(model: Any, processor: Any) -> None:
    """Keep with a detector whether its processor gives as many answers as there are queries."""
    ask = getattr(processor, "post_process_object_detection", None)
    if ask is None:
        return
    outputs = SimpleNamespace(
        logits=torch.linspace(0, 1, _QUERIES * _CLASSES).reshape(1, _QUERIES, _CLASSES),
        pred_boxes=torch.full((1, _QUERIES, 4), 0.5),
    )
    try:
        (found,) = ask(outputs, threshold=-1.0)
    except Exception:  # a processor of another kind of model, or one that needs more
        return
    setattr(model, _NAME, len(found["scores"]) <= _QUERIES)


def most_answers(model: Any, num_queries: int) -> int:
    """Return how many answers about an image count, of a model that may be wrapped."""
    per_query = getattr(model, _NAME, False)
    return min(MOST_ANSWERS, num_queries) if per_query else MOST_ANSWERS
