"""What a swap leaves on disk, readable without kswap: the adapter (PEFT), the merged model.

Every folder is written under a temporary name beside its target and renamed when complete, so that
a killed process leaves the old one or the new one.

Why `adapter/` needs the extended config. Its head has more rows than the base's. PEFT loads a saved
module into a copy of the module it finds (`ModulesToSaveWrapper`), by `load_state_dict`, and
PyTorch compares shapes there before anything else (also with `assign=True`); no PEFT method changes
the number of outputs of a layer (LoRA and its kin add to the base's output). So
`PeftModel.from_pretrained(base, "adapter")` on the base with its *old* number of labels stops with
a size mismatch, and no content of the folder can change that. The base loaded with the adapter's
`config.json` has the right shape; the rows that loading makes up for it are replaced by the
adapter's.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from kswap.errors import UserError
from kswap.files import write_folder
from kswap.manifest import check_files
from kswap.models.adapter import ADAPTER_NAME, has_embeddings
from kswap.models.head import is_classifier
from kswap.models.loading import load_base, quiet
from kswap.models.structure import shown

_RECIPE = """\
---
{front}---
# Adapter

LoRA matrices and the class head for {base}, made by [kswap](https://pypi.org/project/kswap).

```python
from peft import PeftModel
{imports}from transformers import AutoConfig, AutoImageProcessor, {auto_class}

config = AutoConfig.from_pretrained("{folder}")  # this folder: it knows the extended label map
base = {auto_class}.from_pretrained({quoted}, config=config, ignore_mismatched_sizes=True)
{embeddings}model = PeftModel.from_pretrained(base, "{folder}").eval()
processor = AutoImageProcessor.from_pretrained("{folder}")
```

`ignore_mismatched_sizes=True` because the head has {num_labels} rows here and fewer in the base;
the rows that transformers makes up at that line are replaced by those in this folder at the next.
Without the config the last line stops with a size mismatch.
"""


_EMBEDDINGS = (
    "base.get_input_embeddings = nn.Identity  # PEFT asks for word embeddings; there are none\n"
)
"""Of models that raise when they are asked (Deformable DETR, RT-DETR v2, D-FINE ...)."""


def save_adapter(
    peft_model: PeftModel,
    to_dir: str | Path,
    *,
    base_name: str,
    processor: Any,
    kswap: Mapping[str, Any] | None = None,
) -> Path:
    """Write the adapter as a standard PEFT folder: LoRA, head, label map, image processor, recipe.

    Args:
        peft_model: From `attach`, trained.
        to_dir: Folder to write; replaced when it exists.
        base_name: Hub id or folder of the base, as the user named it.
        processor: Image processor.
        kswap: What `config.kswap` says, as of `merged_model`; None: what the base's does.
    """
    to_dir = Path(to_dir)

    def write(folder: Path) -> None:
        base = peft_model.get_base_model()
        # What was made in memory has the name of its class, which is nothing that can be loaded.
        named = base_name != type(base).__name__
        lora = peft_model.peft_config[ADAPTER_NAME]
        lora.base_model_name_or_path = base_name if named else None
        with quiet():
            peft_model.save_pretrained(str(folder), save_embedding_layers=False)
            _plain_config(base, kswap).save_pretrained(folder)
            processor.save_pretrained(folder)
        _sort_targets(folder / "adapter_config.json")
        asks = has_embeddings(base)
        front = {"base_model": base_name} if named else {}
        text = _RECIPE.format(
            front=yaml.safe_dump(front | {"library_name": "peft"}, allow_unicode=True),
            base=f"`{base_name}`" if named else f"a {base_name} that was given in memory",
            # read by Python alike
            quoted=json.dumps(base_name if named else "FOLDER OF THE BASE", ensure_ascii=False),
            imports="" if asks else "from torch import nn\n",
            embeddings="" if asks else _EMBEDDINGS,
            folder=to_dir.name,
            auto_class=_auto_class(base),
            num_labels=base.config.num_labels,
        )
        (folder / "README.md").write_text(text, encoding="utf-8")

    return write_folder(to_dir, write)


def merged_model(
    peft_model: PeftModel, *, kswap: Mapping[str, Any] | None = None
) -> PreTrainedModel:
    """Return a copy with the adapter folded in, in eval mode; the training model is untouched.

    Args:
        peft_model: From `attach`.
        kswap: What `config.kswap` of the copy says, such as {"forgotten": [...], "learned": [...]}.
    """
    merged = copy.deepcopy(peft_model).merge_and_unload()
    if not isinstance(merged, PreTrainedModel):
        raise TypeError(f"merging gave a {type(merged).__name__}")
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    if kswap is not None:
        merged.config.kswap = dict(kswap)
    return merged.eval()


def save_merged(
    peft_model: PeftModel, to_dir: str | Path, *, processor: Any, kswap: Mapping[str, Any]
) -> Path:
    """Write `merged_model` as a standard transformers folder (safetensors)."""
    return save_model(merged_model(peft_model, kswap=kswap), to_dir, processor=processor)


def save_model(model: PreTrainedModel, to_dir: str | Path, *, processor: Any) -> Path:
    """Write a bare model and its processor as a standard transformers folder, in one rename."""

    def write(folder: Path) -> None:
        with quiet():
            model.save_pretrained(folder)
            processor.save_pretrained(folder)

    return write_folder(Path(to_dir), write)


def load(run_dir: str | Path) -> tuple[PreTrainedModel, Any]:
    """Return the model and the processor of a finished run (RUN/model), or of an exported folder.

    Raises:
        UserError: the folder is no run, the run is not finished, or a file of it is damaged.
    """
    run_dir = Path(run_dir)
    try:
        exported = (run_dir / "config.json").is_file() and not (run_dir / "model").is_dir()
        folder = run_dir if exported else run_dir / "model"
        found = folder.is_dir()
    except OSError as error:  # a name too long
        raise UserError(f"{run_dir}: is no folder ({error.strerror}); name one") from None
    if not found:
        raise UserError(f"{run_dir}: has no model folder; name the folder of a finished run")
    check_files(folder.parent, "model")  # of an exported folder nothing is recorded
    loaded = load_base(str(folder))
    return loaded.model, loaded.processor


def trainable_state(peft_model: PeftModel) -> dict[str, Tensor]:
    """Copy the LoRA matrices and the heads, for a checkpoint."""
    return {
        name: tensor.detach().cpu().clone()
        for name, tensor in peft_model.named_parameters()
        if _is_adapter_part(name)
    }


def load_trainable_state(peft_model: PeftModel, state: Mapping[str, Tensor]) -> None:
    """Write a state from `trainable_state` back, in place.

    Raises:
        ValueError: a tensor is missing, too many, or has another shape.
    """
    own = {name: tensor for name, tensor in peft_model.named_parameters() if _is_adapter_part(name)}
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        raise ValueError(
            f"the state does not fit the model: missing {shown(missing)}, too many {shown(extra)}"
        )
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(state[name].shape)} in the state, "
                f"{tuple(tensor.shape)} in the model"
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def _is_adapter_part(name: str) -> bool:
    marks = (".lora_A.", ".lora_B.", f".modules_to_save.{ADAPTER_NAME}.")
    return any(mark in name for mark in marks)


def _auto_class(model: Any) -> str:
    """Return what loads the base of an adapter."""
    name = type(model).__name__
    return "AutoModelForImageClassification" if is_classifier(model) else name


def _plain_config(model: Any, kswap: Mapping[str, Any] | None) -> Any:
    config = copy.deepcopy(model.config)
    if kswap is not None:
        config.kswap = dict(kswap)
    config.architectures = [type(model).__name__]
    return config


def _sort_targets(config_path: Path) -> None:
    """Make adapter_config.json the same bytes for the same adapter (PEFT has sets in it)."""
    values = json.loads(config_path.read_text(encoding="utf-8"))
    for key in ("target_modules", "modules_to_save"):
        if isinstance(values.get(key), list):
            values[key] = sorted(values[key])
    config_path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
