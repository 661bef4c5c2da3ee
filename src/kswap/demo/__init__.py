"""The demos: a swap on what ships with the package; no network.

`assets/` holds, for classification, a slice of CIFAR-10, a small vision transformer that knows
seven of its classes, and the reference that never saw the classes to forget
(scripts/make_demo_classification.py); for segmentation and detection composited scenes and a small
Mask2Former and RT-DETR that know ten kinds of things in them (scripts/make_demo_scenes.py).
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kswap.config import SwapConfig
from kswap.errors import UserError
from kswap.yaml_text import merge, parse_overrides

_ASSETS = Path(__file__).parent / "assets"
_SCENES = _ASSETS / "segmentation" / "scenes.zip"
"""Segmentation and detection show the same scenes."""

_MODELS = ("base", "reference")
"""Folders of packed models in the assets of a task; a task may have no reference."""


def demo_config(task: str, output: Path, overrides: Sequence[str] = ()) -> SwapConfig:
    """Return the config of a demo; its base model is written beside the run, as OUTPUT-base.

    The scenes are written there too, as OUTPUT-scenes; and the reference that never saw the
    classes to forget, where one ships, as OUTPUT-reference, where `kswap audit` looks for it.

    Raises:
        UserError: an override is wrong or the folder cannot be written.
    """
    preset = parse_overrides(overrides).get("preset", "default")
    values = {**demo_values(task, output, str(preset)), "output": str(output)}
    config = SwapConfig.from_mapping(values, overrides)
    write_demo(task, output)
    return config


def demo_values(task: str, output: Path, preset: str) -> dict[str, Any]:
    """Return model, sources and, for presets that grow from `default`, what the demo sets.

    Model and scenes are those that `write_demo` writes beside `output`.
    """
    base, scenes = _beside(output)
    values = _classification() if task == "classification" else _scenes(task, scenes)
    own: dict[str, Any] = {}
    if preset in _BY_PRESET:
        own = merge(_OWN[task], _BY_PRESET[preset].get(task, {}))
    return {**values, **own, "task": task, "model": str(base)}


def write_demo(task: str, output: Path) -> None:
    """Write the base as OUTPUT-base, scenes and a reference likewise, unless they are there.

    Raises:
        UserError: the folder cannot be written.
    """
    from kswap.demo.packing import write_model
    from kswap.files import disk_errors, is_read_only

    base, scenes = _beside(output)
    reference = output.with_name(f"{output.name}-reference")
    with disk_errors(f"output {base}"):
        try:
            if task != "classification":
                write_scenes(scenes)
            for name, folder in zip(_MODELS, (base, reference), strict=True):
                packed = _ASSETS / task / name
                # One that is there is of the same command before, or of its user.
                if packed.is_dir() and not (folder / "model.safetensors").exists():
                    write_model(packed, folder)
        except (ValueError, FileExistsError, NotADirectoryError) as error:
            raise UserError(f"output: {error}") from None
        except OSError as error:
            if is_read_only(error):
                raise UserError(f"output: {error}; name another folder") from None
            raise


def _beside(output: Path) -> tuple[Path, Path]:
    return output.with_name(output.name + "-base"), output.with_name(output.name + "-scenes")


def _classification() -> dict[str, Any]:
    assets = _ASSETS / "classification"
    images = {"train": str(assets / "train.parquet"), "test": str(assets / "test.parquet")}
    return {
        "learn": {"data": images, "classes": ["horse", "ship", "truck"]},
        "forget": {"data": images, "classes": ["cat", "frog"]},
        "retain": {"data": images},
    }


# Photographs of new classes show how the base tells its own ones apart where it did not train.
_KNOWN = {"roles": ["learn"], "objective": "restricted_distillation", "weight": 1.0}
# The base has learnt the retained images by heart: their features say more than their answers.
_FEATURES = {"roles": ["retain"], "objective": "feature_distillation", "weight": 1.0}
_LAST = {"depth": "last-4"}
_EVERYWHERE = ["head", "all"]
_DECODER = [0.78, 0.85, 1.0]
_OWN: dict[str, dict[str, Any]] = {
    "classification": {
        # Photographs may be mirrored. Nothing is chosen on the run's own images: all of them train.
        "data": {"augment": "flip", "validation_fraction": 0.0},
        "head": {"margin": 0.5},  # chosen on images of CIFAR-10 that are in neither split
        "stages": {
            "learn": {**_LAST, "epochs": 3.25, "terms": {"known": _KNOWN}},
            "forget": {"terms": {"known": _KNOWN}},
        },
    },
    # Chosen on scenes of other seeds, in no split (LOG.md, 2026-11-24).
    "segmentation": {
        "training": {"checkpoint_steps": 100},
        "stages": {
            "learn": {"epochs": 15.0},
            "forget": {"epochs": 7.0},
            "joint": {"epochs": 22.0},
        },
    },
    "detection": {"training": {"checkpoint_steps": 100}},
}
"""What the demo sets besides model and sources, where the preset is not another method."""
_BY_PRESET: dict[str, dict[str, dict[str, Any]]] = {
    "default": {
        # The last four of nine blocks do better than all of them, at half the cost of a step
        # (LOG.md, 2026-11-24). As long as 90 s on two cores allow.
        "classification": {
            "stages": {
                "learn": {"terms": {"own": _FEATURES}},
                "forget": {**_LAST, "epochs": 1.6, "terms": {"own": _FEATURES}},
            }
        },
        # The backbone stays as it is: what it gives is kept, so that more steps fit.
        "segmentation": {
            "stages": {kind: {"depth": "last-5"} for kind in ("learn", "forget", "joint")}
        },
    },
    "deep": {
        # It forgets in more blocks, and its own terms hold features. Below the last six of nine
        # base and reference hold as much (docs/audits.md).
        "classification": {"stages": {"forget": {"depth": "last-6", "epochs": 11.5}}},
        # A mask classifier's own loss, a sum over masks and layers, is twice that of the detector
        # by which the preset's weights were chosen: its features would stay where they are. In the
        # decoder retained classes drift most, and a head that is fitted anew goes by where they
        # are by then (LOG.md, 2026-11-27).
        "segmentation": {
            "stages": {
                "learn": {
                    "depth": "last-5",
                    "terms": {"own": {"weight": 15.0, "layers": ["head", 0.7, *_DECODER]}},
                },
                "forget": {
                    "min_steps": 260,
                    "streams": {
                        role: {"batch_size": size}
                        for role, size in (("learn", 8), ("retain", 8), ("forget", 16))
                    },
                    "terms": {
                        "learn": {"weight": 12.0},
                        "retain": {"weight": 5.0},
                        "keep": {"weight": 5.0},
                        "like": {"weight": 100.0, "layers": _EVERYWHERE},
                        "blur": {"weight": 12.0, "layers": ["head", 0.53, 1.0]},
                        "spread": {"weight": 12.0},
                        "own": {"weight": 40.0, "layers": _EVERYWHERE},
                        "hold": {"weight": 60.0, "layers": ["head", *_DECODER]},
                    },
                },
            }
        },
    },
}
"""What it sets under one of these presets alone."""


def _scenes(task: str, folder: Path) -> dict[str, Any]:
    labels = "masks" if task == "segmentation" else "annotations.json"
    named: dict[str, Any] = {}
    if task == "segmentation":
        with zipfile.ZipFile(_SCENES) as archive:
            names = json.loads(archive.read("classes.json"))
        named = {"class_names": {int(value): name for value, name in names.items()}}

    def source(role: str) -> dict[str, Any]:
        parts = {
            split: {
                "images": str(folder / role / split / "images"),
                "annotations": str(folder / role / split / labels),
            }
            for split in ("train", "test")
        }
        return {"data": parts, **named}

    return {
        "learn": {**source("learn"), "classes": ["airplane", "flower"]},
        "forget": {**source("forget"), "classes": ["boat", "dog"]},
        "retain": source("retain"),
    }


def write_scenes(folder: Path) -> None:
    """Unpack the scenes, unless they are there: under a temporary name, then renamed."""
    if (folder / "classes.json").exists():
        return
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with zipfile.ZipFile(_SCENES) as archive:
        archive.extractall(part)
    part.rename(folder)
