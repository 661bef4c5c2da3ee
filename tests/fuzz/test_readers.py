"""Whatever a file holds, reading it ends in data or in one line: no traceback, no hang.

    make fuzz CASES=100000      # in all; the default tests run a few of each target

Valid files are made, then changed: in JSON any value at any depth, in XML, text and pictures any
bytes. `hypothesis` shrinks what fails and remembers it. A case may take a second.
"""

from __future__ import annotations

import copy
import io
import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from data.pictures import noise
from data.scenes import HEIGHT, NAMES, WIDTH, coco, some_scenes, write_images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kswap.config import SwapConfig
from kswap.data.coco import coco_table
from kswap.data.images import BadImageError, read_image
from kswap.data.labels import LabelIndex, match_class
from kswap.data.mask_folders import read_names
from kswap.data.scenes import SceneTable, make_legend
from kswap.data.voc import voc_table
from kswap.data.yolo import yolo_names, yolo_table
from kswap.errors import UserError
from kswap.settings import SourceConfig

fuzzed = settings(
    max_examples=int(os.environ.get("FUZZ_CASES", "40")),
    deadline=timedelta(seconds=1),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["", "../../etc/passwd", "\x00", "cat", "1e999", 10**30, -1, 2**63, "é" * 99])
)
VALUES = st.recursive(
    SCALARS,
    lambda below: (
        st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=8), below, max_size=3)
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value below."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(place for key, below in items for place in places(below, (*path, key)))]


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """Return a copy of a JSON value in which one to three values are others, gone or doubled."""
    content = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(content)))
        if not path:
            return draw(VALUES)
        here = content
        for key in path[:-1]:
            here = here[key]
        how = draw(st.sampled_from(["other", "gone", "twice"]))
        if how == "gone":
            del here[path[-1]]
        elif how == "twice" and isinstance(here, list):
            here.append(copy.deepcopy(here[path[-1]]))
        else:
            here[path[-1]] = draw(VALUES)
    return content


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Return bytes with some replaced, cut out, doubled, or cut off at the end."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        start = draw(st.integers(0, len(data) - 1))
        stop = min(len(data), start + draw(st.integers(1, 16)))
        how = draw(st.sampled_from(["other", "gone", "twice", "end"]))
        if how == "other":
            data[start:stop] = draw(st.binary(min_size=1, max_size=16))
        elif how == "gone":
            del data[start:stop]
        elif how == "twice":
            data[start:start] = data[start:stop]
        else:
            del data[start:]
    return bytes(data)


def read_all(table: SceneTable) -> None:
    """Ask for everything that a run would ask for."""
    for row in range(len(table.labels)):
        try:
            annotation = table.annotate(row, (HEIGHT, WIDTH))
            read_image(table.read(row), name=table.name(row))
        except UserError:
            continue
        if annotation.mask is not None:
            # That of the annotation, where it says one: whoever reads the image compares the two.
            assert annotation.mask.shape == (annotation.size or (HEIGHT, WIDTH))
        if annotation.objects is not None:
            assert np.isfinite(annotation.objects.boxes).all()
            assert (annotation.objects.labels < len(table.classes)).all()


