"""What a run keeps of its test images, for every task, and the figures drawn from it alone."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import transformers
from criteria_models import DETECTORS, SIDE
from PIL import Image
from tiny_runs import NEW, SCRIPT, TASKS, tiny_run

import kswap
from kswap import predicting
from kswap.arrays import NOTHING, read_arrays
from kswap.cli import main
from kswap.config import SwapConfig
from kswap.data import read_image
from kswap.models.licence import license_of
from kswap.report.figures import draw_figures


@pytest.fixture(scope="module", params=TASKS)
def finished(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return kswap.swap(SwapConfig.from_mapping(tiny_run(request.param, folder)))


def arrays_of(finished):
    names = [stage["name"] for stage in finished.results["stages"]]
    arrays = read_arrays(finished.run_dir / "arrays", names)
    assert list(arrays.stages) == names
    return arrays


def test_examples_are_of_every_role_with_truth_and_answers(finished):
    arrays = arrays_of(finished)
    roles = [example.role for example in arrays.examples]
    assert set(roles) == {"learn", "forget", "retain"}
    sizes = {role: images["test"] for role, images in finished.results["images"].items()}
    assert all(roles.count(role) == min(4, size) for role, size in sizes.items())
    assert arrays.labels[len(arrays.labels) - 1] == NEW
    task = finished.results["task"]
    for stage in arrays.stages.values():
        for example, answer in zip(arrays.examples, stage.answers, strict=True):
            assert (answer.mask is None) == (task != "segmentation")
            assert (answer.boxes is None) == (task != "detection")
            for marks in (example.truth, answer):
                if marks.mask is not None:
                    assert marks.mask.shape == example.image.shape[:2]


def test_the_base_answers_no_learned_class_and_the_confusion_counts_all_test_units(finished):
    arrays = arrays_of(finished)
    learned = len(arrays.labels) - 1
    assert all(learned not in counts for counts in arrays.stages["base"].confusion.values())
    totals = [
        {row: sum(counts.values()) for row, counts in stage.confusion.items()}
        for stage in arrays.stages.values()
    ]
    assert totals[0] == totals[1] == totals[2]
    assert learned in totals[0]
    if finished.results["task"] == "classification":
        last = finished.results["stages"][-1]["per_class"]
        for row, counts in arrays.stages["2-forget"].confusion.items():
            share = counts.get(row, 0) / sum(counts.values())
            assert share == pytest.approx(last[arrays.labels[row]], abs=1e-6)
    if finished.results["task"] != "detection":
        assert all(NOTHING not in c for s in arrays.stages.values() for c in s.confusion.values())


def test_figures_are_redrawn_from_numbers_and_arrays_alone(finished, tmp_path):
    for part in ("results.json", "arrays"):
        source = finished.run_dir / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / part)
    results = json.loads((tmp_path / "results.json").read_text())
    drawn = draw_figures(tmp_path, results)
    assert [path.name for path in drawn] == ["learn.png", "forget.png", "retain.png"]
    for path in drawn:
        assert path.read_bytes() == (finished.run_dir / "figures" / path.name).read_bytes()
        with Image.open(path) as image:
            assert min(image.size) > 300


def test_scores_are_those_without_keeping_anything(finished):
    assert kswap.evaluate(finished.run_dir)["scores"] == finished.scores["2-forget"]


def test_predict_writes_drawn_pictures_and_never_over_its_images(finished, tmp_path, capsys):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / folder / "x.png")
    images = [str(tmp_path / folder / "x.png") for folder in ("a", "b")]
    words = ["predict", str(finished.run_dir), *images, "--to", str(tmp_path / "drawn")]
    assert main(words) == 0
    names = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert names == ["x-answer-2.png", "x-answer.png"]
    with Image.open(tmp_path / "drawn" / "x-answer.png") as image:
        assert image.width >= 90
    assert main([*words[:-1], images[0]]) == 2
    said = capsys.readouterr().err
    assert "is no folder to write to" in said
    assert "; name another folder" in said


def test_predict_answers_nothing_where_a_later_file_is_no_image(finished, tmp_path, capsys):
    Image.new("RGB", (60, 90)).save(tmp_path / "x.png")
    (tmp_path / "y.png").write_text("no image")
    images = [str(tmp_path / name) for name in ("x.png", "y.png")]
    to = tmp_path / "new" / "drawn"
    assert main(["predict", str(finished.run_dir), *images, "--to", str(to)]) == 2
    said = capsys.readouterr()
    assert "y.png" in said.err
    assert said.out == ""
    assert not to.parent.exists()


@pytest.mark.parametrize(("room", "times"), [(3 * 60 * 90, [1, 2]), (1 << 29, [1, 1])])
def test_predict_reads_an_image_once_while_there_is_room(
    finished, tmp_path, capsys, monkeypatch, room, times
):
    read: list[Path] = []
    monkeypatch.setattr(predicting, "_KEPT_BYTES", room)
    monkeypatch.setattr(predicting, "read_image", lambda p: read.append(p) or read_image(p))
    images = [tmp_path / "x.png", tmp_path / "y.png"]
    for path in images:
        Image.new("RGB", (60, 90)).save(path)
    assert main(["predict", str(finished.run_dir), *map(str, images)]) == 0
    assert [read.count(path) for path in images] == times
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_predict_answers_nothing_where_a_later_image_is_too_flat_for_the_processor(
    tmp_path, capsys
):
    model = DETECTORS["yolos"]()
    model.save_pretrained(tmp_path / "model")
    size = {"shortest_edge": SIDE, "longest_edge": SIDE}
    transformers.YolosImageProcessorPil(size=size).save_pretrained(tmp_path / "model")
    for name, size in (("x.png", (60, 90)), ("flat.png", (90, 1))):
        Image.new("RGB", size).save(tmp_path / name)
    images = [str(tmp_path / name) for name in ("x.png", "flat.png")]
    capsys.readouterr()  # saving shows progress
    assert main(["predict", str(tmp_path / "model"), *images]) == 2
    said = capsys.readouterr()
    assert "flat.png: the model's image processor fails on 90x1 pixels (" in said.err
    assert said.err.strip().count("\n") == 0
    assert said.out == ""


def test_a_full_disk_while_predicting_leaves_no_folder_of_its_own(
    finished, tmp_path, capsys, monkeypatch
):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    Image.new("RGB", (60, 90)).save(tmp_path / "x.png")
    before = tmp_path / "before"
    before.mkdir()
    words = ["predict", str(finished.run_dir), str(tmp_path / "x.png"), "--to"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main([*words, str(before / "a" / "b")]) == 2
        assert "the disk is full" in capsys.readouterr().err
        assert list(before.iterdir()) == []
        assert main([*words, str(before)]) == 2
    assert list(before.iterdir()) == []  # it was there, so that it stays
    assert main([*words, str(before)]) == 0


def test_a_damaged_array_is_one_line(finished, tmp_path):
    shutil.copytree(finished.run_dir / "arrays", tmp_path / "arrays")
    for name in ("answers-base.safetensors", "confusion-base.json", "examples.json"):
        path = tmp_path / "arrays" / name
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(kswap.UserError, match=f"{name}: cannot be read"):
            read_arrays(tmp_path / "arrays", ["base"])
        shutil.copy(finished.run_dir / "arrays" / name, path)


def test_the_forgotten_class_is_among_the_kept_names(finished):
    assert SCRIPT in arrays_of(finished).labels.values()


def test_the_page_is_drawn_at_the_end_and_names_the_base(finished):
    page = (finished.run_dir / "report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>" not in page
    assert '<h1><bdi class="name">base</bdi></h1>' in page
    assert finished.results["base"]["license"] is None


def test_a_drawing_that_fails_is_told_and_costs_no_result(tmp_path, monkeypatch):
    def fail(*args):
        raise ValueError("no font")

    monkeypatch.setattr("kswap.running.saving.draw_figures", fail)
    monkeypatch.setattr("kswap.running.saving.write_report", fail)
    said = []
    config = SwapConfig.from_mapping(tiny_run("classification", tmp_path, order="F"))
    result = kswap.swap(config, on_note=said.append)
    assert (result.run_dir / "results.json").exists()
    for what in ("figures/", "report.html"):
        assert f"{what} could not be drawn (ValueError: no font)" in " ".join(said)


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("---\nlicense: mit\n---\ntext", {"license": "mit"}),
        (
            "---\nlicense: other\nlicense_name: own\nlicense_link: https://a.example\n---\n",
            {"license": "other", "license_name": "own", "license_link": "https://a.example"},
        ),
        (
            "---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE.md\n---\n",
            {"license": "other", "license_name": "own"},
        ),
        ("---\nlicense: [a, b]\n---\n", {}),
        ("---\ntags: x\n---\n", {}),
        ("---\n: [\n---\n", {}),
        ("no metadata", {}),
        (None, {}),
    ],
)
def test_the_licence_is_that_of_the_bases_card(tmp_path, card, found):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert license_of(str(tmp_path)) == found
    (tmp_path / "model").mkdir()
    assert license_of(str(tmp_path / "model")) == {}  # any folder of that name
    (tmp_path / "results.json").touch()
    assert license_of(str(tmp_path / "model")) == found  # of a run, whose card lies beside it
    assert license_of("ViTForImageClassification in memory") == {}
    assert license_of("nobody/nothing") == {}
