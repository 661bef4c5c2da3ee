"""Sources of scenes that stream: what is drawn is what a source read whole would train on."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.pictures import encoded, noise
from data.scenes import (
    HEIGHT,
    NAMES,
    WIDTH,
    Scene,
    every_box,
    every_mask,
    index_mask,
    some_scenes,
    write_coco,
    write_masks,
)
from PIL import Image
from shard_files import write_tar

from kswap.data import SwapData
from kswap.data.sets import IGNORE, OPEN, ImageSet
from kswap.data.streaming import Place, Reader
from kswap.errors import UserError

VALUES = {name: value for value, name in enumerate(NAMES, 1)}
CLASS_NAMES = ["background", *NAMES]
OLD = NAMES[:3]
Write = Callable[[Path, list[Scene]], str]


def picture(number: int) -> bytes:
    return encoded(noise(f"scene {number}", WIDTH, HEIGHT))


def pixels(number: int) -> bytes:
    with Image.open(io.BytesIO(picture(number))) as image:
        return np.asarray(image.convert("RGB")).tobytes()


def mask(scene: Scene) -> bytes:
    return encoded(Image.fromarray(index_mask(scene, VALUES)))


def objects(scene: Scene) -> list[dict[str, Any]]:
    return [
        {"bbox": [left, top, right - left, bottom - top], "category": name}
        for name, (left, top, right, bottom) in scene.items()
    ]


def _dealt(number: int, shards: int = 3) -> list[range]:
    return [range(shard, number, shards) for shard in range(shards)]


def tar_masks(extension: str) -> Write:
    def write(folder: Path, scenes: list[Scene]) -> str:
        for shard, rows in enumerate(_dealt(len(scenes))):
            samples = [
                (f"{row:03}", {"jpg": picture(row), extension: mask(scenes[row])}) for row in rows
            ]
            write_tar(folder / f"{shard}.tar", samples)
        return str(folder / "{0..2}.tar")

    return write


def tar_boxes(wrap: Callable[[list[dict[str, Any]]], Any]) -> Write:
    def write(folder: Path, scenes: list[Scene]) -> str:
        for shard, rows in enumerate(_dealt(len(scenes))):
            members = [
                {"png": picture(r), "json": json.dumps(wrap(objects(scenes[r]))).encode()}
                for r in rows
            ]
            write_tar(folder / f"{shard}.tar", zip(map(str, rows), members, strict=True))
        return str(folder / "{0..2}.tar")

    return write


def _lists(found: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {key: [one[key] for one in found] for key in ("bbox", "category")}


def parquet_of(column: Callable[[Scene], dict[str, Any]]) -> Write:
    def write(folder: Path, scenes: list[Scene]) -> str:
        import datasets

        for shard, rows in enumerate(_dealt(len(scenes))):
            table = datasets.Dataset.from_list(
                [{"image": {"bytes": picture(r), "path": None}, **column(scenes[r])} for r in rows]
            )
            table.to_parquet(str(folder / f"{shard}.parquet"))
        return str(folder / "*.parquet")

    return write


def jsonl_boxes(folder: Path, scenes: list[Scene]) -> str:
    for shard, rows in enumerate(_dealt(len(scenes))):
        lines = []
        for row in rows:
            (folder / f"{row}.png").write_bytes(picture(row))
            lines.append(json.dumps({"image": f"{row}.png", "objects": objects(scenes[row])}))
        (folder / f"{shard}.jsonl").write_text("\n".join(lines))
    return str(folder / "*.jsonl")


def csv_masks(folder: Path, scenes: list[Scene]) -> str:
    lines = ["image,mask"]
    for row, scene in enumerate(scenes):
        (folder / f"{row}.png").write_bytes(picture(row))
        (folder / f"{row}-mask.png").write_bytes(mask(scene))
        lines.append(f"{row}.png,{row}-mask.png")
    (folder / "all.csv").write_text("\n".join(lines))
    return str(folder / "all.csv")


MASKS: dict[str, Write] = {
    "tar, png beside jpg": tar_masks("png"),
    "tar, mask.png": tar_masks("mask.png"),
    "tar, seg.png": tar_masks("seg.png"),
    "parquet": parquet_of(lambda scene: {"mask": {"bytes": mask(scene), "path": None}}),
    "csv": csv_masks,
}
BOXES: dict[str, Write] = {
    "tar, a list": tar_boxes(lambda found: found),
    "tar, objects": tar_boxes(lambda found: {"width": WIDTH, "height": HEIGHT, "objects": found}),
    "tar, lists": tar_boxes(_lists),
    "tar, objects of lists": tar_boxes(lambda found: {"annotations": _lists(found)}),
    "parquet": parquet_of(lambda scene: {"objects": objects(scene)}),
    "jsonl": jsonl_boxes,
}


def streaming(data: str, **more: Any) -> dict[str, Any]:
    return {"data": data, "streaming": True, "shuffle_buffer": 3, **more}


def drawn(data: SwapData, role: str, number: int, *, place: Place | None = None) -> list[ImageSet]:
    """Return so many batches of four."""
    reader = Reader(data.streamed[role], (0, 1, 2), 4, place or Place())  # type: ignore[index]
    try:
        return [reader.draw().images for _ in range(number)]
    finally:
        reader.close()


def as_data(batches: list[ImageSet]) -> SwapData:
    """Return batches as if they were the splits of a role."""
    sets = {"retain": dict(enumerate(batches))}
    return SwapData({}, 0, {}, sets, None, ())  # type: ignore[arg-type]


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, Any]:
    """A source to learn from, of both kinds."""
    learned = some_scenes(12, ("horse", "dog"))
    write_masks(tmp_path / "learn", learned, tag="new")
    write_coco(tmp_path / "boxes", learned, tag="new")
    return {"masks": str(tmp_path / "learn"), "boxes": str(tmp_path / "boxes")}


def not_held(data: SwapData) -> set[bytes]:
    """Return the train images of retain."""
    return {image.tobytes() for image in data.sets["retain"]["train"].images}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_a_stream_are_those_of_the_same_source_read_whole(
    kind, tmp_path, build_masks, whole
):
    (tmp_path / "s").mkdir()
    scenes = some_scenes(24, OLD)
    learn = {"data": whole["masks"], "classes": ["horse"]}
    given = streaming(MASKS[kind](tmp_path / "s", scenes), class_names=CLASS_NAMES)
    data = build_masks(learn=learn, retain=given)
    assert every_mask(data, "retain"), "the sample"
    batches = drawn(data, "retain", 12)
    found = every_mask(as_data(batches), "retain")
    assert set(found) == not_held(data), "what is held out is passed over, all else is drawn"
    by_image = every_mask(data, "retain")
    assert all(np.array_equal(found[image], by_image[image]) for image in found)
    expected = {pixels(n): scene for n, scene in enumerate(scenes)}
    rows = {"cat": 0, "dog": 1, "frog": 2}
    for image, one in found.items():
        by_hand = np.full((HEIGHT, WIDTH), OPEN)
        for name, (left, top, right, bottom) in expected[image].items():
            by_hand[top:bottom, left:right] = rows[name]
        assert np.array_equal(one, by_hand)
    assert {int(c) for batch in batches for c in batch.class_ids} <= {0, 1, 2}
    assert all(
        batch.complete and batch.covered == data.sets["retain"]["train"].covered
        for batch in batches
    )


@pytest.mark.parametrize("kind", BOXES)
def test_boxes_of_a_stream_are_those_of_the_same_source_read_whole(
    kind, tmp_path, build_boxes, whole
):
    (tmp_path / "s").mkdir()
    scenes = some_scenes(24, OLD)
    learn = {"data": whole["boxes"], "classes": ["horse"]}
    data = build_boxes(learn=learn, retain=streaming(BOXES[kind](tmp_path / "s", scenes)))
    found = every_box(as_data(drawn(data, "retain", 12)), "retain")
    assert set(found) == not_held(data)
    by_image = every_box(data, "retain")
    assert len(by_image) == 24
    assert all(found[image] == by_image[image] for image in found)
    left, top, right, bottom = (1000 / 16, 2000 / 12, 7000 / 16, 8000 / 12)
    first = [int(np.rint(v)) for v in (left, top, right, bottom)]
    assert all(any(list(box[2:]) == first for box in boxes) for boxes in found.values())


def test_a_dataset_in_memory_streams(tmp_path, build_boxes, whole):
    import datasets

    rows = [
        {"image": noise(f"{n}", WIDTH, HEIGHT), "objects": objects(scene)}
        for n, scene in enumerate(some_scenes(12, OLD))
    ]
    stream = datasets.IterableDataset.from_generator(lambda: iter(rows))
    data = build_boxes(
        learn={"data": whole["boxes"], "classes": ["horse"]},
        retain={"streaming": True},
        in_memory={"retain": stream},
    )
    found = every_box(as_data(drawn(data, "retain", 6)), "retain")
    assert set(found) == not_held(data)


def test_classes_beyond_the_sample_get_their_rows(tmp_path, build_boxes, whole):
    """Text names no class before it is read: frogs are the model's, whether sampled or not."""
    (tmp_path / "s").mkdir()
    cats = some_scenes(9, ("cat", "dog"))
    frogs = [{"frog": (1, 2, 7, 8), "owl": (8, 3, 14, 11)} for _ in range(24)]
    pattern = tar_boxes(lambda found: found)(tmp_path / "s", [*cats, *frogs])
    data = build_boxes(
        learn={"data": whole["boxes"], "classes": ["horse"]},
        retain=streaming(pattern, sample_images=6),
    )
    assert "frog" not in {NAMES[c] for c in data.sets["retain"]["train"].class_ids}
    batches = drawn(data, "retain", 8)
    ids = {int(c) for batch in batches for c in batch.class_ids}
    assert 2 in ids, "an image of frogs stands for frogs"
    rows = {int(c) for batch in batches for boxes in batch.boxes or () for c in boxes.class_ids}
    assert rows == {0, 1, 2}, "no model and no role knows owls"


