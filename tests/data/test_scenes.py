"""Masks and boxes from every layout: the same scenes give the same arrays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from data.pictures import encoded, noise
from data.scenes import (
    HEIGHT,
    NAMES,
    WIDTH,
    boxes_of,
    coco,
    every_box,
    every_mask,
    index_mask,
    some_scenes,
    write_coco,
    write_images,
    write_masks,
)
from PIL import Image

from kswap.data import SwapData
from kswap.data.mask_files import voc_colour
from kswap.data.sets import IGNORE, OPEN
from kswap.settings import SPLITS

Build = Callable[..., SwapData]
SCENES = some_scenes(16)
ROW = {"cat": 0, "dog": 1, "frog": 2, "horse": 3}


def swap(data: Any, **more: Any) -> dict[str, Any]:
    """A config with three roles on one source."""
    return {
        "learn": {"data": data, "classes": ["horse"], **more},
        "forget": {"data": data, "classes": ["cat"], **more},
        "retain": {"data": data, **more},
    }


# ---------------------------------------------------------------------------------- segmentation
def masks_by_role(data: SwapData) -> dict[str, Any]:
    return {role: every_mask(data, role) for role in data.sets}


def same_masks(one: SwapData, other: SwapData) -> bool:
    a, b = masks_by_role(one), masks_by_role(other)
    return a.keys() == b.keys() and all(
        a[r].keys() == b[r].keys() and all(np.array_equal(a[r][k], b[r][k]) for k in a[r])
        for r in a
    )


def in_colour(root: Path) -> dict[str, Any]:
    colours = {"background": (0, 0, 0)} | {n: (10 * i, 200, i) for i, n in enumerate(NAMES)}
    files = write_images(root / "images", len(SCENES))
    (root / "masks").mkdir()
    lookup = np.array(list(colours.values()), np.uint8)
    values = {name: place + 1 for place, name in enumerate(NAMES)}
    for file, scene in zip(files, SCENES, strict=True):
        Image.fromarray(lookup[index_mask(scene, values)]).save(root / "masks" / file)
    return swap(str(root), palette={k: list(v) for k, v in colours.items()})


def in_colour_with_csv(root: Path) -> dict[str, Any]:
    config = in_colour(root)
    palette = config["learn"].pop("palette")
    lines = [f"{name},{','.join(map(str, c))}" for name, c in palette.items()]
    (root / "class_dict.csv").write_text("\n".join(["name,r,g,b", *lines]))
    return swap(str(root))


def ade(root: Path) -> dict[str, Any]:
    """images/training, annotations/training, ADE20K's table of names, 0 is not labelled."""
    write_masks(root / "flat", SCENES)
    for kind, new in (("images", "images"), ("masks", "annotations")):
        (root / new).mkdir(parents=True)
        shutil.move(root / "flat" / kind, root / new / "training")
    rows = [f"{i + 1}\t0.1\t1\t1\t0\t{name}" for i, name in enumerate(NAMES)]
    (root / "objectInfo150.txt").write_text(
        "\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows])
    )
    shutil.rmtree(root / "flat")
    return swap(str(root))


def deepglobe(root: Path) -> dict[str, Any]:
    """train/1_sat.jpg beside train/1_mask.png; lossless here, so that pixels can be compared."""
    config = in_colour(root / "a")
    (root / "train").mkdir()
    for path in sorted((root / "a" / "images").iterdir()):
        shutil.copy(path, root / "train" / f"{path.stem}_sat.jpg")  # a PNG by content
        mask = root / "a" / "masks" / path.name
        shutil.copy(mask, root / "train" / f"{path.stem}_mask.png")
    shutil.rmtree(root / "a")
    return swap(str(root), palette=config["learn"]["palette"])


def voc(root: Path, *, palette: bool) -> None:
    files = write_images(root / "JPEGImages", len(SCENES))
    (root / "SegmentationClass").mkdir()
    values = {"cat": 8, "dog": 12, "frog": 255, "horse": 14}
    for file, scene in zip(files, SCENES, strict=True):
        colours = np.array([voc_colour(v) for v in range(256)], np.uint8)
        image = Image.fromarray(index_mask(scene, values))
        image.putpalette(colours.ravel().tolist())
        image = image if palette else image.convert("RGB")
        image.save(root / "SegmentationClass" / file)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("\n".join(Path(file).stem for file in files))


