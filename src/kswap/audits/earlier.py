"""Classes that an earlier swap forgot: does the model of this run answer them again?

No role of the run has their images, as what an earlier swap forgot is neither retained nor taught.
They are looked for in the sources of the run, whose pictures of other classes were left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kswap.audits.findings import not_available
from kswap.audits.statistics import share_interval
from kswap.audits.subjects import EarlierClass
from kswap.audits.work import Work, pixels_of
from kswap.data import SwapData, build_data
from kswap.errors import UserError
from kswap.settings import Role
from kswap.tasks import find

_SOURCES: tuple[Role, ...] = ("retain", "forget", "learn")


def earlier_classes(work: Work) -> tuple[EarlierClass, ...]:
    """Return what base and swapped model score on each class that was forgotten before this run."""
    now = {work.data.id2label[c] for c in work.data.class_ids.get("forget", ())}
    return tuple(_look(work, name) for name in work.base.forgotten if name not in now)


def _look(work: Work, name: str) -> EarlierClass:
    data = _images(work, name)
    if data is None or "test" not in data.sets.get("forget", {}):
        why = not_available("no source of the run has test images of it")
        return EarlierClass(name, 0, why, why)
    count = len(data.sets["forget"]["test"])
    base, swapped = (_score(work, data, model) for model in (work.base.model, work.swapped))
    return EarlierClass(name, count, base, swapped)


def _images(work: Work, name: str) -> SwapData | None:
    """Return the images of one class from the first source that has them, as if to be forgotten."""
    for role in _SOURCES:
        source = getattr(work.config, role)
        if source is None or not source.data:
            continue
        own = source.model_copy(update={"classes": (name,)})
        none = dict.fromkeys(("learn", "retain"))
        config = work.config.model_copy(update={**none, "forget": own, "order": "F"})
        try:
            return build_data(
                config,
                task=work.base.task,
                id2label=work.base.id2label,
                processor=work.base.processor,
            )
        except UserError:  # this source does not have the class
            continue
    return None


def _score(work: Work, data: SwapData, model: Any) -> Any:
    """Return the task's score of the class; of images with Wilson's interval."""
    images = data.sets["forget"]["test"]
    scored = find(work.base.task).score(
        model.to(work.device).eval(),
        images,
        pixels=pixels_of(data, work.device),
        class_ids=data.class_ids["forget"],
        num_rows=int(model.config.num_labels),
        batch_size=work.config.training.eval_batch_size,
    )
    if work.base.task != "classification":
        return float(scored.total)
    hits = round(float(scored.total) * len(images))
    return share_interval(np.arange(len(images)) < hits)
