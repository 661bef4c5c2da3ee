"""The head grows and shrinks; old rows stay bit-equal and the label maps follow."""

import pytest
import torch
from models.expected import EXPECTED_HEADS
from models.families import FAMILIES, LABELS, tiny_inputs
from torch import nn

from kswap.models.head import (
    drop_rows,
    extend_head,
    find_heads,
    freeze_old_rows,
    head_linear,
    recorded_head_inputs,
    set_new_rows,
)
from kswap.models.rows import class_mean_rows

NEW = {**LABELS, 5: "horse", 6: "ship"}


def _means(model, heads, num_new=2):
    noise = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(num_new, head_linear(model, name).in_features, generator=noise)
        for name in heads
    }


def _centres(model, heads):
    return {name: 0.3 * torch.ones(head_linear(model, name).in_features) for name in heads}


def _start_rows(model, means, centres):
    for name, own in means.items():
        set_new_rows(model, name, num_old=5, class_means=own, centre=centres[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_heads(family, built):
    model, _ = built(family)
    assert find_heads(model) == EXPECTED_HEADS.get(family, ("classifier",))


@pytest.mark.parametrize("starts_from_means", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_extension_keeps_old_rows_and_old_logits(family, starts_from_means, built):
    model, _ = built(family)
    heads = find_heads(model)
    inputs = tiny_inputs(model)
    rows = {
        name: [p.detach().clone() for p in head_linear(model, name).parameters()] for name in heads
    }
    with torch.no_grad():
        before = model(**inputs).logits
    random = torch.get_rng_state()
    extend_head(model, NEW, init="random", seed=0)
    if starts_from_means:
        _start_rows(model, _means(model, heads), _centres(model, heads))
    assert torch.equal(random, torch.get_rng_state())
    with torch.no_grad():
        after = model(**inputs).logits
    assert after.shape == (4, 7)
    assert torch.allclose(after[:, :5], before, rtol=0, atol=1e-6)
    for name in heads:
        for old, now in zip(rows[name], head_linear(model, name).parameters(), strict=True):
            assert torch.equal(old, now[:5])
            assert len(now) == 7
    assert model.config.id2label == NEW
    assert model.config.label2id == {label: index for index, label in NEW.items()}
    assert model.config.num_labels == 7
    counts = [
        vars(module)["num_labels"] for module in model.modules() if "num_labels" in vars(module)
    ]
    assert all(count == 7 for count in counts)
    loss = (
        model(**inputs, labels=torch.tensor([6, 5, 0, 1])).loss
        if "Teacher" not in type(model).__name__
        else None
    )
    assert loss is None or torch.isfinite(loss)


@pytest.mark.parametrize("num_new", [1, 2, 4])
@pytest.mark.parametrize("family", ["vit", "dinov2", "deit-distilled", "levit"])
def test_class_mean_row_classifies_its_own_mean_first(family, num_new, built):
    model, _ = built(family)
    heads = find_heads(model)
    means = _means(model, heads, num_new)
    labels = {**LABELS, **{5 + index: f"new {index}" for index in range(num_new)}}
    extend_head(model, labels, init="random", seed=0)
    _start_rows(model, means, _centres(model, heads))
    for name in heads:
        head = head_linear(model, name)
        logits = head(means[name])
        assert torch.equal(logits.argmax(1), torch.arange(5, 5 + num_new))
        best_old = logits[:, :5].max(1).values
        assert (logits[torch.arange(num_new), torch.arange(5, 5 + num_new)] > best_old + 0.99).all()
        rho = head.weight[:5].norm(dim=1).mean()
        assert torch.allclose(head.weight[5:].norm(dim=1), rho.expand(num_new), rtol=1e-5)


def test_class_mean_rows_agree_at_the_centre(built):
    """The equation of the docstring: every new row answers the same level at mu."""
    model, _ = built("vit")
    means, centre = _means(model, ["classifier"], 3), torch.randn(32)
    labels = {**LABELS, 5: "a", 6: "b", 7: "c"}
    extend_head(model, labels, init="random", seed=0)
    _start_rows(model, means, {"classifier": centre})
    at_centre = model.classifier(centre)
    assert torch.allclose(at_centre[5:], at_centre[5].expand(3), atol=1e-5)
    assert at_centre[5] >= at_centre[:5].mean() - 1e-5


def test_rows_that_need_not_lead_are_the_mean_of_the_old_ones_and_a_difference():
    """What all objects have in common names no class; what sets the new class apart does."""
    generator = torch.Generator().manual_seed(0)
    common = torch.zeros(16)
    common[0] = 8.0
    weight = torch.randn(5, 16, generator=generator) + common / 4
    bias = torch.full((5,), -4.0)
    objects = torch.randn(50, 16, generator=generator) + common
    centre, apart = objects.mean(0), torch.zeros(16)
    apart[3] = 1.0
    rows, biases = class_mean_rows(weight, bias, (centre + apart)[None], centre, lead=False)
    means = (weight @ objects.T + bias[:, None]).mean(0)
    spread = (weight - weight.mean(0)).norm(dim=1).mean()
    expected = means + spread * (objects - centre) @ apart
    assert torch.allclose((rows @ objects.T + biases)[0], expected, atol=1e-4)
    nothing = 0.3 * torch.randn(50, 16, generator=generator)
    assert ((nothing @ rows.T + biases).sigmoid() < 0.5).all()


def test_random_rows_are_xavier_uniform_and_seeded(built):
    rows = []
    for seed in (0, 0, 1):
        model, _ = built("vit")
        extend_head(model, NEW, init="random", seed=seed)
        rows.append(model.classifier.weight[5:].detach())
        assert torch.equal(model.classifier.bias[5:], torch.zeros(2))
    bound = (6 / (2 + 32)) ** 0.5
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    assert 0.8 * bound < rows[0].abs().max() <= bound


def test_a_head_without_bias_stays_without(built):
    model, _ = built("vit")
    model.classifier = nn.Linear(32, 5, bias=False)
    extend_head(model, NEW, init="random", seed=0)
    _start_rows(model, _means(model, ["classifier"]), _centres(model, ["classifier"]))
    assert model.classifier.bias is None
    assert model.classifier.weight.shape == (7, 32)


BAD_EXTENSIONS = {
    "gap": ({**LABELS, 6: "horse"}, "without a gap"),
    "renamed": ({**LABELS, 0: "lion", 5: "horse"}, "renames or drops class 0"),
    "shorter": ({0: "cat"}, "renames or drops class 1"),
}


@pytest.mark.parametrize("case", BAD_EXTENSIONS)
def test_extensions_that_are_none(case, built):
    labels, message = BAD_EXTENSIONS[case]
    model, _ = built("vit")
    with pytest.raises(ValueError, match=message):
        extend_head(model, labels, init="random", seed=0)


@pytest.mark.parametrize("family", ["vit", "deit-distilled", "swin", "levit", "siglip"])
def test_recorded_head_inputs_give_the_logits(family, built):
    model, _ = built(family)
    with torch.no_grad(), recorded_head_inputs(model, find_heads(model)) as features:
        expected = model(**tiny_inputs(model)).logits
        logits = [head_linear(model, name)(given) for name, given in list(features.items())]
    assert torch.allclose(torch.stack(logits).mean(0), expected, atol=1e-6)
    assert not any(head_linear(model, name)._forward_pre_hooks for name in features)


@pytest.mark.parametrize("family", ["vit", "deit-distilled", "segformer"])
def test_drop_rows(family, built):
    model, _ = built(family)
    inputs = tiny_inputs(model)
    with torch.no_grad():
        before = model(**inputs).logits
    drop_rows(model, [3, 0])
    with torch.no_grad():
        after = model(**inputs).logits
    assert torch.allclose(after, before[:, [1, 2, 4]], rtol=0, atol=1e-6)
    assert model.config.id2label == {0: "dog", 1: "car", 2: "boat"}
    assert model.config.label2id == {"dog": 0, "car": 1, "boat": 2}
    assert model.config.num_labels == 3


def test_names_that_timm_reads_in_place_of_the_label_map_follow(built):
    model, _ = built("vit")
    model.config.label_names = list(LABELS.values())  # in config.json of a TimmWrapper
    extend_head(model, NEW, init="random", seed=0)
    assert model.config.label_names == list(NEW.values())
    drop_rows(model, [3, 0])
    assert model.config.label_names == list(model.config.id2label.values())


@pytest.mark.parametrize(
    ("ids", "message"), [(range(5), "at least one"), ([1, 9], r"\[9\] are not")]
)
def test_drop_rows_refuses(ids, message, built):
    model, _ = built("vit")
    with pytest.raises(ValueError, match=message):
        drop_rows(model, list(ids))
    assert model.classifier.weight.shape == (5, 32)


def test_frozen_old_rows_stay_bit_equal(built):
    model, _ = built("deit-distilled")
    heads = find_heads(model)
    extend_head(model, NEW, init="random", seed=0)
    handles = freeze_old_rows(model, heads, 5)
    rows = {
        name: [p.detach().clone() for p in head_linear(model, name).parameters()] for name in heads
    }
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)

    def step():
        optimiser.zero_grad()
        logits = model(**tiny_inputs(model)).logits
        nn.functional.cross_entropy(logits, torch.tensor([0, 5, 6, 1])).backward()
        optimiser.step()

    for _ in range(3):
        step()
    for name in heads:
        for old, now in zip(rows[name], head_linear(model, name).parameters(), strict=True):
            assert torch.equal(old[:5], now[:5])
            assert not torch.equal(old[5:], now[5:])
    for handle in handles:
        handle.remove()
    step()
    assert not torch.equal(rows[heads[0]][0][:5], head_linear(model, heads[0]).weight[:5])