def one_line(error: UserError) -> None:
    assert str(error)
    assert "\n" not in str(error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to: Path = tmp_path_factory.mktemp("fuzz")
    write_images(to / "images", 3)
    (to / "xml").mkdir()
    (to / "labels").mkdir()
    return to


COCO = coco(some_scenes(3), ["000.png", "001.png", "002.png"])


@fuzzed
@given(changed(COCO), st.sampled_from(["detection", "segmentation"]))
def test_coco(folder, content, task):
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    try:
        read_all(coco_table(path, folder / "images", task))
    except UserError as error:
        one_line(error)


RUNS = copy.deepcopy(COCO)
for one in RUNS["annotations"]:
    one["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": "0a1b2c3d"}


@fuzzed
@given(changed(RUNS))
def test_coco_runs(folder, content):
    path = folder / "runs.json"
    path.write_text(json.dumps(content))
    try:
        read_all(coco_table(path, folder / "images", "segmentation"))
    except UserError as error:
        one_line(error)


@fuzzed
@given(damaged(json.dumps(COCO).encode()))
def test_coco_bytes(folder, content):
    path = folder / "bytes.json"
    path.write_bytes(content)
    try:
        read_all(coco_table(path, folder / "images", "detection"))
    except UserError as error:
        one_line(error)


XML = (
    b"<annotation><filename>000.png</filename><size><width>16</width><height>12</height>"
    b"<depth>3</depth></size><object><name>cat</name><difficult>0</difficult><bndbox>"
    b"<xmin>1</xmin><ymin>2</ymin><xmax>7</xmax><ymax>8</ymax></bndbox></object></annotation>"
)
BOMB = b'<!DOCTYPE a [<!ENTITY b "' + b"x" * 999 + b'">]>' + XML.replace(b"cat", b"&b;" * 9)


@fuzzed
@given(damaged(XML) | damaged(BOMB))
def test_voc(folder, content):
    (folder / "xml" / "000.xml").write_bytes(content)
    try:
        table = voc_table(folder / "xml", folder / "images")
        assert all("xx" not in name for name in table.classes), "an entity was expanded"
        read_all(table)
    except UserError as error:
        one_line(error)


@fuzzed
@given(damaged(b"0 0.5 0.5 0.2 0.3\n1 0.4 0.4 0.2 0.2\n3 0.1 0.1 0.1 0.1\n"))
def test_yolo(folder, content):
    (folder / "labels" / "001.txt").write_bytes(content)
    try:
        legend = make_legend(dict(enumerate(NAMES)), "names")
        read_all(yolo_table(folder / "images", folder / "labels", legend))
    except UserError as error:
        one_line(error)


@fuzzed
@given(changed({"names": ["cat", "dog"], "nc": 2, "train": "images/train"}))
def test_yolo_names(folder, content):
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump(content))
    try:
        yolo_names(SourceConfig(data="x"), path, folder)
    except UserError as error:
        one_line(error)


@fuzzed
@given(changed({str(i): name for i, name in enumerate(NAMES)}))
def test_label_maps(folder, content):
    path = folder / "id2label.json"
    path.write_text(json.dumps(content))
    try:
        make_legend(read_names(path), str(path))
    except UserError as error:
        one_line(error)


@fuzzed
@given(st.text(max_size=30), st.dictionaries(st.integers(0, 9), st.text(max_size=30), max_size=6))
def test_names_of_classes(name, id2label):
    try:
        assert match_class(name, id2label) in id2label
    except UserError as error:
        one_line(error)
    LabelIndex(id2label)


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    noise("x", WIDTH, HEIGHT).save(buffer, kind)
    return buffer.getvalue()


PICTURES = [encoded(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")]


@fuzzed
@given(st.one_of([damaged(picture) for picture in PICTURES]))
def test_pictures(content):
    try:
        image = read_image(content, name="picture")
    except BadImageError as error:
        one_line(error)
    else:
        assert image.mode == "RGB"


CONFIG = {
    "model": "m",
    "learn": {"data": "d", "classes": ["a"], "fraction": 0.5},
    "forget": {"data": {"train": "t", "test": "u"}, "rename": {"a": "b"}},
    "retain": {"data": {"images": "i", "annotations": "j"}, "palette": {"a": [1, 2, 3]}},
    "order": "LF",
    "stages": {"learn": {"epochs": 1, "terms": {"learn": {"weight": 1.0}}}},
    "training": {"precision": "fp32", "trackers": []},
}


@fuzzed
@given(changed(CONFIG))
def test_config(content):
    try:
        SwapConfig.from_mapping(content if isinstance(content, dict) else {"model": content})
    except UserError as error:
        one_line(error)


@fuzzed
@given(damaged(yaml.safe_dump(CONFIG).encode()))
def test_config_files(folder, content):
    path = folder / "swap.yaml"
    path.write_bytes(content)
    try:
        SwapConfig.from_yaml(path)
    except UserError as error:
        one_line(error)


@fuzzed
@given(st.lists(st.text(max_size=20), max_size=5))
def test_overrides(words):
    try:
        SwapConfig.from_mapping(CONFIG, words)
    except UserError as error:
        one_line(error)
