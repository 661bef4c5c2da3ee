"""What each layer does in a stage: the numbers by hand, and that looking changes nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import tiny_vit
from safetensors.torch import load_file
from torch import nn

import kswap
from kswap.config import SwapConfig
from kswap.options import split_overrides
from kswap.settings import TermConfig
from kswap.training.analysis import Analysis
from kswap.yaml_text import parse_overrides


def run(values: dict, name: str, **training) -> Path:
    output = Path(values["output"]).with_name(name)
    settings = {**values, "training": {**values["training"], **training}, "output": str(output)}
    kswap.swap(SwapConfig.from_mapping(settings))
    return output


def figures(folder: Path, stage: str) -> dict[str, dict]:
    path = folder / "arrays" / f"analysis-{stage}.json"
    return {figure["title"]: figure for figure in json.loads(path.read_text(encoding="utf-8"))}


def test_looking_changes_no_bit_and_writes_a_figure_for_each_question(values):
    plain, looked = run(values, "plain"), run(values, "looked", analysis=True, analysis_steps=2)
    one, other = (load_file(p / "adapter" / "adapter_model.safetensors") for p in (plain, looked))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not list((plain / "arrays").glob("analysis-*"))
    learn, forget = figures(looked, "1-learn"), figures(looked, "2-forget")
    assert set(learn["Gradient by role, before clipping"]["series"]) == {"learn", "retain"}
    assert set(forget["Gradient by role, before clipping"]["series"]) == {
        *("forget", "learn", "retain")
    }
    assert set(forget["Cosine between the gradients of roles"]["series"]) == {
        *("forget, learn", "forget, retain", "learn, retain")
    }
    for figure in (*learn.values(), *forget.values()):
        assert set(figure) == {"title", "x_label", "y_label", "x", "series"}
        assert all(len(values) == len(figure["x"]) for values in figure["series"].values())
    assert learn["Groups that are exactly zero"]["x"] == [1, 3, 5]
    for values_ in forget["Cosine between the gradients of roles"]["series"].values():
        assert all(-1 <= value <= 1 for value in values_)


def test_the_change_of_the_layers_is_that_of_the_saved_adapter(values):
    folder = run(values, "run", analysis=True)
    saved = load_file(folder / "adapter" / "adapter_model.safetensors")
    base = tiny_vit()
    figure = figures(folder, "2-forget")
    norms = figure["Change of the layers"]["series"]
    relative = figure["Relative change of the layers"]["series"]
    scale = 1.0  # of preset default
    found = 0
    for name, down in saved.items():
        if ".lora_A." not in name:
            continue
        up = saved[name.replace(".lora_A.", ".lora_B.")]
        plain = name.removeprefix("base_model.model.").replace(".lora_A.weight", "")
        block = int(plain.split(".layers.")[1].split(".")[0])
        expected = float((scale * up @ down).norm())
        weight = float(base.get_submodule(plain).weight.detach().norm())
        values_ = [norms[f"linear {n}"][block] for n in (1, 2)]
        shares = [relative[f"linear {n}"][block] for n in (1, 2)]
        assert any(v == pytest.approx(expected, rel=1e-4) for v in values_)
        assert any(s == pytest.approx(expected / weight, rel=1e-4) for s in shares)
        found += 1
    assert found == 4


def test_gradients_of_roles_are_those_of_their_terms_and_add_up_over_micro_batches():
    a, b = nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.tensor([3.0]))
    terms = {
        name: TermConfig(roles=(role,), objective="cross_entropy")
        for name, role in (("learn", "learn"), ("keep", "retain"), ("retain", "retain"))
    }
    analysis = Analysis({"1": [a], "2": [b]}, every=2)
    for factor in (1.0, 3.0):  # two micro-batches
        values = {
            "learn": factor * a.sum(),
            "keep": factor * (a[0] - a[1]),
            "retain": factor * b.sum(),
            "group_lasso": a.norm(),  # of no role
        }
        analysis.look(values, terms)
    analysis.close(0)
    series = {
        figure["title"]: figure["series"]
        for figure in analysis.figures({"1": [(0.0, 0.0)], "2": [(0.0, 0.0), (1.0, 0.5)]})
    }
    assert series["Gradient by role, before clipping"] == {
        "learn": [pytest.approx(math.log10(4.0)), None],  # b has no gradient of it
        "retain": [pytest.approx(math.log10(4.0)), pytest.approx(math.log10(4.0))],
    }
    cosines = series["Cosine between the gradients of roles"]["learn, retain"]
    assert cosines == pytest.approx([0.0, 0.0])
    assert series["Change of the layers"] == {"linear 1": [0.0, 0.0], "linear 2": [None, 1.0]}
    assert analysis.looks_at(4)
    assert not analysis.looks_at(5)


def test_analysis_on_the_command_line_is_a_flag():
    words, overrides = split_overrides(["run", "swap.yaml", "--analysis", "--seed", "1"])
    assert words == ["run", "swap.yaml"]
    assert parse_overrides(overrides) == {"training": {"analysis": True}, "seed": 1}
