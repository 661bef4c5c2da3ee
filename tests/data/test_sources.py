"""Every kind of source gives the same images as the folder, and says what is wrong with it
otherwise."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pytest
from data.pictures import encoded, noise, same, sizes, write_folder
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature

from kswap.data import SwapData, sources
from kswap.errors import UserError

Build = Callable[..., SwapData]
NAMES = ["horse", "ship"]
ROWS = [(name, i) for name in NAMES for i in range(5)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "folder [1]", dict.fromkeys(NAMES, 5))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return


def dataset(split: str = "", numbered: bool = False) -> Dataset:
    """The pictures of the folder as an in-memory dataset with proper features."""
    images = [{"bytes": encoded(noise(f"{split}{name}{i}")), "path": None} for name, i in ROWS]
    labels = [NAMES.index(name) for name, _ in ROWS]
    label = Value("int64") if numbered else ClassLabel(names=NAMES)
    return Dataset.from_dict(
        {"image": images, "label": labels},
        features=Features({"image": ImageFeature(), "label": label}),
    )


def as_parquet(folder: Path) -> Path:
    dataset().to_parquet(folder / "table.parquet")
    return folder / "table.parquet"


def as_parquet_of_bytes(folder: Path) -> Path:
    rows = {"img": [encoded(noise(f"{n}{i}")) for n, i in ROWS], "class": [n for n, _ in ROWS]}
    Dataset.from_dict(rows).to_parquet(folder / "table.pq")
    return folder / "table.pq"


def as_arrow(folder: Path) -> Path:
    dataset().save_to_disk(folder / "saved")
    (arrow,) = (folder / "saved").glob("*.arrow")
    return arrow.rename(folder / "table.arrow")


def as_saved(folder: Path) -> Path:
    dataset().save_to_disk(folder / "saved")
    return folder / "saved"


def as_jsonl(folder: Path) -> Path:
    lines = [json.dumps({"file_name": f"{n}/{i}.png", "label": n}) for n, i in ROWS]
    (folder / "table.jsonl").write_text("\n".join(lines))
    return folder / "table.jsonl"


def as_json(folder: Path) -> Path:
    rows = [{"image": str(folder / n / f"{i}.png"), "label": n} for n, i in ROWS]
    (folder / "table.json").write_text(json.dumps(rows))
    return folder / "table.json"


def as_csv(folder: Path, suffix: str = "csv") -> Path:
    with (folder / f"table.{suffix}").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if suffix == "tsv" else ",")
        writer.writerow(["id", "image", "label"])
        writer.writerows([k, f"{n}/{i}.png", n] for k, (n, i) in enumerate(ROWS))
    return folder / f"table.{suffix}"


def as_tsv(folder: Path) -> Path:
    return as_csv(folder, "tsv")


def as_folder_of_tables(folder: Path) -> Path:
    (folder / "tables" / "data").mkdir(parents=True)
    shards = [dataset().shard(2, index, contiguous=True) for index in range(2)]
    for index, shard in enumerate(shards):
        shard.to_parquet(folder / "tables" / "data" / f"part-{index}.parquet")
    return folder / "tables"


TABLES = [
    as_parquet,
    as_parquet_of_bytes,
    as_arrow,
    as_saved,
    as_jsonl,
    as_json,
    as_csv,
    as_tsv,
    as_folder_of_tables,
]


@pytest.mark.parametrize("write", TABLES)
def test_tables_give_what_the_folder_gives(
    write: Callable[[Path], Path], folder: Path, build: Build
) -> None:
    expected = build(learn={"data": str(folder)})
    assert sizes(expected, "learn") == (6, 2, 2)
    data = build(learn={"data": str(write(folder))})
    assert same(data, expected)
    assert data.id2label == expected.id2label


def test_datasets_in_memory_give_what_the_folder_gives(folder: Path, build: Build) -> None:
    expected = build(learn={"data": str(folder)})
    shuffled = dataset().shuffle(seed=1)
    paths = Dataset.from_list([{"path": str(folder / n / f"{i}.png"), "label": n} for n, i in ROWS])
    pictures = Dataset.from_dict(
        {"image": [noise(f"{n}{i}") for n, i in ROWS], "label": [n for n, _ in ROWS]}
    )
    transformed = dataset().with_transform(lambda rows: {"image": [0], "label": [0]})
    for given in (shuffled, paths, pictures, DatasetDict(train=dataset()), transformed):
        assert same(build(learn={}, in_memory={"learn": given}), expected)
    notes = build(learn={}, in_memory={"learn": transformed}).notes
    assert "transform set on the dataset is not applied" in " ".join(notes)


def test_splits_of_every_kind_of_source(tmp_path: Path, build: Build) -> None:
    counts = dict.fromkeys(NAMES, 5)
    parts = {"train": "training", "validation": "VAL", "test": "test"}
    for split, name in parts.items():
        write_folder(tmp_path / "f" / name, counts, tag=split)
    (tmp_path / "f" / "docs").mkdir()
    expected = build(learn={"data": str(tmp_path / "f")})
    assert sizes(expected, "learn") == (10, 10, 10)
    assert "left out beside the splits: docs" in " ".join(expected.notes)

    in_memory = DatasetDict({split: dataset(split) for split in parts})
    assert same(build(learn={}, in_memory={"learn": in_memory}), expected)
    in_memory.save_to_disk(tmp_path / "saved")
    assert same(build(learn={"data": str(tmp_path / "saved")}), expected)
    (tmp_path / "tables").mkdir()
    for split in parts:
        dataset(split).to_parquet(tmp_path / "tables" / f"{split}-00000-of-00001.parquet")
    assert same(build(learn={"data": str(tmp_path / "tables")}), expected)
    paths = {
        "train": str(tmp_path / "tables" / "train-00000-of-00001.parquet"),
        "validation": str(tmp_path / "f" / "VAL"),
        "test": str(tmp_path / "f" / "test"),
    }
    assert same(build(learn={"data": paths}), expected)


def test_a_missing_split_is_cut_from_train(tmp_path: Path, build: Build) -> None:
    write_folder(tmp_path / "train", {"horse": 10}, tag="a")
    write_folder(tmp_path / "test", {"horse": 3}, tag="b")
    assert sizes(build(learn={"data": str(tmp_path)}), "learn") == (9, 1, 3)
    no_validation = build(learn={"data": str(tmp_path)}, data={"validation_fraction": 0})
    assert sizes(no_validation, "learn") == (10, 0, 3)
    (tmp_path / "test").rename(tmp_path / "dev")
    assert sizes(build(learn={"data": str(tmp_path)}), "learn") == (8, 3, 2)


def test_the_only_split_is_cut_whatever_its_name(build: Build) -> None:
    for name in ("test", "everything"):
        data = build(learn={}, in_memory={"learn": DatasetDict({name: dataset()})})
        assert sizes(data, "learn") == (6, 2, 2)
        assert f"its only split '{name}' is cut" in " ".join(data.notes)


def test_unlabelled_rows_and_splits_are_left_out(build: Build) -> None:
    def without_label(row: dict[str, Any]) -> dict[str, Any]:
        return {"label": -1}

    parts = DatasetDict(
        train=dataset(), test=dataset("test").map(without_label), extra=dataset("x")
    )
    data = build(learn={}, in_memory={"learn": parts})
    assert sizes(data, "learn") == (6, 2, 2)
    assert "split 'test' left out, its images have no classes" in " ".join(data.notes)
    assert "neither train, validation nor test: extra" in " ".join(data.notes)


def test_class_numbers_need_names(build: Build) -> None:
    numbers = {"learn": dataset(numbered=True)}
    with pytest.raises(
        UserError, match=r"numbers without names \(0, 1\).*learn.class_names, such as {0: cat"
    ):
        build(learn={}, in_memory=numbers)
    with pytest.raises(UserError, match=r"'horse' has no images"):
        build(learn={"classes": ["horse"]}, in_memory=numbers)
    named = build(learn={"rename": {"0": "horse", "1": "ship"}}, in_memory=numbers)
    assert same(named, build(learn={}, in_memory={"learn": dataset()}))
    one = build(learn={"rename": {"0": "horse"}, "classes": ["horse"]}, in_memory=numbers)
    assert sizes(one, "learn") == (3, 1, 1)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (NAMES, None),
        ({1: "ship", 0: "horse", 7: "cat"}, None),
        ({0: "horse"}, "learn dataset: the class 1 has no name; give the names of the numbers"),
        (["horse", "horse"], "class_names: 0 and 1 are both called 'horse'"),
        (["horse", " "], "class_names: class 1 has an empty name"),
    ],
)
def test_class_numbers_are_named_by_class_names(names: Any, problem: Any, build: Build) -> None:
    numbers = {"learn": dataset(numbered=True)}
    if problem is None:
        data = build(learn={"class_names": names}, in_memory=numbers)
        assert same(data, build(learn={}, in_memory={"learn": dataset()}))
        return
    with pytest.raises(UserError, match=problem):
        build(learn={"class_names": names}, in_memory=numbers)


def test_class_names_of_names_are_refused(folder: Path, build: Build) -> None:
    for source in ({"data": str(folder)}, {}):
        with pytest.raises(UserError, match=r"the class 'horse' is no number.* take class_names"):
            build(learn={**source, "class_names": NAMES}, in_memory=None if source else
                  {"learn": dataset()})  # fmt: skip


@pytest.mark.parametrize("write", [as_parquet, as_arrow, as_jsonl, as_csv])
def test_empty_table_files_beside_others_are_no_images(
    write: Callable[[Path], Path], folder: Path, build: Build
) -> None:
    expected = build(learn={"data": str(folder)})
    full = write(folder)
    empty = full.with_name(f"a{full.suffix}")  # before the other: types come from the first
    if write is as_parquet:
        dataset().select([]).to_parquet(empty)
    elif write is as_arrow:
        with pa.OSFile(str(empty), "wb") as file, pa.ipc.new_stream(file, pa.schema([])):
            pass
    else:
        empty.write_text("id,image,label\n" if write is as_csv else "\n")
    assert same(build(learn={"data": str(folder)}), expected)


def test_columns_may_be_named(build: Build) -> None:
    odd = dataset().rename_columns({"image": "a", "label": "b"})
    two = odd.add_column("c", list(odd["b"]), feature=ClassLabel(names=NAMES))
    with pytest.raises(
        UserError, match=r"cannot tell which column holds the classes.*label_column"
    ):
        build(learn={}, in_memory={"learn": two})
    data = build(learn={"image_column": "a", "label_column": "c"}, in_memory={"learn": two})
    assert same(data, build(learn={}, in_memory={"learn": dataset()}))
    with pytest.raises(UserError, match=r"label_column: .* has no column 'bb'; closest: 'b'"):
        build(learn={"label_column": "bb"}, in_memory={"learn": two})


def test_a_class_may_be_called_train(tmp_path: Path, build: Build) -> None:
    write_folder(tmp_path, {"train": 3, "test": 3, "ship": 3})
    data = build(learn={"data": str(tmp_path)})
    assert [data.id2label[i] for i in (3, 4, 5)] == ["ship", "test", "train"]


def test_a_table_beside_the_images_of_each_split(tmp_path: Path, build: Build) -> None:
    rows = {"train": range(24), "test": range(24, 30)}
    for split, numbers in rows.items():
        folder = tmp_path / split
        folder.mkdir()
        lines = []
        for number in numbers:
            (folder / f"{number}.png").write_bytes(encoded(noise(str(number))))
            lines.append({"file_name": f"{number}.png", "label": NAMES[number % 2]})
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = build(learn={"data": str(tmp_path)})
    assert [data.id2label[c] for c in data.class_ids["learn"]] == sorted(NAMES[:2])
    assert len(data.sets["learn"]["test"]) == 6


def test_what_is_no_image_in_a_folder(tmp_path: Path, build: Build) -> None:
    write_folder(tmp_path, {"horse ÿ": 3, ".hidden": 3, "__MACOSX": 2})
    (tmp_path / "horse ÿ" / "Thumbs.db").write_text("x")
    (tmp_path / "horse ÿ" / "._0.png").write_text("x")
    (tmp_path / "horse ÿ" / "x.jpg").mkdir()
    (tmp_path / "horse ÿ" / "deep").mkdir()
    noise("deep").save(tmp_path / "horse ÿ" / "deep" / "d.PNG", "PNG")
    data = build(learn={"data": str(tmp_path)})
    assert data.id2label[3] == "horse ÿ"
    assert sizes(data, "learn") == (2, 1, 1)
    notes = " ".join(data.notes)
    assert "1 file left out, not images by suffix: 1 .db" in notes
    assert "1 image in deeper folders" in notes


def empty(path: Path) -> str:
    (path / "empty").mkdir()
    return str(path / "empty")


def flat(path: Path) -> str:
    (path / "flat").mkdir()
    noise("x").save(path / "flat" / "x.png")
    return str(path / "flat")


def flat_splits(path: Path) -> str:
    write_folder(path / "s", {"train": 2, "test": 2})
    return str(path / "s")


def hollow(path: Path) -> str:
    return str(write_folder(path / "hollow", {"horse": 0}))


def text_file(path: Path) -> str:
    (path / "notes.txt").write_text("x")
    return str(path / "notes.txt")


def broken_parquet(path: Path) -> str:
    (path / "x.parquet").write_bytes(b"PAR1 and no more")
    return str(path / "x.parquet")


def no_image_column(path: Path) -> str:
    (path / "x.csv").write_text("weight,label\n1,a\n2,b\n")
    return str(path / "x.csv")


def number_images(path: Path) -> str:
    (path / "x.csv").write_text("image,label\n1,a\n2,b\n")
    return str(path / "x.csv")


def fractions(path: Path) -> str:
    (path / "x.csv").write_text("image,label\na.png,0.5\nb.png,1\n")
    return str(path / "x.csv")


def mixed_tables(path: Path) -> str:
    for name in ("train.csv", "more.csv"):
        (path / name).write_text("image,label\na.png,a\n")
    return str(path)


def no_rows(path: Path) -> str:
    dataset().select([]).to_parquet(path / "x.parquet")
    return str(path / "x.parquet")


def only_headings(path: Path) -> str:
    (path / "tables").mkdir()
    (path / "tables" / "train.csv").write_text("image,label\na.png,a\n")
    (path / "tables" / "test.csv").write_text("\ufeffimage,label\n\n")
    return str(path / "tables")


REFUSED = {
    "missing": (
        lambda path: str(path / "none"),
        "learn.data: .*none: there is no such folder or file",
    ),
    "missing-relative": (lambda path: "./none", "there is no such folder or file"),
    "missing-file": (lambda path: "none.parquet", "there is no such folder or file"),
    "missing-home": (lambda path: "~/no/such", "there is no such folder or file"),
    "missing-beside": (lambda path: f"{empty(path) and 'empty'}/none", "no such folder or file"),
    "missing-deep": (lambda path: "a/b/c", "there is no such folder or file"),
    "no-id": (lambda path: "a b", "there is no such folder or file"),
    "null": (lambda path: "a\0b", "there is no such folder or file|is not a path"),
    "blank": (lambda path: " ", "learn.data: is empty"),
    "empty": (empty, "empty: has no class folders"),
    "flat": (flat, "has images, but no class folders"),
    "flat-splits": (flat_splits, "test, train have no class folders"),
    "hollow": (hollow, r"class folders \(horse\), but no images"),
    "text": (text_file, "notes.txt: not table files of one known kind"),
    "broken-parquet": (broken_parquet, r"x.parquet: cannot be loaded"),
    "no-image-column": (
        no_image_column,
        r"cannot tell which column holds the images \(weight, label\)",
    ),
    "number-images": (number_images, "column 'image' holds values of type int64, not images"),
    "fractions": (fractions, "column 'label' holds values of type float64, not one class"),
    "mixed-tables": (mixed_tables, "cannot tell the split of more.csv"),
    "no-rows": (no_rows, "x.parquet: has no images; name a source that has some"),
    "no-rows-of-any-kind": (only_headings, r"tables \[test\]: has no images; name a source"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as error:
        build(learn={"data": make(tmp_path)})
    assert "\n" not in str(error.value)


def test_split_paths_are_single_splits(tmp_path: Path, build: Build) -> None:
    for split in ("train", "test"):
        write_folder(tmp_path / split, {"horse": 2}, tag=split)
    with pytest.raises(
        UserError, match=r"learn.data.train: .* has splits of its own \(test, train\)"
    ):
        build(learn={"data": {"train": str(tmp_path)}})


def test_no_train_split(build: Build) -> None:
    parts = DatasetDict(test=dataset(), validation=dataset("v"))
    with pytest.raises(UserError, match=r"has no train split \(it has test, validation\)"):
        build(learn={}, in_memory={"learn": parts})
    twice = DatasetDict(train=dataset(), val=dataset("v"), dev=dataset("w"))
    with pytest.raises(UserError, match=r"has two validation splits"):
        build(learn={}, in_memory={"learn": twice})


@pytest.mark.parametrize("value", [[1, 2], {}, {"train": 3}, dataset().to_iterable_dataset()])
def test_in_memory_is_a_dataset(value: Any, build: Build) -> None:
    with pytest.raises(UserError, match=r"give a datasets.Dataset or a DatasetDict"):
        build(learn={}, in_memory={"learn": value})


def test_in_memory_without_rows(build: Build) -> None:
    with pytest.raises(UserError, match=r"learn dataset: has no images in train"):
        build(learn={}, in_memory={"learn": dataset().select([])})


def test_in_memory_roles(build: Build) -> None:
    with pytest.raises(UserError, match=r"'lern' is not a role"):
        build(learn={}, in_memory={"lern": dataset()})


class Hub:
    """Stands in for the hub, which tests cannot reach."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.answer = answer
        monkeypatch.setattr(datasets, "load_dataset", self.load)
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", self.info)

    def info(self, name: str, timeout: float) -> None:
        if isinstance(self.answer, Exception):
            raise self.answer

    def load(self, *args: Any, **options: Any) -> Any:
        assert "trust_remote_code" not in options
        self.calls.append(args)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_hub_ids(folder: Path, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, DatasetDict(train=dataset()))
    assert same(build(learn={"data": "someone/birds-v1.0"}), build(learn={"data": str(folder)}))
    assert hub.calls == [("someone/birds-v1.0",)]


