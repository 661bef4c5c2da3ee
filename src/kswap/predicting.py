"""Answers of a swapped model on image files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kswap.arrays import Marks
from kswap.data import read_image
from kswap.data.text import one_line
from kswap.errors import UserError
from kswap.files import disk_errors
from kswap.models.artefact import load
from kswap.models.fits import check_fits
from kswap.models.loading import task_of
from kswap.tasks.box_confusion import SURE

Answer = tuple[str, float]
"""A label, with the box of an object, and its probability, score or share of the picture."""
_SIDE = 1280
"""Drawn pictures are at most so long, in pixels."""
_KEPT_BYTES = 1 << 29
"""Decoded images are kept up to so many bytes between the check of all and the answers."""


@torch.no_grad()
def predict_images(
    run_dir: Path, images: Sequence[Path], *, top: int = 3, to: Path | None = None
) -> Iterator[tuple[Path, list[Answer]]]:
    """Yield each path with its `top` answers, best first.

    A classifier's are labels with their probabilities, a detector's objects with their boxes in
    pixels and their scores, a segmenter's labels with their share of the picture.

    Args:
        run_dir: a run, or a folder with a model.
        images: files.
        top: answers of an image; of a detector, objects in the list, all are drawn.
        to: a folder where each picture is written with its answers drawn on it, as
            NAME-answer.png.

    Raises:
        UserError: not a run or model folder, a file that is not an image, or `to` cannot be
            written to.
    """
    for path in images:
        _check_is_file(path)
    kept, sizes = _read_all(images)
    model, processor = load(run_dir)
    for size, path in sizes.items():
        _check_size(processor, size, path)
    answers = {
        "classification": _classes,
        "segmentation": _shares,
        "detection": _objects,
    }[task_of(model)]
    with contextlib.nullcontext() if to is None else _folder(to):
        targets = [None] * len(images) if to is None else _targets(images, to)
        for path, target in zip(images, targets, strict=True):
            image = kept.pop(path, None) or read_image(path)
            inputs = processor(image, return_tensors="pt")
            check_fits(model, inputs["pixel_values"], str(run_dir))
            listed, marks = answers(model, processor, inputs, image)
            if target is not None:
                _draw(image, marks, model, target, top=top)
            yield path, listed[:top]


def _read_all(
    images: Sequence[Path],
) -> tuple[dict[Path, Image.Image], dict[tuple[int, int], Path]]:
    """Return the images, and one of each size: what cannot be answered is found before anything is.

    Of many images only the first: the others are read again when it is their turn.
    """
    kept: dict[Path, Image.Image] = {}
    sizes: dict[tuple[int, int], Path] = {}
    room = _KEPT_BYTES
    for path in images:
        image = read_image(path)
        sizes[image.size] = path
        room -= 3 * image.width * image.height
        if room >= 0:
            kept[path] = image
    return kept, sizes


def _check_is_file(path: Path) -> None:
    try:
        found = path.is_file()
    except OSError as error:  # a name too long
        raise UserError(f"{path}: is no file ({error.strerror}); name image files") from None
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name image files, such as {path}/*.jpg")
    if not found:
        raise UserError(f"{path}: there is no such file; name image files")


def _check_size(processor: Any, size: tuple[int, int], path: Path) -> None:
    """Refuse an image of a size that the processor cannot handle: a side scaled to no pixel."""
    try:
        processor(Image.new("RGB", size), return_tensors="pt")
    except Exception as error:  # whatever the library's code runs into
        raise UserError(
            f"{path}: the model's image processor fails on {size[0]}x{size[1]} pixels "
            f"({one_line(error, 120)}); crop or replace the image"
        ) from None


@contextlib.contextmanager
def _folder(to: Path) -> Iterator[None]:
    """Make a folder with its parents; remove again what was made and is empty in the end."""
    made: list[Path] = []
    try:
        try:
            made += [folder for folder in (to, *to.parents) if not folder.exists()]
            to.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--to: {to} is no folder to write to ({error.strerror}); name another folder"
            ) from None
        yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def _targets(images: Sequence[Path], to: Path) -> list[Path]:
    """Return a file to write for each image, none twice and none of the images themselves."""
    taken = {path.resolve() for path in images}
    targets = []
    for path in images:
        number, target = 1, to / f"{path.stem}-answer.png"
        while target.resolve() in taken:
            number += 1
            target = to / f"{path.stem}-answer-{number}.png"
        taken.add(target.resolve())
        targets.append(target)
    return targets


def _draw(image: Image.Image, marks: Marks, model: Any, target: Path, *, top: int) -> None:
    from kswap.report.pictures import Naming
    from kswap.report.sheets import save_png, with_answers

    swapped = getattr(model.config, "kswap", None) or {}
    naming = Naming.of(
        {int(row): str(name) for row, name in model.config.id2label.items()},
        {"learn": swapped.get("learned", ()), "forget": swapped.get("forgotten", ())},
    )
    if marks.boxes is None:
        marks = Marks(marks.class_ids[:top], marks.shares[:top], marks.mask)
    side = min(max(image.size), _SIDE)
    page = with_answers(np.asarray(image), marks, naming, side=side, text=max(12, side // 45))
    with disk_errors(f"--to {target.parent}"):
        save_png(page, target)


def _classes(
    model: Any, processor: Any, inputs: Any, image: Image.Image
) -> tuple[list[Answer], Marks]:
    shares = model(**inputs).logits.float().softmax(-1)[0].sort(descending=True)
    listed = [
        (str(model.config.id2label[int(i)]), float(v))
        for v, i in zip(shares.values, shares.indices, strict=True)
    ]
    return listed, Marks(shares.indices.numpy(), shares.values.numpy())


def _shares(
    model: Any, processor: Any, inputs: Any, image: Image.Image
) -> tuple[list[Answer], Marks]:
    (answer,) = processor.post_process_semantic_segmentation(
        model(**inputs), target_sizes=[(image.height, image.width)]
    )
    class_ids, counts = answer.unique(return_counts=True)
    order = counts.argsort(descending=True)
    listed = [
        (str(model.config.id2label[int(class_ids[i])]), float(counts[i] / answer.numel()))
        for i in order
    ]
    return listed, Marks.of_mask(answer.numpy())


def _objects(
    model: Any, processor: Any, inputs: Any, image: Image.Image
) -> tuple[list[Answer], Marks]:
    (found,) = processor.post_process_object_detection(
        model(**inputs), threshold=SURE, target_sizes=[(image.height, image.width)]
    )
    order = found["scores"].argsort(descending=True)
    labels, scores, boxes = (found[key][order] for key in ("labels", "scores", "boxes"))
    listed = [
        (
            f"{model.config.id2label[int(label)]} [{', '.join(str(round(v)) for v in box)}]",
            float(score),
        )
        for label, score, box in zip(labels, scores, boxes.tolist(), strict=True)
    ]
    sides = torch.tensor([image.width, image.height] * 2)
    return listed, Marks(labels.numpy(), scores.numpy(), boxes=(boxes / sides).numpy())