def test_no_image_stands_for_the_background_that_the_model_knows(tmp_path, build_masks, whole):
    (tmp_path / "s").mkdir()
    scenes = [*some_scenes(24, OLD), *({} for _ in range(6))]
    data = build_masks(
        id2label=dict(enumerate(CLASS_NAMES[:4])),
        learn={"data": whole["masks"], "classes": ["horse"]},
        retain=streaming(MASKS["parquet"](tmp_path / "s", scenes), class_names=CLASS_NAMES),
    )
    for batch in drawn(data, "retain", 8):
        assert set(batch.class_ids) <= {1, 2, 3}
        assert (batch.masks == 0).any(axis=(1, 2)).all(), "background is a class all the same"
        assert (batch.masks > 0).any(axis=(1, 2)).all(), "an image of nothing else is passed over"


@pytest.mark.parametrize("role", ["forget", "learn"])
def test_images_without_an_object_of_the_role_are_passed_over(role, tmp_path, build_masks, whole):
    (tmp_path / "s").mkdir()
    scenes = some_scenes(24)
    given = streaming(
        MASKS["parquet"](tmp_path / "s", scenes),
        class_names=CLASS_NAMES,
        classes=["frog" if role == "forget" else "horse"],
    )
    data = build_masks(**{role: given})
    (row,) = data.class_ids[role]
    batches = drawn(data, role, 4)
    assert all((batch.masks[n] == row).any() for batch in batches for n in range(len(batch)))
    assert {int(c) for batch in batches for c in batch.class_ids} == {row}
    if role == "learn":
        values = {int(v) for batch in batches for v in np.unique(batch.masks)}
        assert values == {row, OPEN}, "labels of what is learned are partial"
        assert not batches[0].complete