def test_what_was_loaded_before_needs_no_network(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    Hub(monkeypatch, ConnectionError("offline"))
    monkeypatch.setattr(datasets, "load_dataset", lambda name: DatasetDict(train=dataset()))
    (tmp_path / "cache" / "someone___birds").mkdir(parents=True)
    assert sizes(build(learn={"data": "someone/birds"}), "learn") == (6, 2, 2)


def test_hub_errors_are_one_line(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, ConnectionError("offline:\n no route"))
    with pytest.raises(
        UserError, match=r"learn.data: 'data/birds' is no folder.*offline: no route"
    ) as error:
        build(learn={"data": "data/birds"})
    assert "\n" not in str(error.value)
    assert not hub.calls


def test_a_data_set_of_the_hub_cannot_open_local_files(
    folder: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(folder / "horse" / "0.png")
    rows = Dataset.from_dict({"image": [path] * 3, "label": ["horse"] * 3})
    Hub(monkeypatch, DatasetDict(train=rows))
    with pytest.raises(UserError, match=r"holds values of type string, not images"):
        build(learn={"data": "someone/evil"})
    Hub(monkeypatch, DatasetDict(train=rows.cast_column("image", ImageFeature())))
    with pytest.raises(
        UserError, match=r"horse/0.png\): .*outside the cache of the datasets library"
    ):
        build(learn={"data": "someone/evil"})
    # unless they are what the library has downloaded, as image folders of the hub are
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", folder)
    paths = [{"path": str(folder / n / f"{i}.png"), "bytes": None} for n, i in ROWS]
    downloaded = dataset().remove_columns("image").add_column("image", paths)
    Hub(monkeypatch, DatasetDict(train=downloaded.cast_column("image", ImageFeature())))
    assert same(build(learn={"data": "someone/good"}), build(learn={"data": str(folder)}))


def test_unreadable_folders(folder: Path, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match=r"folder \[1\]: cannot be read \(Permission denied\)"):
        build(learn={"data": str(folder)})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([["a"], ["b"]], "holds values of type .*, not one class"),
        ([float("inf"), 1.0], "holds values of type float64, not one class"),
        ([float("nan"), 1.0], r"numbers without names \(1\)"),
        ([True, False], r"numbers without names \(0, 1\)"),
        ([None, None], "has no images with a class|numbers without names|not one class"),
        (["", " "], "has no images with a class"),
    ],
)
def test_labels_that_are_no_classes(values: list[Any], message: str, build: Build) -> None:
    rows = dataset().select(range(2)).remove_columns("label").add_column("label", values)
    with pytest.raises(UserError, match=message):
        build(learn={}, in_memory={"learn": rows})


def test_bad_rows_are_named(folder: Path, build: Build) -> None:
    table = as_csv(folder)
    shutil.rmtree(folder / "ship")
    with pytest.raises(UserError, match=r"ship/0.png: is not an image.*no such file"):
        build(learn={"data": str(table)})
    broken = [{"bytes": b"x", "path": "a/b.png"}, {"bytes": None, "path": None}]
    rows = Dataset.from_dict({"image": broken, "label": ["horse"] * 2})
    with pytest.raises(UserError, match=r"learn dataset, row 0 \(a/b.png\): is not an image"):
        build(learn={}, in_memory={"learn": rows.cast_column("image", ImageFeature())})


def test_the_datasets_library_does_not_log_what_it_raises() -> None:
    before = datasets.logging.get_verbosity()
    with sources.reading("x"):
        assert datasets.logging.get_verbosity() == datasets.logging.CRITICAL
    assert datasets.logging.get_verbosity() == before
