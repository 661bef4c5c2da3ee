"""Selective synaptic dampening: by hand; its change as an adapter; its stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import tiny_run

import kswap
from kswap.config import SwapConfig
from kswap.errors import UserError
from kswap.models.low_rank import low_rank
from kswap.objectives.dampening import dampened, selected
from kswap.training import dampening as stage_of
from kswap.training.dampening import dampen

WEIGHTS = torch.tensor([4.0, -4.0, 4.0, 4.0, 4.0])
FORGET = torch.tensor([10.0, 10.0, 10.0, 0.0, 1.0])
KEPT = torch.tensor([1.0, 0.0, 9.0, 0.0, 0.4])


def test_dampening_by_hand():
    # Ratios 10, infinite, 1.1, 0 / 0 and 2.5: above 2 are the first, the second and the last.
    assert selected(FORGET, KEPT, selection=2.0).tolist() == [True, True, False, False, True]
    found = dampened(WEIGHTS, FORGET, KEPT, selection=2.0, strength=1.0)
    assert found.tolist() == pytest.approx([0.4, 0.0, 4.0, 4.0, 1.6])
    found = dampened(WEIGHTS, FORGET, KEPT, selection=2.0, strength=5.0)
    assert found.tolist() == pytest.approx([2.0, 0.0, 4.0, 4.0, 4.0])  # a factor is 1 at most


def test_weights_that_matter_to_nothing_forgotten_keep_their_bits():
    noise = torch.Generator().manual_seed(0)
    weights, kept = torch.randn(6, 7, generator=noise), torch.rand(6, 7, generator=noise)
    forget = 1e6 * torch.rand(6, 7, generator=noise)
    forget[:, 2:] = 0
    found = dampened(weights, forget, kept, selection=1e-6, strength=1e-6)
    assert torch.equal(found[:, 2:], weights[:, 2:])
    assert not torch.equal(found[:, :2], weights[:, :2])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
def test_where_the_rank_suffices_the_adapter_is_the_change(shape, weighted):
    noise = torch.Generator().manual_seed(0)
    importance = torch.rand(*shape, generator=noise) if weighted else None
    full = torch.randn(*shape, generator=noise)
    for rank in (5, 6, 8):
        down, up = low_rank(full, rank, importance=importance)
        assert (down.shape, up.shape) == ((rank, shape[1]), (shape[0], rank))
        assert torch.allclose(up @ down, full, atol=1e-5)
    thin = torch.randn(shape[0], 2, generator=noise) @ torch.randn(2, shape[1], generator=noise)
    down, up = low_rank(thin, 2, importance=importance)
    assert torch.allclose(up @ down, thin, atol=1e-5)
    assert down.norm() == pytest.approx(float(up.norm()), rel=0.5)


def test_a_lower_rank_is_the_truncated_svd_and_importance_turns_it_to_what_matters():
    noise = torch.Generator().manual_seed(1)
    full = torch.randn(6, 9, generator=noise)
    left, singular, right = torch.linalg.svd(full, full_matrices=False)
    down, up = low_rank(full, 2)
    expected = (left[:, :2] * singular[:2]) @ right[:2]
    assert torch.allclose(up @ down, expected, atol=1e-5)
    importance = torch.ones(6, 9)
    importance[0] = 1e4  # errors of the first output cost more
    down, up = low_rank(full, 2, importance=importance)

    def cost(found):
        return float((importance * (found - full).square()).sum())

    assert cost(up @ down) < 0.5 * cost(expected)


def test_what_a_change_does_not_need_of_the_rank_can_be_learnt_from():
    importance = torch.rand(6, 9, generator=torch.Generator().manual_seed(0))
    one = torch.zeros(6, 9)
    one[2, 3] = 5.0
    for full, used in ((torch.zeros(6, 9), 0), (one, 1)):
        down, up = low_rank(full, 3, importance=importance)
        assert torch.allclose(up @ down, full, atol=1e-5)
        assert up[:, :used].any() == bool(used)
        assert not up[:, used:].any()
        assert down[used:].norm(dim=1).tolist() == pytest.approx([1.0] * (3 - used))


def swap(values, name="run", **forget):
    output = Path(values["output"]).with_name(name)
    stages = {**values["stages"], "forget": {**values["stages"]["forget"], **forget}}
    settings = {**values, "preset": "ssd", "stages": stages, "output": str(output)}
    results = kswap.swap(SwapConfig.from_mapping(settings)).results
    return results, load_file(output / "adapter" / "adapter_model.safetensors")


def test_the_stage_takes_no_step_and_says_what_it_did(values):
    values["adapter"] = {"rank": 4}
    results, _ = swap(values, dampening={"selection": 2.0})
    folder = Path(values["output"])
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"1-learn"}
    found = results["stages"][-1]["dampening"]
    assert found["weights"] == 2 * 2 * 32 * 64 + 6 * 33  # linears of both blocks, rows of the head
    assert 0 < found["dampened"] < found["weights"]
    assert 0 < found["held_by_rank"] < 1
    assert (folder / "report.html").is_file()


def test_where_the_rank_suffices_the_layers_are_dampened_as_the_equation_says(values, monkeypatch):
    values |= {"adapter": {"rank": 32}, "order": "F", "head": {"train": "none"}}
    seen = {}

    def looking(trainee, stage, sources, report):
        layers = stage_of._layers(trainee)
        original = stage_of._importances

        def keep(*args):
            seen["importances"] = original(*args)
            return seen["importances"]

        monkeypatch.setattr(stage_of, "_importances", keep)
        done = dampen(trainee, stage, sources, report)
        monkeypatch.setattr(stage_of, "_importances", original)
        for number, layer in enumerate(layers):
            base = layer.get_base_layer().weight
            forget, kept = seen["importances"].forget[number], seen["importances"].kept[number]
            wanted = dampened(base, forget, kept, selection=2.0, strength=0.5)
            assert torch.allclose(base + layer.get_delta_weight("default"), wanted, atol=1e-5)
        return done

    monkeypatch.setattr("kswap.running.stages.dampen", looking)
    results, _ = swap(values, dampening={"selection": 2.0, "strength": 0.5})
    assert results["stages"][-1]["dampening"]["held_by_rank"] == pytest.approx(1.0, abs=1e-4)
    assert (Path(values["output"]) / "report.html").is_file()  # of a run without a step


@pytest.mark.usefixtures("undrawn")
def test_importances_are_mean_squared_gradients_of_single_images(values, monkeypatch):
    """Of the weights with what the stage before has left in the adapter, against autograd."""
    values["adapter"] = {"rank": 4}
    checked = {}

    def looking(trainee, stage, sources, report):
        layer, forget = stage_of._layers(trainee)[-1], sources["forget"].images
        with stage_of._open([layer]) as weights:
            found = stage_of._importances(trainee, stage, sources, weights, report)
            squares = []
            for row in range(len(forget)):
                logits = trainee.model(pixel_values=trainee.pixels(forget.images[row][None])).logits
                label = torch.tensor([int(forget.class_ids[row])])
                loss = torch.nn.functional.cross_entropy(logits, label)
                squares.append(torch.autograd.grad(loss, weights)[0].square())
        checked.update(ours=found.forget[0], theirs=torch.stack(squares).mean(0), layer=layer)
        return dampen(trainee, stage, sources, report)

    monkeypatch.setattr("kswap.running.stages.dampen", looking)
    swap(values, dampening={"selection": 2.0})
    assert torch.allclose(checked["ours"], checked["theirs"], rtol=1e-3, atol=1e-9)
    assert checked["theirs"].any()
    assert not checked["layer"].get_base_layer().weight.requires_grad  # closed again


def test_a_ratio_that_no_weight_reaches_says_so(values):
    with pytest.raises(UserError, match=r"forget\.dampening\.selection: no weight matters 1e\+30"):
        swap(values, dampening={"selection": 1e30})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"negate": 1.0}, "negate has no meaning; leave negate or dampening out"),
        ({"saliency": 0.5}, "saliency has no meaning"),
        ({"consolidation": 1.0}, "consolidation has no meaning"),
        (
            {"terms": {"retain": {"weight": 0.0}, "learn": {"weight": 0.0}}},
            "but no term has images",
        ),
    ],
)
def test_what_dampening_has_no_use_for_is_said_in_one_line(values, changes, said):
    with pytest.raises(UserError, match=said) as error:
        swap(values, **changes)
    assert "\n" not in str(error.value)


def test_a_stage_that_learns_is_not_dampening(values):
    values["stages"]["joint"]["dampening"] = {}
    with pytest.raises(UserError, match=r"stages\.joint\.dampening: a stage that learns cannot be"):
        kswap.swap(SwapConfig.from_mapping({**values, "order": "J"}))


@pytest.mark.usefixtures("undrawn")
def test_it_is_the_same_again_and_other_stages_follow(values):
    values["order"] = "FL"
    one, two = (swap(values, name, dampening={"selection": 2.0}) for name in ("one", "two"))
    assert one[0]["stages"][-1]["scores"] == two[0]["stages"][-1]["scores"]
    assert all(torch.equal(one[1][name], two[1][name]) for name in one[1])
    assert [stage["name"] for stage in one[0]["stages"]] == ["base", "1-forget", "2-learn"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_scenes_are_dampened_by_the_losses_of_their_roles(task, tmp_path):
    values = tiny_run(task, tmp_path, order="F")
    values["stages"] = {"forget": {"dampening": {"selection": 2.0, "images": 2}}}
    results = kswap.swap(SwapConfig.from_mapping({**values, "preset": "ssd"})).results
    assert results["stages"][-1]["dampening"]["dampened"] > 0
