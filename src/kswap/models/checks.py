"""What a base model must be before it is swapped; every refusal is one line: value, rule, fix."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES,
)

from kswap.errors import UserError, brief
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