def test_images_of_several_sizes_are_padded(tmp_path, build_masks, whole):
    from transformers import SegformerImageProcessorPil

    free = SegformerImageProcessorPil(do_resize=False)
    sizes = [(16, 12), (10, 20), (16, 12), (24, 8)] * 6
    samples = []
    for n, (width, height) in enumerate(sizes):
        values = np.full((height, width), 1 + n % 3, np.uint8)
        samples.append(
            (
                f"{n:03}",
                {
                    "png": encoded(noise(f"{n}", width, height)),
                    "mask.png": encoded(Image.fromarray(values)),
                },
            )
        )
    write_tar(tmp_path / "s.tar", samples)
    data = build_masks(
        learn={"data": whole["masks"], "classes": ["horse"]},
        retain=streaming(str(tmp_path / "s.tar"), class_names=CLASS_NAMES),
        fitted_by=free,
    )
    for batch in drawn(data, "retain", 6):
        assert batch.masks is not None
        assert batch.masks.shape[1:] == batch.images.shape[1:3]
        shapes = [batch.images.shape[1:3]] * len(batch) if batch.sizes is None else batch.sizes
        for one, (height, width) in zip(batch.masks, shapes, strict=True):
            assert (one[:height, :width] >= 0).all()
            assert (one[height:] == IGNORE).all()
            assert (one[:, width:] == IGNORE).all()


