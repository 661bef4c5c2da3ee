"""build_data from end to end: no leaks, stable, bad images, memory maps, sizes."""

from __future__ import annotations

import errno
import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from data.conftest import LABELS
from data.pictures import images_of, noise, same, sizes, write_folder
from PIL import Image

from kswap.data import SwapData, decode, read_image, store
from kswap.errors import DiskFullError, UserError
from kswap.settings import ROLES, SPLITS

Build = Callable[..., SwapData]


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "all", {"cat": 12, "dog": 12, "frog": 12, "horse": 12})


def three_roles(folder: Path, **retain: Any) -> dict[str, Any]:
    return {
        "learn": {"data": str(folder), "classes": ["horse"]},
        "forget": {"data": str(folder), "classes": ["cat"]},
        "retain": {"data": str(folder), **retain},
    }


def test_arrays_are_what_the_processor_gives(
    everything: Path, build: Build, processor: Any
) -> None:
    data = build(**three_roles(everything))
    train = data.sets["learn"]["train"]
    assert train.images.dtype == np.uint8
    assert train.images.shape == (9, 8, 8, 3)
    assert train.class_ids.dtype == np.int64
    assert len(train) == 9
    every = {image for split in SPLITS for image in images_of(data, "learn", split)}
    pictures = [read_image(path) for path in sorted((everything / "horse").iterdir())]
    whole = processor(images=pictures, return_tensors="np")["pixel_values"]
    for pixels in whole:
        back = np.rint((pixels * 0.5 + 0.5) * 255).astype(np.uint8).transpose(1, 2, 0)
        assert back.tobytes() in every
    assert len(every) == len(pictures)


def test_same_inputs_same_arrays_whatever_the_names(everything: Path, build: Build) -> None:
    first = build(**three_roles(everything), seed=3)
    assert same(build(**three_roles(everything), seed=3), first)
    for index, path in enumerate(sorted(everything.glob("*/*.png"))):
        read_image(path).save(path.parent / f"{(index * 7) % 100:03}-new.bmp")
        path.unlink()
    assert same(build(**three_roles(everything), seed=3), first)
    assert not same(build(**three_roles(everything), seed=4), first)


def test_sets_are_in_the_order_of_the_classes(everything: Path, build: Build) -> None:
    ids = build(**three_roles(everything)).sets["retain"]["train"].class_ids
    assert ids.tolist() == sorted(ids.tolist())


def test_copies_do_not_leak_over_roles_and_encodings(tmp_path: Path, build: Build) -> None:
    learn = write_folder(tmp_path / "learn", {"horse": 12})
    retain = write_folder(tmp_path / "retain" / "train", {"dog": 30}).parent
    write_folder(tmp_path / "retain" / "test", {"dog": 3}, tag="t")
    config = {"learn": {"data": str(learn)}, "retain": {"data": str(retain)}}
    before = build(**config)
    # every picture of learn, encoded anew, goes to retain's train; one of retain's test to learn
    for index, path in enumerate(sorted((learn / "horse").iterdir())):
        read_image(path).save(retain / "train" / "dog" / f"copy{index}.tiff")
    shutil.copy(retain / "test" / "dog" / "0.png", learn / "horse" / "zz.png")
    data = build(**config)
    held = {s: {i for r in ("learn", "retain") for i in images_of(data, r, s)} for s in SPLITS}
    assert not held["train"] & held["test"]
    assert not held["train"] & held["validation"]
    assert not held["validation"] & held["test"]
    assert images_of(data, "retain", "test") == images_of(before, "retain", "test")
    assert images_of(data, "learn", "test") == images_of(before, "learn", "test")
    assert sizes(data, "learn")[2] == 2
    assert "left out of train or validation" in " ".join(data.notes)


def test_copies_within_a_class_count_once(tmp_path: Path, build: Build) -> None:
    folder = write_folder(tmp_path, {"horse": 10})
    before = build(learn={"data": str(folder)})
    for path in sorted((folder / "horse").iterdir()):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    after = build(learn={"data": str(folder)})
    assert same(before, after)
    assert "10 exact copies of images within a class and split left out" in after.notes


def test_nearly_the_same_is_not_a_copy(tmp_path: Path, build: Build) -> None:
    (tmp_path / "horse").mkdir()
    pixels = np.zeros((10, 12, 3), np.uint8)
    for index in range(5):  # one pixel differs, and the size of the same bytes
        pixels[0, 0, 0] = index // 2
        Image.fromarray(pixels.reshape((10, 12, 3) if index % 2 else (12, 10, 3))).save(
            tmp_path / "horse" / f"{index}.png"
        )
    assert sum(sizes(build(learn={"data": str(tmp_path)}), "learn")) == 5


