"""`kswap audit` as a user meets it: what it writes, and every mistake in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from audits.conftest import save_model, shift_weights
from conftest import NEW, OLD, tiny_processor, tiny_vit, write_colours
from safetensors.torch import load_file, save_file
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

import kswap
from kswap.audits import quality, relearning, retraining
from kswap.audits.measuring import make_reference
from kswap.audits.references import NOTES, describe, match_rows
from kswap.audits.subjects import Subject
from kswap.cli import main
from kswap.config import SwapConfig
from kswap.errors import UserError
from kswap.exporting import export
from kswap.models.head import drop_rows, extend_head
from kswap.models.loading import load_base
from kswap.training.checkpoint import weights_digest

CELLS = (str, int, float)
"""A number that could not be had is said in words, never left blank."""


def check_shape(answer: dict) -> None:
    """Hold the contract that reports read."""
    assert set(answer) == {
        *("level", "seed", "reference", "verdict", "warnings", "seconds", "audits")
    }
    assert set(answer["reference"]) == {"level", "model", "valid", "note"}
    assert set(answer["verdict"]) == {"level", "stopped_by", "reason"}
    assert any("unmerged" in warning for warning in answer["warnings"])
    assert any("public base" in warning for warning in answer["warnings"])
    assert {"total", "features", *answer["audits"]} == set(answer["seconds"])
    for found in answer["audits"].values():
        assert set(found) == {
            *("title", "question", "status", "reason", "tables", "curves", "values")
        }
        assert found["status"] in ("pass", "fail", "info", "not available")
        assert found["reason"]
        for table in found["tables"]:
            assert set(table) == {"title", "columns", "rows"}
            for row in table["rows"]:
                assert len(row) == len(table["columns"]), (table["title"], row)
                for cell in row:
                    interval = isinstance(cell, dict) and set(cell) == {"mean", "low", "high", "n"}
                    assert isinstance(cell, CELLS) or interval, cell
        for curve in found["curves"]:
            assert set(curve) == {"title", "x_label", "y_label", "x", "series"}
            assert {len(ys) for ys in curve["series"].values()} == {len(curve["x"])}


def test_a_quick_audit_writes_results_card_and_tables(run_dir, reference_dir, capsys):
    before = json.loads((run_dir / "results.json").read_text())
    assert main(["audit", str(run_dir), "--reference", str(reference_dir)]) == 0
    said = capsys.readouterr()
    assert "verdict: " in said.out
    assert "forwards of an image, about" in said.err
    results = json.loads((run_dir / "results.json").read_text())
    answer = results["audit"]
    check_shape(answer)
    assert {**results, "audit": {}} == before
    assert list(answer["audits"]) == ["A1", "A2", "A5", "A6", "A8", "A10", "A11"]
    assert answer["reference"]["level"] == "R2"
    assert answer["reference"]["model"] == str(reference_dir)
    layers = [row[0] for row in answer["audits"]["A5"]["tables"][0]["rows"]]
    assert layers == [
        *(f"block {n}, {token} token" for n in (1, 2) for token in ("class", "mean")),
        "before the head",
    ]
    ranks = answer["audits"]["A8"]["values"]["ranks"]
    assert {r for name, r in ranks.items() if "classifier" not in name} <= set(range(1, 17))
    assert not list(run_dir.glob(".*.tmp"))
    assert not (run_dir / ".lock").exists()


def test_a_strict_audit_runs_all_eleven(run_dir, reference_dir, monkeypatch):
    monkeypatch.setattr(retraining, "STRICT", retraining.Budget(steps=2, batch=8, every=1))
    monkeypatch.setattr(relearning, "STRICT", relearning.STRICT[:7] + relearning.STRICT[-2:])
    shutil.copytree(reference_dir, run_dir.with_name("run-reference"))
    answer = kswap.audit(run_dir, level="strict", reference_level="R1", seed=1)
    check_shape(answer)
    assert list(answer["audits"]) == [f"A{n}" for n in range(1, 12)]
    assert (answer["reference"]["level"], answer["seed"]) == ("R1", 1)
    a4 = answer["audits"]["A4"]
    assert a4["status"] == "not available"
    assert "N = 1 swapped and 1 reference" in a4["reason"]
    assert "new LoRA, 10 % of forget" in answer["audits"]["A7"]["values"]
    assert "same LoRA, 10 % of forget" in answer["audits"]["A7"]["values"]


def test_the_adapter_can_be_taken_out_of_the_merged_weights_again(run_dir, base_dir):
    """The function stays, the weights below are the base's, and the run's matrices train."""
    from kswap.models.adapter import attach, continue_from, read_matrices
    from kswap.models.head import find_heads
    from kswap.models.structure import find_ffn_blocks
    from kswap.settings import AdapterConfig

    merged, base = (
        kswap.load(run_dir)[0],
        tiny_vit().from_pretrained(base_dir),
    )
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = merged.eval()(images).logits
    given = AdapterConfig(**yaml.safe_load((run_dir / "config.yaml").read_text())["adapter"])
    blocks, heads = find_ffn_blocks(merged), find_heads(merged)
    net = attach(merged, blocks, given, head_names=heads, seed=0, head_train="all")
    matrices = read_matrices(run_dir / "adapter")
    continue_from(net, matrices)
    with torch.no_grad():
        assert torch.allclose(net(images).logits, before, atol=1e-5)
    plain = base.state_dict()
    for name, weight in net.get_base_model().state_dict().items():
        if ".base_layer.weight" in name:
            own = plain[name.replace(".base_layer", "")]
            assert torch.allclose(weight, own, atol=1e-5)
            assert not torch.equal(matrices[name.replace("base_layer", "lora_B")], 0 * own[:, :1])
    with pytest.raises(UserError, match=r"adapter: .* missing or too many"):
        continue_from(net, dict(list(matrices.items())[1:]))


def test_an_adapter_that_is_gone_is_said(run_dir, reference_dir):
    from kswap.audits import battery
    from kswap.audits.relearning import Condition

    shutil.rmtree(run_dir / "adapter")
    (run_dir / "manifest.json").unlink(missing_ok=True)  # the change is meant
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(battery.relearning, "STANDARD", (Condition("10 % of forget", "same LoRA"),))
        answer = kswap.audit(run_dir, level="standard", reference=reference_dir)
    check_shape(answer)
    row = answer["audits"]["A7"]["tables"][0]["rows"][0]
    assert row[:2] == ["same LoRA, 10 % of forget", "not available: the run's adapter is gone"]


def only_forget(model: Path, images: Path, name: str, output: Path) -> None:
    values = {
        "model": str(model),
        "forget": {"data": str(images), "classes": [name]},
        "retain": {"data": str(images)},
        "order": "F",
        "output": str(output),
        "stages": {"forget": {"max_steps": 2, "min_steps": 1}},
        "training": {"device": "cpu"},
    }
    kswap.swap(SwapConfig.from_mapping(values))


def test_a_strict_audit_of_a_run_that_learns_nothing(base_dir, old_images, tmp_path):
    from kswap.audits import battery
    from kswap.audits.relearning import LEARN_SET, Condition

    only_forget(base_dir, old_images, "red", tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(battery.relearning, "STRICT", (Condition(LEARN_SET, "new LoRA"),))
        answer = kswap.audit(tmp_path / "run", level="strict", skip=["A3", "A9"])
    check_shape(answer)
    note = "none, and no class to learn is a control"
    assert answer["reference"] == {"level": "R3", "model": None, "valid": False, "note": note}
    assert f"Reference: R3 (not valid). {note}" in (tmp_path / "run/README.md").read_text()
    assert not {"A3", "A9"} & set(answer["audits"])
    if answer["audits"]["A7"]["tables"]:  # random weights may not answer red at all
        row = answer["audits"]["A7"]["tables"][0]["rows"][0]
        assert row[1] == "not available: the run learns no class"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--skip", "A12"], "--skip: A12 is no audit; name some of A1, A2"),
        (["--seed", "-3"], "--seed: -3 is not allowed; give 0 or more"),
    ],
)
def test_what_no_audit_is_done_with(words, wanted, capsys):
    assert wanted in refused(["audit", "none", *words], capsys)


def references_of(folder: Path, reference_dir: Path, count: int) -> list[str]:
    made = []
    for number in range(count):
        made.append(str(shutil.copytree(reference_dir, folder / f"reference{number}")))
        shift_weights(Path(made[-1]), 100 + number)
    return made


@pytest.mark.slow
def test_five_runs_and_five_references_have_a4_at_every_level(
    more_runs, reference_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(quality, "LEAST_EXAMPLES", 2)  # of red there are few
    runs, references = more_runs(5), references_of(tmp_path, reference_dir, 5)
    words = ["audit", *map(str, runs)]
    for source in references:
        words += ["--reference", source]
    assert main(words) == 0
    said = capsys.readouterr().out
    found = [json.loads((run / "results.json").read_text())["audit"] for run in runs]
    a4 = [answer["audits"]["A4"] for answer in found]
    for number, answer in enumerate(found):
        check_shape(answer)
        assert answer["reference"]["model"] == references[number]
        assert answer["audits"]["A4"]["values"]["epsilon"] == a4[0]["values"]["epsilon"]
    assert a4[0]["values"]["N"] == [5, 5]
    assert a4[0]["values"]["control"]["n"] == 252
    assert a4[0]["status"] in ("pass", "fail", "info")
    assert "A4" not in str(found[0]["verdict"]["reason"]) or a4[0]["status"] != "pass"
    assert said.count("verdict: ") == 5


def test_the_ladder_goes_on_where_there_is_an_a4(more_runs, reference_dir, tmp_path, monkeypatch):
    """The verdict ends at what is missing: A3 for many runs, A3 and A4 for one."""
    monkeypatch.setattr(quality, "LEAST_EXAMPLES", 2)
    monkeypatch.setattr(quality, "LEAST_MODELS", 2)
    runs, references = more_runs(2), references_of(tmp_path, reference_dir, 2)
    together = kswap.audit_runs(runs, references=references)[0]
    alone = kswap.audit(runs[0], reference=references[0])
    assert "A4" not in alone["audits"]
    assert together["audits"]["A4"]["status"] != "not available"
    same = {name for name in alone["audits"] if name != "A4"}
    assert all(together["audits"][name] == alone["audits"][name] for name in same)


def other_config(run_dir: Path, **fields: Any) -> None:
    path = run_dir / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | fields))


def test_runs_of_other_bases_of_the_same_kind_are_asked_together(
    more_runs, base_dir, reference_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr(quality, "LEAST_EXAMPLES", 2)
    monkeypatch.setattr(quality, "LEAST_MODELS", 2)
    runs, references = more_runs(3), references_of(tmp_path, reference_dir, 2)
    for number in (1, 2):  # the second's base is a copy of the first's
        base = shutil.copytree(base_dir, tmp_path / f"base{number}")
        other_config(runs[number], model=str(base))
        if number == 2:
            shift_weights(base, 7)
            path = runs[number] / "results.json"  # as if it had begun with that
            results = json.loads(path.read_text())
            results["base"]["digest"] = weights_digest(load_base(str(base)).model)
            path.write_text(json.dumps(results))
    answer = kswap.audit_runs(runs, references=references)[0]["audits"]["A4"]
    assert answer["values"]["bases"] == 2


def test_runs_of_other_labels_or_configs_are_not_asked_together(more_runs, tmp_path, capsys):
    runs = more_runs(3)
    other_config(runs[1], order="FL")
    assert "is of another config than" in refused(["audit", *map(str, runs[:2])], capsys)
    other_config(runs[2], model="elsewhere")
    path = runs[2] / "model" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"hidden_size": 7}))
    words = ["audit", str(runs[0]), str(runs[2])]
    assert "model is 'elsewhere', there" in refused(words, capsys)
    path.write_text("{")
    assert "config.json: cannot be read" in refused(words, capsys)


@pytest.mark.slow
def test_copies_of_a_reference_count_once(more_runs, reference_dir, tmp_path):
    copies = [str(shutil.copytree(reference_dir, tmp_path / f"copy{n}")) for n in range(5)]
    notes: list[str] = []
    answer = kswap.audit_runs(more_runs(5), references=copies, on_note=notes.append)[0]
    assert "5 references are 1 different models" in " ".join(notes)
    assert "N = 5 swapped and 1 reference" in answer["audits"]["A4"]["reason"]


def test_runs_without_references_have_no_a4_and_say_so(more_runs):
    answer = kswap.audit_runs(more_runs(2))[1]
    assert "N = 2 swapped and 0 reference models" in answer["audits"]["A4"]["reason"]
    assert answer["reference"]["level"] == "R3"


@pytest.mark.slow
def test_a_reference_is_trained_for_each_run_with_its_seed(more_runs, tmp_path):
    backbone = save_model(tmp_path / "backbone", (*OLD[1:], *NEW))
    runs = more_runs(2)
    words = ["audit", *map(str, runs), "--reference", str(backbone), "--train-reference"]
    assert main(words) == 0
    made = [run.with_name(f"{run.name}-reference") for run in runs]
    seeds = [json.loads((folder / "reference.json").read_text())["seed"] for folder in made]
    assert seeds == [0, 1]
    before = [(folder / "model.safetensors").stat().st_mtime_ns for folder in made]
    assert main(words) == 0
    assert [(folder / "model.safetensors").stat().st_mtime_ns for folder in made] == before
    found = [json.loads((run / "results.json").read_text())["audit"] for run in runs]
    assert [answer["reference"]["model"] for answer in found] == [str(path) for path in made]


def test_a_reference_is_trained_on_two_classes_of_an_image_each_and_on_no_fewer(
    base_dir, tmp_path, capsys
):
    images = write_colours(tmp_path / "images", OLD, count=2)  # one to train, one to test
    values = {
        "model": str(base_dir),
        "order": "F",
        "forget": {"data": str(images), "classes": ["red"]},
        "retain": {"data": str(images), "classes": ["green", "blue"]},
        "training": {"device": "cpu"},
        "stages": {"forget": {"max_steps": 1, "min_steps": 1}},
        "output": str(tmp_path / "two"),
    }
    backbone = str(save_model(tmp_path / "backbone", ("sand", "snow")))
    two = kswap.swap(SwapConfig.from_mapping(values))
    assert two.results["images"]["retain"] == {"train": 2, "validation": 0, "test": 2}
    make_reference(two.run_dir, backbone, tmp_path / "made", seed=0)
    assert tuple(load_base(str(tmp_path / "made")).id2label.values()) == ("green", "blue")
    values["retain"]["classes"] = ["green"]
    one = kswap.swap(SwapConfig.from_mapping({**values, "output": str(tmp_path / "one")})).run_dir
    words = ["audit", str(one), "--reference", backbone, "--train-reference"]
    assert "the run keeps green alone" in refused(words, capsys)
    assert not one.with_name("one-reference").exists()


def same_seed(run: Path) -> None:
    change(run, lambda v: v.update(seed=0))


def other_order(run: Path) -> None:
    change(run, lambda v: v.update(order="FL"))


def other_rate(run: Path) -> None:
    change(run, lambda v: v["stages"]["learn"]["optimiser"].update(lr=0.5))


def not_finished(run: Path) -> None:
    (run / "results.json").unlink()


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (same_seed, "has the seed 0 of"),
        (other_order, "order is 'FL', there 'LF'"),
        (other_rate, "stages.learn.optimiser.lr is 0.5"),
        (not_finished, "is not finished"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(mistake, said, more_runs, capsys):
    runs = more_runs(2)
    mistake(runs[1])
    assert said in refused(["audit", *map(str, runs)], capsys)
    assert json.loads((runs[0] / "results.json").read_text())["audit"] == {}


def test_classes_that_an_earlier_swap_forgot_are_scored_again(swapped_run, old_images, tmp_path):
    model = swapped_run / "model"  # it forgot red
    only_forget(model, old_images, "green", tmp_path / "second")
    answer = kswap.audit(tmp_path / "second")
    check_shape(answer)
    tables = {table["title"]: table for table in answer["audits"]["A1"]["tables"]}
    rows = tables["Classes that an earlier swap forgot, test"]["rows"]
    assert [row[0] for row in rows] == ["red"]
    assert rows[0][1] > 0
    assert rows[0][2]["n"] == rows[0][3]["n"] == rows[0][1]


def test_without_a_reference_it_says_so_and_never_passes(run_dir):
    answer = kswap.audit(run_dir)
    check_shape(answer)
    note = "none; the control is the base, asked of the classes to learn, which it never saw"
    assert answer["reference"] == {"level": "R3", "model": None, "valid": False, "note": note}
    statuses = {name: found["status"] for name, found in answer["audits"].items()}
    assert statuses["A5"] == statuses["A6"] == "info"
    assert statuses["A10"] in ("info", "not available")
    answered = statuses["A1"] != "not available"  # random weights may not answer red at all
    assert (answer["verdict"]["level"] in ("known", "suppressed")) == answered
    assert (answer["verdict"]["level"] == "not available") != answered
    assert "control R3" in json.dumps(answer["audits"]["A5"]["tables"])


def test_the_same_seed_gives_the_same_answer(run_dir, reference_dir):
    first, again = (kswap.audit(run_dir, reference=reference_dir) for _ in range(2))
    for answer in (first, again):
        answer.pop("seconds")
    assert first == again


def test_a_run_that_forgets_nothing_is_audited_for_what_it_did(
    base_dir, old_images, new_images, tmp_path
):
    values = {
        "model": str(base_dir),
        "learn": {"data": str(new_images)},
        "retain": {"data": str(old_images)},
        "order": "L",
        "output": str(tmp_path / "run"),
        "stages": {"learn": {"max_steps": 3, "min_steps": 1}},
        "training": {"device": "cpu"},
    }
    kswap.swap(SwapConfig.from_mapping(values))
    answer = kswap.audit(tmp_path / "run", level="standard")
    check_shape(answer)
    assert answer["verdict"]["level"] == "not available"
    assert answer["audits"]["A1"]["status"] == "info"
    assert answer["audits"]["A11"]["status"] in ("pass", "fail")
    assert answer["audits"]["A5"]["status"] == "not available"


def refused(words: list[str], capsys) -> str:
    assert main(words) == 2
    said = capsys.readouterr()
    lines = said.err.strip().splitlines()
    assert lines[-1].startswith("kswap: error: ")
    assert "Traceback" not in said.err + said.out
    return lines[-1]


def no_run(run_dir: Path, tmp: Path) -> list[str]:
    return [str(tmp / "none")]


def unfinished(run_dir: Path, tmp: Path) -> list[str]:
    (run_dir / "results.json").unlink()
    return [str(run_dir)]


def data_gone(run_dir: Path, tmp: Path) -> list[str]:
    return change(run_dir, lambda v: v["forget"].update(data=str(tmp / "gone")))


def in_memory(run_dir: Path, tmp: Path) -> list[str]:
    return change(run_dir, lambda v: [v[r].update(data="") for r in ("learn", "forget", "retain")])


def base_gone(run_dir: Path, tmp: Path) -> list[str]:
    return change(run_dir, lambda v: v.update(model=str(tmp / "gone")))


def base_changed(run_dir: Path, tmp: Path) -> list[str]:
    base = tmp / "another base"
    shutil.copytree(yaml.safe_load((run_dir / "config.yaml").read_text())["model"], base)
    weights = load_file(base / "model.safetensors")
    weights["classifier.bias"] += 1e-3
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    return change(run_dir, lambda v: v.update(model=str(base)))


def model_gone(run_dir: Path, tmp: Path) -> list[str]:
    shutil.rmtree(run_dir / "model")
    return [str(run_dir)]


def change(run_dir: Path, how) -> list[str]:
    values = yaml.safe_load((run_dir / "config.yaml").read_text())
    how(values)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(values))
    (run_dir / "manifest.json").unlink(missing_ok=True)  # the change is meant
    return [str(run_dir)]


def with_reference(*names: str):
    def make(run_dir: Path, tmp: Path) -> list[str]:
        return [str(run_dir), "--reference", str(save_model(tmp / "reference", names))]

    return make


def exported_without_the_class(run_dir: Path, tmp: Path) -> list[str]:
    export(run_dir, tmp / "exported", drop_forgotten=True)
    return [str(run_dir), "--reference", str(tmp / "exported")]


def without_its_row(which: str):
    """The base or the swapped model, saved by its user without the row of the class to forget."""

    def make(run_dir: Path, tmp: Path) -> list[str]:
        base = yaml.safe_load((run_dir / "config.yaml").read_text())["model"]
        model = ViTForImageClassification.from_pretrained(
            base if which == "base" else run_dir / "model"
        )
        model.config.kswap = {}
        drop_rows(model, [0])
        if which == "base":  # and rows of classes to learn, which anybody can add
            extend_head(model, dict(enumerate((*OLD[1:], *NEW))), init="random", seed=0)
        model.save_pretrained(tmp / "reference")
        tiny_processor().save_pretrained(tmp / "reference")
        return [str(run_dir), "--reference", str(tmp / "reference")]

    return make


def reference_of_no_numbers(run_dir: Path, tmp: Path) -> list[str]:
    folder = save_model(tmp / "reference", (*OLD[1:], *NEW))
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] *= torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return [str(run_dir), "--reference", str(folder)]


def reference_without_blocks(run_dir: Path, tmp: Path) -> list[str]:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
    config.id2label = dict(enumerate((*OLD[1:], *NEW)))
    ResNetForImageClassification(config).save_pretrained(tmp / "reference")
    tiny_processor().save_pretrained(tmp / "reference")
    return [str(run_dir), "--reference", str(tmp / "reference")]


def reference_gone(run_dir: Path, tmp: Path) -> list[str]:
    return [str(run_dir), "--reference", str(tmp / "none")]


def reference_of_another_size(run_dir: Path, tmp: Path) -> list[str]:
    model = save_model(tmp / "reference", (*OLD[1:], *NEW))
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(model)
    return [str(run_dir), "--reference", str(model)]


def backbone_of_another_size(run_dir: Path, tmp: Path) -> list[str]:
    config = tiny_vit(OLD[1:]).config
    config.image_size = 64
    ViTForImageClassification(config).save_pretrained(tmp / "backbone")
    return [str(run_dir), "--reference", str(tmp / "backbone"), "--train-reference"]


def reference_of_another_task(run_dir: Path, tmp: Path) -> list[str]:
    from criteria_models import PER_PIXEL

    PER_PIXEL["segformer"]().save_pretrained(tmp / "reference")
    tiny_processor().save_pretrained(tmp / "reference")
    return [str(run_dir), "--reference", str(tmp / "reference")]


def level_of_no_reference(run_dir: Path, tmp: Path) -> list[str]:
    return [str(run_dir), "--reference-level", "R1"]


def trained_from_the_base(run_dir: Path, tmp: Path) -> list[str]:
    return [str(run_dir), "--train-reference"]


REFUSED = {
    no_run: "is not a run folder",
    unfinished: "is not finished",
    data_gone: "there is no",
    in_memory: "was given in memory",
    base_gone: "model: there is no folder",
    base_changed: "are not those that the run began with",
    model_gone: "has no model folder",
    with_reference(*OLD, *NEW): "has red among its labels, which the run forgets",
    with_reference("green", "blue", "yellow", "magenta"): "lacks cyan",
    exported_without_the_class: "is a swapped model that saw red and was exported without",
    without_its_row("model"): "has the weights of the run's own model, which saw red",
    without_its_row("base"): "has the weights of the run's base, which saw red",
    reference_of_no_numbers: "--reference: the model answers NaN or infinity; its weights",
    reference_without_blocks: "--reference: ResNetForImageClassification: no transformer block",
    reference_gone: "--reference: there is no folder",
    reference_of_another_task: "does segmentation, the run classification",
    reference_of_another_size: "reference' cannot take images of (16, 16) pixels",
    backbone_of_another_size: "backbone cannot take images of (32, 32) pixels, which the base's",
    level_of_no_reference: "of no reference",
    trained_from_the_base: "the base saw the classes to forget",
}


@pytest.mark.parametrize(("mistake", "said"), REFUSED.items())
def test_a_mistake_is_one_line_and_changes_nothing(mistake, said, run_dir, tmp_path, capsys):
    words = mistake(run_dir, tmp_path)
    before = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    assert said in refused(["audit", *words], capsys)
    assert {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()} == before


def test_a_model_beside_the_run_that_knows_the_class_is_no_reference(run_dir, tmp_path):
    save_model(run_dir.with_name("run-reference"), (*OLD, *NEW))
    notes: list[str] = []
    answer = kswap.audit(run_dir, on_note=notes.append)
    assert answer["reference"]["level"] == "R3"
    assert any("is not used as its reference" in note for note in notes)


def test_classes_of_a_reference_are_matched_by_name():
    names = {0: "tench, Tinca tinca", 1: "cat", 2: "new_bird"}
    class_ids = {"retain": (0,), "forget": (1,), "learn": (2,)}
    found = match_rows("m", {0: "New Bird", 1: "other", 2: "tench"}, names, class_ids)
    assert found == (2, -1, 0)
    with pytest.raises(UserError, match="has cat among its labels"):
        match_rows("m", {0: "new_bird", 1: "CAT", 2: "tench"}, names, class_ids)


@pytest.mark.parametrize(
    ("splits", "note"),
    [
        (["train", "test"], NOTES["R3"]),
        (["train"], "none, and no class to learn is a control"),  # nothing to score it on
        ([], "none, and no class to learn is a control"),
    ],
)
def test_the_base_is_a_control_only_where_it_was_asked_of_classes_to_learn(splits, note):
    base = Subject("base", {"learn": dict.fromkeys(splits), "retain": {}})
    assert describe(None, base, None)["note"] == note


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_a_standard_audit_of_scenes(task, tmp_path):
    short = ["--stages.learn.max_steps", "2", "--stages.forget.max_steps", "2"]
    least = ["--stages.learn.min_steps", "1", "--stages.forget.min_steps", "1"]
    thin = ["--learn.fraction", "0.2", "--forget.fraction", "0.2", "--retain.fraction", "0.2"]
    output = tmp_path / "run"
    assert main(["demo", task, "--output", str(output), *short, *least, *thin]) == 0
    answer = kswap.audit(output, level="standard")
    check_shape(answer)
    assert set(answer["audits"]) == {"A1", "A2", "A5", "A6", "A7", "A8", "A9", "A10", "A11"}
    assert answer["audits"]["A5"]["status"] != "not available"


def test_the_untouched_base_is_known(run_dir, reference_dir, base_dir):
    """The whole command, given a base whose only change is that it has new rows."""
    from kswap.models.head import extend_head

    model = tiny_vit()
    names = dict(enumerate((*OLD, *NEW)))
    extend_head(model, names, init="random", seed=0)
    shutil.rmtree(run_dir / "model")
    (run_dir / "manifest.json").unlink(missing_ok=True)  # the change is meant
    model.save_pretrained(run_dir / "model")
    tiny_processor().save_pretrained(run_dir / "model")
    answer = kswap.audit(run_dir, reference=reference_dir)
    if answer["audits"]["A1"]["values"]["base"]["forget test"]:
        assert answer["verdict"]["level"] == "known"
    else:  # the tiny base with random weights may not answer red at all
        assert answer["audits"]["A1"]["status"] == "not available"
        assert answer["verdict"]["level"] == "not available"
