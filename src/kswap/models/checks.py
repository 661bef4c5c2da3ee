"""What a base model must be before it is swapped; every refusal is one line: value, rule, fix."""

from __future__ import annotations

import contextlib
import copy
import inspect
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES,
)

from kswap.errors import UserError
from kswap.models.examples import example_inputs
from kswap.settings import TaskName

_SAFE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_HARMLESS_EXTRAS = (
    "pooler",
    "position_ids",
    "mask_token",
    "relative_position_index",
    "num_batches_tracked",
)
"""Parts of keys in a checkpoint that a classifier leaves unused without changing its answers."""
_LOSSES = ("_loss_function", "get_loss_dict")
"""What a detector's forward and a mask classifier's call with labels."""
_MODELS = str(Path(transformers.__file__).parent / "models")
"""The folder of the library's models."""


def check_folder(folder: Path) -> None:
    """Refuse a folder that lacks a part, or whose weights are pickled."""
    files = {path.name for path in folder.iterdir()}
    if "adapter_config.json" in files:
        raise UserError(
            f"model: {str(folder)!r} is a PEFT adapter, not a model; name a merged model "
            "(of a kswap run: its model folder)"
        )
    if "config.json" not in files and (folder / "model" / "config.json").is_file():
        raise UserError(
            f"model: {str(folder)!r} is a run, not a model; name the model it left, "
            f"{str(folder / 'model')!r}"
        )
    if "config.json" not in files:
        raise UserError(
            f"model: {str(folder)!r} has no config.json; name a folder written by save_pretrained"
        )
    if files.isdisjoint(_SAFE_WEIGHTS):
        pickled = sorted(name for name in files if name.endswith(_PICKLE_SUFFIXES))
        if pickled:
            raise UserError(
                f"model: {str(folder)!r} has pickled weights only ({pickled[0]}), which can run "
                "code when opened; convert them where you trust them: "
                "AutoModelForImageClassification.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
            )
        raise UserError(
            f"model: {str(folder)!r} has no weights; add model.safetensors (save_pretrained "
            "writes it)"
        )
    of_timm = b'"pretrained_cfg"' in (folder / "config.json").read_bytes()  # and is read from there
    if files.isdisjoint(_PROCESSOR_FILES) and not of_timm:
        raise UserError(
            f"model: {str(folder)!r} has no preprocessor_config.json; copy that of the model it "
            "was trained from, or save its image processor there (save_pretrained)"
        )


def check_config(name: str, values: Mapping[str, Any]) -> TaskName:
    """Return the task; refuse a config.json that is not that of a model kswap can change."""
    model_type, architectures = values.get("model_type"), values.get("architectures") or []
    if values.get("auto_map"):
        raise UserError(
            f"model: {name!r} needs code of its own (auto_map in config.json), which kswap never "
            "runs; name a model of a family that is part of transformers"
        )
    if values.get("quantization_config"):
        raise UserError(
            f"model: {name!r} is quantised (quantization_config in config.json); name its "
            "full-precision original"
        )
    if not isinstance(model_type, str):
        raise UserError(f'model: config.json of {name!r} has no model_type; add it, such as "vit"')
    if not isinstance(architectures, list):
        raise UserError(
            f"model: architectures in config.json of {name!r} is {architectures!r}, not a list of "
            "class names; correct it"
        )
    tasks = {one: task_of_class(str(one)) for one in architectures}
    foreign = [str(one) for one, task in tasks.items() if task is None]
    if foreign:
        raise UserError(
            f"model: {name!r} holds a {foreign[0]}, not an image classifier, semantic segmenter or "
            "detector; name a checkpoint whose architecture ends in ForImageClassification, "
            "ForSemanticSegmentation, ForUniversalSegmentation or ForObjectDetection (a head would "
            "have to be made up)"
        )
    task = next(iter(tasks.values()), None) or "classification"
    if task == "classification" and model_type not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        raise UserError(
            f"model: {name!r} is of type {model_type!r}, for which transformers has no image "
            "classifier; types that have: "
            f"{', '.join(sorted(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES))}"
        )
    check_labels(name, values.get("id2label"), values.get("num_labels"))
    return task


