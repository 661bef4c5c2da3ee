"""Load a pretrained classifier with everything it says about itself, and refuse what cannot be right.

Hub id or folder, safetensors only, no remote code. transformers makes up weights it does not find and drops those
it does not know; here both are errors, as a swap of a half-random model would look like a swap. Every refusal
is one line: the value, the rule, the fix.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from kswap.errors import UserError

_SAFE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_HARMLESS_EXTRAS = ("pooler", "position_ids", "mask_token", "relative_position_index", "num_batches_tracked")
"""Parts of keys in a checkpoint that a classifier leaves unused without changing its answers."""


@dataclass(frozen=True)
class Loaded:
    """A base model, ready to be swapped."""

    model: PreTrainedModel
    """In eval mode, fp32, on the CPU."""
    processor: Any
    """Its image processor."""
    task: Literal["classification"]
    id2label: dict[int, str]
    """Class id -> name, ids 0, 1, 2 …"""
    forgotten: tuple[str, ...]
    """Names of classes that an earlier swap has forgotten and whose rows are still there."""
    source: str
    """What the user named."""
    commit: str | None
    """Commit of the hub repository; None for a folder."""


def load_base(name_or_path: str) -> Loaded:
    """Load a classifier from a hub id or a folder.

    Raises:
        UserError: it is missing, incomplete, damaged, quantised, pickled, or no image classifier.
    """
    local = _local_folder(name_or_path)
    if local is not None:
        _check_folder(local)
    where = name_or_path if local is None else str(local)
    values = _config_values(name_or_path, where)
    _check_config(name_or_path, values)
    model = _load_model(name_or_path, where, local is None)
    processor = _load_processor(name_or_path, where, local is None)
    commit = getattr(model.config, "_commit_hash", None) if local is None else None
    return _loaded(model, processor, source=name_or_path, commit=commit)


def from_objects(model: PreTrainedModel, processor: Any) -> Loaded:
    """Take a classifier that is loaded already. It is copied; the caller's object stays as it is.

    Raises:
        UserError: it is no transformers image classifier, or its labels do not fit its head.
    """
    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"model: a {type(model).__name__} is not a transformers model; "
            "load it with AutoModelForImageClassification"
        )
    if type(model).__name__ not in _classifier_names():
        raise UserError(
            f"model: {type(model).__name__} is no image classifier; "
            "load it with AutoModelForImageClassification"
        )
    if processor is None:
        raise UserError("processor: is missing; pass the model's image processor (AutoImageProcessor)")
    own = copy.deepcopy(model).float().cpu()
    return _loaded(own, processor, source=str(model.config._name_or_path or type(model).__name__), commit=None)


@contextlib.contextmanager
def quiet(*, progress: bool = False) -> Iterator[None]:
    """Keep transformers' warnings (and its progress bars, unless `progress`) away from the user."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    if not progress:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars and not progress:
            transformers_logging.enable_progress_bar()


def _local_folder(name: str) -> Path | None:
    """Return the folder that `name` means, or None for a hub id."""
    if not name.strip():
        raise UserError("model: '' is no model; give a hub id or a folder")
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"model: {name!r} is a file; name the folder that holds it and config.json")
    looks_like_path = path.is_absolute() or name[0] in ".~" or "\\" in name or name.count("/") != 1
    if looks_like_path and not ("/" not in name and name[0] not in ".~"):
        raise UserError(f"model: there is no folder {name!r}; correct the path, or give a hub id (owner/name)")
    if name.count("/") == 1 and Path(name.split("/")[0]).is_dir():
        raise UserError(
            f"model: there is no folder {name!r} in {name.split('/')[0]!r}; correct the path, "
            "or give a hub id (owner/name)"
        )
    return None


def _check_folder(folder: Path) -> None:
    files = {path.name for path in folder.iterdir()}
    if "adapter_config.json" in files:
        raise UserError(
            f"model: {str(folder)!r} is a PEFT adapter, not a model; name a merged model "
            "(of a kswap run: its model folder)"
        )
    if "config.json" not in files:
        raise UserError(
            f"model: {str(folder)!r} has no config.json; name a folder written by save_pretrained"
        )
    if files.isdisjoint(_SAFE_WEIGHTS):
        pickled = sorted(name for name in files if name.endswith(_PICKLE_SUFFIXES))
        if pickled:
            raise UserError(
                f"model: {str(folder)!r} has pickled weights only ({pickled[0]}), which can run code when "
                "opened; convert them where you trust them: "
                "AutoModelForImageClassification.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
            )
        raise UserError(f"model: {str(folder)!r} has no weights; add model.safetensors (save_pretrained writes it)")
    if files.isdisjoint(_PROCESSOR_FILES):
        raise UserError(
            f"model: {str(folder)!r} has no preprocessor_config.json; copy that of the model it was trained "
            "from, or save its image processor there (save_pretrained)"
        )


def _config_values(name: str, where: str) -> dict[str, Any]:
    """Return config.json as it is written."""
    try:
        with quiet():
            values, _ = PreTrainedConfig.get_config_dict(where)
    except Exception as error:
        if Path(where).is_dir():
            raise UserError(
                f"model: config.json of {name!r} cannot be read ({_brief(error)}); write it anew"
            ) from None
        raise UserError(
            f"model: {name!r} is no folder here and cannot be had from the hub ({_brief(error)}); check the "
            "spelling, the network and, for a private one, `hf auth login`"
        ) from None
    if not isinstance(values, dict) or not values:
        raise UserError(f"model: config.json of {name!r} is no mapping of keys to values; write it anew")
    return values


