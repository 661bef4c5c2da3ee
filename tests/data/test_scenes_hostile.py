"""What is wrong with masks and boxes in the wild: refused in one line, or handled and told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.pictures import noise
from data.scenes import (
    HEIGHT,
    NAMES,
    WIDTH,
    coco,
    every_box,
    every_mask,
    some_scenes,
    write_coco,
    write_images,
    write_masks,
)
from PIL import Image

from kswap.data import SwapData
from kswap.data.sets import IGNORE, OPEN
from kswap.data.yolo import yolo_names
from kswap.errors import UserError
from kswap.settings import SourceConfig

Build = Callable[..., SwapData]
Content = dict[str, Any]
SCENES = some_scenes(12, ("cat", "dog"))


def forget(data: Any, **more: Any) -> dict[str, Any]:
    return {"forget": {"data": data if isinstance(data, dict) else str(data), **more}}


def only_cats(data: Any, **more: Any) -> dict[str, Any]:
    return forget(data, classes=["cat"], **more)


def first(content: Content, key: str, **changes: Any) -> None:
    content[key][0].update(changes)


def again(content: Content, key: str, **changes: Any) -> None:
    content[key].append({**content[key][0], **changes})


RUNS = {"size": [HEIGHT, WIDTH], "counts": [5, 5]}
JSON_REFUSED: list[tuple[str, Callable[[Content], object], str]] = [
    ("detection", lambda c: first(c, "annotations", bbox=[1, 2, -3, 4]), "inverted.*correct it"),
    ("detection", lambda c: first(c, "annotations", bbox=[1, 2, float("nan"), 4]), "not four numb"),
    ("detection", lambda c: first(c, "annotations", bbox=[1, 2, 3]), "not four numbers"),
    ("detection", lambda c: first(c, "annotations", bbox="box"), "not four numbers"),
    ("detection", lambda c: first(c, "annotations", bbox=None), "not four numbers"),
    ("detection", lambda c: first(c, "annotations", category_id=99), "99.*not in categories"),
    ("detection", lambda c: first(c, "annotations", category_id=[1]), "not in categories"),
    ("detection", lambda c: first(c, "annotations", iscrowd="0"), "iscrowd is '0'; it is th"),
    ("segmentation", lambda c: first(c, "annotations", iscrowd="no"), "iscrowd is 'no'.*correct"),
    ("detection", lambda c: first(c, "annotations", image_id=1.5), "an id is a number or a text"),
    ("detection", lambda c: again(c, "images", file_name="x.png"), "image id 0 is given twice"),
    ("detection", lambda c: again(c, "images", id=99), "'000.png' is listed twice"),
    ("detection", lambda c: again(c, "annotations", bbox=[1, 1, 1, 1]), "annotation id 1 is given"),
    ("detection", lambda c: again(c, "categories", name="x"), "category id 11 stands for"),
    ("detection", lambda c: again(c, "categories", id=77), "two classes are called 'cat'"),
    ("detection", lambda c: first(c, "categories", name=" "), "empty name"),
    ("detection", lambda c: first(c, "categories", name=None), "has no name"),
    ("detection", lambda c: first(c, "images", file_name="../../etc/passwd"), "lies outside"),
    ("detection", lambda c: first(c, "images", file_name="/etc/passwd"), "lies outside"),
    ("detection", lambda c: first(c, "images", file_name="C:\\x.png"), "absolute path"),
    ("detection", lambda c: first(c, "images", file_name="missing.png"), "there is no such file"),
    ("detection", lambda c: first(c, "images", file_name=None), "has no file_name"),
    ("detection", lambda c: first(c, "images", width=99), r"is 16x12, its annotations are for 99x12"),  # noqa: E501
    ("detection", lambda c: first(c, "images", width="wide"), "not a size in pixels"),
    ("detection", lambda c: [a.update(bbox=[v / 16 for v in a["bbox"]]) for a in c["annotations"]],
     "json: all bbox are fractions.*; COCO's are pixels: x, y, width, height; multiply"),
    ("detection", lambda c: [a.update(image_id=str(a["image_id"])) for a in c["annotations"]],
     r"no image_id of its 24 annotations \('0', '1', '2' and 9 more\) is .* images \(0, 1, 2 and"),
    ("detection", lambda c: c.pop("images"), "is not COCO JSON"),
    ("detection", lambda c: c.update(categories=3), "no list of categories"),
    ("detection", lambda c: c.update(annotations=[3]), r"annotations\[0\] is '3', not a mapping"),
    ("segmentation", lambda c: first(c, "annotations", segmentation=[[1, 2, 3]]), "three or more"),
    ("segmentation", lambda c: first(c, "annotations", segmentation=["x"]), "three or more"),
    (
        "segmentation",
        lambda c: first(c, "annotations", segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]]),
        "coordinate of 1e.09, far outside",
    ),
    ("segmentation", lambda c: first(c, "annotations", segmentation=RUNS), "do not add up to the 192"),  # noqa: E501
    (
        "segmentation",
        lambda c: first(c, "annotations", segmentation={**RUNS, "counts": [-1, 193]}),
        "do not add up",
    ),
    (
        "segmentation",
        lambda c: first(c, "annotations", segmentation={**RUNS, "counts": "\x00Zoo"}),
        "do not add up",
    ),
    (
        "segmentation",
        lambda c: first(c, "annotations", segmentation={**RUNS, "size": [10**6, 10**6]}),
        "run lengths of size",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("task", "change", "message"), JSON_REFUSED)
def test_coco_is_refused(
    task: str, change: Any, message: str, tmp_path: Path, build_masks: Build, build_boxes: Build
) -> None:
    build = build_masks if task == "segmentation" else build_boxes
    coco_refusal(tmp_path, change, message, build)


def coco_refusal(
    root: Path, change: Callable[[Content], object], message: str, build: Build
) -> str:
    path = write_coco(root, SCENES, names=NAMES) / "annotations.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        build(**only_cats({"images": str(root / "images"), "annotations": str(path)}))
    assert "\n" not in str(error.value)
    return str(error.value)


WITHOUT_OBJECTS: list[tuple[str, Callable[[Content], object], str]] = [
    (
        "segmentation",
        lambda c: [a.pop("segmentation") for a in c["annotations"]],
        r"24 annotations \(24 with a bbox but no segmentation\); a segmenter needs polygons or run",
    ),
    (
        "segmentation",
        lambda c: [a.update(segmentation=[], bbox=None) for a in c["annotations"]],
        r"\(24 without segmentation\); give them polygons",
    ),
    (
        "detection",
        lambda c: [a.update(iscrowd=1) for a in c["annotations"]],
        r"\(24 of a crowd \(iscrowd: 1\)\); annotate single objects",
    ),
    (
        "segmentation",
        lambda c: [a.update(iscrowd=1) for a in c["annotations"]],
        r"\(24 of a crowd \(iscrowd: 1\)\); annotate single objects",
    ),
    (
        "detection",
        lambda c: [a.update(iscrowd=i < 10, bbox=[1, 1, 0, 4]) for i, a in
                   enumerate(c["annotations"])],
        r"\(14 with an empty box, 10 of a crowd \(iscrowd: 1\)\); give the boxes a width",
    ),
    (
        "detection",
        lambda c: [one.update(name=name) for one, name in
                   zip(c["categories"], ["background", "void", "ignore", "bg"], strict=True)],
        "24 whose category is background or to be ignored",
    ),
    ("detection", lambda c: c.update(annotations=[]), "has no annotations, its list of them is"),
    ("segmentation", lambda c: c.update(annotations=[]), "has no annotations, its list of them is"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "change", "message"), WITHOUT_OBJECTS)
def test_coco_without_an_object_names_the_json_and_the_reason(
    task: str, change: Any, message: str, tmp_path: Path, build_masks: Build, build_boxes: Build
) -> None:
    build = build_masks if task == "segmentation" else build_boxes
    said = coco_refusal(tmp_path, change, message, build)
    assert said.startswith(f"forget: {tmp_path / 'annotations.json'} has no ")


def coco_notes(root: Path, change: Callable[[Content], object], build: Build) -> SwapData:
    path = write_coco(root, SCENES) / "annotations.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return build(**only_cats(root))


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda c: first(c, "annotations", bbox=[1, 2, 0, 4]), "1 empty box left out"),
        (lambda c: first(c, "annotations", bbox=[1, 2, 99, 4]), "1 box clipped to the image"),
        (
            lambda c: [a.update(bbox=[1, 2, 99, 4]) for a in c["annotations"][:4]],
            "4 boxes clipped to the image",
        ),
        (
            lambda c: first(c, "annotations", bbox=[50, 50, 9, 4]),
            "1 box left out, outside the image",
        ),
        (
            lambda c: again(c, "annotations", id=999, image_id=999),
            "1 annotation left out, of images",
        ),
        (lambda c: again(c, "annotations"), "1 annotation left out, exact copies"),
        (
            lambda c: c.update(annotations=[a for a in c["annotations"] if a["image_id"]]),
            "1 image without objects",
        ),
    ],
)
def test_coco_is_handled(change: Any, note: str, tmp_path: Path, build_boxes: Build) -> None:
    data = coco_notes(tmp_path, change, build_boxes)
    assert note in " ".join(data.notes)


@pytest.mark.parametrize("key", ["images", "categories"])
def test_coco_that_lists_an_image_or_a_category_twice_alike(
    key: str, tmp_path: Path, build_boxes: Build
) -> None:
    once = coco_notes(tmp_path / "once", lambda c: None, build_boxes)
    twice = coco_notes(tmp_path / "twice", lambda c: again(c, key), build_boxes)
    assert every_box(twice, "forget") == every_box(once, "forget")


def as_corners(content: Content, number: int) -> None:
    for annotation in content["annotations"][:number]:
        left, top, width, height = annotation["bbox"]
        annotation["bbox"] = [left, top, left + width, top + height]


@pytest.mark.parametrize(("number", "is_told"), [(24, True), (12, False)])
def test_boxes_that_are_corners_are_guessed(
    number: int, is_told: bool, tmp_path: Path, build_boxes: Build
) -> None:
    data = coco_notes(tmp_path, lambda c: as_corners(c, number), build_boxes)
    (note,) = (note for note in data.notes if "clipped to the image" in note)
    told = "12 of 24 boxes would fit as left, top, right, bottom, but are read as left, top, width"
    assert (told in note) is is_told, note


def test_fractions_in_a_table_are_told_to_be_said(build_boxes: Build) -> None:
    import datasets

    rows = [
        {"image": noise(f"{i}"), "objects": [{"bbox": [0.1, 0.2, 0.5, 0.5], "category": "cat"}]}
        for i in range(6)
    ]
    given = {"forget": datasets.Dataset.from_list(rows)}
    with pytest.raises(UserError, match=r"in 'bbox' are fractions.*write box_unit: fractions"):
        build_boxes(forget={"classes": ["cat"]}, in_memory=given)
    build_boxes(forget={"classes": ["cat"], "box_unit": "fractions"}, in_memory=given)


@pytest.mark.parametrize(
    ("classes", "row"), [(["cat"] * 5 + [None], 5), ([["cat"]] * 6, 0)], ids=["none", "list"]
)
def test_a_box_in_a_table_without_a_class_is_named(
    classes: list[Any], row: int, build_boxes: Build
) -> None:
    import datasets

    rows = [
        {"image": noise(f"{i}"), "objects": [{"bbox": [1, 2, 5, 5], "category": one}]}
        for i, one in enumerate(classes)
    ]
    given = {"forget": datasets.Dataset.from_list(rows)}
    with pytest.raises(UserError, match=rf"row {row}: the category of a box is .*; correct it"):
        build_boxes(forget={"classes": ["cat"]}, in_memory=given)


def test_a_crowd_in_a_table_is_a_number(build_boxes: Build) -> None:
    import datasets

    def given(value: Any) -> dict[str, Any]:
        cat = {"bbox": [1, 2, 5, 5], "category": "cat", "iscrowd": value}
        rows = [{"image": noise(f"{i}"), "objects": [cat]} for i in range(6)]
        return {"forget": datasets.Dataset.from_list(rows)}

    with pytest.raises(UserError, match=r"row 0: iscrowd is '0'; it is the number 1 for a crowd"):
        build_boxes(forget={"classes": ["cat"]}, in_memory=given("0"))
    for value in (0, False, None):
        build_boxes(forget={"classes": ["cat"]}, in_memory=given(value))


def test_crowds_are_kept_apart(tmp_path: Path, build_boxes: Build, build_masks: Build) -> None:
    data = coco_notes(tmp_path / "a", lambda c: first(c, "annotations", iscrowd=1), build_boxes)
    crowds = [box for boxes in every_box(data, "forget").values() for box in boxes if box[1]]
    assert crowds == []  # the first image has no other cat
    both = {"bbox": [9, 9, 3, 3], "id": 99, "iscrowd": 1}
    data = coco_notes(tmp_path / "b", lambda c: again(c, "annotations", **both), build_boxes)
    crowds = [box for boxes in every_box(data, "forget").values() for box in boxes if box[1]]
    assert len(crowds) == 1
    shape = {"segmentation": [[0, 0, 16, 0, 16, 12, 0, 12]], "id": 99, "iscrowd": 1}
    data = coco_notes(tmp_path / "c", lambda c: again(c, "annotations", **shape), build_masks)
    masks = [mask for mask in every_mask(data, "forget").values() if (mask == IGNORE).any()]
    assert len(masks) == 1
    assert (masks[0] == 0).sum() == 36  # the cat lies over the crowd
    assert not (masks[0] == OPEN).any()


def test_missing_images_may_be_skipped(tmp_path: Path, build_boxes: Build) -> None:
    root = write_coco(tmp_path, SCENES)
    (root / "images" / "003.png").unlink()
    data = build_boxes(**only_cats(root), data={"on_bad_image": "skip"})
    assert "1 bad image skipped" in " ".join(data.notes)


@pytest.mark.parametrize("text", ["{", "[]", "\x00", "[" * 100_000, ""])
def test_broken_json(text: str, tmp_path: Path, build_boxes: Build) -> None:
    write_images(tmp_path / "images", 3)
    (tmp_path / "a.json").write_text(text)
    data = {"images": str(tmp_path / "images"), "annotations": str(tmp_path / "a.json")}
    with pytest.raises(UserError, match="not valid JSON|is not COCO JSON"):  # noqa: RUF043
        build_boxes(**only_cats(data))


NOT_COCO = {
    "{": r"is not valid JSON \(.*\); (correct it|name a folder)",
    "": r"is not valid JSON \(",
    "[]": "is not COCO JSON, which is a mapping with images",
    '{"a": 1}': "is not COCO JSON, which is a mapping with images",
}


@pytest.mark.parametrize("text", NOT_COCO)
def test_json_in_a_folder_that_is_not_coco_is_named(
    text: str, tmp_path: Path, build_boxes: Build
) -> None:
    root = write_coco(tmp_path / "one", SCENES)
    (root / "annotations.json").write_text(text)
    with pytest.raises(UserError, match=rf"is no layout.*one/annotations\.json {NOT_COCO[text]}"):
        build_boxes(**only_cats(root))
    (root / "more").mkdir()
    (root / "annotations.json").rename(root / "more" / "a.json")
    with pytest.raises(UserError, match=rf"is no layout.*more/a\.json {NOT_COCO[text]}"):
        build_boxes(**only_cats(root))
    data = {"images": str(root / "images"), "annotations": str(root / "more")}
    with pytest.raises(UserError, match=rf"has no annotations.*more/a\.json {NOT_COCO[text]}"):
        build_boxes(**only_cats(data))
    for split in ("train", "valid"):
        files = write_images(tmp_path / "two" / split, len(SCENES), split)
        content = json.dumps(coco(SCENES, files)) if split == "train" else text
        (tmp_path / "two" / split / "_annotations.coco.json").write_text(content)
    match = rf"valid: is a split without annotations; \S+json {NOT_COCO[text]}"
    with pytest.raises(UserError, match=match):
        build_boxes(**only_cats(tmp_path / "two"))


@pytest.mark.parametrize(("text", "is_refused"), [("{", True), ('["cat", "dog"]', False)])
def test_json_beside_coco_may_be_something_else_but_not_damaged(
    text: str, is_refused: bool, tmp_path: Path, build_boxes: Build
) -> None:
    root = write_coco(tmp_path, SCENES)
    (root / "val.json").write_text(text)
    (root / "._annotations.json").write_bytes(b"\0\5\x16\7")  # as macOS leaves them
    if is_refused:
        with pytest.raises(UserError, match=r"val\.json: is not valid JSON"):
            build_boxes(**only_cats(root))
    else:
        build_boxes(**only_cats(root))


# --------------------------------------------------------------------------------------- XML, YOLO
def write_voc(root: Path, box: str, *, start: str = "", more: str = "") -> dict[str, Any]:
    files = write_images(root / "images", 6)
    (root / "xml").mkdir()
    for place, file in enumerate(files):
        corners = box if place == 0 else "<xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax>"
        (root / "xml" / f"{Path(file).stem}.xml").write_text(
            f"{start}<annotation><filename>{file}</filename><object><name>cat</name>{more}<bndbox>"
            f"{corners}</bndbox></object></annotation>"
        )
    return only_cats({"images": str(root / "images"), "annotations": str(root / "xml")})


BOMB = (
    '<!DOCTYPE a [<!ENTITY b "cat"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">'
    '<!ENTITY d SYSTEM "file:///etc/passwd">]>'
)
BOX = "<xmin>1</xmin><ymin>1</ymin><xmax>{}</xmax><ymax>9</ymax>"


@pytest.mark.parametrize(
    ("box", "start", "more", "message"),
    [
        (BOX.format(9), BOMB, "<pose>&c;</pose>", "XML entities.*remove them"),
        (BOX.format(9), "<x>", "", "not valid XML"),
        (BOX.format(-9), "", "", "inverted"),
        (BOX.format("wide"), "", "", "not four numbers"),
        ("", "", "", "not four numbers"),
    ],
)
def test_xml_is_refused(
    box: str, start: str, more: str, message: str, tmp_path: Path, build_boxes: Build
) -> None:
    with pytest.raises(UserError, match=message):
        build_boxes(**write_voc(tmp_path, box, start=start, more=more))


def test_xml_of_something_else(tmp_path: Path, build_boxes: Build) -> None:
    config = write_voc(tmp_path, BOX.format(9))
    (tmp_path / "xml" / "000.xml").write_text("<html/>")
    with pytest.raises(UserError, match="'html', not of a Pascal VOC annotation"):
        build_boxes(**config)


def test_xml_names_an_image_elsewhere(tmp_path: Path, build_boxes: Build) -> None:
    config = write_voc(tmp_path, BOX.format(9))
    text = (tmp_path / "xml" / "000.xml").read_text().replace("000.png", "../../secret.png")
    (tmp_path / "xml" / "other.xml").write_text(text)
    with pytest.raises(UserError, match="lies outside"):
        build_boxes(**config)


CORNERS = "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"


@pytest.mark.parametrize(
    ("corners", "pixels"),
    [
        ((5, 3, 5, 9), (4, 2, 5, 9)),  # one pixel wide: both corners are inside
        ((16, 12, 16, 12), (15, 11, 16, 12)),
        ((0, 0, 4, 4), (0, 0, 4, 4)),  # counted from 0
        ((0, 0, 0, 0), None),  # what tools write for no box
    ],
)
def test_corners_of_xml_are_pixels_inside(
    corners: tuple[int, ...], pixels: tuple[int, ...] | None, tmp_path: Path, build_boxes: Build
) -> None:
    data = build_boxes(**write_voc(tmp_path, CORNERS.format(*corners)))
    usual = (0, False, 62, 83, 562, 750)
    found = [box for boxes in every_box(data, "forget").values() for box in boxes if box != usual]
    sides = (WIDTH, HEIGHT, WIDTH, HEIGHT)
    wanted = [round(1000 * one / side) for one, side in zip(pixels or (), sides, strict=False)]
    assert found == ([(0, False, *wanted)] if pixels else [])
    assert any("1 empty box left out" in note for note in data.notes) is (pixels is None)


def test_difficult_objects_are_crowd(tmp_path: Path, build_boxes: Build) -> None:
    more = "<difficult>1</difficult>"
    with pytest.raises(UserError, match="has no images with a class"):
        build_boxes(**write_voc(tmp_path, BOX.format(9), more=more))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2", "000.txt, line 1: has 4 fields"),
        ("0 0.5 0.5 0.2 0.2 0.9", "has 6 fields"),
        ("0 8 0.5 0.2 0.2", "outside 0..1"),
        ("0 nan 0.5 0.2 0.2", "outside 0..1"),
        ("0 a 0.5 0.2 0.2", "are not numbers"),
        ("9 0.5 0.5 0.2 0.2", "class 9 has no name"),
        ("0.5 0.5 0.5 0.2 0.2", "class 0.5 has no name"),
    ],
)
def test_yolo_is_refused(line: str, message: str, tmp_path: Path, build_boxes: Build) -> None:
    with pytest.raises(UserError, match=message):
        build_boxes(**write_yolo(tmp_path, line))


def write_yolo(root: Path, line: str) -> dict[str, Any]:
    files = write_images(root / "images", 6)
    (root / "labels").mkdir()
    for place, file in enumerate(files):
        text = "0 0.5 0.5 0.2 0.2" if place else line
        (root / "labels" / f"{Path(file).stem}.txt").write_text(text)
    (root / "data.yaml").write_text("names: [cat]\n")
    return only_cats(root)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (
            "nc: 8\nnames: [no, on, 010, 1.10, null, 'yes', 2020-01-02, ~]",
            "no on 010 1.10 null yes 2020-01-02 ~",
        ),
        ("train: images\nnames:\n  0: off\n  1: 1e3\n  2: 12:30:00", "off 1e3 12:30:00"),
        ("all: &all [y, n]\nnames: *all", "y n"),
        ("<<: {names: [no]}", "no"),
    ],
)
def test_yolo_names_are_the_text_that_stands_there(text: str, names: str, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(text)
    legend = yolo_names(SourceConfig(), tmp_path / "data.yaml", tmp_path)
    assert legend.classes == tuple(names.split())
    assert list(legend.codes) == list(range(len(names.split())))


BOMB = "\n".join(
    ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30))]
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: cat", "has no names of classes"),
        ("names:", "has no names of classes"),
        ("names: 3", "has no names of classes"),
        ("names: [[cat]]", "has no names of classes"),
        ("names: {cat: 0}", "has no names of classes"),
        ("names: [cat, ]\nnames: [!!python/name:os.system '']", "is not YAML that can be read"),
        (f"{BOMB}\nnames: *a29", "has no names of classes"),
        ("names: [!!bool x]", "is not YAML that can be read"),
        ("names: [!!timestamp x]", "is not YAML that can be read"),
        ("names: [cat, '']", "class 1 has an empty name"),
    ],
)
def test_yolo_names_that_are_none(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        yolo_names(SourceConfig(), tmp_path / "data.yaml", tmp_path)
    assert "\n" not in str(error.value)


def test_yolo_without_names(tmp_path: Path, build_boxes: Build) -> None:
    config = write_yolo(tmp_path, "")
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(UserError, match="numbers without names; give them in class_names"):
        build_boxes(**config)


# -------------------------------------------------------------------------------------------- masks
def spoil(root: Path, mask: Any, **options: Any) -> dict[str, Any]:
    write_masks(root, SCENES, names=("cat", "dog"))
    (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(
        root / "masks" / "000.png", **options
    )
    return only_cats(root)


CAT = np.pad(np.ones((4, 4), np.uint8), ((2, 6), (2, 10)))
COLOUR = np.stack([CAT, CAT * 2, CAT * 3], -1)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (CAT[:8], "is 16x12, its annotations are for 16x8"),
        (CAT * 9, r"has the value 9, which has no class; classes have 0, 1, 2, 255 is ignored"),
        (COLOUR, "is a mask in colour; give the colours of the classes in palette"),
        (CAT.astype(np.uint16) * 300, "has the value 300, which has no class"),
    ],
)
def test_masks_are_refused(mask: Any, message: str, tmp_path: Path, build_masks: Build) -> None:
    with pytest.raises(UserError, match=message):
        build_masks(**spoil(tmp_path, mask))


@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(CAT.astype(np.uint16)),
        Image.fromarray(CAT).convert("P"),
        Image.fromarray(CAT).convert("RGB"),
        Image.fromarray(CAT.astype(bool)),
    ],
    ids=["16-bit", "palette", "grey-as-rgb", "1-bit"],
)
def test_masks_of_any_mode_hold_values(mask: Any, tmp_path: Path, build_masks: Build) -> None:
    if mask.mode == "P":
        mask.putpalette([7, 8, 9] * 256)  # what they look like is no matter
    data = build_masks(**spoil(tmp_path, mask))
    found = every_mask(data, "forget")[noise("000.png", WIDTH, HEIGHT).tobytes()]
    assert np.array_equal(found == 0, CAT == 1)


def in_a_table(root: Path) -> dict[str, Any]:
    """The masks of a folder as a table, image by image in the order of their names."""
    import datasets

    folders = {"image": root / "images", "mask": root / "masks"}
    columns = {
        key: [{"path": None, "bytes": path.read_bytes()} for path in sorted(folder.iterdir())]
        for key, folder in folders.items()
    }
    features = datasets.Features(dict.fromkeys(columns, datasets.Image()))
    datasets.Dataset.from_dict(columns, features=features).to_parquet(root / "t.parquet")
    return only_cats(root / "t.parquet", class_names=["background", "cat", "dog"])


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "it is empty"), (b"no", "no image format that is known")],
)
def test_a_bad_mask_stops_or_is_counted_and_named(
    content: bytes, reason: str, table: bool, tmp_path: Path, build_masks: Build
) -> None:
    config = only_cats(write_masks(tmp_path, SCENES, names=("cat", "dog")))
    (tmp_path / "masks" / "001.png").write_bytes(content)
    config = in_a_table(tmp_path) if table else config
    name = r"t\.parquet, row 1, mask" if table else r"001\.png"
    what = rf"{name}: is not a mask that can be read \({reason}\)"
    with pytest.raises(UserError, match=rf"{what};.* or set data\.on_bad_image: skip$"):
        build_masks(**config)
    skip = {"on_bad_image": "skip"}
    notes = " ".join(build_masks(**config, data=skip).notes)
    assert re.search(rf": 1 bad mask skipped: \S*{name} \(.*\({reason}\)\)", notes)
    assert "without objects" not in notes
    for path in (tmp_path / "masks").iterdir():
        path.write_bytes(content)
    config = in_a_table(tmp_path) if table else config
    with pytest.raises(UserError, match="it is one of 12, and there is no other mask"):
        build_masks(**config, data=skip)


def test_a_broken_and_a_missing_mask(tmp_path: Path, build_masks: Build) -> None:
    config = spoil(tmp_path, CAT)
    (tmp_path / "masks" / "001.png").write_bytes(b"no")
    with pytest.raises(UserError, match="001.png: is not a mask that can be read"):  # noqa: RUF043
        build_masks(**config)
    (tmp_path / "masks" / "001.png").unlink()
    assert "1 image without a mask left out: 001" in " ".join(build_masks(**config).notes)
    (tmp_path / "images" / "002.png").unlink()
    assert "1 mask without an image left out: 002" in " ".join(build_masks(**config).notes)


def test_an_animated_and_a_lossy_mask(tmp_path: Path, build_masks: Build) -> None:
    frames = [Image.fromarray(CAT), Image.fromarray(CAT * 2)]
    config = spoil(tmp_path, frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match="it is an animation"):
        build_masks(**config)
    Image.fromarray(CAT).save(tmp_path / "masks" / "000.png", "JPEG")
    with pytest.raises(UserError, match="JPEG changes the values of a mask, save it as PNG"):
        build_masks(**config)


def test_a_colour_that_is_not_in_the_palette(tmp_path: Path, build_masks: Build) -> None:
    config = spoil(tmp_path, COLOUR)
    config["forget"]["palette"] = {"cat": [1, 2, 9], "background": [0, 0, 0]}
    for path in (tmp_path / "masks").iterdir():
        Image.fromarray(COLOUR).save(path)
    with pytest.raises(UserError, match=r"has the colour \[1, 2, 3\], which is not in the palette"):
        build_masks(**config)
    config["forget"]["palette"] = {"cat": [1, 2, 3], "dog": [1, 2, 3]}
    with pytest.raises(UserError, match="cat, dog have one colour"):
        build_masks(**config)


def test_values_without_names(tmp_path: Path, build_masks: Build) -> None:
    config = spoil(tmp_path, CAT * 7)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(UserError, match="value 7.*give the names of the values in class_names"):  # noqa: RUF043
        build_masks(**config)


def test_names_of_values_below_0(tmp_path: Path, build_masks: Build) -> None:
    config = spoil(tmp_path, CAT)
    (tmp_path / "id2label.json").write_text('{"-1": "background", "1": "cat", "2": "dog"}')
    with pytest.raises(
        UserError, match=r"id2label\.json: -1 has the name 'background', but values"
    ):
        build_masks(**config)


def test_a_folder_of_something_else(tmp_path: Path, build_masks: Build) -> None:
    write_images(tmp_path / "cat", 3)
    with pytest.raises(UserError, match=r"is no layout of segmentation data.*name the parts"):
        build_masks(**only_cats(tmp_path))


# --------------------------------------------------------------------------------------------- EXIF
def turned(root: Path, orientation: int, *, mask_upright: bool) -> dict[str, Any]:
    """Masks and images where the first image is stored turned."""
    write_masks(root, SCENES, names=("cat", "dog"))
    seen = noise("000.png", WIDTH, HEIGHT)
    stored = {
        3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 5: Image.Transpose.TRANSPOSE,
        7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[274] = orientation
    seen.transpose(stored).save(root / "images" / "000.png", exif=exif)
    mask = Image.fromarray(CAT)
    (mask if mask_upright else mask.transpose(stored)).save(root / "masks" / "000.png")
    return only_cats(root)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("mask_upright", [True, False])
def test_masks_turn_with_their_images(
    orientation: int, mask_upright: bool, tmp_path: Path, build_masks: Build
) -> None:
    data = build_masks(**turned(tmp_path, orientation, mask_upright=mask_upright))
    found = every_mask(data, "forget")[noise("000.png", WIDTH, HEIGHT).tobytes()]
    assert np.array_equal(found == 0, CAT == 1)


def test_what_cannot_be_told_is_refused(tmp_path: Path, build_masks: Build) -> None:
    with pytest.raises(UserError, match=r"turned by its EXIF orientation \(3\).*save the image up"):
        build_masks(**turned(tmp_path, 3, mask_upright=True))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_turn_with_their_images(orientation: int, tmp_path: Path, build_boxes: Build) -> None:
    config = turned(tmp_path / "m", orientation, mask_upright=False)
    stored = np.asarray(Image.open(tmp_path / "m" / "masks" / "000.png"))
    rows, columns = np.nonzero(stored)
    box = [int(v) for v in (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)]
    path = write_coco(tmp_path / "c", SCENES) / "annotations.json"
    content = json.loads(path.read_text())
    content["images"][0] |= {"width": HEIGHT, "height": WIDTH}
    content["annotations"][0]["bbox"] = box
    path.write_text(json.dumps(content))
    config["forget"]["data"] = {
        "images": str(tmp_path / "m" / "images"), "annotations": str(path)
    }  # fmt: skip
    # the dog of the first image is somewhere: only the cat is looked at
    found = every_box(build_boxes(**config), "forget")
    cat = next(b for b in found[noise("000.png", WIDTH, HEIGHT).tobytes()] if b[0] == 0)
    expected = np.rint(np.array([2 / WIDTH, 2 / HEIGHT, 6 / WIDTH, 6 / HEIGHT]) * 1000)
    assert list(cat[2:]) == expected.astype(int).tolist()
