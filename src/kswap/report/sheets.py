"""Sheets of pictures: a row for each image; truth, then the answer before and after each stage."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from kswap.arrays import Example, Marks
from kswap.files import write_bytes
from kswap.report.fonts import font, shorten
from kswap.report.pictures import GREEN, NEUTRAL, RED, Naming, draw, fit

_PANEL, _GAP, _MARGIN = 224, 12, 20
_TEXT, _HEAD, _TITLE = 13, 14, 17
_INK, _PALE, _PAPER = (28, 32, 40), (226, 229, 235), (255, 255, 255)
_LEGEND = (("− to forget", RED), ("+ to learn", GREEN), ("to retain", NEUTRAL))


def sheet(
    title: str, examples: Sequence[Example], answers: Mapping[str, Sequence[Marks]], naming: Naming
) -> Image.Image:
    """Return the sheet of one role.

    Args:
        title: above the pictures.
        examples: with their truth.
        answers: by the heading of their column, one for each example.
        naming: names and roles.
    """
    columns: list[tuple[str, list[Image.Image]]] = [
        ("truth", [_truth(example, naming) for example in examples]),
        *((head, _answered(examples, marks, naming)) for head, marks in answers.items()),
    ]
    heights = [max(cells[row].height for _, cells in columns) for row in range(len(examples))]
    width = 2 * _MARGIN + len(columns) * (_PANEL + _GAP) - _GAP
    top = _MARGIN + _TITLE + 14 + _TEXT + 22 + _HEAD + 10
    page = Image.new("RGB", (width, top + sum(h + _GAP for h in heights) - _GAP + _MARGIN), _PAPER)
    brush = ImageDraw.Draw(page)
    _write(brush, (_MARGIN, _MARGIN), title, _TITLE, width - 2 * _MARGIN, bold=True)
    _write_legend(brush, _MARGIN + _TITLE + 14)
    left = _MARGIN
    for head, cells in columns:
        _write(brush, (left, top - _HEAD - 10), head, _HEAD, _PANEL, bold=True)
        y = top
        for cell, height in zip(cells, heights, strict=True):
            page.paste(cell, (left, y))
            y += height + _GAP
        left += _PANEL + _GAP
    return page


def with_answers(
    image: NDArray[np.uint8], marks: Marks, naming: Naming, *, side: int, text: int = 12
) -> Image.Image:
    """Return one picture with its answer: drawn on it, or, of classes, written below it."""
    if marks.mask is not None or marks.boxes is not None:
        return draw(image, marks, naming, side=side, text=text)
    picture = fit(Image.fromarray(image), side)
    below = _bars(marks, naming, None, max(picture.width, _PANEL))
    page = Image.new("RGB", (below.width, picture.height + _GAP + below.height), _PAPER)
    page.paste(picture, ((page.width - picture.width) // 2, 0))
    page.paste(below, (0, picture.height + _GAP))
    return page


def _truth(example: Example, naming: Naming) -> Image.Image:
    drawn = draw(example.image, example.truth, naming, side=_PANEL)
    if not _is_classified(example.truth):
        return drawn
    row = int(example.truth.class_ids[0])
    page = Image.new("RGB", (_PANEL, drawn.height + _TEXT + 8), _PAPER)
    page.paste(drawn, ((_PANEL - drawn.width) // 2, 0))
    place = (0, drawn.height + 4)
    _write(ImageDraw.Draw(page), place, naming.signed(row), _TEXT, _PANEL, naming.colour(row), True)
    return page


def _answered(
    examples: Sequence[Example], answers: Sequence[Marks], naming: Naming
) -> list[Image.Image]:
    return [
        _bars(answer, naming, int(example.truth.class_ids[0]), _PANEL)
        if _is_classified(example.truth)
        else draw(example.image, answer, naming, side=_PANEL)
        for example, answer in zip(examples, answers, strict=True)
    ]


def _is_classified(marks: Marks) -> bool:
    return marks.mask is None and marks.boxes is None


def _bars(marks: Marks, naming: Naming, truth: int | None, width: int) -> Image.Image:
    """Return the answered classes with their probabilities as bars; a tick at the true class."""
    step = _TEXT + 26
    page = Image.new("RGB", (width, step * len(marks.class_ids)), _PAPER)
    brush = ImageDraw.Draw(page)
    rows = zip(marks.class_ids.tolist(), marks.shares.tolist(), strict=True)
    for number, (row, share) in enumerate(rows):
        top, colour = number * step, naming.colour(row)
        said = f"{100 * share:.1f} %" + (" ✓" if row == truth else "")
        room = font(_TEXT, said).getlength(said)
        brush.text((width - room, top), said, fill=_INK, font=font(_TEXT, said))
        name = naming.signed(row)
        _write(brush, (0, top), name, _TEXT, width - room - 10, colour, number == 0)
        bar = (0, top + _TEXT + 7, width - 1, top + _TEXT + 12)
        brush.rectangle(bar, fill=_PALE)
        if round(share * (width - 1)):
            brush.rectangle((0, bar[1], round(share * (width - 1)), bar[3]), fill=colour)
    return page


def _write(
    brush: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    size: int,
    width: float,
    colour: tuple[int, int, int] = _INK,
    bold: bool = False,
) -> None:
    shown = shorten(text, width, size, bold=bold)
    brush.text(place, shown, fill=colour, font=font(size, shown, bold=bold))


def save_png(page: Image.Image, path: Path) -> None:
    """Write a picture whole or not at all."""
    content = io.BytesIO()
    # Half the time of the default level, for a seventh more bytes.
    page.save(content, "PNG", compress_level=3)
    write_bytes(path, content.getvalue())


def _write_legend(brush: ImageDraw.ImageDraw, top: int) -> None:
    left = float(_MARGIN)
    for words, colour in _LEGEND:
        brush.rectangle((left, top + 2, left + 11, top + 13), fill=colour)
        brush.text((left + 17, top), words, fill=_INK, font=font(_TEXT, words))
        left += 17 + font(_TEXT, words).getlength(words) + 22
