"""RUN/arrays: what is kept of the test images so that a run can be redrawn without model or data.

`examples.*` are a few test images with their truth; `answers-STAGE.safetensors` what the model
answered on them; `confusion-STAGE.json` counts of all test images: of each true class, what was
answered. Numbers lie in safetensors, words in JSON. Every file is written whole or not at all, and
a stage's files before the checkpoint that says the stage is scored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from kswap.errors import UserError
from kswap.files import write_bytes
from kswap.settings import ROLES, Role

NOTHING = -1
"""In answers: no class; in a mask also an open place, which is of no class that is known."""
Unit = Literal["images", "pixels", "objects"]
Confusion = dict[int, dict[int, int]]
"""True class -> answered class or NOTHING -> how many units."""


@dataclass(frozen=True)
class Marks:
    """What is true of one image, or what a model answers; rows of all fields belong together."""

    class_ids: NDArray[np.int64]
    """(k,): the classes of an image, best first; of its objects; empty where there is a mask."""
    shares: NDArray[np.float32]
    """(k,): probability or score, from 0 to 1; 1 in the truth."""
    mask: NDArray[np.int16] | None = None
    """(height, width): a class at every pixel; negative: none."""
    boxes: NDArray[np.float32] | None = None
    """(k, 4): left, top, right, bottom as fractions of the image."""

    @classmethod
    def of_mask(cls, mask: NDArray[np.integer]) -> Self:
        """Return what a mask (height, width) says; it has no class as a whole."""
        none = np.zeros(0, np.float32)
        return cls(none.astype(np.int64), none, mask.astype(np.int16))


@dataclass(frozen=True)
class Example:
    """A test image of one role, with its truth."""

    role: Role
    image: NDArray[np.uint8]
    """(height, width, 3)."""
    truth: Marks


@dataclass(frozen=True)
class StageArrays:
    """What is kept of one stage."""

    answers: tuple[Marks, ...]
    """Of each example."""
    confusion: Confusion
    """Over all test images of the class's role."""


@dataclass(frozen=True)
class RunArrays:
    """All that a run keeps to be redrawn."""

    labels: dict[int, str]
    unit: Unit
    examples: tuple[Example, ...]
    stages: dict[str, StageArrays]
    """By name, in the order of the run."""


def write_examples(
    folder: Path, examples: Sequence[Example], *, labels: Mapping[int, str], unit: Unit
) -> list[Path]:
    """Write the images and their truth; return the files."""
    folder.mkdir(exist_ok=True)
    tensors: dict[str, NDArray[Any]] = {}
    for number, example in enumerate(examples):
        tensors[f"{number}.image"] = example.image
        tensors |= _tensors(number, example.truth)
    write_bytes(folder / "examples.safetensors", _packed(tensors))
    words = {
        "unit": unit,
        "roles": [example.role for example in examples],
        "labels": {str(row): label for row, label in labels.items()},
    }
    write_bytes(folder / "examples.json", json.dumps(words, ensure_ascii=False).encode())
    return [folder / "examples.safetensors", folder / "examples.json"]


def write_stage(folder: Path, name: str, stage: StageArrays) -> list[Path]:
    """Write what a stage answers; return the files."""
    folder.mkdir(exist_ok=True)
    tensors: dict[str, NDArray[Any]] = {}
    for number, answer in enumerate(stage.answers):
        tensors |= _tensors(number, answer)
    answers, confusion = folder / f"answers-{name}.safetensors", folder / f"confusion-{name}.json"
    write_bytes(answers, _packed(tensors))
    counts = {str(row): {str(a): n for a, n in c.items()} for row, c in stage.confusion.items()}
    write_bytes(confusion, json.dumps({"counts": counts}).encode())
    return [answers, confusion]


def read_arrays(folder: Path, stages: Sequence[str]) -> RunArrays | None:
    """Return what a run kept of these stages; None: nothing (a run of an earlier version).

    A stage without files is left out.

    Raises:
        UserError: a file is damaged.
    """
    path = folder / "examples.json"
    if not path.is_file():
        return None
    try:
        words = json.loads(path.read_text(encoding="utf-8"))
        roles, unit = words["roles"], words["unit"]
        if unit not in get_args(Unit) or not set(roles) <= set(ROLES):
            raise ValueError("unknown unit or role")
        path = folder / "examples.safetensors"
        tensors = safetensors.numpy.load(path.read_bytes())
        examples = tuple(
            Example(role, _image(tensors[f"{number}.image"]), _marks(number, tensors))
            for number, role in enumerate(roles)
        )
        labels = {int(row): str(label) for row, label in words["labels"].items()}
        found = {}
        for name in stages:
            path = folder / f"answers-{name}.safetensors"
            counts_path = folder / f"confusion-{name}.json"
            if not path.is_file() or not counts_path.is_file():
                continue
            tensors = safetensors.numpy.load(path.read_bytes())
            answers = tuple(_marks(number, tensors) for number in range(len(examples)))
            path = counts_path
            counts = json.loads(path.read_text(encoding="utf-8"))["counts"]
            confusion = {
                int(row): {int(answer): int(number) for answer, number in found_as.items()}
                for row, found_as in counts.items()
            }
            found[name] = StageArrays(answers, confusion)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, error) from None
    except safetensors.SafetensorError as error:
        raise damaged(path, error) from None
    return RunArrays(labels, unit, examples, found)


def damaged(path: Path, error: Exception) -> UserError:
    """Return the error that says what to do about a file that cannot be read."""
    return UserError(
        f"{path}: cannot be read ({type(error).__name__}: {error}); restore it, or delete the "
        f"folder {path.parent.name}/: what is drawn from it is then left out"
    )


def _packed(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    # Insertion order differs where a key is missing; sorted, equal runs leave equal bytes.
    whole = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    packed: bytes = safetensors.numpy.save(whole)
    return packed


def _tensors(number: int, marks: Marks) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {
        f"{number}.class_ids": marks.class_ids,
        f"{number}.shares": marks.shares,
    }
    if marks.mask is not None:
        tensors[f"{number}.mask"] = marks.mask
    if marks.boxes is not None:
        tensors[f"{number}.boxes"] = marks.boxes
    return tensors


def _marks(number: int, tensors: Mapping[str, NDArray[Any]]) -> Marks:
    return Marks(
        tensors[f"{number}.class_ids"],
        tensors[f"{number}.shares"],
        tensors.get(f"{number}.mask"),
        tensors.get(f"{number}.boxes"),
    )


def _image(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ValueError(f"{array.dtype} of shape {array.shape} is no image")
    return array