def test_one_picture_under_two_classes_is_noted(tmp_path: Path, build: Build) -> None:
    folder = write_folder(tmp_path, {"horse": 10})
    shutil.copytree(folder / "horse", folder / "ship")
    notes = build(learn={"data": str(folder)}).notes
    assert "10 pictures in one split under more than one class, kept under each" in notes


def test_fraction_thins_train_only(everything: Path, build: Build) -> None:
    full = build(**three_roles(everything))
    half = build(**three_roles(everything, fraction=0.5))
    tiny = build(**three_roles(everything, fraction=0.001))
    assert sizes(full, "retain") == (18, 2, 4)
    assert sizes(half, "retain") == (8, 2, 4)
    assert sizes(tiny, "retain") == (2, 2, 4)
    assert set(images_of(tiny, "retain", "train")) < set(images_of(half, "retain", "train"))
    assert set(images_of(half, "retain", "train")) < set(images_of(full, "retain", "train"))
    assert images_of(half, "retain", "test") == images_of(full, "retain", "test")
    assert sizes(half, "forget") == sizes(full, "forget")
    assert "retain: 10 train images left out by fraction 0.5" in half.notes


@pytest.mark.parametrize(
    ("order", "roles", "said"),
    [
        ("F", {"forget", "retain"}, "learn: left out, as order F has no stage that learns"),
        ("L", set(ROLES), "forget: order L has no stage that forgets; its classes are scored, and "
         "not marked as forgotten"),
        ("J", set(ROLES), None),
        ("FL", set(ROLES), None),
    ],
)  # fmt: skip
def test_a_source_without_a_stage_of_its_own_is_said(
    order: str, roles: set[str], said: str | None, everything: Path, build: Build
) -> None:
    data = build(**three_roles(everything), order=order)
    assert set(data.sets) == {role for role, rows in data.class_ids.items() if rows} == roles
    assert data.id2label == (LABELS | {3: "horse"} if "learn" in roles else LABELS)
    assert [note for note in data.notes if "no stage" in note] == ([said] if said else [])


def test_what_is_to_be_learned_is_not_read_where_no_stage_learns(
    everything: Path, build: Build
) -> None:
    config = three_roles(everything)
    given = {"learn": object()}
    expected = build(forget=config["forget"], retain=config["retain"])
    config["learn"] = {"data": str(everything / "nowhere"), "streaming": True}
    assert same(build(**config, order="F"), expected)
    assert same(build(**config, order="F", in_memory=given), expected)


def test_thinned_images_are_not_held(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "train", {"horse": 300}, tag="a")
    write_folder(tmp_path / "test", {"horse": 3}, tag="b")
    kept: list[int] = []
    put = store.MemoryStore.put
    monkeypatch.setattr(decode, "CHUNK", 16)
    monkeypatch.setattr(
        store.MemoryStore,
        "put",
        lambda self, index, image: (kept.append(index), put(self, index, image)),
    )
    thin = {"learn": {"data": str(tmp_path), "fraction": 0.1}, "data": {"validation_fraction": 0}}
    data = build(**thin)
    assert sizes(data, "learn") == (30, 0, 3)
    assert len(kept) < 90
    monkeypatch.setattr(decode, "may_be_used", lambda *args: False)  # then all are decoded again
    assert same(build(**thin), data)


def test_memory_maps_equal_memory(everything: Path, build: Build, tmp_path: Path) -> None:
    expected = build(**three_roles(everything, fraction=0.5))
    on_disk = {"data": {"memory_limit_bytes": 0}}
    cache = tmp_path / "cache"
    for _ in range(2):  # the second run writes over the files of the first
        data = build(**three_roles(everything, fraction=0.5), **on_disk, cache_dir=cache)
        assert same(data, expected)
    assert isinstance(data.sets["learn"]["train"].images, np.memmap)
    assert len(list(cache.iterdir())) == 9
    data.pixels(
        data.sets["learn"]["train"].images[:2]
    )  # a batch that torch takes without a warning