def check_labels(name: str, id2label: Any, num_labels: Any) -> None:
    """Refuse class ids with a gap, and two counts that differ."""
    if id2label is None:
        return
    try:
        ids = sorted(int(key) for key in id2label)
    except (TypeError, ValueError):
        raise UserError(
            f"model: id2label in config.json of {name!r} is no mapping of class ids to names; "
            "correct it"
        ) from None
    if ids != list(range(len(ids))):
        raise UserError(
            f"model: id2label in config.json of {name!r} has ids {ids[:5]} …; they must be 0, 1, "
            "2 … without a gap"
        )
    if isinstance(num_labels, int) and num_labels != len(ids):
        raise UserError(
            f"model: config.json of {name!r} says num_labels {num_labels} but id2label has "
            f"{len(ids)} names; correct the one that does not fit the head"
        )


def check_loading(name: str, info: Mapping[str, Any]) -> None:
    """Refuse weights that were made up, did not fit, or found no place."""
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        key, found, expected = mismatched[0]
        raise UserError(
            f"model: weight {key} of {name!r} has shape {tuple(found)}, config.json asks for "
            f"{tuple(expected)}; correct num_labels, id2label or the sizes in config.json"
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"model: {name!r} lacks weights that its config.json asks for ({_few(missing)}); "
            "name a complete classifier (they would have to be made up)"
        )
    extra = sorted(
        key for key in info["unexpected_keys"] if not any(part in key for part in _HARMLESS_EXTRAS)
    )
    if extra:
        raise UserError(
            f"model: {name!r} has weights that its config.json has no place for ({_few(extra)}); "
            "correct config.json (they would be dropped)"
        )
    if info["error_msgs"]:
        raise UserError(
            f"model: {name!r} cannot be loaded ({brief(info['error_msgs'][0])}); check its weights"
        )


def check_can_be_rebuilt(model: PreTrainedModel) -> None:
    """Refuse a model in memory with other weights than its class makes from its config.

    A head that was put in the place of its own, say: what a run saves could not be loaded again.
    """
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            twin = type(model)(copy.deepcopy(model.config))
    except Exception:  # it asks for more than its config: nothing can be said
        return
    own, its = (
        {key: tuple(tensor.shape) for key, tensor in one.state_dict().items()}
        for one in (model, twin)
    )
    others = sorted(key for key in own.keys() | its.keys() if own.get(key) != its.get(key))
    if others:
        raise UserError(
            f"model: {type(model).__name__} in memory has other weights than its config makes "
            f"({_few(others)}), so that it could be saved, but not loaded again; give it the head "
            "and sizes of its class"
        )


def repair_config(model: PreTrainedModel) -> None:
    """Let a MaskFormer with auxiliary losses keep the hidden states that its forward stacks.

    It asks for them only half-way, so that without this key its forward raises, in transformers'
    own pipeline too.
    """
    config: Any = model.config
    criterion = getattr(model, "criterion", None)
    if type(criterion).__name__ == "MaskFormerLoss" and config.use_auxiliary_loss:
        config.output_hidden_states = True


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


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


_CLASSES: dict[TaskName, tuple[Mapping[str, Any], ...]] = {
    "classification": (MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,),
    "segmentation": (
        MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
        MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES,
        {"maskformer": "MaskFormerForInstanceSegmentation"},
    ),
    "detection": (MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,),
}
_NOT_SWAPPED = ("OneFormer", "DetrForSegmentation")
"""They need a text, or answer panoptic questions."""


def task_of_class(name: str) -> TaskName | None:
    """Return the task of a model class of transformers; None: none that kswap knows."""
    if any(part in name for part in _NOT_SWAPPED):
        return None
    for task, mappings in _CLASSES.items():
        for mapping in mappings:
            for one in mapping.values():
                if name in ([one] if isinstance(one, str) else one):
                    return task
    return None


def brief(error: object) -> str:
    """Return an error's text as one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:159] + "…"
