"""What ships with the package: small enough, readable, and a demo that can be started twice."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import kswap.demo
from kswap.demo import demo_config
from kswap.errors import UserError
from kswap.presets import PRESETS

ASSETS = Path(kswap.demo.__file__).parent / "assets"
CLASSES = {
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
}  # fmt: skip


def test_assets_are_under_40_mb():
    def size(*folders: str) -> int:
        files = [path for folder in folders for path in (ASSETS / folder).rglob("*")]
        return sum(path.stat().st_size for path in files if path.is_file())

    assert 10e6 < size("classification") < 40e6
    assert 10e6 < size("segmentation", "detection") < 40e6


@pytest.mark.parametrize("task", ["segmentation", "detection"])
@pytest.mark.slow
def test_the_scene_demos_learn_and_forget_through_the_command_line_of_the_classifier(
    task, tmp_path, capsys
):
    from kswap.cli import main

    short = ["--stages.learn.max_steps", "2", "--stages.forget.max_steps", "2"]
    least = ["--stages.learn.min_steps", "1", "--stages.forget.min_steps", "1"]
    thin = ["--learn.fraction", "0.1", "--forget.fraction", "0.1", "--retain.fraction", "0.1"]
    output = tmp_path / "run"
    words = ["demo", task, "--output", str(output), "--audit", "none"]  # audits have their own
    assert main([*words, *short, *least, *thin]) == 0
    results = json.loads((output / "results.json").read_text())
    assert results["task"] == task
    assert results["score_name"] == {"segmentation": "miou", "detection": "map"}[task]
    base, *_, last = (stage["scores"] for stage in results["stages"])
    assert base["learn"] == 0.0
    assert base["retain"] > 0.5
    assert last["retain"] > 0.3
    assert main(["evaluate", str(output)]) == 0
    assert "NOT equal" not in capsys.readouterr().out


def test_pictures_of_all_classes_in_both_splits():
    for split, least in (("train", 100), ("test", 100)):
        labels = pq.read_table(ASSETS / f"classification/{split}.parquet")["label"].to_pylist()
        assert set(labels) == CLASSES
        assert min(labels.count(name) for name in CLASSES) >= least


def test_the_reference_never_saw_the_classes_to_forget():
    for name, knows in (
        ("base", CLASSES - {"horse", "ship", "truck"}),
        ("reference", CLASSES - {"cat", "frog"}),
    ):
        config = json.loads((ASSETS / f"classification/{name}/config.json").read_text())
        assert set(config["id2label"].values()) == knows


def test_the_base_answers_85_percent_as_unpacked():
    metrics = json.loads((ASSETS / "classification/base/metrics.json").read_text())
    assert metrics["test_as_unpacked"]["top1"] >= 85
    assert metrics["test_as_unpacked"]["num"] == 700


@pytest.mark.parametrize(
    ("task", "score", "least"), [("segmentation", "miou", 0.70), ("detection", "ap50", 0.60)]
)
def test_the_scene_models_know_what_they_should(task, score, least):
    base = json.loads((ASSETS / task / "base/metrics.json").read_text())
    assert base["test_as_unpacked"][score] >= least
    things = {}
    for name in ("base", "reference"):
        config = json.loads((ASSETS / task / name / "config.json").read_text())
        things[name] = set(config["id2label"].values()) - {"background"}
    assert things["base"] - things["reference"] == {"boat", "dog"}
    assert things["reference"] - things["base"] == {"airplane", "flower"}


def test_the_demos_base_is_written_once_beside_the_run(tmp_path):
    config = demo_config("classification", tmp_path / "run", ["--seed", "3"])
    assert config.seed == 3
    weights = tmp_path / "run-base/model.safetensors"
    written = weights.stat().st_mtime_ns
    assert demo_config("classification", tmp_path / "run", ["--seed", "3"]) == config
    assert weights.stat().st_mtime_ns == written
    assert not (tmp_path / "run").exists()
    reference = json.loads((tmp_path / "run-reference/config.json").read_text())  # for kswap audit
    assert set(reference["id2label"].values()) == CLASSES - {"cat", "frog"}


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="output: "):
        demo_config("classification", tmp_path / "file" / "run")
    (tmp_path / "run-base").mkdir()
    (tmp_path / "run-base" / "mine.txt").write_text("")
    with pytest.raises(UserError, match="not empty"):
        demo_config("classification", tmp_path / "run")


@pytest.mark.parametrize(("preset", "depth"), [("default", "last-4"), ("deep", "last-6")])
def test_what_a_preset_of_the_demo_trains(preset, depth, tmp_path):
    config = demo_config("classification", tmp_path / "run", ["--preset", preset])
    assert config.stages.learn.depth == "last-4"  # both learn alike
    assert config.stages.forget.depth == depth


SEGMENTER = {
    "learn": {"own": 15.0},
    "forget": {"like": 100.0, "blur": 12.0, "spread": 12.0, "own": 40.0},
}
"""What terms on features weigh beside a mask classifier's own loss."""


@pytest.mark.parametrize("task", ["classification", "segmentation", "detection"])
def test_the_demo_under_deep_weighs_features_as_the_preset_does(task, tmp_path):
    """Where the demo's own settings have a term of the same name, but for a segmenter."""
    config = demo_config(task, tmp_path / "run", ["--preset", "deep"])
    preset = PRESETS["deep"][task]["stages"]
    for kind in ("learn", "forget"):
        terms = preset[kind]["terms"]
        own = dict(config.stages)[kind].terms
        shared = {"like", "blur", "spread", "own"} & set(terms)
        assert shared
        for name in shared:
            raised = SEGMENTER[kind].get(name) if task == "segmentation" else None
            assert own[name].weight == (raised or terms[name]["weight"]), (kind, name)
