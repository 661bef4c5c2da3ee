"""A whole run on tiny things: what it leaves, and that its parts agree with each other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import NEW, OLD, tiny_processor, tiny_vit
from safetensors.torch import load_file
from tiny_runs import OLD as OLD_SCENES
from tiny_runs import TASKS, tiny_run
from transformers import AutoModelForImageClassification

import kswap
from kswap.audits.work import load_run
from kswap.config import SwapConfig, resolve
from kswap.errors import UserError
from kswap.plan import plan
from kswap.tasks import View
from kswap.training.checkpoint import fingerprint_of, weights_digest

PLAIN = """
import json, re, sys
from pathlib import Path
from transformers import pipeline
from PIL import Image
picture = Image.open(sys.argv[1]).convert("RGB")
readme = Path("adapter/README.md").read_text()
exec(re.search(r"```python\\n(.*?)```", readme, re.S).group(1))
adapter = model(**processor(picture, return_tensors="pt")).logits[0].tolist()
classify = pipeline("image-classification", model="model", top_k=10, function_to_apply="none")
merged = {a["label"]: a["score"] for a in classify(picture)}
assert not [name for name in sys.modules if name.split(".")[0] == "kswap"]
print(json.dumps([adapter, merged]))
"""


@pytest.fixture(scope="module")
def finished(base_dir, old_images, new_images, tmp_path_factory):
    values = {
        "model": str(base_dir),
        "learn": {"data": str(new_images)},
        "forget": {"data": str(old_images), "classes": ["red"]},
        "retain": {"data": str(old_images)},
        "output": str(tmp_path_factory.mktemp("runs") / "run"),
        "training": {"device": "cpu"},
    }
    return kswap.swap(SwapConfig.from_mapping(values))


def test_it_leaves_what_the_design_says(finished):
    names = {p.name for p in finished.run_dir.iterdir()}
    assert names == {
        *(
            "config.yaml",
            "manifest.json",
            "results.json",
            "events.jsonl",
            "adapter",
            "model",
            "checkpoints",
        ),
        *("README.md", "arrays", "figures", "report.html"),
    }
    results = json.loads((finished.run_dir / "results.json").read_text())
    assert results == finished.results
    assert results["kswap_version"] == kswap.__version__
    assert (results["task"], results["score_name"], results["seed"]) == (
        "classification",
        "top1",
        0,
    )
    assert results["classes"] == {
        "learn": list(NEW), "forget": ["red"], "retain": ["green", "blue", "cyan"]
    }  # fmt: skip
    assert [s["name"] for s in results["stages"]] == ["base", "1-learn", "2-forget"]
    for stage in results["stages"]:
        assert set(stage["scores"]) == {"learn", "forget", "retain"}
        assert set(stage["per_class"]) == {*OLD, *NEW}
        assert all(0 <= v <= 1 for v in (*stage["scores"].values(), *stage["per_class"].values()))
    assert results["stages"][0]["scores"]["learn"] == 0
    assert results["groups"] == {"total": 2, "zero": 0}
    assert results["peak_memory_bytes"] > 10**7
    assert results["audit"] == {}
    assert len(list((finished.run_dir / "checkpoints").iterdir())) == 1


def test_it_learns_and_forgets_colours(finished):
    last = finished.scores["2-forget"]
    assert last["learn"] == 1
    assert last["forget"] == 0


def test_config_yaml_makes_the_same_run_again(finished):
    values = yaml.safe_load((finished.run_dir / "config.yaml").read_text())
    environment = values.pop("environment")
    assert {"kswap", "torch", "transformers", "peft", "commit"} <= set(environment)
    config = SwapConfig.from_yaml(finished.run_dir / "config.yaml")
    again = kswap.swap(config)
    assert again.resumed
    assert again.results == finished.results


def test_events_have_a_line_per_step_with_every_term(finished):
    lines = [json.loads(x) for x in (finished.run_dir / "events.jsonl").read_text().splitlines()]
    assert [x["total_step"] for x in lines] == list(range(1, len(lines) + 1))
    for stage in plan(SwapConfig.from_yaml(finished.run_dir / "config.yaml")):
        logged = {frozenset(x["terms"]) for x in lines if x["stage"] == stage.name}
        assert logged == {frozenset(stage.config.terms)}
    assert all({"lr", "seconds", "images_per_s", "step"} <= set(x) for x in lines)


def test_plain_peft_and_the_pipeline_give_the_runs_logits(finished, old_images):
    """In a process without kswap; the recipe of the adapter's README is executed as it stands."""
    image = old_images / "green" / "000.png"
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(image)],
        cwd=finished.run_dir, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    adapter, merged = json.loads(done.stdout.splitlines()[-1])
    assert list(merged)
    assert set(merged) == {*OLD, *NEW}
    model, processor = kswap.load(finished.run_dir)
    from kswap.data import read_image

    with torch.no_grad():
        ours = model(**processor(read_image(image), return_tensors="pt")).logits[0]
    assert torch.allclose(ours, torch.tensor(adapter), atol=1e-4)
    by_name = [merged[model.config.id2label[i]] for i in range(len(ours))]
    assert torch.allclose(ours, torch.tensor(by_name), atol=1e-4)


