"""Answers of a swapped model on image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from kswap.data import read_image
from kswap.errors import UserError
from kswap.models.artefact import load
from kswap.models.checks import check_fits
from kswap.models.loading import task_of

_SURE = 0.3
"""Score from which on a detector's answer is shown."""
Answer = tuple[str, float]
"""A label, with the box of an object, and its probability, score or share of the picture."""


@torch.no_grad()
def predict_images(
    run_dir: Path, images: Sequence[Path], *, top: int = 3
) -> Iterator[tuple[Path, list[Answer]]]:
    """Yield each path with its `top` answers, best first.

    A classifier's are labels with their probabilities, a detector's objects with their boxes in
    pixels and their scores, a segmenter's labels with their share of the picture.

    Raises:
        UserError: not a run or model folder, or a file that is not an image.
    """
    for path in images:  # a wrong name is found before anything is answered
        try:
            found = path.is_file()
        except OSError as error:  # a name too long
            raise UserError(f"{path}: is no file ({error.strerror}); name image files") from None
        if not found:
            raise UserError(f"{path}: there is no such file; name image files")
    model, processor = load(run_dir)
    answers = {
        "classification": _classes,
        "segmentation": _shares,
        "detection": _objects,
    }[task_of(model)]
    for path in images:
        image = read_image(path)
        inputs = processor(image, return_tensors="pt")
        check_fits(model, inputs["pixel_values"], str(run_dir))
        yield path, answers(model, processor, inputs, image)[:top]


def _classes(model: Any, processor: Any, inputs: Any, image: Image.Image) -> list[Answer]:
    shares = model(**inputs).logits.float().softmax(-1)[0].sort(descending=True)
    return [
        (str(model.config.id2label[int(i)]), float(v))
        for v, i in zip(shares.values, shares.indices, strict=True)
    ]


def _shares(model: Any, processor: Any, inputs: Any, image: Image.Image) -> list[Answer]:
    (answer,) = processor.post_process_semantic_segmentation(
        model(**inputs), target_sizes=[(image.height, image.width)]
    )
    class_ids, counts = answer.unique(return_counts=True)
    order = counts.argsort(descending=True)
    return [
        (str(model.config.id2label[int(class_ids[i])]), float(counts[i] / answer.numel()))
        for i in order
    ]


def _objects(model: Any, processor: Any, inputs: Any, image: Image.Image) -> list[Answer]:
    (found,) = processor.post_process_object_detection(
        model(**inputs), threshold=_SURE, target_sizes=[(image.height, image.width)]
    )
    order = found["scores"].argsort(descending=True)
    return [
        (
            f"{model.config.id2label[int(found['labels'][i])]} "
            f"[{', '.join(str(round(float(v))) for v in found['boxes'][i])}]",
            float(found["scores"][i]),
        )
        for i in order
    ]
