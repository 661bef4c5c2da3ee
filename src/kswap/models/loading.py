"""Load a pretrained classifier with all it says about itself; refuse what cannot be right.

Hub id or folder, safetensors only, no remote code. transformers makes up weights it does not find
and drops those it does not know; here both are errors, as a swap of a half-random model would look
like a swap. Every refusal is one line: the value, the rule, the fix.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
import transformers
from huggingface_hub import constants
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging as transformers_logging

from kswap.errors import UserError, brief
from kswap.models.answering import remember_answers
from kswap.models.checks import (
    check_can_be_rebuilt,
    check_config,
    check_folder,
    check_labels,
    check_loading,
    repair_config,
    task_of_class,
)
from kswap.settings import TaskName


@dataclass(frozen=True)
class Loaded:
    """A base model, ready to be swapped."""

    model: PreTrainedModel
    """In eval mode, fp32, on the CPU."""
    processor: Any
    """Its image processor."""
    task: TaskName
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
    local, where, offline = _found(name_or_path)
    if local is not None:
        check_folder(local)
    values = _config_values(name_or_path, where, offline)
    task = check_config(name_or_path, values)
    model = _load_model(name_or_path, where, local is None, offline, _class_of(values, task))
    processor = _load_processor(name_or_path, where, local is None, offline)
    commit = getattr(model.config, "_commit_hash", None) if local is None else None
    return _loaded(model, processor, source=name_or_path, commit=commit)


def load_weights(
    name_or_path: str, task: TaskName, *, revision: str | None = None, **options: Any
) -> PreTrainedModel:
    """Load a model that `load_base` has loaded once more, in another way.

    Args:
        name_or_path: its `source`.
        task: its task.
        revision: its `commit`.
        options: further arguments of `from_pretrained`.

    Raises:
        UserError: as `load_base`.
    """
    local, where, offline = _found(name_or_path)
    values = _config_values(name_or_path, where, offline)
    if revision is not None:
        options["revision"] = revision
    model = _load_model(
        name_or_path, where, local is None, offline, _class_of(values, task), **options
    )
    repair_config(model)
    return model


def find_task(name_or_path: str) -> TaskName:
    """Return what the model of a hub id or a folder does, from its config.json alone.

    Raises:
        UserError: it is missing, or nothing that kswap can change.
    """
    local, where, offline = _found(name_or_path)
    if local is not None:
        check_folder(local)
    return check_config(name_or_path, _config_values(name_or_path, where, offline))


def task_of(model: Any) -> TaskName:
    """Return what a model in memory does.

    Raises:
        UserError: it is nothing that kswap can change.
    """
    task = task_of_class(type(model).__name__)
    if task is None:
        raise UserError(
            f"model: {type(model).__name__} is no image classifier, semantic segmenter or "
            "detector; load it with AutoModelForImageClassification or its kin"
        )
    return task


def _class_of(values: Mapping[str, Any], task: TaskName) -> Any:
    """Return what loads a model: its own class, as several tasks have no loader for all of it."""
    if task == "classification":
        return AutoModelForImageClassification
    return getattr(transformers, str(values["architectures"][0]))


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
    task_of(model)
    if processor is None:
        raise UserError(
            "processor: is missing; pass the model's image processor (AutoImageProcessor)"
        )
    check_can_be_rebuilt(model)
    own = copy.deepcopy(model).float().cpu()
    return _loaded(
        own, processor, source=str(model.config._name_or_path or type(model).__name__), commit=None
    )


@contextlib.contextmanager
def quiet(*, progress: bool = False) -> Iterator[None]:
    """Keep transformers' warnings (and its progress bars, unless `progress`) away from the user."""
    level = transformers_logging.get_verbosity()
    hub_logger = logging.getLogger("huggingface_hub")
    hub_level = hub_logger.level
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    hub_logger.setLevel(logging.CRITICAL)
    if not progress:
        transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # Advice on CUDA kernels that are not in use.
            warnings.filterwarnings("ignore", message="You'd better set embed_dim")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        hub_logger.setLevel(hub_level)
        if bars and not progress:
            transformers_logging.enable_progress_bar()


def _local_folder(name: str) -> Path | None:
    """Return the folder that `name` means, or None for a hub id."""
    if not name.strip():
        raise UserError("model: '' is no model; give a hub id or a folder")
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            return path
        is_file = path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, no such user
        raise UserError(
            f"model: {brief(name)!r} is no path ({brief(error)}); give a hub id or a folder"
        ) from None
    if is_file:
        raise UserError(f"model: {name!r} is a file; name the folder that holds it and config.json")
    looks_like_path = path.is_absolute() or name[0] in ".~" or "\\" in name or name.count("/") != 1
    if looks_like_path and not ("/" not in name and name[0] not in ".~"):
        raise UserError(
            f"model: there is no folder {name!r}; correct the path, or give a hub id (owner/name)"
        )
    if name.count("/") == 1 and Path(name.split("/")[0]).is_dir():
        raise UserError(
            f"model: there is no folder {name!r} in {name.split('/')[0]!r}; correct the path, "
            "or give a hub id (owner/name)"
        )
    return None


