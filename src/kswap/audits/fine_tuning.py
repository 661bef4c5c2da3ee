"""An R2 reference made here: a pretrained backbone fine-tuned on retain and learn alone.

All weights train on the task's own loss; the epoch is chosen on validation images (train images
held out, where there are none; the last is taken where these are too few). The backbone's
pretraining may have held the classes to forget: that is what R2 means. What it took is written
beside the weights, as reference.json: the seconds of retraining, with which a swap is compared.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kswap.audits.retraining import batch_loss, drawn, in_model_rows
from kswap.data import ImageSet, SwapData
from kswap.data.labels import LabelIndex
from kswap.data.samples import concatenate, take
from kswap.data.sets import subset
from kswap.data.text import listed
from kswap.errors import UserError, brief
from kswap.files import write_bytes
from kswap.models.artefact import save_model
from kswap.models.fits import check_fits
from kswap.models.loading import Loaded, quiet
from kswap.settings import Role
from kswap.tasks import Pixels, Task, find, make_examples

_ROLES: tuple[Role, ...] = ("retain", "learn")
_RECORD = "reference.json"


@dataclass(frozen=True)
class Recipe:
    """How a reference is fine-tuned."""

    epochs: int = 4
    batch: int = 32
    rate: float = 1e-4
    weight_decay: float = 0.01


def train_reference(
    source: str,
    to_dir: Path,
    base: Loaded,
    data: SwapData,
    *,
    pixels: Pixels,
    device: Any,
    batch_size: int,
    seed: int,
    recipe: Recipe = Recipe(),
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Fine-tune a pretrained backbone without the forget data and save it.

    Args:
        source: hub id or folder of the backbone, of the base's family.
        to_dir: folder to write; must not exist.
        base: its class, processor and names are taken.
        data: of the run; forget images are not touched.
        pixels: from images to tensors.
        device: where it trains.
        batch_size: images in a forward without gradients.
        seed: of the head and of the order.
        recipe: epochs, batch, rate.
        report: called with steps done and steps in all.

    Raises:
        UserError: it cannot be loaded, is of another family, knows the classes to forget, or takes
            no images of the base's processor; or the run keeps one class.
    """
    if to_dir.exists():
        raise UserError(
            f"--train-reference: {to_dir} exists already and is used as it is; leave "
            "--train-reference out, or move it away"
        )
    begin = time.perf_counter()
    wanted = [c for role in _ROLES if role in data.sets for c in data.class_ids.get(role, ())]
    if len(wanted) < 2:
        raise UserError(
            f"--train-reference: the run keeps {listed(data.id2label[c] for c in wanted)} alone, "
            "and a model of one class answers nothing else; leave --train-reference out"
        )
    torch.manual_seed(seed)
    model = _load(source, base, [data.id2label[c] for c in wanted]).to(device)
    _refuse_known(source, model.kswap_labels, [data.id2label[c] for c in data.class_ids["forget"]])
    task = find(base.task)
    train, validation = _sets(data, wanted)
    _check_takes(source, model, pixels(train[0].images[:1]))
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay
    )
    rng = np.random.default_rng(seed)
    count = sum(map(len, train))
    each = max(1, -(-count // recipe.batch))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, each * recipe.epochs)
    shares = [max(1, round(recipe.batch * len(part) / count)) for part in train]
    best: tuple[float, dict[str, Tensor]] = (-1.0, {})
    for epoch in range(recipe.epochs):
        model.train()
        for step in range(each):
            samples = concatenate(
                [take(p, drawn(len(p), n, rng)) for p, n in zip(train, shares, strict=True)]
            )
            loss = batch_loss(
                model, task, make_examples(samples, pixels), samples, range(len(wanted))
            )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            report(epoch * each + step + 1, each * recipe.epochs)
        model.eval()
        scores = _scores(model, task, validation, len(wanted), pixels, batch_size)
        reached = float(np.mean(scores)) if scores else epoch  # nothing to choose by: the last
        if reached > best[0]:
            best = reached, {n: v.detach().cpu().clone() for n, v in model.state_dict().items()}
    model.load_state_dict(best[1])
    saved = save_model(model.cpu().eval(), to_dir, processor=base.processor)
    took = {
        "seconds": round(time.perf_counter() - begin, 3),
        "backbone": source,
        "seed": seed,
        "recipe": asdict(recipe),
    }
    write_bytes(saved / _RECORD, json.dumps(took, indent=2).encode())
    return saved


def _scores(
    model: Any,
    task: Task,
    sets: Sequence[ImageSet],
    num_rows: int,
    pixels: Pixels,
    batch_size: int,
) -> list[float]:
    """Return the task's number over each set."""
    return [
        task.score(
            model,
            images,
            pixels=pixels,
            class_ids=range(num_rows),
            num_rows=num_rows,
            batch_size=batch_size,
        ).total
        for images in sets
    ]


def seconds_of(reference: str | Path) -> float | None:
    """Return the seconds of `train_reference`; None: it did not make this model."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return float(json.loads((Path(reference) / _RECORD).read_text())["seconds"])
    return None


def _load(source: str, base: Loaded, names: Sequence[str]) -> Any:
    """Return the backbone under a new head; the labels that it came with are kept aside."""
    kind: Any = type(base.model)
    labels = dict(enumerate(names))
    try:
        with quiet():
            before = kind.config_class.from_pretrained(source, trust_remote_code=False)
            if before.model_type != base.model.config.model_type:
                raise UserError(
                    f"--train-reference: {source} is a {before.model_type}, the base a "
                    f"{base.model.config.model_type}; name a backbone of the base's family"
                )
            model = kind.from_pretrained(
                source,
                id2label=labels,
                label2id={name: row for row, name in labels.items()},
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
            )
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"--train-reference: {source} cannot be loaded ({brief(error)}); name a pretrained "
            "backbone with safetensors weights"
        ) from None
    has_head = any("Classification" in a or "For" in a for a in before.architectures or ())
    model.kswap_labels = dict(before.id2label) if has_head else {}
    return model


def _refuse_known(source: str, labels: Mapping[int, str], forgotten: Sequence[str]) -> None:
    index = LabelIndex(labels)
    if known := [name for name in forgotten if index.find(name)]:
        raise UserError(
            f"--train-reference: {source} knows {listed(known)}, which the run forgets; a "
            "reference never saw them, name a backbone pretrained without"
        )


def _check_takes(source: str, model: Any, pixel_values: Tensor) -> None:
    """Refuse a backbone whose images are of another size than the base's."""
    model.eval()
    try:
        with torch.no_grad():
            check_fits(model, pixel_values, source)
    except UserError:
        size = tuple(pixel_values.shape[-2:])
        raise UserError(
            f"--train-reference: {source} cannot take images of {size} pixels, which the base's "
            "image processor makes; name a backbone for that size"
        ) from None


def _sets(data: SwapData, wanted: Sequence[int]) -> tuple[list[ImageSet], list[ImageSet]]:
    """Return train and validation sets with rows of the reference's head."""
    train, validation = [], []
    for role in _ROLES:
        splits = data.sets.get(role, {})
        if "train" not in splits or not len(splits["train"]):
            continue
        own, held = splits["train"], splits.get("validation")
        if held is None or not len(held):
            rows = np.arange(len(own))
            own, held = subset(own, rows[rows % 5 != 4]), subset(own, rows[rows % 5 == 4])
        train.append(in_model_rows(own, wanted))
        validation.append(in_model_rows(held, wanted))
    return train, [part for part in validation if len(part)]