def parquet_masks(root: Path) -> dict[str, Any]:
    import datasets

    write_masks(root / "m", SCENES)
    names = sorted(path.name for path in (root / "m" / "images").iterdir())
    rows = {
        "image": [{"path": None, "bytes": (root / "m" / "images" / n).read_bytes()} for n in names],
        "label": [{"path": None, "bytes": (root / "m" / "masks" / n).read_bytes()} for n in names],
    }
    features = datasets.Features(image=datasets.Image(), label=datasets.Image())
    datasets.Dataset.from_dict(rows, features=features).to_parquet(root / "train.parquet")
    shutil.rmtree(root / "m")
    names_of = {0: "background", **dict(enumerate(NAMES, 1))}
    return swap(str(root / "train.parquet"), class_names=names_of)


def pair(root: Path) -> dict[str, Any]:
    write_masks(root, SCENES)
    (root / "classes.txt").unlink()
    return swap(
        {"images": str(root / "images"), "annotations": str(root / "masks")},
        class_names=["background", *NAMES],
    )


def id2label_file(root: Path) -> dict[str, Any]:
    write_masks(root, SCENES, offset=0)
    # value 0 is a class here, so what is around it needs another value
    for path in (root / "masks").iterdir():
        mask = np.asarray(Image.open(path))
        scene = SCENES[int(path.stem)]
        full = np.full_like(mask, 7)
        full[index_mask(scene, dict.fromkeys(NAMES, 1)) > 0] = mask[
            index_mask(scene, dict.fromkeys(NAMES, 1)) > 0
        ]
        Image.fromarray(full).save(path)
    (root / "classes.txt").unlink()
    names = {str(i): name for i, name in enumerate(NAMES)} | {"7": "Background"}
    (root / "id2label.json").write_text(json.dumps(names))
    return swap(str(root))


def coco_runs(root: Path) -> dict[str, Any]:
    """COCO with run lengths instead of polygons: lists for some, packed text for others."""
    from faster_coco_eval.core import mask as coco_mask

    write_coco(root, SCENES)
    content = json.loads((root / "annotations.json").read_text())
    for place, annotation in enumerate(content["annotations"]):
        left, top, width, height = annotation["bbox"]
        inside = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
        inside[top : top + height, left : left + width] = 1
        packed = coco_mask.encode(inside)
        runs: list[int] = []
        last, flat = 0, inside.ravel(order="F")
        edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
        runs = [0] * int(flat[0] != last) + np.diff(edges).tolist()
        annotation["segmentation"] = {
            "size": [HEIGHT, WIDTH],
            "counts": runs if place % 2 else packed["counts"].decode(),
        }
    (root / "annotations.json").write_text(json.dumps(content))
    return swap(str(root))


@pytest.mark.parametrize(
    "layout",
    [
        in_colour,
        in_colour_with_csv,
        deepglobe,
        parquet_masks,
        pair,
        id2label_file,
        lambda root: swap(str(write_coco(root, SCENES))),
        coco_runs,
    ],
)
def test_every_layout_of_masks_gives_the_same(
    layout: Any, tmp_path: Path, build_masks: Build
) -> None:
    expected = build_masks(**swap(str(write_masks(tmp_path / "plain", SCENES))))
    assert same_masks(build_masks(**layout(tmp_path / "other")), expected)


def test_masks_hold_rows_by_role(tmp_path: Path, build_masks: Build) -> None:
    data = build_masks(**swap(str(write_masks(tmp_path, SCENES))))
    learn, retain = data.sets["learn"]["train"], data.sets["retain"]["train"]
    assert learn.masks is not None
    assert retain.masks is not None
    assert learn.masks.dtype == np.int16
    assert set(np.unique(learn.masks)) == {OPEN, 3}
    assert set(np.unique(retain.masks)) == {OPEN, 0, 1, 2, 3}
    assert (learn.complete, learn.covered) == (False, (3,))
    assert (retain.complete, retain.covered) == (True, (0, 1, 2, 3))
    assert learn.sizes is None
    assert learn.original_sizes is not None
    assert learn.original_sizes.tolist() == [[HEIGHT, WIDTH]] * len(learn)
    found = every_mask(data, "retain")
    for i, scene in enumerate(SCENES):
        key = noise(f"{i:03}.png", WIDTH, HEIGHT).tobytes()
        if key in found:
            expected = index_mask(scene, {n: r + 1 for n, r in ROW.items()}).astype(int) - 1
            assert np.array_equal(found[key], expected)
    assert len(found) == sum("dog" in s or "frog" in s for s in SCENES)


