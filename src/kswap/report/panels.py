"""Picture panels of the page: JPEG as data URIs, with words for those who do not see them."""

from __future__ import annotations

import base64
import io
from collections import Counter
from dataclasses import dataclass

import numpy as np
from PIL import Image

from kswap.arrays import Example, Marks, RunArrays
from kswap.report.figures import heading
from kswap.report.pictures import Naming, draw
from kswap.settings import Role

_SIDES = (256, 200, 160, 112)
_BUDGET = 3_300_000
"""Characters of all pictures together; the page stays under 5 MB."""
_NAMED = 6
"""Classes that are told of a picture."""


@dataclass(frozen=True)
class Guess:
    """An answered class with its probability."""

    name: str
    role: Role
    share: float
    is_true: bool


@dataclass(frozen=True)
class Panel:
    """One cell of a strip: a picture, or the classes that were answered."""

    heading: str
    picture: str
    """Data URI; empty where there are guesses."""
    size: tuple[int, int]
    alt: str
    guesses: tuple[Guess, ...] = ()
    true_name: str = ""


@dataclass(frozen=True)
class Strip:
    """One test image: its truth, and what was answered before and after each stage."""

    role: Role
    panels: tuple[Panel, ...]


def strips(arrays: RunArrays, naming: Naming) -> tuple[Strip, ...]:
    """Return all strips, drawn as large as the budget allows."""
    drawn: tuple[Strip, ...] = ()
    for side in _SIDES:
        drawn = tuple(
            _strip(number, example, arrays, naming, side)
            for number, example in enumerate(arrays.examples)
        )
        if sum(len(p.picture) for strip in drawn for p in strip.panels) <= _BUDGET:
            break
    return drawn


def describe(marks: Marks, naming: Naming) -> str:
    """Return what is drawn, in words: regions with their part of the picture, or objects."""
    if marks.mask is not None:
        rows, counts = np.unique(marks.mask[marks.mask >= 0], return_counts=True)
        order = np.argsort(-counts, kind="stable")[:_NAMED]
        parts = [
            f"{naming.name(int(rows[i]))} on {100 * counts[i] / marks.mask.size:.0f} %"
            for i in order
        ]
        more = len(rows) - len(order)
    else:
        found = Counter(marks.class_ids.tolist())
        parts = [
            naming.name(row) + (f" ({count} times)" if count > 1 else "")
            for row, count in found.most_common(_NAMED)
        ]
        more = len(found) - len(parts)
    return ", ".join(parts or ["nothing"]) + (f" and {more} more" if more > 0 else "")


def _strip(number: int, example: Example, arrays: RunArrays, naming: Naming, side: int) -> Strip:
    panels = [_panel("truth", example, example.truth, naming, side)]
    classified = example.truth.mask is None and example.truth.boxes is None
    for name, stage in arrays.stages.items():
        answer = stage.answers[number]
        panels.append(
            _guesses(heading(name), example, answer, naming)
            if classified
            else _panel(heading(name), example, answer, naming, side)
        )
    return Strip(example.role, tuple(panels))


def _panel(head: str, example: Example, marks: Marks, naming: Naming, side: int) -> Panel:
    picture = draw(example.image, marks, naming, side=side)
    classified = marks.mask is None and marks.boxes is None
    return Panel(
        head,
        data_uri(picture),
        picture.size,
        f"{head}: {describe(marks, naming)}",
        true_name=naming.name(int(marks.class_ids[0])) if classified else "",
    )


def _guesses(head: str, example: Example, answer: Marks, naming: Naming) -> Panel:
    truth = int(example.truth.class_ids[0])
    rows = zip(answer.class_ids.tolist(), answer.shares.tolist(), strict=True)
    guesses = tuple(
        Guess(naming.name(row), naming.role(row), share, row == truth) for row, share in rows
    )
    return Panel(head, "", (0, 0), "", guesses)


def data_uri(picture: Image.Image) -> str:
    """Return a picture as a JPEG within its address."""
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=86, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