def _found(name: str) -> tuple[Path | None, str, bool]:
    """Return the folder that is meant (if any), where to load from, and whether the hub is out."""
    local = _local_folder(name)
    return local, name if local is None else str(local), local is None and _hub_is_out_of_reach()


def _config_values(name: str, where: str, offline: bool) -> dict[str, Any]:
    """Return config.json as it is written."""
    try:
        with quiet():
            values, _ = PreTrainedConfig.get_config_dict(where, local_files_only=offline)
    except Exception as error:
        if Path(where).is_dir():
            raise UserError(
                f"model: config.json of {name!r} cannot be read ({brief(error)}); write it anew"
            ) from None
        why = "the hub cannot be reached" if offline else brief(error)
        raise UserError(
            f"model: {name!r} is no folder here, and neither the hub nor its cache gives it "
            f"({why}); check the spelling, the network and, for a private one, `hf auth login`"
        ) from None
    if not isinstance(values, dict) or not values:
        raise UserError(
            f"model: config.json of {name!r} is no mapping of keys to values; write it anew"
        )
    return values


def _load_model(
    name: str, where: str, from_hub: bool, offline: bool, model_class: Any, **options: Any
) -> PreTrainedModel:
    try:
        with quiet(progress=from_hub), _no_conversion_service():
            model, info = model_class.from_pretrained(
                where,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=offline,
                ignore_mismatched_sizes=True,  # lists mismatches; they are refused below
                output_loading_info=True,
                dtype=torch.float32,
                **options,
            )
    except SafetensorError as error:
        raise UserError(
            f"model: the weights of {name!r} are damaged or cut off ({brief(error)}); fetch or "
            "save them anew"
        ) from None
    except Exception as error:
        if from_hub and isinstance(error, OSError) and "safetensors" in str(error):
            raise UserError(
                f"model: {name!r} has no safetensors weights, and pickled ones can run code when "
                "opened; convert them where you trust them: "
                "AutoModelForImageClassification.from_pretrained(MODEL).save_pretrained(NEW_FOLDER)"
            ) from None
        raise UserError(
            f"model: {name!r} cannot be loaded ({brief(error)}); check config.json and the weights"
        ) from None
    if not isinstance(model, PreTrainedModel) or getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(f"model: {name!r} is a PEFT adapter, not a model; name a merged model")
    check_loading(name, info)
    return model


def _load_processor(name: str, where: str, from_hub: bool, offline: bool) -> Any:
    try:
        with quiet(progress=from_hub):
            processor: Any = AutoImageProcessor.from_pretrained(
                where, trust_remote_code=False, local_files_only=offline
            )
    except Exception as error:
        raise UserError(
            f"model: the image processor of {name!r} cannot be loaded ({brief(error)}); give it "
            "the preprocessor_config.json of the model it was trained from"
        ) from None
    # It is transformers' own class, also where the folder names another, with code beside it. Saved
    # again, that name would have a pipeline ask whether to run the code.
    vars(processor).pop("auto_map", None)
    return processor


def _loaded(model: PreTrainedModel, processor: Any, *, source: str, commit: str | None) -> Loaded:
    config: Any = model.config
    id2label = {int(key): str(value) for key, value in config.id2label.items()}
    check_labels(source, id2label, config.num_labels)
    if len(id2label) < 2:
        raise UserError(
            f"model: {source!r} has {len(id2label)} class; name a classifier with at least two"
        )
    notes = getattr(config, "kswap", None)
    names = notes.get("forgotten", ()) if isinstance(notes, Mapping) else ()
    if not isinstance(names, list | tuple):
        raise UserError(
            f"model: kswap.forgotten in config.json of {source!r} is {names!r}, not a list of "
            "class names; correct it"
        )
    here = set(id2label.values())
    repair_config(model)
    remember_answers(model, processor)
    return Loaded(
        model=model.eval(),
        processor=processor,
        task=task_of(model),
        id2label=dict(sorted(id2label.items())),
        forgotten=tuple(str(one) for one in names if str(one) in here),
        source=source,
        commit=commit,
    )


def _hub_is_out_of_reach() -> bool:
    """Whether the hub has no address here; then only its cache is read, without 20 s of retries."""
    if getproxies():
        return False
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return True
    return False


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
