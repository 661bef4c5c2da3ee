"""Stages that train the last blocks alone: with and without the cache of what lies below."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import TASKS, tiny_run

import kswap
from kswap.errors import UserError
from kswap.models.prefix import Prefix
from kswap.training.depth import blocks_needed

pytestmark = pytest.mark.usefixtures("undrawn")


def run(task, folder, *, depth="last-1", order="LF", notes=None, **more):
    values = tiny_run(task, folder, order=order)
    stages = {name: {**stage, "depth": depth} for name, stage in values["stages"].items()}
    values |= {key: {**values.get(key, {}), **value} for key, value in more.items()}
    config = kswap.SwapConfig.from_mapping({**values, "stages": stages})
    results = kswap.swap(config, on_note=(notes if notes is not None else []).append).results
    lines = (folder / "run/events.jsonl").read_text().splitlines()
    adapter = load_file(folder / "run/adapter/adapter_model.safetensors")
    return results, [json.loads(line)["terms"] for line in lines], adapter


def assert_alike(one, other, near):
    assert len(one) == len(other) > 0
    for ours, theirs in zip(one, other, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert value == pytest.approx(theirs[name], rel=near, abs=near), name


slow_scenes = [pytest.param(t, marks=[pytest.mark.slow] * (t != "classification")) for t in TASKS]
slow_detection = [pytest.param(t, marks=[pytest.mark.slow] * (t == "detection")) for t in TASKS]


@pytest.mark.parametrize("task", slow_detection)
def test_losses_are_those_of_a_run_that_computes_everything(task, tmp_path):
    notes: list[str] = []
    results, kept, adapter = run(task, tmp_path / "kept", notes=notes)
    counts = [re.search(r"for ([0-9]+) images .* in memory", note) for note in notes]
    once = sum(splits["train"] for splits in results["images"].values())
    assert sum(int(found[1]) for found in counts if found) == once, notes  # not for every stage
    off = {"training": {"prefix_cache": False}}
    _, computed, other = run(task, tmp_path / "computed", **off)
    assert_alike(kept, computed, 1e-5)
    for name, values in adapter.items():
        assert torch.allclose(values, other[name], atol=1e-5), name


def test_losses_are_those_of_a_run_that_computes_tokens_nobody_reads(tmp_path, monkeypatch):
    import kswap.running.stages as stages

    found = []
    look = stages.without_unread_tokens

    def watching(*words):
        found.append(look(*words).unread)
        return look(*words)

    with monkeypatch.context() as patch:
        patch.setattr(stages, "without_unread_tokens", watching)
        _, cut, adapter = run("classification", tmp_path / "cut", depth="all")
    assert len(found) == 2
    assert all(unread is not None and unread.num_read == 1 for unread in found)
    monkeypatch.setattr(stages, "without_unread_tokens", lambda trainee, *_: trainee)
    _, whole, other = run("classification", tmp_path / "whole", depth="all")
    assert_alike(cut, whole, 1e-5)
    for name, values in adapter.items():
        assert torch.allclose(values, other[name], atol=1e-5), name


def test_a_first_stage_that_does_not_know_the_images_to_learn_keeps_what_masks_read(tmp_path):
    notes: list[str] = []
    _, kept, _ = run("segmentation", tmp_path / "kept", order="F", notes=notes)
    assert any("in memory" in note for note in notes), notes
    off = {"training": {"prefix_cache": False}}
    _, computed, _ = run("segmentation", tmp_path / "computed", order="F", **off)
    assert_alike(kept, computed, 1e-5)


def test_what_exceeds_the_memory_limit_lies_in_a_file_and_changes_nothing(tmp_path):
    notes: list[str] = []
    _, kept, _ = run("classification", tmp_path / "memory")
    small = {"data": {"memory_limit_bytes": 0}}
    _, mapped, _ = run("classification", tmp_path / "file", notes=notes, **small)
    assert any("is kept on disk" in note for note in notes), notes
    assert kept == mapped
    assert not (tmp_path / "file/run/cache").exists()


def test_what_exceeds_every_limit_is_computed(tmp_path):
    notes: list[str] = []
    none = {"data": {"memory_limit_bytes": 0}, "training": {"prefix_limit_bytes": 0}}
    _, computed, _ = run("classification", tmp_path / "none", notes=notes, **none)
    assert any("training.prefix_limit_bytes" in note for note in notes), notes
    _, kept, _ = run("classification", tmp_path / "kept")
    assert_alike(computed, kept, 1e-5)


@pytest.mark.parametrize("task", slow_scenes)
def test_augmented_views_are_kept_with_their_annotations(task, tmp_path):
    views = {"data": {"augment": "flip-crop"}, "training": {"views": 3}}
    notes: list[str] = []
    results, terms, _ = run(task, tmp_path, notes=notes, order="LFL", **views)
    assert any("(3 views)" in note for note in notes), notes
    assert len(results["stages"]) == 4
    assert all(line["keep"] > 0 for line in terms)
    _, again, _ = run(task, tmp_path / "again", order="LFL", **views)
    assert terms == again


def test_the_adapter_of_frozen_blocks_stays_as_it_was(tmp_path):
    results, _, adapter = run("classification", tmp_path)
    moved = {
        name.split(".lora_")[0]
        for name, values in adapter.items()
        if values.any() and "lora_B" in name
    }
    every = {name.split(".lora_")[0] for name in adapter if "lora_B" in name}
    assert len(moved) == 2  # the two linears of the last block
    assert len(every) == 4
    assert results["trainable_parameters"] == sum(
        values.numel() for name, values in adapter.items()
    )


def test_auto_takes_the_fewest_blocks_that_hold_their_share_of_the_squared_gradient(tmp_path):
    assert blocks_needed([1.0] * 12) == 2
    assert blocks_needed([1.0] * 12, share=0.25) == 3
    assert blocks_needed([17.0, 1.0, 1.0, 1.0]) == 3
    assert blocks_needed([1.0, 1.0, 9.0]) == 1
    assert blocks_needed([0.0, 0.0]) == 2
    notes: list[str] = []
    run("classification", tmp_path, depth="auto", notes=notes)
    assert any("of 2 blocks stay as they are" in note for note in notes) or not notes


def test_more_blocks_than_there_are_is_all_of_them(tmp_path):
    notes: list[str] = []
    _, terms, _ = run("classification", tmp_path / "many", depth="last-99", notes=notes)
    assert any("depth last-99, and the model has 2 blocks: all train" in note for note in notes)
    _, every, _ = run("classification", tmp_path / "all", depth="all")
    assert terms == every


@pytest.mark.parametrize("depth", ["last-0", "last", "first-2", "", "last-1.5"])
def test_another_depth_is_refused_by_name(depth, tmp_path):
    with pytest.raises(UserError, match=r"stages\.learn\.depth"):
        run("classification", tmp_path, depth=depth)


def test_what_the_base_ran_is_not_run_again(tmp_path, monkeypatch):
    """Scores and answers of the base fill the cache; later scores start from it."""
    ran: list[str] = []

    def counted(prefix, base, run):
        ran.append("recorded")
        return record(prefix, base, run)

    record = Prefix.record
    monkeypatch.setattr(Prefix, "record", counted)
    kept, _, _ = run("classification", tmp_path / "kept")
    looked_for = len(ran)
    ran.clear()
    run("classification", tmp_path / "auto", depth="auto")
    assert looked_for == 3  # while the prefix is looked for, and never for the images
    off, _, _ = run("classification", tmp_path / "off", training={"prefix_cache": False})
    assert [s["scores"] for s in kept["stages"]] == [s["scores"] for s in off["stages"]]


@pytest.mark.parametrize("task", slow_scenes)
def test_test_images_are_scored_from_where_the_base_left_them(task, tmp_path, monkeypatch):
    followed: list[int] = []
    follow = Prefix.following

    def counted(prefix, model, base, kept):
        followed.append(len(next(iter(kept.values()))))
        return follow(prefix, model, base, kept)

    monkeypatch.setattr(Prefix, "following", counted)
    results, _, _ = run(task, tmp_path)
    tested = sum(splits["test"] for splits in results["images"].values())
    assert followed == [tested, tested]
