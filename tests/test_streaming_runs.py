"""Runs whose retain images stream: resumed, shared, taught at every step, scored like others."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import NEW, OLD
from dying import die_after
from PIL import Image
from safetensors.torch import load_file
from shard_files import write_shards
from test_ranks import assert_same_run, launch

import kswap
from kswap.config import SwapConfig
from kswap.data.decode import content_hash
from kswap.errors import UserError
from kswap.training import loop
from kswap.training.checkpoint import load_checkpoint
from kswap.training.events import EventLog
from kswap.training.sharing import shares, steps_in_a_pass

pytestmark = pytest.mark.usefixtures("undrawn")


class KilledError(Exception):
    """As if the process had ended."""


@pytest.fixture
def streamed(values, old_images, tmp_path) -> dict[str, Any]:
    """`values`, with retain from three shards."""
    images = [
        (path.read_bytes(), name) for name in OLD for path in sorted((old_images / name).iterdir())
    ]
    order = np.random.default_rng(0).permutation(len(images))
    pattern = write_shards(tmp_path / "shards", [images[i] for i in order], number=3)
    source = {"data": pattern, "streaming": True, "shuffle_buffer": 5, "sample_images": 24}
    return {**values, "retain": source}


def swap(values: Mapping[str, Any], name: str, notes: list[str] | None = None, **more: Any):
    output = Path(values["output"]).with_name(name)
    config = SwapConfig.from_mapping({**values, **more, "output": str(output)})
    return kswap.swap(config, on_note=(notes if notes is not None else []).append)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter/adapter_model.safetensors")


def steps(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [{k: line[k] for k in ("stage", "step", "terms")} for line in lines]


@pytest.mark.parametrize(
    ("order", "after", "stage"),
    [
        ("L", 4, {}),
        pytest.param("LF", 9, {"depth": "auto", "saliency": 0.5}, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_bit_equal(streamed, order, after, stage, monkeypatch):
    stages = {kind: {**own, **stage} for kind, own in streamed["stages"].items()}
    streamed = {**streamed, "order": order, "stages": stages}
    undisturbed = swap(streamed, "undisturbed")
    die_after(monkeypatch, after, KilledError)
    with pytest.raises(KilledError):
        swap(streamed, "killed")
    folder = Path(streamed["output"]).with_name("killed")
    _, position, _ = load_checkpoint(folder / "checkpoints")
    assert position.step > 0, "within a stage"
    assert len(json.dumps(position.streams)) < 200, "a place, not what is in the buffer"
    resumed = swap(streamed, "killed")
    assert resumed.resumed
    ours, theirs = weights(undisturbed.run_dir), weights(resumed.run_dir)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert steps(undisturbed.run_dir) == steps(resumed.run_dir)
    assert undisturbed.results["stages"] == resumed.results["stages"]


def test_the_base_answers_at_every_step_as_the_untouched_model_does(
    streamed, base_dir, tmp_path, monkeypatch
):
    from transformers import ViTForImageClassification

    base = ViTForImageClassification.from_pretrained(base_dir).eval()
    completed, looked = loop._completed, []

    def compared(trainee, part, *words):
        found = completed(trainee, part, *words)
        rows = part.untaught
        with torch.no_grad():
            expected = base(trainee.pixels(part.samples.images)).logits
        assert torch.allclose(found["logits"][rows], expected[rows], atol=1e-5)
        now = trainee.model(pixel_values=trainee.pixels(part.samples.images)).logits
        looked.append(float((now[rows][:, :4] - expected[rows]).detach().abs().max()))
        return found

    monkeypatch.setattr(loop, "_completed", compared)
    monkeypatch.chdir(tmp_path)
    retain = {**streamed["retain"], "data": "shards/shard-{00..02}.tar"}
    result = swap(streamed, "taught", data={"augment": "flip"}, retain=retain)
    assert len(looked) == len(steps(result.run_dir))
    assert looked[-1] > 0.1, "the model itself answers otherwise by then"
    scores = kswap.evaluate(result.run_dir)["scores"]
    assert scores == result.results["stages"][-1]["scores"]
    config = SwapConfig.from_yaml(result.run_dir / "config.yaml")
    assert config.retain.data == streamed["retain"]["data"], "absolute"


def test_no_held_out_picture_is_trained_on(streamed, old_images, monkeypatch):
    seen: set[bytes] = set()
    units_of = loop.units_of

    def watching(trainee, stage, part):
        seen.update(image.tobytes() for image in part.samples.images)
        return units_of(trainee, stage, part)

    monkeypatch.setattr(loop, "units_of", watching)
    held: dict[str, set[bytes]] = {}
    finish = kswap.swapping.finish

    def looking(state, **more):
        for splits in state.data.sets.values():
            for split in ("test", "validation"):
                images = splits[split].images
                held.setdefault(split, set()).update(image.tobytes() for image in images)
        digests = state.data.streamed["retain"].held
        every = {content_hash(Image.open(p).convert("RGB")) for p in old_images.glob("*/*.png")}
        assert len(digests & every) >= 8, "of retain and of forget"
        return finish(state, **more)

    monkeypatch.setattr(kswap.swapping, "finish", looking)
    notes: list[str] = []
    swap(streamed, "watched", notes)
    assert len(seen) > 30
    assert not seen & held["test"]
    assert not seen & held["validation"]
    assert any("retain.retain: passed over" in note and "held-out" in note for note in notes)


def test_images_without_a_known_class_are_told_of_at_each_stage(streamed, old_images, tmp_path):
    images = [
        (path.read_bytes(), name)
        for number, path in enumerate(sorted(old_images.glob("*/*.png")))
        for name in (path.parent.name, *(("", "zebra") if number % 3 == 0 else ()))
    ]
    pattern = write_shards(tmp_path / "mixed", images, number=1)
    notes: list[str] = []
    swap({**streamed, "retain": {**streamed["retain"], "data": pattern}}, "told", notes)
    told = [note for note in notes if "retain.retain: passed over" in note]
    assert len(told) == 2
    what = r"\d+ held-out pictures, \d+ images without a class and \d+ images of unknown classes"
    assert all(re.search(rf"{what} \(zebra\) of what was read$", note) for note in told), told


@pytest.mark.slow
def test_all_roles_may_stream_from_the_same_shards(streamed, new_images, tmp_path):
    images = [(p.read_bytes(), name) for name in NEW for p in sorted((new_images / name).iterdir())]
    retain = streamed["retain"]
    learn = {**retain, "data": write_shards(tmp_path / "new", images, number=2)}
    forget = {**retain, "classes": ["red"]}
    stages = {kind: {**own, "max_steps": 8} for kind, own in streamed["stages"].items()}
    training = {**streamed["training"], "accumulation": 3}
    given = {"learn": learn, "forget": forget, "stages": stages, "training": training}
    result = swap(streamed, "all", **given)
    assert result.results["streamed"] == ["forget", "learn", "retain"]
    scores = result.results["stages"][-1]["scores"]
    assert scores["learn"] > 0.5
    assert scores["forget"] == 0


def test_what_does_not_train_is_not_kept_and_a_note_says_so(streamed):
    notes: list[str] = []
    stages = {kind: {**own, "depth": "last-1"} for kind, own in streamed["stages"].items()}
    result = swap(streamed, "last", notes, stages=stages)
    assert sum("the images of retain are not kept" in note for note in notes) == 2
    assert result.results["stages"][-1]["scores"]["learn"] is not None


def test_features_of_the_base_are_looked_up_at_every_step(streamed):
    terms = {
        "own": {"roles": ["retain"], "objective": "feature_distillation", "layers": ["head", 1.0]}
    }
    stages = {kind: {**own, "terms": terms} for kind, own in streamed["stages"].items()}
    result = swap(streamed, "features", stages=stages)
    first, *_, last = [line["terms"]["own"] for line in steps(result.run_dir)]
    assert first == pytest.approx(0, abs=1e-5), "before the adapter has moved"
    assert last > 1e-4


def test_lengths_that_are_needed_are_asked_for(streamed):
    learn = {**streamed["retain"], "data": streamed["retain"]["data"]}
    unlimited = {"epochs": 1.0, "max_steps": None}
    stages = {k: {**own, **unlimited} for k, own in streamed["stages"].items()}
    short = {k: {**own, "max_steps": 1} for k, own in streamed["stages"].items()}
    anchored = {
        "learn": {**learn, "rename": {n: f"new {n}" for n in OLD}, "sample_images": 36},
        "order": "L",
        "forget": None,
    }
    with pytest.raises(UserError, match=r"'learn', whose length is not known; give images_per"):
        swap(streamed, "a", stages=stages, **anchored)
    with pytest.raises(UserError, match=r"streams\.kept: draws retain.*retain\.images_per_pass"):
        swap(streamed, "b", preset="paper", stages=short)


@pytest.mark.slow
def test_a_stream_with_other_roles_in_one_stream_of_batches(streamed):
    source = {**streamed["retain"], "images_per_pass": 36}
    short = {k: {**own, "max_steps": 2} for k, own in streamed["stages"].items()}
    result = swap(streamed, "c", preset="paper", stages=short, retain=source)
    assert result.results["stages"][-1]["scores"]["retain"] is not None


@pytest.mark.parametrize(
    ("size", "lengths", "num_kept", "expected", "steps"),
    [
        (16, {"retain": None}, 0, {"retain": 16}, None),
        (16, {"retain": 90}, 0, {"retain": 16}, 6),
        (10, {"retain": 90}, 10, {"retain": 9}, 10),
        (10, {"retain": 1000}, 1, {"retain": 9}, 101),
        (10, {"retain": 1}, 1000, {"retain": 1}, 101),
        (10, {"learn": 50, "retain": 50}, 0, {"learn": 5, "retain": 5}, 10),
        (3, {"learn": 50, "retain": 50}, 0, {"learn": 2, "retain": 1}, 34),
    ],
)
def test_shares(size, lengths, num_kept, expected, steps):
    found = shares("x", size, lengths, num_kept)
    rest = size - sum(found.values())
    assert sorted(found.values()) == sorted(expected.values())
    assert steps_in_a_pass(num_kept, rest, found, lengths) == steps


def test_other_shards_are_not_gone_on_with(streamed, monkeypatch, tmp_path):
    add = EventLog.add

    def dying(self, line, terms):
        add(self, line, terms)
        if line["step"] == 3:
            raise KilledError

    monkeypatch.setattr(EventLog, "add", dying)
    with pytest.raises(KilledError):
        swap(streamed, "run")
    last = tmp_path / "shards/shard-02.tar"
    last.write_bytes(last.read_bytes() + bytes(10240))  # the same images in the sample
    with pytest.raises(UserError, match="was begun with other images"):
        swap(streamed, "run")


@pytest.mark.slow
def test_two_processes_draw_the_same_stream(streamed, tmp_path):
    path = tmp_path / "swap.yaml"
    path.write_text(yaml.safe_dump(streamed), encoding="utf-8")
    for name, processes in (("one", 1), ("two", 2)):
        done = launch(path, tmp_path / name, processes=processes)
        assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "one", tmp_path / "two")
