"""Sources of scenes that stream: what is drawn is what a source read whole would train on."""

from __future__ import annotations

import json

import numpy as np
import pytest
from data.pictures import encoded, noise
from data.scenes import HEIGHT, WIDTH, every_mask, some_scenes
from data.streamed import (
    CLASS_NAMES,
    MASKS,
    OLD,
    as_data,
    drawn,
    mask,
    not_held,
    picture,
    pixels,
    streaming,
)
from PIL import Image
from shard_files import write_tar

from kswap.data.sets import IGNORE, OPEN
from kswap.errors import UserError


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


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("id2label.json", json.dumps(dict(enumerate(CLASS_NAMES)))),
        ("classes.txt", "\n".join(CLASS_NAMES)),
    ],
)
@pytest.mark.parametrize("kind", ["tar, mask.png", "parquet"])
def test_names_of_values_lie_beside_the_shards(kind, name, content, tmp_path, build_masks, whole):
    folder = tmp_path / "s"
    folder.mkdir()
    pattern = MASKS[kind](folder, some_scenes(24, OLD))
    learn = {"data": whole["masks"], "classes": ["horse"]}
    named = build_masks(learn=learn, retain=streaming(pattern, class_names=CLASS_NAMES))
    (folder / name).write_text(content)
    beside = build_masks(learn=learn, retain=streaming(str(folder)))
    for one, other in zip(drawn(named, "retain", 2), drawn(beside, "retain", 2), strict=True):
        assert np.array_equal(one.images, other.images)
        assert np.array_equal(one.masks, other.masks)


def test_the_content_of_a_picture_is_hashed_once(tmp_path, build_masks, whole, monkeypatch):
    from kswap.data import scene_decode
    from kswap.data import streaming as reading

    (tmp_path / "s").mkdir()
    pattern = MASKS["tar, mask.png"](tmp_path / "s", some_scenes(24, OLD))
    data = build_masks(
        learn={"data": whole["masks"], "classes": ["horse"]},
        retain=streaming(pattern, class_names=CLASS_NAMES),
    )
    hashed, content_hash = [], reading.content_hash
    for module in (scene_decode, reading):
        monkeypatch.setattr(
            module, "content_hash", lambda image: hashed.append(image) or content_hash(image)
        )
    drawn(data, "retain", 3)
    assert hashed
    assert len({id(image) for image in hashed}) == len(hashed)


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
        (("img",), "png", {"image_column": "IMG"}, None),
        (("img",), "values", {"image_column": "img", "mask_column": "values"}, None),
        (("png",), "tif", {"image_column": "png"}, None),
        (("png",), "mask.png", {"image_column": "png"}, None),
        (("jpg", "webp"), "png", {}, "has several images"),
        (("jpg",), "webp", {}, "cannot tell which of its pictures is the mask"),
        (("jpg",), "bmp", {"image_column": "jpg", "mask_column": "png"}, "0: has no mask; add"),
        (("jpg",), "txt", {}, "0: has no mask; add KEY.png"),
        (("png",), "txt", {}, "0: has no mask; add KEY.png"),
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