def test_old_rows_of_the_head_stay_bit_equal_where_only_new_ones_train(values, base_dir):
    values["head"] = {"train": "new"}
    run_dir = kswap.swap(SwapConfig.from_mapping(values)).run_dir
    base = load_file(base_dir / "model.safetensors")
    now = load_file(run_dir / "model" / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        assert torch.equal(now[name][: len(OLD)], base[name])
        assert len(now[name]) == len(OLD) + len(NEW)


def test_only_ffn_linears_and_the_head_differ_from_the_base(finished, base_dir):
    base = load_file(base_dir / "model.safetensors")
    now = load_file(finished.run_dir / "model" / "model.safetensors")
    changed = {n for n in base if base[n].shape != now[n].shape or not torch.equal(base[n], now[n])}
    assert len(changed) == 2 * 2 + 2
    assert all("dense" in n or "fc" in n or "classifier" in n for n in changed), changed


def test_evaluate_scores_the_saved_model_as_the_run_did(finished):
    assert kswap.evaluate(finished.run_dir)["scores"] == finished.scores["2-forget"]


def test_a_second_swap_starts_from_the_first_ones_model(finished, old_images, tmp_path):
    values = {
        "model": str(finished.run_dir / "model"),
        "order": "F",
        "forget": {"data": str(old_images), "classes": ["green"]},
        "retain": {"data": str(old_images)},
        "output": str(tmp_path / "second"),
    }
    second = kswap.swap(SwapConfig.from_mapping(values))
    # red was forgotten before: it is neither retained nor taught again.
    assert second.results["classes"]["retain"] == ["blue", "cyan", *NEW]
    assert second.scores["1-forget"]["forget"] == 0
    assert second.scores["1-forget"]["learn"] is None
    model, _ = kswap.load(second.run_dir)
    assert model.config.kswap["forgotten"] == ["green", "red"]
    adapter = json.loads((second.run_dir / "adapter" / "config.json").read_text())
    assert adapter["kswap"] == model.config.kswap
    # and so says the card, which names the first run, not the folder model/ in it
    assert second.results["base"]["forgotten"] == ["red"]
    card = (second.run_dir / "README.md").read_text()
    assert "**Forgotten:** green (by earlier swaps: red)" in card
    assert f"# {finished.run_dir.name}, swapped" in card


def test_order_f_with_a_learn_source_adds_no_rows(values):
    notes = []
    config = SwapConfig.from_mapping(values | {"order": "F"})
    result = kswap.swap(config, on_note=notes.append)
    said = "learn: left out, as order F has no stage that learns"
    assert said in notes
    assert said in result.results["notes"]
    assert result.results["classes"]["learn"] == []
    assert result.scores["1-forget"]["learn"] is None
    assert kswap.evaluate(result.run_dir)["scores"] == result.scores["1-forget"]
    model, _ = kswap.load(result.run_dir)
    assert model.classifier.out_features == len(OLD)
    assert tuple(model.config.id2label.values()) == OLD
    assert model.config.kswap["learned"] == []
    assert model.config.kswap["forgotten"] == ["red"]


@pytest.fixture
def in_memory(old_images, new_images, tmp_path):
    """Images of every role, as data sets."""
    datasets = pytest.importorskip("datasets")
    old, new = (
        datasets.load_dataset(
            "imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path)
        )
        for folder in (old_images, new_images)
    )
    return {"learn": new, "forget": old, "retain": old}


def test_model_and_data_sets_in_memory(values, in_memory):
    model = tiny_vit()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for role in in_memory:
        values[role].pop("data")
    result = kswap.swap(
        SwapConfig.from_mapping(values), model=model, processor=tiny_processor(), **in_memory
    )
    assert result.results["classes"]["learn"] == sorted(NEW)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    told = r"data \(learn, forget, retain\) was given in memory, .*; evaluate a run whose"
    with pytest.raises(UserError, match=told):
        kswap.evaluate(result.run_dir)


def test_data_in_memory_goes_before_the_configs_which_is_not_read_for_it(values, in_memory):
    few = in_memory["learn"].select(range(0, 24, 2))
    result = kswap.swap(SwapConfig.from_mapping(values), learn=few)
    assert result.results["in_memory"] == ["learn"]
    assert sum(result.results["images"]["learn"].values()) == 12
    for again in (kswap.evaluate, kswap.audit):
        with pytest.raises(UserError, match=r"data \(learn\) was given in memory"):
            again(result.run_dir)


def test_a_run_is_looked_at_again_through_the_processor_that_it_was_given(values):
    processor = tiny_processor()
    processor.image_mean = [6.0, -6.0, 0.0]
    model = AutoModelForImageClassification.from_pretrained(values["model"])
    result = kswap.swap(SwapConfig.from_mapping(values), model=model, processor=processor)
    last = result.results["stages"][-1]
    assert kswap.evaluate(result.run_dir) == {key: last[key] for key in ("scores", "per_class")}
    work = load_run(result.run_dir, result.results, level="quick", seed=0)
    images = work.data.sets["retain"]["test"].images[:1]
    assert work.data.pixels(images)[0, 0].max() < -9  # (1 - 6) / 0.5


def files_of(run_dir):
    return {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


def check_others_are_refused(config, given, others):
    """Swap, again with the same, and with each of `others`: the config says nothing of them."""
    first = kswap.swap(config, **given)
    left = files_of(first.run_dir)
    again = kswap.swap(config, **given)
    assert again.resumed
    assert again.results == first.results
    for other in others:
        with pytest.raises(
            UserError, match="begun with other images, class names, processor or base weights"
        ):
            kswap.swap(config, **given | other)
    assert files_of(first.run_dir) == left


def test_a_finished_run_of_data_in_memory_is_of_that_data(values, in_memory):
    datasets = pytest.importorskip("datasets")
    new = in_memory["learn"]
    values["learn"].pop("data")
    labels = new.features["label"].names
    turned = new.map(lambda row: {"label": len(labels) - 1 - row["label"]})
    renamed = new.cast_column("label", datasets.ClassLabel(names=[f"dark {n}" for n in labels]))
    check_others_are_refused(
        SwapConfig.from_mapping(values),
        {"learn": new},
        [{"learn": one} for one in (new.select(range(1, len(new))), turned, renamed)],
    )
    with pytest.raises(UserError, match=r"data \(learn\) was given in memory"):
        kswap.evaluate(values["output"])


def test_a_finished_run_of_a_model_in_memory_is_of_that_model(values):
    values["forget"]["classes"] = ["green"]
    values["retain"]["classes"] = ["blue", "cyan"]
    other = tiny_vit()
    with torch.no_grad():
        other.classifier.bias[0] += 1e-3
    brighter = tiny_processor()
    brighter.image_mean = [value / 2 for value in brighter.image_mean]
    check_others_are_refused(
        SwapConfig.from_mapping(values),
        {"model": tiny_vit(), "processor": tiny_processor()},
        [{"model": other}, {"model": tiny_vit(("crimson", *OLD[1:]))}, {"processor": brighter}],
    )


@pytest.mark.parametrize("order", ["L", "F", "FL", "J", "LFL", "FLF"])
@pytest.mark.parametrize("preset", ["default", "paper", "retain-free"])
def test_every_order_runs_under_every_preset(values, order, preset):
    values |= {"order": order, "preset": preset}
    values["stages"] = {k: {"max_steps": 2, "min_steps": 1} for k in ("learn", "forget", "joint")}
    result = kswap.swap(SwapConfig.from_mapping(values))
    assert len(result.results["stages"]) == 1 + len(order)
    if order == "FL":
        assert result.scores["1-forget"]["learn"] == 0  # rows that were never trained do not answer


@pytest.mark.parametrize("task", TASKS)
def test_the_last_class_of_the_model_may_be_in_no_role(task, tmp_path, monkeypatch):
    values = tiny_run(task, tmp_path, order="F")  # rows of the head are all there is
    values["retain"]["classes"] = ["ship"]
    seen = []
    monkeypatch.setattr(
        "kswap.running.knowledge.View", lambda **fields: seen.append(View(**fields)) or seen[-1]
    )
    kswap.swap(SwapConfig.from_mapping(values))
    assert {view.num_rows for view in seen} == {len(OLD_SCENES)}
    assert {view.role_of_row.tolist()[-1] for view in seen} == {-1}


def test_without_retain_images(values):
    values.pop("retain")
    values["preset"] = "retain-free"
    result = kswap.swap(SwapConfig.from_mapping(values))
    assert result.scores["2-forget"]["retain"] is None
    assert "–" in (Path(values["output"]) / "README.md").read_text()


def test_the_model_card_escapes_names(values, new_images, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    for source, name in zip(
        NEW, ["<script>alert(1)</script>".replace("/", "\u2215"), "a|b `c`"], strict=True
    ):
        (folder / name).symlink_to(new_images / source, target_is_directory=True)
    values["learn"]["data"] = str(folder)
    kswap.swap(SwapConfig.from_mapping(values))
    card = (Path(values["output"]) / "README.md").read_text()
    assert "<script>" not in card
    assert r"a\|b" in card
    assert yaml.safe_load(card.split("---")[1])["pipeline_tag"] == "image-classification"


def test_precision_that_cannot_be_had_is_refused(values, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    for precision in ("bf16", "fp16"):
        values["training"]["precision"] = precision
        with pytest.raises(
            UserError, match=f"{precision}' cannot be computed on this cpu; take fp32"
        ):
            kswap.swap(SwapConfig.from_mapping(values))
    assert not Path(values["output"]).exists()


def test_paths_of_splits_become_absolute_and_a_split_without_one_has_none(
    values, old_images, monkeypatch
):
    monkeypatch.chdir(old_images.parent)
    values["retain"] = {"data": {"train": old_images.name, "test": old_images.name}}
    data = resolve(SwapConfig.from_mapping(values)).retain.data
    assert data.train == data.test == str(old_images)
    assert data.validation is None


def test_scalars_of_batch_norm_are_part_of_the_fingerprint():
    data = SimpleNamespace(id2label={}, sets={}, streamed={})
    norm = torch.nn.BatchNorm2d(3)
    before = fingerprint_of(weights_digest(norm), data)
    norm.num_batches_tracked += 1
    assert fingerprint_of(weights_digest(norm), data) != before


def test_misuse_in_python_is_named(values):
    with pytest.raises(UserError, match="a dict is no SwapConfig"):
        kswap.swap(values)
    with pytest.raises(UserError, match="without a model"):
        kswap.swap(SwapConfig.from_mapping(values), processor=tiny_processor())
