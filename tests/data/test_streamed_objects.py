"""Objects of streams: in rows and in JSON, of images that have none, and as nobody should write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from data.pictures import noise
from data.scenes import HEIGHT, NAMES, WIDTH, every_box, some_scenes
from data.streamed import (
    BOXES,
    OLD,
    as_data,
    drawn,
    not_held,
    objects,
    picture,
    streaming,
    tar_boxes,
)
from shard_files import write_tar

from kswap.errors import UserError


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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", r"0\.json: is no JSON"),
        pytest.param(f"[{' ' * (1 << 24)}]", r"0\.json: is empty, or more than 16 MiB", id="large"),
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
        ('[{"bbox": [%s, 2, 3, 4], "category": "cat"}]' % ("9" * 400), r"0: a box is .*not four"),
        ('[{"bbox": [1e308, 2, 1e308, 4], "category": "cat"}]', r"0: a box is .*not four"),
        ('{"height": "tall", "width": 16, "objects": []}', r"0\.json: height and width are 'tall'"),
        ('{"height": 12, "width": Infinity, "objects": []}', r"0\.json: height and width are '12'"),
        ('{"objects": {"bbox": [[1, 2, 3, 4]], "category": "cat"}}', "holds no boxes with classes"),
        ('{"objects": {"caption": "a cat"}}', "holds no boxes with classes"),
        ('[{"caption": "a cat"}]', r"the objects have no boxes \(caption\)"),
    ],
)
def test_objects_that_are_not_as_they_have_to_be(text, said, tmp_path, build_boxes, whole):
    write_tar(tmp_path / "s.tar", [("0", {"png": picture(0), "json": text.encode()})])
    with pytest.raises(UserError, match=said):
        build_boxes(
            learn={"data": whole["boxes"], "classes": ["horse"]},
            retain=streaming(str(tmp_path / "s.tar")),
        )


@pytest.mark.parametrize("file", ["", "annotations.json"])
def test_coco_is_not_streamed(file, build_boxes, whole):
    given = streaming(str(Path(whole["boxes"]) / file))
    with pytest.raises(UserError, match=r"annotations\.json: is COCO JSON, which is not streamed"):
        build_boxes(learn={"data": whole["boxes"], "classes": ["horse"]}, retain=given)


def test_images_without_objects_are_no_damage(tmp_path, build_boxes, whole):
    texts = [
        b"[]",
        None,
        b'{"objects": []}',
        b'{"objects": {"bbox": [], "category": []}}',
        b'{"boxes": []}',
        b'{"objects": null}',
        b'{"objects": {"bbox": [], "category": null, "iscrowd": null}}',
    ]
    texts += texts[:5]
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


@pytest.mark.parametrize(
    "first",
    [
        [],
        None,
        [{"bbox": [1, 2, 3, 4], "category": "cat"}],
        [{"bbox": [1, 2, 3, 4], "category": "cat", "iscrowd": 0, "area": 12}],
        {"bbox": np.asarray([[1, 2, 3, 4]]), "category": ("cat",), "iscrowd": None},
    ],
)
def test_rows_without_types_are_read_one_by_one(first, build_boxes, whole):
    """What the first row holds says nothing of the others: crowds were taken for objects."""
    import datasets

    rows = [{"image": noise("first", WIDTH, HEIGHT), "objects": first}]
    for n, scene in enumerate(some_scenes(12, OLD)):
        found = [{**one, "iscrowd": place} for place, one in enumerate(objects(scene))]
        rows.append({"image": noise(f"{n}", WIDTH, HEIGHT), "objects": found})
    data = build_boxes(
        learn={"data": whole["boxes"], "classes": ["horse"]},
        retain={"streaming": True},
        in_memory={"retain": datasets.IterableDataset.from_generator(lambda: iter(rows))},
    )
    batches = drawn(data, "retain", 6)
    crowds = [one.crowd.tolist() for batch in batches for one in batch.boxes or ()]
    assert crowds.count([False, True]) > len(crowds) / 2
    assert all(one in ([False, True], [False]) for one in crowds), "the first image has no crowd"


def test_a_shard_without_any_object_is_no_damage(tmp_path, build_boxes, whole):
    (tmp_path / "s").mkdir()
    scenes = [{} if n % 3 == 0 else scene for n, scene in enumerate(some_scenes(24, OLD))]
    given = streaming(BOXES["jsonl"](tmp_path / "s", scenes))
    data = build_boxes(learn={"data": whole["boxes"], "classes": ["horse"]}, retain=given)
    assert set(every_box(as_data(drawn(data, "retain", 6)), "retain")) == not_held(data)


def test_classes_to_learn_have_the_rows_of_the_same_source_read_whole(tmp_path, build_boxes):
    """They had those in which the stream came upon them."""
    (tmp_path / "s").mkdir()
    scenes = [{name: (1, 2, 7, 8)} for name in ("zebra", "owl", "ape") for _ in range(6)]
    pattern = BOXES["parquet"](tmp_path / "s", scenes)
    rows = [
        build_boxes(learn=given).id2label
        for given in ({"data": str(tmp_path / "s")}, streaming(pattern))
    ]
    assert rows[0] == rows[1]
    assert list(rows[0].values())[3:] == ["ape", "owl", "zebra"]


def test_names_of_numbers_are_made_ready_once(tmp_path, build_boxes, whole, monkeypatch):
    """A model of a thousand classes took longer for each image than reading it."""
    from kswap.data import scene_objects

    made, legend = [], scene_objects.make_legend
    monkeypatch.setattr(
        scene_objects, "make_legend", lambda *given: made.append(1) or legend(*given)
    )
    (tmp_path / "s").mkdir()
    numbered = tar_boxes(lambda found: [{**one, "category": n} for n, one in enumerate(found)])
    data = build_boxes(
        learn={"data": whole["boxes"], "classes": ["horse"]},
        retain=streaming(numbered(tmp_path / "s", some_scenes(24, OLD))),
    )
    assert len(made) == 3, "one for each shard"
    rows = [one.class_ids.tolist() for batch in drawn(data, "retain", 3) for one in batch.boxes]
    assert rows == [[0, 1]] * 12