def test_a_bad_mask_ends_the_run_or_is_skipped(tmp_path, build_masks, whole):
    scenes = some_scenes(18, OLD)
    samples = [
        (f"{n:03}", {"jpg": picture(n), "png": mask(s) if n != 13 else b"no mask"})
        for n, s in enumerate(scenes)
    ]
    write_tar(tmp_path / "s.tar", samples)
    learn = {"data": whole["masks"], "classes": ["horse"]}
    given = streaming(str(tmp_path / "s.tar"), class_names=CLASS_NAMES, sample_images=8)
    data = build_masks(learn=learn, retain=given)
    with pytest.raises(UserError, match=r"013\.png: is not a mask .*or set data.on_bad_image"):
        drawn(data, "retain", 4)
    data = build_masks(learn=learn, retain=given, data={"on_bad_image": "skip"})
    assert len(drawn(data, "retain", 4)) == 4


@pytest.mark.parametrize(
    ("images", "mask_as", "more", "said"),
    [
        (("jpg",), "png", {}, None),
        (("png",), "label.png", {}, None),
        (("jpg",), "a.png", {"mask_column": "A.png"}, None),
        (("jpg", "png"), "a.png", {"mask_column": "a.png", "image_column": "jpg"}, None),
        (("jpg", "webp"), "png", {}, "has several images"),
        (("jpg",), "webp", {}, "cannot tell which of its pictures is the mask"),
        (("jpg",), "txt", {}, r"0\.png: is not a mask"),
    ],
)
def test_which_member_is_the_mask(images, mask_as, more, said, tmp_path, build_masks, whole):
    content = mask(some_scenes(1, OLD)[0])
    samples = [
        (f"{n}", {**{one: picture(n) for one in images}, mask_as: content}) for n in range(6)
    ]
    write_tar(tmp_path / "s.tar", samples)
    given = streaming(str(tmp_path / "s.tar"), class_names=CLASS_NAMES, **more)
    sources = {"learn": {"data": whole["masks"], "classes": ["horse"]}, "retain": given}
    if said is None:
        assert every_mask(build_masks(**sources), "retain")
        return
    with pytest.raises(UserError, match=said):
        build_masks(**sources)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", r"0\.json: is no JSON"),
        ('{"caption": "a cat"}', "holds no boxes with classes"),
        ("[1, 2]", "holds no boxes with classes"),
        ('[{"bbox": [1, 2, 3, 4]}]', "the objects have no classes"),
        (
            '[{"bbox": [1, 2, 3, 4], "category": null}]',
            "the category of a box is 'None', which is no name",
        ),
        ('[{"bbox": [1, 2, 3, 4], "category": "cat"}, {"category": "cat"}]', "not four numbers"),
        ('[{"bbox": [0.1, 0.1, 0.3, 0.4], "category": "cat"}]', "write box_unit: fractions"),
        ('[{"bbox": [1, 2, 3, 4], "category": ["cat"]}]', "the category of a box is "),
    ],
)
def test_objects_that_are_not_as_they_have_to_be(text, said, tmp_path, build_boxes, whole):
    write_tar(tmp_path / "s.tar", [("0", {"png": picture(0), "json": text.encode()})])
    with pytest.raises(UserError, match=said):
        build_boxes(
            learn={"data": whole["boxes"], "classes": ["horse"]},
            retain=streaming(str(tmp_path / "s.tar")),
        )


def test_images_without_objects_are_no_damage(tmp_path, build_boxes, whole):
    texts = [b"[]", None, b'{"objects": []}', b'{"objects": {"bbox": [], "category": []}}'] * 3
    samples = [
        (f"{n}", {"png": picture(n)} if text is None else {"png": picture(n), "json": text})
        for n, text in enumerate(texts)
    ]
    named = [
        (f"{n + 50}", {"png": picture(n + 50), "json": json.dumps(objects(s)).encode()})
        for n, s in enumerate(some_scenes(12, OLD))
    ]
    write_tar(tmp_path / "s.tar", [*samples, *named])
    data = build_boxes(
        learn={"data": whole["boxes"], "classes": ["horse"]},
        retain=streaming(str(tmp_path / "s.tar")),
    )
    assert set(every_box(as_data(drawn(data, "retain", 6)), "retain")) == not_held(data)
    assert any("12 images without objects" in note for note in data.notes)