@pytest.mark.parametrize("settings", [{}, {"class_names": ["background", *NAMES]}])
@pytest.mark.parametrize("by_model", [True, False])
def test_names_that_begin_with_a_background_count_the_values_of_the_files(
    settings: Any, by_model: bool, tmp_path: Path, build_masks: Build, reducing: Any
) -> None:
    write_masks(tmp_path, SCENES)  # classes.txt begins with a background
    if by_model:
        data = build_masks(**swap(str(tmp_path), **settings), fitted_by=reducing)
    else:
        data = build_masks(**swap(str(tmp_path), **settings, reduce_zero_label=True))
    found = every_mask(data, "retain")
    assert found
    for i, scene in enumerate(SCENES):
        key = noise(f"{i:03}.png", WIDTH, HEIGHT).tobytes()
        if key in found:
            values = index_mask(scene, {name: row + 1 for name, row in ROW.items()}).astype(int)
            assert np.array_equal(found[key], np.where(values == 0, IGNORE, values - 1))
    assert set(np.unique(data.sets["learn"]["train"].masks)) == {OPEN, ROW["horse"]}


def test_names_without_a_background_count_from_the_first_class(
    tmp_path: Path, build_masks: Build, reducing: Any
) -> None:
    config = swap(str(write_masks(tmp_path, SCENES)))
    expected = build_masks(**config, fitted_by=reducing)
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))  # of the values less one
    assert same_masks(build_masks(**config, fitted_by=reducing), expected)


def test_ade20k(tmp_path: Path, build_masks: Build, reducing: Any) -> None:
    data = build_masks(**ade(tmp_path / "a"), fitted_by=reducing)
    retain, learn = data.sets["retain"]["train"], data.sets["learn"]["train"]
    assert set(np.unique(retain.masks)) == {IGNORE, 0, 1, 2, 3}  # 0 is `not labelled`
    assert set(np.unique(learn.masks)) == {OPEN, 3}  # open where labels are partial


@pytest.mark.parametrize("palette", [True, False])
def test_pascal_voc_masks(palette: bool, tmp_path: Path, build_masks: Build) -> None:
    voc(tmp_path, palette=palette)
    cat = {"data": str(tmp_path), "classes": ["cat"]}
    learn = {"data": str(tmp_path), "classes": ["motorbike"]}
    data = build_masks(forget=cat, learn=learn)
    assert set(np.unique(data.sets["forget"]["train"].masks)) == {OPEN, 0, 1, 3}
    assert set(np.unique(data.sets["learn"]["train"].masks)) == {OPEN, IGNORE, 3}


def test_the_models_own_ids(tmp_path: Path, build_masks: Build) -> None:
    write_masks(tmp_path, some_scenes(16, NAMES[:3]), offset=0, names=NAMES[:3])
    (tmp_path / "classes.txt").unlink()
    data = build_masks(forget={"data": str(tmp_path), "classes": ["cat"]})
    assert 0 in np.unique(data.sets["forget"]["train"].masks)


def test_a_background_row_is_filled_where_labels_are_complete(
    tmp_path: Path, build_masks: Build
) -> None:
    id2label = {0: "background", 1: "cat", 2: "dog", 3: "frog"}
    data = build_masks(**swap(str(write_masks(tmp_path, SCENES))), id2label=id2label)
    assert set(np.unique(data.sets["retain"]["train"].masks)) == {0, 1, 2, 3, 4}
    assert data.sets["retain"]["train"].covered == (0, 1, 2, 3, 4)
    assert set(np.unique(data.sets["learn"]["train"].masks)) == {OPEN, 4}
    assert 0 in data.class_ids["retain"]
    assert not any("without images" in note for note in data.notes)