def test_temporary_files_go_with_the_arrays(
    everything: Path, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    data = build(**three_roles(everything), data={"memory_limit_bytes": 0})
    assert len(list((tmp_path / "tmp").rglob("*.images"))) == 9
    del data
    gc.collect()
    assert list((tmp_path / "tmp").iterdir()) == []
    noise("x").save(everything / "dog" / "bad.png")
    (everything / "dog" / "bad.png").write_bytes(b"")
    with pytest.raises(UserError):
        build(**three_roles(everything), data={"memory_limit_bytes": 0})
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.ENOSPC, DiskFullError, "cache: the disk is full .*memory_limit_bytes"),
        (errno.EIO, UserError, "cache: decoded images cannot be written"),
    ],
)
def test_a_full_disk_is_one_error(
    number: int,
    kind: type[Exception],
    message: str,
    everything: Path,
    build: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(path: Path, target: Path) -> None:
        raise OSError(number, "no")

    (tmp_path / "cache").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(kind, match=message):
            build(
                **three_roles(everything),
                data={"memory_limit_bytes": 0},
                cache_dir=tmp_path / "cache",
            )
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_disk_that_fills_while_images_are_decoded(tmp_path: Path) -> None:
    def fill() -> None:
        with store.FileStore(tmp_path) as full:
            full._file.close()
            full._file = Path("/dev/full").open("r+b")  # noqa: SIM115
            full.put(0, np.zeros((8, 8, 3), np.uint8))
            full.take(0)

    with pytest.raises(DiskFullError, match=r"the disk is full"):
        fill()


def test_bad_images_stop_or_are_skipped_and_listed(everything: Path, build: Build) -> None:
    before = build(**three_roles(everything))
    for name in ("a.png", "b.jpg"):
        (everything / "dog" / name).write_bytes(b"no image")
    with pytest.raises(UserError, match=r"dog/a.png: is not an image.*on_bad_image: skip"):
        build(**three_roles(everything))
    data = build(**three_roles(everything), data={"on_bad_image": "skip"})
    assert same(data, before)
    (note,) = (note for note in data.notes if "bad images skipped" in note)
    assert note.startswith("2 bad images skipped")
    assert "dog/a.png" in note
    assert "dog/b.jpg" in note


def test_images_of_other_classes_are_not_even_read(everything: Path, build: Build) -> None:
    (everything / "dog" / "a.png").write_bytes(b"no image")
    build(learn={"data": str(everything), "classes": ["horse"]})


def test_only_bad_images(tmp_path: Path, build: Build) -> None:
    (tmp_path / "horse").mkdir()
    (tmp_path / "horse" / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"a.png: .*there is no other image"):
        build(learn={"data": str(tmp_path)}, data={"on_bad_image": "skip"})
    noise("good").save(tmp_path / "horse" / "b.png")
    (tmp_path / "ship").mkdir()
    (tmp_path / "ship" / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"'horse' has one image"):
        build(learn={"data": str(tmp_path), "classes": ["horse"]}, data={"on_bad_image": "skip"})
    noise("better").save(tmp_path / "horse" / "c.png")
    with pytest.raises(
        UserError, match=r"no train images of 'ship' are left of 1 .*cannot be decoded"
    ):
        build(learn={"data": str(tmp_path)}, data={"on_bad_image": "skip"})


def test_too_few_images(tmp_path: Path, build: Build) -> None:
    folder = write_folder(tmp_path / "x", {"horse": 1, "ship": 4})
    with pytest.raises(UserError, match=r"learn: class 'horse' has one image that is not a copy"):
        build(learn={"data": str(folder)})
    shutil.copy(folder / "horse" / "0.png", folder / "horse" / "1.png")
    with pytest.raises(UserError, match=r"learn: class 'horse' has one image that is not a copy"):
        build(learn={"data": str(folder)})
    noise("more").save(folder / "horse" / "2.png")
    assert sizes(build(learn={"data": str(folder)}), "learn") == (3, 1, 2)


def test_leaks_may_leave_nothing_to_train(tmp_path: Path, build: Build) -> None:
    write_folder(tmp_path / "train", {"horse": 3, "ship": 3})
    write_folder(tmp_path / "test", {"horse": 3})
    with pytest.raises(
        UserError, match=r"no train images of 'horse' are left of 3 .*also in a test"
    ):
        build(learn={"data": str(tmp_path)})


def test_classes_without_test_or_train_images(tmp_path: Path, build: Build) -> None:
    write_folder(tmp_path / "train", {"cat": 3, "dog": 3, "ship": 3}, tag="a")
    write_folder(tmp_path / "test", {"cat": 3, "frog": 3, "horse": 1}, tag="b")
    data = build(forget={"data": str(tmp_path), "classes": ["cat"]}, retain={"data": str(tmp_path)})
    assert "retain: 1 class without train images: frog" in data.notes
    assert "retain: 1 class without test images, so without a score: dog" in data.notes
    with pytest.raises(UserError, match=r"forget: no test images of dog"):
        build(forget={"data": str(tmp_path), "classes": ["dog"]})
    with pytest.raises(UserError, match=r"learn: no train images of 'horse' in "):
        build(learn={"data": str(tmp_path), "classes": ["horse", "ship"]})


def test_one_size_for_all(tmp_path: Path, build: Build) -> None:
    folder = write_folder(tmp_path, {"horse": 3})
    as_is = transformers.ViTImageProcessor(do_resize=False)
    assert build(learn={"data": str(folder)}, fitted_by=as_is).sets["learn"][
        "train"
    ].images.shape == (1, 10, 12, 3)
    noise("tall", 10, 12).save(folder / "horse" / "x.png")
    with pytest.raises(
        UserError, match=r"x.png: the processor gives it the shape .*fixed size or crop"
    ):
        build(learn={"data": str(folder)}, fitted_by=as_is)


def test_float_images_where_the_processor_cannot_be_split(everything: Path, build: Build) -> None:
    processor = transformers.EfficientNetImageProcessor(
        size={"height": 8, "width": 8}, rescale_offset=True, rescale_factor=1 / 127.5
    )
    data = build(learn={"data": str(everything), "classes": ["horse"]}, fitted_by=processor)
    train = data.sets["learn"]["train"]
    assert train.images.dtype == np.float32
    assert train.images.shape == (9, 3, 8, 8)
    assert not data.pixels.separable
    assert np.array_equal(data.pixels(train.images).numpy(), train.images)
    on_disk = build(
        learn={"data": str(everything), "classes": ["horse"]},
        fitted_by=processor,
        data={"memory_limit_bytes": 0},
    )
    assert same(on_disk, data)


def test_files_that_change_meanwhile(
    everything: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(done: int, total: int) -> None:
        for path in everything.glob("dog/*.png") if done == total else ():
            noise(f"new {path}").save(path)

    monkeypatch.setattr(decode, "CHUNK", 1)  # of a longer one threads may keep any number
    monkeypatch.setattr(decode, "may_be_used", lambda *args: False)
    with pytest.raises(UserError, match=r"dog/.*has changed while the data was read; run again"):
        build(**three_roles(everything, fraction=0.5), on_progress=change)


def test_progress_is_told(everything: Path, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "CHUNK", 20)
    told: list[tuple[int, int]] = []
    build(**three_roles(everything), on_progress=lambda done, total: told.append((done, total)))
    assert told == [(20, 48), (40, 48), (48, 48)]


def test_a_role_without_a_source_has_no_sets(everything: Path, build: Build) -> None:
    data = build(forget={"data": str(everything), "classes": ["cat"]})
    assert set(data.class_ids) == set(ROLES)
    assert set(data.sets) == {"forget"}
    assert set(data.sets["forget"]) == set(SPLITS)


def test_a_source_may_have_no_validation(everything: Path, build: Build) -> None:
    data = build(
        learn={"data": str(everything), "classes": ["horse"]}, data={"validation_fraction": 0}
    )
    assert sizes(data, "learn") == (10, 0, 2)
    assert data.sets["learn"]["validation"].images.shape == (0, 8, 8, 3)


def test_grey_and_palette_files_train_beside_colour(tmp_path: Path, build: Build) -> None:
    (tmp_path / "horse").mkdir()
    picture: Image.Image = noise("modes")
    for mode in ("RGB", "L", "LA", "P", "RGBA", "1"):
        picture.convert(mode).save(tmp_path / "horse" / f"{mode}.png")
    picture.convert("CMYK").save(tmp_path / "horse" / "CMYK.jpg")
    data = build(learn={"data": str(tmp_path)})
    assert "copies" in " ".join(data.notes)  # RGBA and RGB, L and LA have the same pixels
    assert sum(sizes(data, "learn")) == 5


def test_a_retained_class_of_one_image_trains_unless_it_was_named(
    tmp_path: Path, build: Build
) -> None:
    folder = write_folder(tmp_path / "x", {"cat": 1, "dog": 4, "frog": 4})
    forget = {"data": str(folder), "classes": ["frog"]}
    data = build(forget=forget, retain={"data": str(folder)})
    cat = next(row for row, name in data.id2label.items() if name == "cat")
    places = {split: images.class_ids for split, images in data.sets["retain"].items()}
    assert [split for split, ids in places.items() if cat in ids] == ["train"]
    assert any("retain: 1 class without test images" in note for note in data.notes)
    with pytest.raises(UserError, match=r"retain: class 'cat' has one image"):
        build(forget=forget, retain={"data": str(folder), "classes": ["cat", "dog"]})
