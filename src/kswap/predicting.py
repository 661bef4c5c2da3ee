"""Answers of a swapped model on image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from kswap.data import read_image
from kswap.errors import UserError
from kswap.models.artefact import load
from kswap.models.checks import check_fits


@torch.no_grad()
def predict_images(
    run_dir: Path, images: Sequence[Path], *, top: int = 3
) -> Iterator[tuple[Path, list[tuple[str, float]]]]:
    """Yield each path with its `top` labels and their probabilities, best first.

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
    for path in images:
        inputs = processor(read_image(path), return_tensors="pt")
        check_fits(model, inputs["pixel_values"], str(run_dir))
        shares = model(**inputs).logits.float().softmax(-1)[0]
        best = shares.topk(min(top, len(shares)))
        yield (
            path,
            [
                (str(model.config.id2label[int(i)]), float(v))
                for v, i in zip(best.values, best.indices, strict=True)
            ],
        )
