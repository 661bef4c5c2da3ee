"""Classes get roles and rows; every mistake in naming them is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data.pictures import sizes, write_folder

from kswap.data import SwapData
from kswap.errors import UserError

Build = Callable[..., SwapData]
ALL = {"cat": 4, "dog": 4, "frog": 4, "horse": 4, "ship": 4}


@pytest.fixture
def everything(tmp_path: Path) -> str:
    return str(write_folder(tmp_path / "all", ALL))


def test_three_roles_of_one_folder(everything: str, build: Build) -> None:
    data = build(
        learn={"data": everything, "classes": ["ship", "Horse"]},
        forget={"data": everything, "classes": ["frog"]},
        retain={"data": everything},
    )
    assert data.id2label == {0: "cat", 1: "dog", 2: "frog", 3: "ship", 4: "Horse"}
    assert data.num_base_classes == 3
    assert data.class_ids == {"learn": (3, 4), "forget": (2,), "retain": (0, 1)}
    assert data.sets["retain"]["test"].class_ids.tolist() == [0, 1]
    assert "retain: 12 images" in " ".join(data.notes)
    assert "frog, horse, ship" in " ".join(data.notes)


def test_learn_takes_every_class_in_the_order_of_the_source(tmp_path: Path, build: Build) -> None:
    folder = write_folder(tmp_path / "new", {"ship": 3, "horse": 3, "empty": 0})
    data = build(learn={"data": str(folder)})
    assert [data.id2label[i] for i in (3, 4)] == ["horse", "ship"]
    assert data.class_ids == {"learn": (3, 4), "forget": (), "retain": (0, 1, 2)}
    assert "without images, left out: empty" in " ".join(data.notes)


def test_forget_takes_every_class_of_the_source(tmp_path: Path, build: Build) -> None:
    folder = write_folder(tmp_path / "gone", {"Tinca tinca": 3, "great_white_shark": 3})
    labels = {0: "great white shark, white shark", 1: "tench, Tinca tinca", 2: "goldfish"}
    data = build(forget={"data": str(folder)}, id2label=labels)
    assert data.class_ids["forget"] == (0, 1)
    assert data.sets["forget"]["train"].class_ids.tolist() == [0, 1]


def test_all_classes_may_be_forgotten(everything: str, build: Build) -> None:
    data = build(forget={"data": everything, "classes": ["cat", "dog", "frog"]})
    assert data.class_ids == {"learn": (), "forget": (0, 1, 2), "retain": ()}


def test_earlier_forgotten_classes_are_not_retained(everything: str, build: Build) -> None:
    forget = {"data": everything, "classes": ["cat"]}
    data = build(forget=forget, retain={"data": everything}, forgotten=("dog",))
    assert data.class_ids["retain"] == (2,)
    again = build(forget=forget, forgotten=("cat",))
    assert "forgotten by an earlier swap already" in " ".join(again.notes)


def test_rename_comes_first(tmp_path: Path, build: Build) -> None:
    folder = write_folder(tmp_path / "x", {"n01": 4, "n02": 4, "n03": 4, "frosch": 4})
    data = build(
        learn={
            "data": str(folder),
            "classes": ["horse"],
            "rename": {"n01": "horse", "n02": "horse"},
        },
        forget={"data": str(folder), "classes": ["frog"], "rename": {"frosch": "frog"}},
    )
    assert data.id2label[3] == "horse"
    assert sum(sizes(data, "learn")) == 8
    assert sum(sizes(data, "forget")) == 4


def test_explicit_retain_notes_the_classes_in_no_role(everything: str, build: Build) -> None:
    data = build(
        forget={"data": everything, "classes": ["cat"]},
        retain={"data": everything, "classes": ["dog"]},
    )
    assert data.class_ids["retain"] == (1,)
    assert "1 class of the model in no role: frog" in " ".join(data.notes)


def test_retained_classes_without_images_are_kept_and_noted(tmp_path: Path, build: Build) -> None:
    some = str(write_folder(tmp_path / "some", {"cat": 3, "dog": 3, "unknown": 2}))
    data = build(forget={"data": some, "classes": ["cat"]}, retain={"data": some})
    assert data.class_ids["retain"] == (1, 2)
    assert "retain: 1 class without images: frog" in data.notes


def test_two_labels_of_one_name_matter_only_when_used(everything: str, build: Build) -> None:
    labels = {0: "cat", 1: "dog", 2: "dog"}
    data = build(
        forget={"data": everything, "classes": ["cat"]},
        learn={"data": everything, "classes": ["ship"]},
        id2label=labels,
    )
    assert data.class_ids["retain"] == (1, 2)
    with pytest.raises(UserError, match=r"'dog' is ambiguous.*row 1.*row 2.*different labels"):
        build(forget={"data": everything, "classes": ["dog"]}, id2label=labels)


def test_ambiguous_classes_of_a_source_are_left_out_of_retain(
    everything: str, build: Build
) -> None:
    data = build(
        forget={"data": everything, "classes": ["cat"]},
        retain={"data": everything},
        id2label={0: "cat", 1: "dog, hound", 2: "dog, puppy", 3: "frog"},
    )
    assert set(data.sets["retain"]["train"].class_ids.tolist()) == {3}
    notes = " ".join(data.notes)
    assert "cat, dog, horse, ship" in notes
    assert "retain: dog of " in notes
    assert "fits more than one class of the model; say which with retain.rename" in notes


def roles(**given: Any) -> dict[str, Any]:
    return given


REFUSED = {
    "learn-known": (roles(learn=["cat"]), "learn: the model has the class 'cat' already"),
    "learn-known-implicitly": (roles(learn=None), "learn: the model has the class 'cat' already"),
    "learn-forgotten": (
        roles(learn=["cat"], forgotten=["cat"]),
        "'cat' was forgotten by an earlier swap.*--drop-forgotten",
    ),
    "learn-unknown": (roles(learn=["hors"]), "'hors' has no images in .*closest: 'horse'"),
    "learn-twice": (roles(learn=["ship", "Ship"]), "learn.classes: 'Ship' is named twice"),
    "learn-none": (roles(learn=[]), "learn.classes: is empty"),
    "forget-unknown": (
        roles(forget=["catt"]),
        "forget.classes: 'catt' is not a class of the model; closest: 'cat'",
    ),
    "forget-unknown-implicitly": (
        roles(forget=None),
        "forget: class of .*: 'horse' is not a class of the model",
    ),
    "learn-unlike": (roles(learn=["xyz"]), "'xyz' has no images in .*; name one of 'cat', 'dog', "),
    "forget-unlike": (roles(forget=["bird"]), "'bird' has no images in .*; name one of 'cat', "),
    "rename-unlike": (
        roles(forget=["cat"], rename={"xyz": "dog"}),
        "has no class 'xyz'; name one of 'cat', 'dog', ",
    ),
    "forget-without-images": (roles(forget=["bird"]), "forget.classes: 'bird' has no images in"),
    "forget-synonyms": (
        roles(forget=["tench", "Tinca tinca"]),
        "'Tinca tinca' and 'tench' are one class of the model",
    ),
    "retain-unknown": (
        roles(forget=["cat"], retain=["dogg"]),
        "retain.classes: 'dogg' is not a class.*closest: 'dog'",
    ),
    "retain-forgotten": (
        roles(forget=["cat"], retain=["dog"], forgotten=["dog"]),
        "retain.classes: 'dog' was forgotten by an earlier",
    ),
    "retain-without-images": (
        roles(forget=["cat"], retain=["bird"]),
        "retain.classes: 'bird' has no images in",
    ),
    "learn-forget": (roles(learn=["ship"], forget=["ship"]), "'ship' is in learn and forget"),
    "learn-retain": (roles(learn=["ship"], retain=["Ship"]), "'Ship' is in learn and retain"),
    "forget-retain": (roles(forget=["cat"], retain=["cat"]), "'cat' is in forget and retain"),
    "rename-unknown": (
        roles(forget=["cat"], rename={"catt": "dog"}),
        "forget.rename: .* has no class 'catt'; closest: 'cat'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, everything: str, build: Build) -> None:
    given, message = REFUSED[case]
    labels = {0: "cat", 1: "dog", 2: "frog", 3: "bird", 4: "tench, Tinca tinca"}
    config = {
        role: {"data": everything, "classes": given[role]}
        for role in ("learn", "forget", "retain")
        if role in given
    }
    if "rename" in given:
        config["forget"]["rename"] = given["rename"]
    with pytest.raises(UserError, match=message) as error:
        build(**config, forgotten=tuple(given.get("forgotten", ())), id2label=labels)
    assert "\n" not in str(error.value)


def test_implicit_roles_that_collide(tmp_path: Path, build: Build) -> None:
    cats = str(write_folder(tmp_path / "cats", {"cat": 3}))
    ships = str(write_folder(tmp_path / "ships", {"ship": 3}))
    with pytest.raises(UserError, match=r"'cat' is in forget and retain"):
        build(forget={"data": cats}, retain={"data": cats, "classes": ["cat"]})
    with pytest.raises(UserError, match=r"'ship' is in learn and retain"):
        build(learn={"data": ships}, retain={"data": ships, "classes": ["ship"]})
    with pytest.raises(UserError, match=r"retain: .* has no class that the model keeps"):
        build(learn={"data": ships}, retain={"data": ships})
    with pytest.raises(UserError, match=r"retain: .* has no class that the model keeps"):
        build(forget={"data": cats}, retain={"data": cats})


def test_unnamed_labels(everything: str, build: Build) -> None:
    with pytest.raises(UserError, match=r"labels have no names"):
        build(forget={"data": everything, "classes": ["cat"]}, id2label={0: "LABEL_0"})
