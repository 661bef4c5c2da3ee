"""Whether a model takes the images of its image processor, and labels with them: it is tried."""

from __future__ import annotations

import contextlib
import inspect
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from kswap.errors import UserError, brief
from kswap.models.checks import task_of_class
from kswap.models.examples import example_inputs

_LOSSES = ("_loss_function", "get_loss_dict")
"""What a detector's forward and a mask classifier's call with labels."""
_MODELS = str(Path(transformers.__file__).parent / "models")
"""The folder of the library's models."""


def check_fits(model: PreTrainedModel, pixel_values: Tensor, name: str) -> None:
    """Refuse a model that cannot take the images of its image processor, or labels with them.

    Labels are tried where gradients are on, as in a swap: nothing learns where they are off.

    Args:
        model: in eval mode.
        pixel_values: of the image processor.
        name: what the user named.

    Raises:
        UserError: its forward raises; says why, in the library's own words.
    """
    learns = torch.is_grad_enabled()
    with torch.no_grad():
        error = _error_of(model, pixel_values=pixel_values)
        if error is not None:
            raise UserError(_why_no_images(model, pixel_values, name, error)) from None
        labels = _some_labels(model, pixel_values) if learns else {}
        if not labels:
            return
        with _without_loss(model):
            error = _error_of(model, pixel_values=pixel_values, **labels)
    if error is not None:
        raise UserError(
            f"model: {name!r} ({type(model).__name__}) answers images but cannot be trained: in "
            f"transformers' own code its forward with labels raises {_told(error)}; correct what "
            "config.json says of its losses, or name another model"
        )


def _error_of(model: PreTrainedModel, **inputs: Any) -> Exception | None:
    """Return what a forward raises, if anything."""
    try:
        model(**inputs)
    except _LossReached:
        return None
    except Exception as error:  # whatever the library's code runs into
        return error
    return None


def _why_no_images(
    model: PreTrainedModel, pixel_values: Tensor, name: str, error: Exception
) -> str:
    """Return the refusal: of the size, if the model takes other sizes; else of the model."""
    kind, size = type(model).__name__, tuple(pixel_values.shape[-2:])
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        return (
            f"model: {name!r} ({kind}): there is too little memory for it to take images of {size} "
            f"pixels ({brief(error)}); lower size in preprocessor_config.json, or name a smaller "
            "model"
        )
    accepted = inspect.signature(model.forward).parameters
    if "pixel_values" not in accepted:
        inputs = next(iter(accepted), "nothing")
        return (
            f"model: {name!r} ({kind}) takes {inputs}, not pixel_values, and so no images; name a "
            "model whose input is an image"
        )
    if _takes_another_size(model, pixel_values):
        return (
            f"model: {name!r} cannot take images of {size} pixels, which its image processor makes "
            f"({brief(error)}); correct size or crop_size in preprocessor_config.json"
        )
    return (
        f"model: {name!r} ({kind}) takes no images of its image processor, nor of other sizes: in "
        f"transformers' own code its forward raises {_told(error)}; correct config.json, or name "
        "another model"
    )


def _takes_another_size(model: PreTrainedModel, pixel_values: Tensor) -> bool:
    """Whether images with the same channels, but of the config's or a common size, are taken."""
    if pixel_values.ndim != 4:
        return False
    for inputs in example_inputs(model):
        size = inputs["pixel_values"].shape[2:]
        if set(inputs) != {"pixel_values"} or size == pixel_values.shape[2:]:
            continue
        images = pixel_values.new_zeros(1, pixel_values.shape[1], *size)
        if _error_of(model, pixel_values=images) is None:
            return True
    return False


def _some_labels(model: PreTrainedModel, pixel_values: Tensor) -> dict[str, Any]:
    """Return an object of class 0 in every image, as `forward` takes it; {}: it needs no labels.

    A detector's forward, and a mask classifier's, does more where there are labels than to compute
    a loss: it makes the answers of auxiliary layers. That of others does not.
    """
    accepted = inspect.signature(model.forward).parameters
    device, count = pixel_values.device, len(pixel_values)
    class_ids = torch.zeros(1, dtype=torch.long, device=device)
    if "mask_labels" in accepted:
        masks = torch.ones(1, *pixel_values.shape[-2:], device=device)
        return {"mask_labels": [masks] * count, "class_labels": [class_ids] * count}
    if "labels" in accepted and task_of_class(type(model).__name__) == "detection":
        boxes = torch.full((1, 4), 0.5, device=device)
        return {"labels": [{"class_labels": class_ids, "boxes": boxes}] * count}
    return {}


class _LossReached(Exception):  # noqa: N818
    """All is there that the loss of a model is computed from."""


@contextlib.contextmanager
def _without_loss(model: PreTrainedModel) -> Iterator[None]:
    """Stop a forward with labels where the library's loss would begin: kswap computes its own."""

    def reached(*_: Any, **__: Any) -> None:
        raise _LossReached

    own = vars(model)
    before = {name: own[name] for name in _LOSSES if name in own}
    own.update(dict.fromkeys(_LOSSES, reached))
    try:
        yield
    finally:
        for name in _LOSSES:
            del own[name]
        own.update(before)


def _told(error: Exception) -> str:
    """Return an error with its type and the line of the library where it came about, on one."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{Path(f.filename).name}, line {f.lineno}" for f in frames if _MODELS in f.filename]
    where = f" ({lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {brief(error)}{where}"