def _check_config(name: str, values: Mapping[str, Any]) -> None:
    model_type, architectures = values.get("model_type"), values.get("architectures") or []
    if values.get("auto_map"):
        raise UserError(
            f"model: {name!r} needs code of its own (auto_map in config.json), which kswap never runs; "
            "name a model of a family that is part of transformers"
        )
    if values.get("quantization_config"):
        raise UserError(
            f"model: {name!r} is quantised (quantization_config in config.json); name its full-precision original"
        )
    if not isinstance(model_type, str):
        raise UserError(f"model: config.json of {name!r} has no model_type; add it, such as \"vit\"")
    classes = _classifier_names()
    foreign = [str(one) for one in architectures if one not in classes]
    if foreign:
        raise UserError(
            f"model: {name!r} holds a {foreign[0]}, not an image classifier; name a checkpoint whose architecture "
            "ends in ForImageClassification (a head would have to be made up)"
        )
    if model_type not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        raise UserError(
            f"model: {name!r} is of type {model_type!r}, for which transformers has no image classifier; "
            f"types that have: {', '.join(sorted(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES))}"
        )
    _check_labels(name, values.get("id2label"), values.get("num_labels"))


def _check_labels(name: str, id2label: Any, num_labels: Any) -> None:
    if id2label is None:
        return
    try:
        ids = sorted(int(key) for key in id2label)
    except (TypeError, ValueError):
        raise UserError(
            f"model: id2label in config.json of {name!r} is no mapping of class ids to names; correct it"
        ) from None
    if ids != list(range(len(ids))):
        raise UserError(
            f"model: id2label in config.json of {name!r} has ids {ids[:5]} …; they must be 0, 1, 2 … without a gap"
        )
    if isinstance(num_labels, int) and num_labels != len(ids):
        raise UserError(
            f"model: config.json of {name!r} says num_labels {num_labels} but id2label has {len(ids)} names; "
            "correct the one that does not fit the head"
        )


def _load_model(name: str, where: str, from_hub: bool) -> PreTrainedModel:
    try:
        with quiet(progress=from_hub), _no_conversion_service():
            model, info = AutoModelForImageClassification.from_pretrained(
                where,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # so that mismatches are listed; they are refused below
                output_loading_info=True,
                dtype=torch.float32,
            )
    except SafetensorError as error:
        raise UserError(
            f"model: the weights of {name!r} are damaged or cut off ({_brief(error)}); fetch or save them anew"
        ) from None
    except Exception as error:
        if isinstance(error, OSError) and "safetensors" in str(error):
            raise UserError(
                f"model: {name!r} has no safetensors weights, and pickled ones can run code when opened; convert "
                "them where you trust them: "
                "AutoModelForImageClassification.from_pretrained(MODEL).save_pretrained(NEW_FOLDER)"
            ) from None
        raise UserError(
            f"model: {name!r} cannot be loaded ({_brief(error)}); check config.json and the weights"
        ) from None
    if not isinstance(model, PreTrainedModel) or getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(f"model: {name!r} is a PEFT adapter, not a model; name a merged model")
    _check_loading(name, info)
    return model


def _check_loading(name: str, info: Mapping[str, Any]) -> None:
    """Refuse weights that were made up, did not fit, or found no place."""
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        key, found, expected = mismatched[0]
        raise UserError(
            f"model: weight {key} of {name!r} has shape {tuple(found)}, config.json asks for {tuple(expected)}; "
            "correct num_labels, id2label or the sizes in config.json"
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"model: {name!r} lacks {len(missing)} weights that its config.json asks for ({', '.join(missing[:3])}); "
            "name a complete classifier (they would have to be made up)"
        )
    extra = sorted(
        key for key in info["unexpected_keys"] if not any(part in key for part in _HARMLESS_EXTRAS)
    )
    if extra:
        raise UserError(
            f"model: {name!r} has {len(extra)} weights that its config.json has no place for "
            f"({', '.join(extra[:3])}); correct config.json (they would be dropped)"
        )
    if info["error_msgs"]:
        raise UserError(f"model: {name!r} cannot be loaded ({_brief(info['error_msgs'][0])}); check its weights")


def _load_processor(name: str, where: str, from_hub: bool) -> Any:
    try:
        with quiet(progress=from_hub):
            return AutoImageProcessor.from_pretrained(where, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"model: the image processor of {name!r} cannot be loaded ({_brief(error)}); give it the "
            "preprocessor_config.json of the model it was trained from"
        ) from None


def _loaded(model: PreTrainedModel, processor: Any, *, source: str, commit: str | None) -> Loaded:
    config: Any = model.config
    id2label = {int(key): str(value) for key, value in config.id2label.items()}
    _check_labels(source, id2label, None)
    notes = getattr(config, "kswap", None)
    names = notes.get("forgotten", ()) if isinstance(notes, Mapping) else ()
    here = set(id2label.values())
    return Loaded(
        model=model.eval(),
        processor=processor,
        task="classification",
        id2label=dict(sorted(id2label.items())),
        forgotten=tuple(str(one) for one in names if str(one) in here),
        source=source,
        commit=commit,
    )


def _classifier_names() -> set[str]:
    names: set[str] = set()
    for one in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.values():
        names.update([one] if isinstance(one, str) else one)
    return names


@contextlib.contextmanager
def _no_conversion_service() -> Iterator[None]:
    """Keep transformers from asking a third-party service to convert pickled hub weights."""
    before = os.environ.get("DISABLE_SAFETENSORS_CONVERSION")
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["DISABLE_SAFETENSORS_CONVERSION"]
        else:
            os.environ["DISABLE_SAFETENSORS_CONVERSION"] = before


def _brief(error: object) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:159] + "…"
