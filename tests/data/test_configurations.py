"""Data sets with several configurations: `config_name` chooses, of a hub id or of a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from data.pictures import encoded, noise, same, sizes
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature

from kswap.data import SwapData
from kswap.errors import UserError

Build = Callable[..., SwapData]
README = """\
---
configs:
- config_name: land
  data_files: land/*.parquet
- config_name: sea
  data_files:
  - {split: train, path: sea/train.parquet}
  - {split: test, path: sea/test.parquet}
---
"""


def table(names: tuple[str, ...], split: str = "") -> Dataset:
    rows = [(label, f"{split}{name}{i}") for label, name in enumerate(names) for i in range(5)]
    return Dataset.from_dict(
        {
            "image": [{"bytes": encoded(noise(text)), "path": None} for _, text in rows],
            "label": [label for label, _ in rows],
        },
        features=Features({"image": ImageFeature(), "label": ClassLabel(names=list(names))}),
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set as on the hub: no script, configurations in its README.md."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root = tmp_path / "animals"
    for name in ("land", "sea"):
        (root / name).mkdir(parents=True)
    table(("horse", "cow")).to_parquet(root / "land" / "data.parquet")
    for split in ("train", "test"):
        table(("ship", "whale"), split).to_parquet(root / "sea" / f"{split}.parquet")
    (root / "README.md").write_text(README)
    return root


def test_a_folder(folder: Path, build: Build) -> None:
    land = build(learn={"data": str(folder), "config_name": "land"})
    assert [land.id2label[row] for row in land.class_ids["learn"]] == ["horse", "cow"]
    assert same(land, build(learn={"data": str(folder / "land" / "data.parquet")}))
    sea = build(learn={"data": str(folder), "config_name": "sea"})
    assert [sea.id2label[row] for row in sea.class_ids["learn"]] == ["ship", "whale"]
    assert sizes(sea, "learn")[2] == 10  # its own test split


def test_a_hub_id(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def load(*args: str) -> DatasetDict:
        calls.append(args)
        if len(args) == 1:
            raise ValueError(
                "Config name is missing.\nPlease pick one among the available configs: "
                "['land', 'sea']\nExample of usage: ..."
            )
        return DatasetDict(train=table(("horse", "cow")))

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    build(learn={"data": "someone/animals", "config_name": "land"})
    assert calls == [("someone/animals", "land")]
    with pytest.raises(UserError, match=r"\['land', 'sea'\]\); name one in config_name") as caught:
        build(learn={"data": "someone/animals"})
    assert "\n" not in str(caught.value)


def test_what_has_no_such_configuration_is_one_line(folder: Path, build: Build) -> None:
    cases = {
        "no such": ({"data": str(folder), "config_name": "air"}, r"animals \[air\]: cannot be"),
        "a file": (
            {"data": str(folder / "land" / "data.parquet"), "config_name": "land"},
            "config_name: 'land' is of a Hugging Face data set .* is a file; leave it out",
        ),
    }
    for source, message in cases.values():
        with pytest.raises(UserError, match=message) as caught:
            build(learn=source)
        assert "\n" not in str(caught.value)