def test_labels_can_be_said_to_be_complete_or_partial(tmp_path: Path, build_masks: Build) -> None:
    config = swap(str(write_masks(tmp_path, SCENES)))
    config["learn"]["labels"] = "complete"
    config["retain"]["labels"] = "partial"
    data = build_masks(**config)
    learn, retain = data.sets["learn"]["train"], data.sets["retain"]["train"]
    assert (learn.complete, learn.covered) == (True, (0, 1, 2, 3))
    assert (retain.complete, retain.covered) == (False, (1, 2))
    assert set(np.unique(retain.masks)) == {OPEN, 1, 2}


def test_large_data_is_mapped(tmp_path: Path, build_masks: Build) -> None:
    config = swap(str(write_masks(tmp_path / "m", SCENES)))
    small = build_masks(**config)
    mapped = build_masks(**config, data={"memory_limit_bytes": 0}, cache_dir=tmp_path / "cache")
    assert same_masks(small, mapped)
    assert isinstance(mapped.sets["learn"]["train"].masks, np.memmap)
    assert isinstance(mapped.sets["learn"]["train"].images, np.memmap)


# ------------------------------------------------------------------------------------- detection
def same_boxes(one: SwapData, other: SwapData) -> bool:
    return {r: every_box(one, r) for r in one.sets} == {r: every_box(other, r) for r in other.sets}


def coco2017(root: Path) -> dict[str, Any]:
    files = write_images(root / "train2017", len(SCENES))
    (root / "annotations").mkdir()
    text = json.dumps(coco(SCENES, files))
    (root / "annotations" / "instances_train2017.json").write_text(text)
    (root / "annotations" / "captions_train2017.json").write_text(
        '{"images": [], "annotations": []}'
    )
    return swap(str(root))


def roboflow(root: Path) -> dict[str, Any]:
    files = write_images(root / "train", len(SCENES))
    (root / "train" / "_annotations.coco.json").write_text(json.dumps(coco(SCENES, files)))
    return swap(str(root))


def coco_pair(root: Path) -> dict[str, Any]:
    write_coco(root, SCENES)
    return swap({"images": f"{root}/images", "annotations": f"{root}/annotations.json"})


def voc_boxes(root: Path) -> dict[str, Any]:
    files = write_images(root / "JPEGImages", len(SCENES))
    (root / "Annotations").mkdir()
    for file, scene in zip(files, SCENES, strict=True):
        objects = "".join(
            f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{left + 1}</xmin>"
            f"<ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
            for name, (left, top, right, bottom) in scene.items()
        )
        (root / "Annotations" / f"{Path(file).stem}.xml").write_text(
            f"<annotation><filename>{file}</filename><size><width>{WIDTH}</width>"
            f"<height>{HEIGHT}</height><depth>3</depth></size>{objects}</annotation>"
        )
    (root / "ImageSets" / "Main").mkdir(parents=True)
    names = "\n".join(Path(file).stem for file in files)
    (root / "ImageSets" / "Main" / "trainval.txt").write_text(names)
    (root / "ImageSets" / "Main" / "cat_trainval.txt").write_text("000 1")
    return swap(str(root))


