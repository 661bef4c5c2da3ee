"""Colours and names on pictures, and which test images are kept."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import ImageFont
from tiny_runs import ARABIC, HOSTILE, LONG

from kswap.arrays import (
    NOTHING,
    Example,
    Marks,
    StageArrays,
    read_arrays,
    write_examples,
    write_stage,
)
from kswap.data.sets import IGNORE, OPEN, Boxes, ImageSet
from kswap.evaluation.examples import choose, examples_of, fit_answer
from kswap.report.fonts import font, font_path, shorten
from kswap.report.pictures import GREEN, NEUTRAL, RED, Naming, draw
from kswap.report.sheets import sheet
from kswap.tasks.answers import Detections
from kswap.tasks.box_confusion import box_confusion
from kswap.tasks.miou import IoU

ROWS = {"forget": 0, "learn": 1, "retain": 2}
NAMING = Naming.of({0: "cat", 1: "ship", 2: "tree"}, {"forget": ["cat"], "learn": ["ship"]})
GREY = np.full((50, 40, 3), 128, np.uint8)
WHERE = (0.25, 0.2, 0.75, 0.8)
"""Left, top, right, bottom."""


def marks_of(task: str, row: int) -> Marks:
    if task == "detection":
        box = np.array([WHERE], np.float32)
        return Marks(np.array([row]), np.ones(1, np.float32), boxes=box)
    mask = np.full((50, 40), OPEN, np.int16)
    mask[10:40, 10:30] = row
    none = np.zeros(0, np.float32)
    return Marks(none.astype(np.int64), none, mask=mask)


@pytest.mark.parametrize("task", ["segmentation", "detection"])
@pytest.mark.parametrize(
    ("role", "colour"), [("forget", RED), ("learn", GREEN), ("retain", NEUTRAL)]
)
def test_outlines_have_the_colour_of_the_role(task, role, colour):
    picture = np.asarray(draw(GREY, marks_of(task, ROWS[role]), NAMING, side=250))
    assert picture.shape == (250, 200, 3)
    left, top, right, bottom = 50, 50, 149, 199
    for place in [(125, left), (125, right), (bottom, 120)]:
        around = picture[place[0] - 2 : place[0] + 3, place[1] - 2 : place[1] + 3].reshape(-1, 3)
        assert (around == colour).all(-1).any(), (place, around)
    others = [c for c in (RED, GREEN, NEUTRAL) if c != colour]
    assert not any((picture == other).all(-1).any() for other in others)
    outside = picture[top - 40, left - 40]  # nothing is drawn there
    assert outside.tolist() == [128, 128, 128]


def test_red_and_green_are_red_and_green():
    assert RED[0] > 3 * max(RED[1:])
    assert GREEN[1] > 2 * max(GREEN[0], GREEN[2])


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_any_name_fits_into_the_picture(task, name):
    naming = Naming.of({0: name}, {"forget": [name]})
    drawn = draw(GREY, marks_of(task, 0), naming, side=120)
    assert drawn.size == (96, 120)
    assert shorten(naming.signed(0), 80, 12).startswith("−")


def test_long_names_are_cut_in_the_middle_and_control_characters_are_shown():
    short = shorten(LONG, 100, 12)
    assert short.startswith("x")
    assert short.endswith("y")
    assert "…" in short
    assert font(12, short).getlength(short) <= 100
    assert Naming({0: "a\x1b[2J\nb"}, {}).name(0) == "a\\x1b[2J b"


def test_a_font_has_the_characters_of_the_name():
    assert ImageFont.truetype(font_path(ARABIC), 12).getlength("خ") > 0
    assert "DejaVu" in font_path("cat")
    assert font_path("\U0010ffff") == font_path("cat")  # no font has it: the usual one


def test_a_picture_without_answers_stays_as_it_is():
    nothing = Marks(
        np.zeros(0, np.int64), np.zeros(0, np.float32), boxes=np.zeros((0, 4), np.float32)
    )
    assert np.asarray(draw(GREY, nothing, NAMING, side=50)).tolist() == GREY.tolist()
    open_mask = Marks(nothing.class_ids, nothing.shares, mask=np.full((50, 40), OPEN, np.int16))
    assert np.asarray(draw(GREY, open_mask, NAMING, side=50)).tolist() == GREY.tolist()


def test_a_sheet_of_classes_shows_probabilities_as_bars():
    truth = Marks(np.array([0]), np.ones(1, np.float32))
    answer = Marks(np.array([0, 1, 2]), np.array([0.5, 0.3, 0.2], np.float32))
    page = np.asarray(
        sheet("title", [Example("forget", GREY, truth)], {"before": [answer]}, NAMING)
    )
    widths = [
        int((page[:, 250:] == colour).all(-1).sum(1).max()) for colour in (RED, GREEN, NEUTRAL)
    ]
    for width, share in zip(widths, (0.5, 0.3, 0.2), strict=True):
        assert width == pytest.approx(224 * share, abs=3)


# --------------------------------------------------------------------------------------- examples
def data_of(class_ids: list[int], **fields) -> SimpleNamespace:
    images = np.arange(len(class_ids) * 6 * 8 * 3, dtype=np.uint8).reshape(-1, 6, 8, 3)
    one = ImageSet(images, np.array(class_ids), **fields)
    return SimpleNamespace(sets={"retain": {"test": one}})


@pytest.mark.parametrize(
    ("class_ids", "number", "classes"),
    [
        ([0] * 9 + [1] * 9, 4, {0, 1}),
        ([0] * 30 + [1, 2, 3, 4, 5], 6, {0, 1, 2, 3, 4, 5}),
        (list(range(20)), 8, None),
        ([3, 3], 2, {3}),
    ],
)
def test_the_classes_of_a_role_take_turns(class_ids, number, classes):
    data = data_of(class_ids)
    rows = choose(data, seed=0)["retain"]
    assert len(set(rows)) == number
    assert list(rows) == sorted(rows)
    found = [class_ids[row] for row in rows]
    assert classes is None or set(found) == classes
    assert max(found.count(c) for c in found) - min(found.count(c) for c in found) <= 1
    assert choose(data, seed=0)["retain"] == rows
    assert len(class_ids) < 5 or choose(data, seed=1)["retain"] != rows


def test_images_have_the_shape_of_their_files_and_no_padding():
    mask = np.zeros((1, 6, 8), np.int16)
    mask[0, :3, :4] = 2
    mask[0, 3:, :] = IGNORE
    fields = {"masks": mask, "sizes": np.array([[3, 8]]), "original_sizes": np.array([[30, 40]])}
    data = data_of([2], **fields)
    (example,) = examples_of(data, {"retain": (0,)})
    assert example.image.shape == (6, 8, 3)  # the longer side of the file is the longer one here
    assert (example.truth.mask[:, :4] == 2).all()
    answer = Marks(example.truth.class_ids, example.truth.shares, mask=mask[0, :3])
    assert fit_answer(answer, example).mask.tolist() == example.truth.mask.tolist()


def test_arrays_come_back_as_they_were_written(tmp_path):
    example = Example("forget", GREY, marks_of("segmentation", 1))
    confusion = {1: {1: 3, NOTHING: 2}}
    write_examples(tmp_path / "arrays", [example], labels={1: "a\u2028b"}, unit="pixels")
    write_stage(tmp_path / "arrays", "base", StageArrays((example.truth,), confusion))
    read = read_arrays(tmp_path / "arrays", ["base", "1-learn"])
    assert read.labels == {1: "a\u2028b"}
    assert (read.examples[0].image == GREY).all()
    assert (read.examples[0].truth.mask == example.truth.mask).all()
    assert read.stages["base"].confusion == confusion
    assert list(read.stages) == ["base"]
    assert read_arrays(tmp_path / "none", ["base"]) is None


# -------------------------------------------------------------------------------------- confusion
def test_pixels_are_counted_by_what_they_are_answered_as():
    iou = IoU([0, 1], covered=[0, 1])
    iou.update(np.array([[0, 1, 1], [2, 0, 1]]), np.array([[0, 0, 1], [0, IGNORE, OPEN]]))
    assert iou.scores().confusion == {0: {0: 1, 1: 1, 2: 1}, 1: {1: 1}}


@pytest.mark.parametrize(
    ("answer", "counted"),
    [
        ([(0.1, 0.1, 0.5, 0.5, 1, 0.9)], 1),
        ([(0.1, 0.1, 0.5, 0.5, 1, 0.2)], NOTHING),  # not sure enough
        ([(0.6, 0.6, 0.9, 0.9, 0, 0.9)], NOTHING),  # elsewhere
        ([(0.1, 0.1, 0.5, 0.5, 1, 0.9), (0.1, 0.1, 0.5, 0.5, 0, 0.8)], 1),  # equal: the surer one
        ([(0.1, 0.1, 0.5, 0.4, 1, 0.9), (0.1, 0.1, 0.5, 0.5, 0, 0.8)], 0),  # the better fit
        ([], NOTHING),
    ],
)
def test_objects_are_counted_by_the_answer_that_fits_best(answer, counted):
    objects = Boxes(
        np.array([(0.1, 0.1, 0.5, 0.5), (0.6, 0.6, 0.9, 0.9)], np.float32),
        np.array([0, 0]),
        np.array([False, True]),  # the crowd is not counted
    )
    images = ImageSet(np.zeros((1, 9, 9, 3), np.uint8), np.zeros(1, np.int64), boxes=(objects,))
    values = torch.tensor([row[:4] for row in answer], dtype=torch.float32).reshape(-1, 4)
    found = Detections(
        values, torch.tensor([r[5] for r in answer]), torch.tensor([r[4] for r in answer])
    )
    assert box_confusion([found], images, class_ids=[0]) == {0: {counted: 1}}
