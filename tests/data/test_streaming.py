"""Sources that stream: kinds of shards, the sample, the buffer and its place, what is refused."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.pictures import encoded, images_of, noise, sizes, write_folder
from shard_files import write_shards, write_tar

from kswap.data import SwapData
from kswap.data.hf_tables import image_of
from kswap.data.shards import expand
from kswap.data.streaming import Buffer, Place, Reader, Start
from kswap.errors import UserError

Build = Callable[..., SwapData]
CLASSES = ("cat", "dog", "frog")


def pictures(count: int, classes=CLASSES, tag: str = "") -> list[tuple[bytes, str]]:
    return [(encoded(noise(f"{tag}{n}{i}")), n) for i in range(count) for n in classes]


def streaming(data: Any, **more: Any) -> dict[str, Any]:
    return {"data": str(data), "streaming": True, "sample_images": 12, "shuffle_buffer": 7, **more}


def retained(build: Build, data: Any, **more: Any) -> SwapData:
    return build(retain=streaming(data, **more), learn=LEARN)


LEARN: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def learned(tmp_path: Path) -> None:
    """Something to learn beside what streams."""
    LEARN["data"] = str(write_folder(tmp_path / "new", {"horse": 6}))


def drawn(data: SwapData, number: int, *, place: Place | None = None, count: int = 4):
    """Return that many batches of the retain stream as content, and the places behind them."""
    reader = Reader(data.streamed["retain"], (0, 1, 2), count, place or Place())
    try:
        batches = [reader.draw() for _ in range(number)]
    finally:
        reader.close()
    return [
        [
            (image.tobytes(), int(c))
            for image, c in zip(b.images.images, b.images.class_ids, strict=True)
        ]
        for b in batches
    ], [b.place for b in batches]


# --------------------------------------------------------------------------- what may be streamed
def as_parquet(folder: Path, images: list[tuple[bytes, str]]) -> str:
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["frog", "dog", "cat"])}
    )
    for shard in range(3):
        rows = images[shard::3]
        table = datasets.Dataset.from_dict(
            {"image": [{"bytes": b, "path": None} for b, _ in rows], "label": [n for _, n in rows]},
            features=features,
        )
        table.to_parquet(str(folder / f"part-{shard}.parquet"))
    return str(folder / "*.parquet")


def as_arrow(folder: Path, images: list[tuple[bytes, str]]) -> str:
    import datasets

    table = datasets.Dataset.from_dict(
        {"image": [b for b, _ in images], "label": [n for _, n in images]}
    )
    table.save_to_disk(str(folder / "saved"), num_shards=3)
    return str(folder / "saved" / "*.arrow")


def as_text(suffix: str) -> Callable[[Path, list[tuple[bytes, str]]], str]:
    def write(folder: Path, images: list[tuple[bytes, str]]) -> str:
        for number, (content, _) in enumerate(images):
            (folder / f"{number}.png").write_bytes(content)
        for shard in range(3):
            rows = [(f"{n}.png", images[n][1]) for n in range(shard, len(images), 3)]
            if suffix == "jsonl":
                lines = [json.dumps({"file": file, "species": name}) for file, name in rows]
            else:
                lines = ["file,species", *(f"{file},{name}" for file, name in rows)]
            (folder / f"part-{shard}.{suffix}").write_text("\n".join(lines), encoding="utf-8")
        return str(folder / f"part-*.{suffix}")

    return write


KINDS: dict[str, Callable[[Path, list[tuple[bytes, str]]], str]] = {
    "tar": lambda folder, images: write_shards(folder, images, number=3),
    "parquet": as_parquet,
    "arrow": as_arrow,
    "jsonl": as_text("jsonl"),
    "csv": as_text("csv"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_shard_gives_each_image_once_a_pass(kind, tmp_path, build):
    (tmp_path / "shards").mkdir()
    images = pictures(10)
    data = retained(build, KINDS[kind](tmp_path / "shards", images))
    held = images_of(data, "retain", "test") + images_of(data, "retain", "validation")
    assert len(held) == 6
    batches, places = drawn(data, 24, count=1)
    assert places[-1].start.epoch == 0, "30 images, of which 6 are held out"
    found = Counter(image for batch in batches for image, _ in batch)
    assert set(found.values()) == {1}
    assert not set(found) & set(held)
    assert len(set(found) | set(held)) == 30
    fitted = data.streamed["retain"].maker.fitter
    truth = {fitted(noise(f"{n}{i}")).tobytes(): n for i in range(10) for n in CLASSES}
    for batch in batches:
        for image, row in batch:
            assert data.id2label[row] == truth[image]


def test_streams_in_memory_stream_too(tmp_path, build):
    import datasets

    images = pictures(10)
    table = datasets.Dataset.from_dict(
        {"image": [b for b, _ in images], "label": [n for _, n in images]}
    )
    data = build(
        retain=streaming(""),
        learn=LEARN,
        in_memory={"retain": table.to_iterable_dataset(num_shards=4)},
    )
    batches, _ = drawn(data, 6)
    assert len({image for batch in batches for image, _ in batch}) == 24


def test_a_generator_streams_too(build):
    import datasets

    def rows():
        for content, name in pictures(10):
            yield {"picture": content, "species": name, "number": 1}

    stream = datasets.IterableDataset.from_generator(rows)
    assert stream.features is None
    data = build(retain=streaming(""), learn=LEARN, in_memory={"retain": stream})
    batches, _ = drawn(data, 6)
    assert len({image for batch in batches for image, _ in batch}) == 24
    with pytest.raises(UserError, match=r"needs retain\.streaming: true"):
        build(retain={"data": ""}, learn=LEARN, in_memory={"retain": stream})


def test_a_data_set_of_the_hub(build, monkeypatch):
    import datasets
    import fsspec

    from kswap.data import shards

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[*CLASSES])}
    )
    opened = []

    def rows(tag):
        for content, name in pictures(8, tag=tag):
            path = f"hf://datasets/some/one/{len(opened)}.png"
            files[path] = content
            yield {"image": {"bytes": None, "path": path}, "label": CLASSES.index(name)}

    files: dict[str, bytes] = {}
    parts = {
        split: datasets.IterableDataset.from_generator(
            rows, gen_kwargs={"tag": split}, features=features
        )
        for split in ("train", "test")
    }

    def load(name, *config, streaming):
        assert (name, config, streaming) == ("some/one", ("small",), True)
        return parts

    def opening(path, mode):
        opened.append(path)
        return io.BytesIO(files[path])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(shards, "check_hub", lambda name: None)
    monkeypatch.setattr(fsspec, "open", opening)
    data = retained(build, "some/one", config_name="small")
    assert sizes(data, "retain")[2] == 12
    assert len({image for batch in drawn(data, 5)[0] for image, _ in batch}) == 20
    assert opened
    with pytest.raises(PermissionError, match="outside the cache"):
        image_of({"bytes": None, "path": "/etc/passwd"}, None, from_hub=True)


def test_a_data_set_that_is_not_on_the_hub(build):
    refused(build, "no-such/data-set", "names no files here; the Hugging Face dataset .* cannot")


def test_without_streaming_shards_say_what_they_need(tmp_path, build):
    pattern = write_shards(tmp_path / "shards", pictures(2), number=2)
    with pytest.raises(UserError, match="patterns need streaming: true"):
        build(learn={"data": pattern})
    with pytest.raises(UserError, match="tar shards need streaming: true"):
        build(learn={"data": pattern.replace("{00..01}", "00")})


def test_a_sample_that_is_all_is_cut_like_a_source_that_is_kept(tmp_path, build):
    images = pictures(10)
    write_folder(tmp_path / "kept", dict.fromkeys(CLASSES, 10))
    shards = write_shards(tmp_path / "shards", images, number=3)
    one = build(retain={"data": str(tmp_path / "kept")}, learn=LEARN)
    two = retained(build, shards, sample_images=100)
    assert (one.id2label, one.class_ids) == (two.id2label, two.class_ids)
    for split in ("train", "validation", "test"):
        assert images_of(one, "retain", split) == images_of(two, "retain", split)
        assert np.array_equal(
            one.sets["retain"][split].class_ids, two.sets["retain"][split].class_ids
        )


@pytest.mark.parametrize("named", ["train-{0..1}.tar", "train-*.tar", "split", "folder"])
def test_splits_of_its_own(named, tmp_path, build):
    folder = tmp_path / "shards"
    for shard in range(2):
        write_shards(folder / "x", pictures(6, tag=f"train{shard}"), number=1)
        (folder / "x/shard-00.tar").rename(folder / f"train-{shard}.tar")
    write_shards(folder / "x", pictures(8, tag="test"), number=1)
    (folder / "x/shard-00.tar").rename(folder / "test-0.tar")
    if named in ("split", "folder"):
        test = str(folder / "test-0.tar")
        paths = {"train": str(folder / "train-{0..1}.tar"), "test": test}
        source: Any = paths if named == "split" else str(folder)
        data = build(retain={**streaming(""), "data": source}, learn=LEARN)
        assert sizes(data, "retain")[2] == 12, "of 24 test images"
        held = {data.streamed["retain"].maker.fitter(noise(f"test{n}{i}")).tobytes()
                for n in CLASSES for i in range(8)}  # fmt: skip
        assert set(images_of(data, "retain", "test")) <= held
    else:
        data = retained(build, folder / named)
        assert sizes(data, "retain")[2] == 3, "cut from the sample"


# ----------------------------------------------------------------------------- buffer and place
def test_a_reader_goes_on_from_any_place_as_if_it_had_not_stopped(tmp_path, build):
    data = retained(build, write_shards(tmp_path / "shards", pictures(10), number=4))
    batches, places = drawn(data, 20)
    assert places[-1].start.epoch >= 2
    for number, place in enumerate(places[:-2]):
        kept = Place.from_json(json.loads(json.dumps(place)))
        again, _ = drawn(data, 2, place=kept)
        assert again == batches[number + 1 : number + 3], number


def test_passes_differ_in_order_and_so_do_seeds(tmp_path, build):
    data = retained(build, write_shards(tmp_path / "shards", pictures(10), number=4))
    buffer = Buffer(data.streamed["retain"], (3,), Place())
    passes = [[next(buffer)[0].name for _ in range(30)] for _ in range(2)]
    assert sorted(passes[0]) == sorted(passes[1])
    assert passes[0] != passes[1]
    other = Buffer(data.streamed["retain"], (4,), Place())
    assert [next(other)[0].name for _ in range(30)] != passes[0]


def test_the_buffer_holds_about_as_many_as_it_says(tmp_path, build):
    data = retained(build, write_shards(tmp_path / "shards", pictures(30), number=3))
    buffer = Buffer(data.streamed["retain"], (0,), Place())
    for _ in range(60):
        next(buffer)
        held = [c for c in (*buffer._block, *buffer._ahead) if c is not None]
        assert len(held) <= 7


def test_fraction_takes_the_same_share_in_every_pass(tmp_path, build):
    pattern = write_shards(tmp_path / "shards", pictures(40), number=3)
    data = retained(build, pattern, fraction=0.3)
    buffer = Buffer(data.streamed["retain"], (0,), Place())
    names: dict[int, set[str]] = {}
    while buffer.place.start.epoch < 3:
        epoch = buffer.place.start.epoch
        names.setdefault(epoch, set()).add(next(buffer)[0].name)
    assert 20 < len(names[0]) < 52
    assert names[1] <= names[0]


def test_fraction_of_pictures_in_memory_is_by_their_pixels(build):
    """It was by what they print as, which has their address: every process had others."""
    import datasets

    def rows():
        return iter([{"image": noise(f"{n}{i}"), "label": n} for i in range(40) for n in CLASSES])

    stream = datasets.IterableDataset.from_generator(rows)
    given = {"streaming": True, "fraction": 0.3}
    data = build(retain=given, learn=LEARN, in_memory={"retain": stream})
    first, second = (
        {cell.name for cell in data.streamed["retain"].shards.read(0)
         if data.streamed["retain"].wanted(cell) >= 0}
        for _ in range(2)
    )  # fmt: skip
    assert first == second
    assert 20 < len(first) < 52


# -------------------------------------------------------------------------------- held out, bad
def test_a_test_picture_of_another_source_is_never_drawn(tmp_path, build):
    forgotten = write_folder(tmp_path / "old", {"cat": 10})
    data = build(
        retain=streaming(write_shards(tmp_path / "shards", pictures(10), number=3),
                         rename={"cat": "dog"}),  # the same pictures under another class
        forget={"data": str(forgotten)},
    )  # fmt: skip
    held = set(images_of(data, "forget", "test")) | set(images_of(data, "forget", "validation"))
    assert len(held) == 3
    batches, _ = drawn(data, 14)
    assert not held & {image for batch in batches for image, _ in batch}


def test_a_bad_image_stops_or_is_passed_over(tmp_path, build):
    images = [*pictures(10), (b"\x89PNG no", "dog")]
    pattern = write_shards(tmp_path / "shards", images, number=1)
    data = retained(build, pattern)
    with pytest.raises(UserError, match=r"shard-00\.tar, 000030: is not an image .*skip"):
        drawn(data, 8)
    data = build(retain=streaming(pattern), learn=LEARN, data={"on_bad_image": "skip"})
    reader = Reader(data.streamed["retain"], (0,), 4)
    for _ in range(8):
        reader.draw()
    reader.close()
    assert reader.passed.num_bad >= 1
    assert reader.passed.num_held >= 6


def test_empty_shards_and_images_without_a_class_are_passed_over(tmp_path, build):
    pattern = write_shards(tmp_path / "shards", pictures(10), number=3)
    write_tar(tmp_path / "shards/shard-01.tar", [])
    (tmp_path / "shards/shard-02.tar").write_bytes(b"")
    write_tar(
        tmp_path / "shards/shard-00.tar",
        [(f"{i}", {"png": b, "txt": n.encode()}) for i, (b, n) in enumerate(pictures(9))]
        + [("x", {"png": encoded(noise("x"))}), ("y", {"txt": b"dog"})],
    )
    data = build(retain=streaming(pattern), learn=LEARN, data={"on_bad_image": "skip"})
    batches, _ = drawn(data, 6)
    assert {data.id2label[row] for batch in batches for _, row in batch} == set(CLASSES)


def test_shards_may_have_other_columns_and_members(tmp_path, build):
    import datasets

    images = pictures(6)
    for shard, extra in enumerate(({}, {"note": ["x"] * 9})):
        rows = images[shard::2]
        table = {"image": [b for b, _ in rows], "label": [n for _, n in rows], **extra}
        datasets.Dataset.from_dict(table).to_parquet(str(tmp_path / f"p-{shard}.parquet"))
    batches, _ = drawn(retained(build, tmp_path / "p-{0..1}.parquet"), 3)
    assert len({image for batch in batches for image, _ in batch}) == 12
    jpeg = [(encoded(noise(f"{n}{i}"), "JPEG"), n) for i in range(6) for n in CLASSES]
    write_tar(
        tmp_path / "t-0.tar",
        [(f"a/{i}", {"json": json.dumps({"label": n}).encode(), "jpg": b, "seg.png": b"no"})
         for i, (b, n) in enumerate(jpeg[::2])],
    )  # fmt: skip
    write_tar(
        tmp_path / "t-1.tar",
        [(f"b/{i}", {"cls": n.encode(), "jpeg": b}) for i, (b, n) in enumerate(jpeg[1::2])],
    )
    batches, _ = drawn(retained(build, tmp_path / "t-*.tar"), 3)
    assert len({image for batch in batches for image, _ in batch}) == 12


def test_classes_that_are_not_in_the_sample(tmp_path, build):
    late = [*pictures(10, ("cat",)), *pictures(10, ("dog", "owl"))]
    pattern = write_shards(tmp_path / "shards", late, number=1)
    data = retained(build, pattern, sample_images=8)
    batches, _ = drawn(data, 5)
    rows = {row for batch in batches for _, row in batch}
    assert rows == {0, 1}, "dogs are retained although the sample has none; owls have no role"
    named = retained(build, pattern, sample_images=8, classes=["dog"])
    assert set(named.sets["retain"]["train"].class_ids.tolist()) == {1}


@pytest.mark.parametrize(
    ("role", "more", "names"),
    [("retain", {}, ("owl",)), ("learn", {"classes": ["owl"]}, ("swan",))],
)
def test_images_that_cannot_be_trained_on_are_counted(role, more, names, tmp_path, build):
    late = [(encoded(noise(f"late{i}")), n) for i in range(5) for n in ("", names[0])]
    first = ("owl", "wolf") if role == "learn" else CLASSES
    pattern = write_shards(tmp_path / "shards", [*pictures(8, first), *late], number=1)
    sources = {"learn": LEARN, role: streaming(pattern, sample_images=8, **more)}
    if role == "learn":
        sources["retain"] = {"data": str(write_folder(tmp_path / "old", {"cat": 6}))}
    reader = Reader(build(**sources).streamed[role], (0,), 1)
    while reader.place.start.epoch < 1:
        reader.draw()
    reader.close()
    passed = reader.passed
    passes = passed.num_unlabelled // 5
    assert passed.num_unlabelled == passed.num_unknown == 5 * passes > 0
    assert passed.unknown == names, "those that have another role are not told of again"
    assert passed.told()[-2:] == [
        f"{5 * passes} images without a class",
        f"{5 * passes} images of unknown classes ({names[0]})",
    ]


def test_the_sample_counts_all_that_it_read(tmp_path, build):
    mixed = [(encoded(noise(f"{n}{i}")), n) for i in range(10) for n in ("cat", "dog", "")]
    pattern = write_shards(tmp_path / "shards", mixed, number=3)
    notes = retained(build, pattern, classes=["cat"], sample_images=100).notes
    place = re.escape(pattern)
    for note in (
        f"{place}: 10 of 30 images left out, they have no class",
        f"retain: 10 images of {place} left out, of 1 class without this role: dog",
    ):
        assert any(re.fullmatch(note, one) for one in notes), notes


def test_numbers_are_named_by_rename(tmp_path, build):
    numbered = [(b, str(CLASSES.index(n))) for b, n in pictures(10)]
    pattern = write_shards(tmp_path / "shards", numbered, number=2)
    with pytest.raises(UserError, match=r"are numbers without names \(0, 1, 2\)"):
        retained(build, pattern)
    data = retained(build, pattern, rename={str(i): n for i, n in enumerate(CLASSES)})
    assert {row for batch in drawn(data, 6)[0] for _, row in batch} == {0, 1, 2}


@pytest.mark.parametrize("kind", ["tar", "parquet", "csv"])
def test_numbers_are_named_by_class_names(kind, tmp_path, build):
    import datasets

    (tmp_path / "shards").mkdir()
    numbered = [(b, CLASSES.index(n) + 7) for b, n in pictures(10)]
    if kind == "parquet":
        columns = {"image": [b for b, _ in numbered], "label": [n for _, n in numbered]}
        path = str(tmp_path / "shards/a.parquet")
        datasets.Dataset.from_dict(columns).to_parquet(path)
    else:
        path = KINDS[kind](tmp_path / "shards", [(b, str(n)) for b, n in numbered])
    names = dict(enumerate(CLASSES, 7))
    data = retained(build, path, class_names=names)
    assert {row for batch in drawn(data, 6)[0] for _, row in batch} == {0, 1, 2}
    refused(build, path, r", \S.*: the class 9 has no name; give", class_names={7: "cat", 8: "dog"})
    refused(build, path, r"the class 7 has no name", class_names=["cat", "dog"])
    named = KINDS["tar"](tmp_path / "named", pictures(4))
    refused(build, named, r"the class 'cat' is no number.* take class_names out", class_names=names)


@pytest.mark.parametrize("place", [0, 1])
def test_an_empty_table_file_is_no_images(place, tmp_path, build):
    import pyarrow as pa
    from pyarrow import parquet

    as_parquet(tmp_path, pictures(10))
    empty = parquet.read_table(tmp_path / "part-0.parquet").slice(0, 0)
    parquet.write_table(empty, tmp_path / f"part-{place}-.parquet")
    batches, _ = drawn(retained(build, tmp_path / "*.parquet"), 6)
    assert len({image for batch in batches for image, _ in batch}) == 24
    (tmp_path / "none").mkdir()
    parquet.write_table(empty, tmp_path / "none/a.parquet")
    refused(build, tmp_path / "none", "none: has no images; name a source that has some")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, empty.schema):
        pass
    refused(build, tmp_path / "a.arrow", "has no images; name a source that has some")
    (tmp_path / "a.jsonl").write_text("\n \n")
    refused(build, tmp_path / "a.jsonl", "has no images; name a source that has some")


def test_csv_of_a_spreadsheet_and_with_too_many_fields(tmp_path, build):
    as_text("csv")(tmp_path, pictures(10))
    for path in tmp_path.glob("*.csv"):
        path.write_text(path.read_text(), encoding="utf-8-sig")
    pattern = tmp_path / "part-*.csv"
    batches, _ = drawn(retained(build, pattern), 6)
    assert len({image for batch in batches for image, _ in batch}) == 24
    path = tmp_path / "part-1.csv"
    path.write_text("file,species\n0.png,cat\n1.png,dog,brown,wet\n", encoding="utf-8")
    refused(build, pattern, r"part-1\.csv, line 3: has 4 fields, and the heading 2; quote")


def test_addresses_are_not_fetched(tmp_path, build):
    (tmp_path / "t.csv").write_text("image,label\nhttps://some.where/a.png,cat\n")
    refused(build, tmp_path / "t.csv", r"a\.png: .*it is an address, and these are not fetched")
    with pytest.raises(UserError, match="it is an address, and these are not fetched"):
        build(learn=LEARN, retain={"data": str(tmp_path / "t.csv")})


# ------------------------------------------------------------------------------------- refused
def refused(build: Build, data: Any, match: str, **more: Any) -> None:
    with pytest.raises(UserError, match=match) as error:
        retained(build, data, **more)
    assert "\n" not in str(error.value)


def test_what_cannot_be_streamed_is_one_line(tmp_path, build):
    write_folder(tmp_path / "folders", {"cat": 2})
    pattern = write_shards(tmp_path / "shards", pictures(4), number=3)
    refused(build, tmp_path / "folders", "folders of single images are not streamed")
    refused(build, tmp_path / "no" / "s-{0..3}.tar", r"s-0\.tar: there is no such file")
    refused(build, tmp_path / "no-*.tar", "there is no such file; name tar shards")
    refused(build, tmp_path / "s-{0..99999999}.tar", "names more than 1,000,000 files")
    (tmp_path / "shards/shard-02.tar").unlink()
    refused(build, pattern, r"shard-02\.tar: there is no such file, and .* names it")
    (tmp_path / "mixed").mkdir()
    write_tar(tmp_path / "mixed/a.tar", [])
    (tmp_path / "mixed/b.csv").write_text("image,label\n")
    refused(build, tmp_path / "mixed/*", "not shards of one known kind")
    refused(build, tmp_path / "mixed/a.tar", "has no images")
    left = tmp_path / "shards/shard-{00..01}.tar"
    refused(build, left, "of a Hugging Face data set", config_name="x")


def test_a_damaged_shard_is_named(tmp_path, build):
    pattern = write_shards(tmp_path / "shards", pictures(10), number=2)
    second = tmp_path / "shards/shard-01.tar"
    content = second.read_bytes()
    for size in (9300, 10240, 10300):  # within a member, a block, a header
        second.write_bytes(content[:size])
        refused(build, pattern, r"shard-01\.tar: cannot be read .*restore it")
    second.write_bytes(content)
    data = retained(build, pattern)
    second.write_bytes(content[:10240])
    with pytest.raises(UserError, match=r"shard-01\.tar: cannot be read .*restore it"):
        drawn(data, 8)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    refused(build, tmp_path / "bad.parquet", r"bad\.parquet: cannot be read")


def headers(path: Path) -> list[int]:
    with tarfile.open(path) as archive:
        return [member.offset for member in archive.getmembers()]


TAR_DAMAGE: dict[str, tuple[Callable[[bytearray, int], bytes], str]] = {
    "a header": (lambda b, at: b[:at] + bytes([b[at] ^ 255]) + b[at + 1 :], "bad checksum"),
    "a header of zeros": (lambda b, at: b[:at] + bytes(512) + b[at + 512 :], "behind its end mark"),
    "another archive behind": (lambda b, _: b + b, "behind its end mark"),
    "no end mark": (lambda b, at: b[:at], "no end mark"),
    "cut in a header": (lambda b, at: b[: at + 100], "no end mark"),
}


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize("damage", TAR_DAMAGE)
def test_a_shard_that_is_damaged_in_its_middle_is_named(damage, suffix, tmp_path, build):
    path = write_tar(
        tmp_path / "whole.tar",
        [(f"{i}", {"png": b, "cls": n.encode()}) for i, (b, n) in enumerate(pictures(10))],
    )
    edit, what = TAR_DAMAGE[damage]
    content = bytes(edit(bytearray(path.read_bytes()), headers(path)[20]))
    damaged = tmp_path / f"s{suffix}"
    damaged.write_bytes(gzip.compress(content) if suffix == ".tar.gz" else content)
    match = rf"s{suffix}: cannot be read \(.*{what}.*\); restore it"
    refused(build, damaged, match, sample_images=100)


@pytest.mark.parametrize("padding", [0, 100, 1 << 21])
@pytest.mark.parametrize("parts", [0, 1, 3])
def test_proper_tar_files_are_read_whole(padding, parts, tmp_path, build):
    path = write_tar(
        tmp_path / "s.tar",
        [(f"{i}", {"png": b, "cls": n.encode()}) for i, (b, n) in enumerate(pictures(4))],
    )
    content = path.read_bytes() + bytes(padding)
    if parts:  # gzip files may be laid end to end
        cut = -(-len(content) // parts)
        pieces = [content[start : start + cut] for start in range(0, len(content), cut)]
        path = path.with_suffix(".tar.gz")
        path.write_bytes(b"".join(map(gzip.compress, pieces)))
    else:
        path.write_bytes(content)
    assert sum(sizes(retained(build, path, sample_images=100), "retain")) == 12


def test_a_gzip_file_whose_content_changed_is_named(tmp_path, build):
    path = write_tar(tmp_path / "s.tar", [("0", {"png": pictures(1)[0][0], "cls": b"cat"})])
    packed = bytearray(gzip.compress(path.read_bytes()))
    packed[-8] ^= 1  # its checksum
    (tmp_path / "s.tar.gz").write_bytes(packed)
    refused(build, tmp_path / "s.tar.gz", r"s\.tar\.gz: cannot be read .*CRC")


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ({"cls": b"\xff\xfe"}, r"0\.cls: is not the class of an image"),
        ({"json": b"{"}, r"0\.json: is not the class of an image"),
        ({"json": b'{"caption": "a cat"}'}, r"has no class \(caption\).*label_column"),
        ({"json": b'{"label": [1]}'}, r"holds list \[1\], not one class"),
        ({"png": encoded(noise("b")), "cls": b"cat"}, r"several images \(jpg, png\)"),
    ],
)
def test_labels_of_tar_files_that_are_none(members, match, tmp_path, build):
    path = write_tar(tmp_path / "a.tar", [("0", {"jpg": encoded(noise("a")), **members})])
    refused(build, path, match)


def test_unknown_and_missing_classes_are_named(tmp_path, build):
    pattern = write_shards(tmp_path / "shards", pictures(10), number=2)
    refused(build, pattern, r"'fish' is not a class of the model", classes=["fish"])
    with pytest.raises(UserError, match=r"'cta' has no images in .*closest: 'cat'"):
        build(learn=streaming(pattern, classes=["cta"]), retain=streaming(pattern))
    learned = write_shards(tmp_path / "new", pictures(10, ("owl",)), number=1)
    refused(build, learned, "has no class that the model keeps")
    table = tmp_path / "t.csv"
    table.write_text("image,label\na.png,cat\n")
    refused(build, table, r"label_column: .* has no column 'kind'", label_column="kind")


def test_a_column_that_a_shard_lacks_is_named(tmp_path, build):
    for number, line in enumerate(('{"image": "a.png", "label": "cat"}', '{"image": "a.png"}')):
        (tmp_path / f"{number}.jsonl").write_text(line)
    noise("a").save(tmp_path / "a.png")
    refused(build, tmp_path / "*.jsonl", r"1\.jsonl: cannot tell which column holds the classes")


def test_a_pass_without_any_image_of_the_role_ends_the_run(tmp_path, build):
    pattern = write_shards(tmp_path / "shards", pictures(2, ("cat",)), number=1)
    data = retained(build, pattern, sample_images=100)
    assert data.streamed["retain"].held, "one of two images is the test"
    buffer = Buffer(data.streamed["retain"], (0,), Place(Start(), 0, 0))
    assert next(buffer)[1] == 0
    for path in (tmp_path / "shards").iterdir():
        write_tar(path, [("0", {"png": encoded(noise("x")), "cls": b"owl"})])
    with pytest.raises(UserError, match="a whole pass has no image that may be trained on"):
        drawn(data, 1)


def test_settings_of_streams_are_refused_elsewhere(tmp_path, build):
    with pytest.raises(UserError, match="shuffle_buffer is of a source that streams"):
        build(learn={"data": "x", "shuffle_buffer": 5})
    pair = {"images": str(tmp_path), "annotations": str(tmp_path)}
    with pytest.raises(UserError, match="names folders or files of annotations"):
        build(learn={**streaming("x"), "data": pair})


def test_ranges():
    assert list(expand("a-{08..11}.tar")) == [f"a-{n:02d}.tar" for n in range(8, 12)]
    assert list(expand("{0..1}/{2..1}")) == ["0/2", "0/1", "1/2", "1/1"]
    assert list(expand("a-*.tar")) == ["a-*.tar"]