def write_yolo(root: Path, images: Path, labels: Path) -> None:
    files = write_images(images, len(SCENES))
    labels.mkdir(parents=True)
    for file, scene in zip(files, SCENES, strict=True):
        lines = [
            f"{NAMES.index(name)} {(left + right) / 2 / WIDTH} {(top + bottom) / 2 / HEIGHT} "
            f"{(right - left) / WIDTH} {(bottom - top) / HEIGHT}"
            for name, (left, top, right, bottom) in scene.items()
        ]
        (labels / f"{Path(file).stem}.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text(yaml.safe_dump({"names": list(NAMES), "train": "../x"}))


def yolo(root: Path) -> dict[str, Any]:
    write_yolo(root, root / "images" / "train", root / "labels" / "train")
    return swap(str(root))


def yolo_roboflow(root: Path) -> dict[str, Any]:
    write_yolo(root, root / "train" / "images", root / "train" / "labels")
    return swap(str(root))


def yolo_pair(root: Path) -> dict[str, Any]:
    write_yolo(root, root / "images", root / "labels")
    (root / "data.yaml").unlink()
    return swap(
        {"images": f"{root}/images", "annotations": f"{root}/labels"}, class_names=list(NAMES)
    )


def object_rows(*, lists: bool) -> list[dict[str, Any]]:
    rows = []
    for i, scene in enumerate(SCENES):
        boxes = [[left, top, r - left, b - top] for left, top, r, b in scene.values()]
        classes = [NAMES.index(name) for name in scene]
        objects: Any = {"bbox": boxes, "category": classes}
        if lists:
            objects = [{"bbox": b, "category": c} for b, c in zip(boxes, classes, strict=True)]
        image = encoded(noise(f"{i:03}.png", WIDTH, HEIGHT))
        rows.append({"image": {"bytes": image, "path": None}, "objects": objects})
    return rows


def parquet_objects(root: Path, *, lists: bool = False) -> dict[str, Any]:
    import datasets
    from datasets import ClassLabel, Features, List, Value

    root.mkdir()
    one = {"bbox": List(Value("float32"), 4), "category": ClassLabel(names=list(NAMES))}
    objects = List(one) if lists else {key: List(value) for key, value in one.items()}
    features = Features(image=datasets.Image(), objects=objects)
    table = datasets.Dataset.from_list(object_rows(lists=lists), features=features)
    table.to_parquet(root / "train-00000.parquet")
    return swap(str(root))


def parquet_lists(root: Path) -> dict[str, Any]:
    return parquet_objects(root, lists=True)


@pytest.mark.parametrize(
    "layout",
    [
        coco2017, roboflow, coco_pair, voc_boxes, yolo, yolo_roboflow, yolo_pair, parquet_objects,
        parquet_lists,
    ],
)  # fmt: skip
def test_every_layout_of_boxes_gives_the_same(
    layout: Any, tmp_path: Path, build_boxes: Build
) -> None:
    expected = build_boxes(**swap(str(write_coco(tmp_path / "plain", SCENES))))
    assert same_boxes(build_boxes(**layout(tmp_path / "other")), expected)


@pytest.mark.parametrize("start", ["images/", "./images/", "images\\"])
def test_file_names_of_coco_may_begin_with_the_folder_of_images(
    start: str, tmp_path: Path, build_boxes: Build
) -> None:
    expected = build_boxes(**swap(str(write_coco(tmp_path / "plain", SCENES))))
    path = write_coco(tmp_path / "other", SCENES) / "annotations.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        image["file_name"] = start + image["file_name"]
    path.write_text(json.dumps(content))
    assert same_boxes(build_boxes(**swap(str(path.parent))), expected)


def test_boxes_hold_rows_by_role(tmp_path: Path, build_boxes: Build) -> None:
    data = build_boxes(**swap(str(write_coco(tmp_path, SCENES))))
    assert data.sets["learn"]["train"].masks is None
    found = every_box(data, "retain")
    scene = SCENES[1]  # dog and frog
    corners = np.array(list(scene.values())) / [WIDTH, HEIGHT, WIDTH, HEIGHT] * 1000
    expected = [
        (ROW[n], False, *np.rint(c).astype(int)) for n, c in zip(scene, corners, strict=True)
    ]
    assert found[noise("001.png", WIDTH, HEIGHT).tobytes()] == sorted(expected)
    learn = {box[0] for boxes in every_box(data, "learn").values() for box in boxes}
    assert learn == {3}
    assert data.sets["retain"]["train"].covered == (0, 1, 2, 3)


def test_data_in_memory(tmp_path: Path, build_boxes: Build) -> None:
    import datasets

    expected = build_boxes(**swap(str(write_coco(tmp_path, SCENES))))
    table = datasets.Dataset.from_list(object_rows(lists=False))
    more = {"class_names": list(NAMES)}
    config = {"learn": {"classes": ["horse"], **more}, "forget": {"classes": ["cat"], **more}}
    config["retain"] = more
    roles = dict.fromkeys(("learn", "forget", "retain"), table)
    assert same_boxes(build_boxes(**config, in_memory=roles), expected)


def test_scenes_to_learn_are_left_out_where_no_stage_learns(
    tmp_path: Path, build_boxes: Build
) -> None:
    data = build_boxes(**swap(str(write_coco(tmp_path, SCENES))), order="F")
    assert set(data.sets) == {"forget", "retain"}
    assert not data.class_ids["learn"]
    assert "horse" not in data.id2label.values()
    assert "learn: left out, as order F has no stage that learns" in data.notes


def test_splits_by_name(tmp_path: Path, build_boxes: Build) -> None:
    train, test = (write_coco(tmp_path / tag, SCENES, tag=tag) for tag in ("a", "b"))
    data = build_boxes(
        forget={
            "data": {
                "train": {"images": f"{train}/images", "annotations": f"{train}/annotations.json"},
                "test": str(test),
            },
            "classes": ["cat"],
        }
    )
    assert len(data.sets["forget"]["test"]) == sum("cat" in scene for scene in SCENES)


# ---------------------------------------------------------------------------------------- splits
def test_splits_do_not_depend_on_names_or_order(tmp_path: Path, build_boxes: Build) -> None:
    write_coco(tmp_path / "a", SCENES)
    first = build_boxes(**swap(str(tmp_path / "a")), seed=3)
    content = json.loads((tmp_path / "a" / "annotations.json").read_text())
    (tmp_path / "b" / "images").mkdir(parents=True)
    for place, image in enumerate(content["images"]):
        name = f"{(place * 7) % 16:02}-new.bmp"
        Image.open(tmp_path / "a" / "images" / image["file_name"]).save(
            tmp_path / "b" / "images" / name
        )
        image["file_name"] = name
    for key in ("images", "annotations", "categories"):
        content[key].reverse()
    (tmp_path / "b" / "annotations.json").write_text(json.dumps(content))
    second = build_boxes(**swap(str(tmp_path / "b")), seed=3)
    for role in first.sets:
        for split in SPLITS:
            assert boxes_of(first, role, split) == boxes_of(second, role, split)
            one, other = first.sets[role][split], second.sets[role][split]
            assert np.array_equal(one.images, other.images)
            assert np.array_equal(one.class_ids, other.class_ids)
    third = build_boxes(**swap(str(tmp_path / "a")), seed=4)
    assert boxes_of(first, "retain", "test") != boxes_of(third, "retain", "test")


def test_splits_of_roles_do_not_overlap(tmp_path: Path, build_boxes: Build) -> None:
    data = build_boxes(**swap(str(write_coco(tmp_path, some_scenes(40)))))
    held = {s: {k for r in data.sets for k in boxes_of(data, r, s)} for s in SPLITS}
    assert not held["train"] & held["test"]
    assert not held["train"] & held["validation"]
    assert not held["validation"] & held["test"]
    # nothing is lost to this: the roles agree
    for role, name in (("learn", "horse"), ("forget", "cat")):
        assert len(every_box(data, role)) == sum(name in scene for scene in some_scenes(40))


def test_a_rare_class_has_train_and_test_images(tmp_path: Path, build_boxes: Build) -> None:
    scenes = [{"dog": (1, 1, 5, 5), "cat": (5, 5, 9, 9)} for _ in range(30)]
    for scene in scenes[:2]:
        scene["frog"] = (9, 1, 12, 5)  # beside dogs, in two images
    data = build_boxes(retain={"data": str(write_coco(tmp_path, scenes)), "fraction": 0.1},
                       forget={"data": str(tmp_path), "classes": ["cat"]})  # fmt: skip
    for split in ("train", "test"):
        rows = [box[0] for boxes in boxes_of(data, "retain", split).values() for box in boxes]
        assert 2 in rows
    assert data.sets["retain"]["train"].class_ids.tolist()[-1] == 2  # its rarest class
    assert len(data.sets["retain"]["train"]) < 6
    assert any("left out by fraction 0.1" in note for note in data.notes)


def test_images_without_the_roles_classes_are_counted(tmp_path: Path, build_boxes: Build) -> None:
    notes = " ".join(build_boxes(**swap(str(write_coco(tmp_path, SCENES)))).notes)
    assert "8 images of" in notes
    assert "left out, without an object of the classes to forget" in notes
