"""Runs on scenes that stream: resumed bit-equal, taught at every step, audited and scored again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dying import die_after
from safetensors.torch import load_file
from shard_files import write_tar
from tiny_runs import OLD, tiny_run

import kswap
from kswap.config import SwapConfig
from kswap.training import loop

pytestmark = pytest.mark.usefixtures("undrawn")

SCENES = ("segmentation", "detection")


def as_shards(source: dict[str, str], folder: Path) -> str:
    """Pack a source of `tiny_run` into tar shards; return the pattern that names them."""
    images = sorted(Path(source["images"]).glob("*.png"))
    samples = []
    for number, path in enumerate(images):
        members = {"png": path.read_bytes()}
        annotations = Path(source["annotations"])
        if annotations.is_dir():
            members["mask.png"] = (annotations / path.name).read_bytes()
        else:
            coco = json.loads(annotations.read_text())
            names = {c["id"]: c["name"] for c in coco["categories"]}
            objects = [
                {"bbox": one["bbox"], "category": names[one["category_id"]]}
                for one in coco["annotations"]
                if one["image_id"] == number
            ]
            members["json"] = json.dumps({"objects": objects}).encode()
        samples.append((path.stem, members))
    for shard in range(2):
        write_tar(folder / f"{shard}.tar", samples[shard::2])
    return str(folder / "{0..1}.tar")


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """`make(task)`: values of a run whose forget and retain images stream."""

    def values(task: str, **more: Any) -> dict[str, Any]:
        found = tiny_run(task, tmp_path)
        pattern = as_shards(found["retain"]["data"], tmp_path / "shards")
        named = {"class_names": ["background", *OLD]} if task == "segmentation" else {}
        stream = {"data": pattern, "streaming": True, "shuffle_buffer": 4, **named}
        stream |= {"images_per_pass": 20}
        for role in ("forget", "retain"):
            found[role] = {**found[role], **stream}
        return {**found, **more}

    return values


def swap(values: dict[str, Any], name: str) -> Any:
    output = Path(values["output"]).with_name(name)
    return kswap.swap(SwapConfig.from_mapping({**values, "output": str(output)}))


def steps(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [{k: line[k] for k in ("stage", "step", "terms")} for line in lines]


ONE_AND_SLOWLY_THE_OTHER = ["segmentation", pytest.param("detection", marks=pytest.mark.slow)]


@pytest.mark.parametrize("task", ONE_AND_SLOWLY_THE_OTHER)
def test_a_killed_run_on_streamed_scenes_goes_on_bit_equal(task, make, monkeypatch):
    values = make(task)
    undisturbed = swap(values, "undisturbed")
    die_after(monkeypatch, 3, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        swap(values, "killed")
    resumed = swap(values, "killed")
    assert resumed.resumed
    first, second = undisturbed.run_dir, resumed.run_dir
    ours, theirs = (load_file(run / "adapter/adapter_model.safetensors") for run in (first, second))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert steps(first) == steps(second)
    assert undisturbed.results["stages"] == resumed.results["stages"]
    assert kswap.evaluate(first)["scores"] == undisturbed.results["stages"][-1]["scores"]


@pytest.mark.parametrize("task", ONE_AND_SLOWLY_THE_OTHER)
def test_the_base_answers_on_streamed_scenes_at_every_step(task, make, monkeypatch):
    import transformers as hf

    values = make(task)
    kind = {
        "segmentation": hf.AutoModelForSemanticSegmentation,
        "detection": hf.AutoModelForObjectDetection,
    }[task]
    base = kind.from_pretrained(values["model"]).eval()
    informed, looked = loop._teacher, []

    def compared(trainee, part, examples, view):
        found = informed(trainee, part, examples, view)
        with torch.no_grad():
            expected = base(pixel_values=examples.pixels).logits
        assert torch.allclose(found["logits"].float(), expected, atol=2e-3)
        looked.append(len(part))
        return found

    monkeypatch.setattr(loop, "_teacher", compared)
    result = swap(values, "taught")
    assert len(looked) == len(steps(result.run_dir))


@pytest.mark.slow
@pytest.mark.parametrize("task", SCENES)
def test_deep_and_its_audit_on_streamed_scenes(task, make):
    few = {"max_steps": 1, "min_steps": 1}
    values = make(task, preset="deep", stages={"learn": few, "forget": few})
    result = swap(values, "deep")
    assert {"like", "spread"} <= set(steps(result.run_dir)[-1]["terms"])
    found = kswap.audit(result.run_dir, level="quick")
    assert found["audits"]["A1"]["status"]
