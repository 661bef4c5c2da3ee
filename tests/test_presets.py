"""Every preset trains; what terms ask for is looked at, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_vit
from safetensors.torch import load_file

import kswap
from kswap.config import SwapConfig
from kswap.errors import UserError
from kswap.models.features import Places, recorded_features
from kswap.models.head import find_heads
from kswap.models.structure import find_ffn_blocks
from kswap.presets import PRESETS
from kswap.training.informing import some_of_each

pytestmark = pytest.mark.usefixtures("undrawn")

LOOKING = {
    "spread": {"roles": ["forget"], "objective": "dispersion", "layers": ["head", 0.5, 1.0]},
    "like": {"roles": ["forget"], "objective": "impersonation", "layers": ["all"]},
    "move": {"roles": ["forget"], "objective": "translation", "layers": [1.0]},
    "blur": {"roles": ["forget"], "objective": "discrimination", "layers": [0.5], "whiten": True},
    "own": {"roles": ["retain"], "objective": "feature_distillation", "whiten": True},
}


def run(values: dict, name: str, **changes) -> Path:
    output = Path(values["output"]).with_name(name)
    kswap.swap(SwapConfig.from_mapping({**values, **changes, "output": str(output)}))
    return output


def with_terms(values: dict, terms: dict) -> dict:
    forget = {**values["stages"]["forget"], "terms": terms}
    return {**values["stages"], "forget": forget}


def events(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"default", "paper", "retain-free"}))
def test_the_preset_trains(values, preset):
    short = {"min_steps": 1, "max_steps": 2, "epochs": 5.0}
    stages = dict.fromkeys(("learn", "forget", "joint"), short)
    folder = run(values, preset, preset=preset, stages=stages)
    assert events(folder)
    results = json.loads((folder / "results.json").read_text())
    assert results["preset"] == preset
    assert all(0 <= v <= 1 for v in results["stages"][-1]["scores"].values())


def test_features_are_those_of_the_library():
    model = tiny_vit()
    heads, blocks = find_heads(model), find_ffn_blocks(model)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    places = Places(heads, tuple(enumerate(blocks, start=1)), len(blocks))
    with recorded_features(model, places) as found, torch.no_grad():
        states = model(pixel_values=pixels, output_hidden_states=True).hidden_states
    assert set(found) == {"head", "1 first", "1 mean", "2 first", "2 mean"}
    assert torch.equal(found["1 first"], states[1][:, 0])
    assert torch.equal(found["1 mean"], states[1].mean(1))
    assert torch.equal(found["head"], model.vit.layernorm(found_last(model, pixels))[:, 0])


def found_last(model, pixels):
    kept = []
    hook = model.vit.layers[-1].register_forward_hook(lambda m, a, out: kept.append(out))
    with torch.no_grad():
        model(pixel_values=pixels)
    hook.remove()
    return kept[0] if isinstance(kept[0], torch.Tensor) else kept[0][0]


def test_hooks_are_there_only_while_they_are_asked_for(values, monkeypatch):
    from kswap.training import loop

    seen = []
    original = loop.recorded_features

    def counting(model, places):
        if torch.is_grad_enabled():  # a step
            seen.append(bool(places))
        return original(model, places)

    monkeypatch.setattr(loop, "recorded_features", counting)
    run(values, "plain")
    assert seen
    assert not any(seen)
    seen.clear()
    folder = run(values, "looking", stages=with_terms(values, LOOKING))
    stages = [line["stage"] for line in events(folder)]
    assert seen == [stage == "2-forget" for stage in stages]


def test_terms_on_features_pull_at_the_adapter_and_are_the_same_bits_again(values):
    stages = with_terms(values, LOOKING)
    plain, one, two = (
        run(values, "plain"),
        run(values, "one", stages=stages),
        run(values, "two", stages=stages),
    )
    weights = [load_file(p / "adapter" / "adapter_model.safetensors") for p in (plain, one, two)]
    assert all(torch.equal(weights[1][n], weights[2][n]) for n in weights[1])
    assert any(not torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    assert set(LOOKING) <= set(events(one)[-1]["terms"])


def test_features_can_be_looked_at_where_activations_are_recomputed(values):
    stages = with_terms(values, LOOKING)
    whole = load_file(run(values, "whole", stages=stages) / "adapter/adapter_model.safetensors")
    training = {**values["training"], "gradient_checkpointing": True}
    folder = run(values, "recomputed", stages=stages, training=training)
    saved = load_file(folder / "adapter/adapter_model.safetensors")
    assert max(float((whole[name] - saved[name]).abs().max()) for name in whole) < 1e-4


def test_features_that_do_not_fit_into_memory_say_so(values):
    stages = with_terms(values, LOOKING)
    with pytest.raises(UserError, match="memory_limit_bytes: 1000 is too little"):
        run(values, "x", stages=stages, data={"memory_limit_bytes": 1000})


def test_the_bank_takes_evenly_from_every_class():
    ids = torch.tensor([0] * 10 + [2] * 2)
    assert some_of_each(ids, 4).tolist() == [0, 3, 6, 9, 10, 11]


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ("impersonation", "needs images of retained classes"),
        ("translation", "needs images of retained classes"),
        ("class_mean_head", "retain"),
    ],
)
def test_an_objective_that_needs_retained_images_says_so(values, objective, said):
    terms = {"like": {"roles": ["forget"], "objective": objective}}
    del values["retain"]
    with pytest.raises(UserError, match=said):
        run(values, "x", preset="retain-free", stages=with_terms(values, terms))


def test_translation_sees_what_the_head_receives_wherever_it_looks(values):
    """Its pairs are of the head, though no term of the stage looks there."""
    stages = with_terms(values, {"move": LOOKING["move"], **FORGET})
    assert "move" in events(run(values, "move", stages=stages))[-1]["terms"]


def test_a_preset_of_another_task_says_so():
    with pytest.raises(UserError, match="'scrub' has no values for detection; take one of default"):
        SwapConfig.from_mapping({"model": "m", "preset": "scrub", "task": "detection"})


@pytest.mark.parametrize("layers", [["foo"], [0], [2], 5, [True], ["head", None]])
def test_a_layer_that_is_none_is_said_in_one_line(values, layers):
    terms = {"spread": {"roles": ["forget"], "objective": "dispersion", "layers": layers}}
    with pytest.raises(UserError, match=r"layers.*is no place; take head, all, or a share"):
        SwapConfig.from_mapping({**values, "stages": with_terms(values, terms)})


def test_blocks_that_a_later_stage_looks_at_are_kept_with_the_prefix(values):
    """Of the stage before, which looks at nothing but has the same depth."""
    stages = with_terms(values, {"own": LOOKING["own"] | {"layers": ["head", 0.5, 1.0]}, **FORGET})
    stages = {kind: {**stage, "depth": "last-1"} for kind, stage in stages.items()}
    terms = []
    for cached in (True, False):
        training = {**values["training"], "prefix_cache": cached}
        lines = events(run(values, f"kept-{cached}", stages=stages, training=training))
        terms.append([value for line in lines for _, value in sorted(line["terms"].items())])
    assert terms[0] == pytest.approx(terms[1], rel=1e-4)


FORGET = {"forget": {"roles": ["forget"], "objective": "masked_distillation"}}
