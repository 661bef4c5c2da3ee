"""Objectives on features, and the bank they ask: by hand or against torch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from kswap.objectives import NEEDS_BANK, OBJECTIVES, Units
from kswap.objectives.bank import build_bank, white
from kswap.objectives.deep import (
    class_mean_head,
    discrimination,
    dispersion,
    drawn_images,
    feature_distillation,
    prototype,
    subspace,
    tilted_distillation,
)
from kswap.objectives.forgetting import masked_distillation
from kswap.objectives.places import block_number, is_at
from kswap.settings import ROLES, StageConfig, TermConfig
from kswap.training.renewal import Renewal, frames_from, frames_of, renewed_places

SIZE, BASE = 6, 4


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bank(forget=(3,)):
    """Images of four classes at two places; class 3 is to be forgotten."""
    ids = {"forget": torch.tensor([3] * 8), "retain": torch.tensor([2, 0, 1, 0, 2, 1] * 4)}
    shift = 3 * noise(BASE, SIZE, seed=5)
    features = {
        role: {
            name: shift[i] + noise(len(i), SIZE, seed=n)
            for n, name in enumerate(("head", "2 mean"))
        }
        for role, i in ids.items()
    }
    return build_bank(features, ids, forget_ids=forget, num_base=BASE), features, ids


def units(count=6, **changes):
    generator = torch.Generator().manual_seed(7)
    made, _, _ = bank()
    values = {
        "class_ids": torch.full((count,), 3),
        "roles": torch.full((count,), ROLES.index("forget")),
        "forgotten": torch.tensor([False, False, False, True]),
        "logits": torch.randn(count, BASE + 1, generator=generator, requires_grad=True),
        "base_logits": torch.randn(count, BASE, generator=generator),
        "features": {
            name: torch.randn(count, SIZE, generator=generator, requires_grad=True)
            for name in ("head", "2 mean")
        },
        "num_blocks": 2,
        "base_features": {
            name: torch.randn(count, SIZE, generator=generator) for name in ("head", "2 mean")
        },
        "noise": torch.rand(count, 2, generator=generator),
        "bank": made,
    }
    return Units(**{**values, **changes})


def test_dispersion_is_the_mean_cosine_with_the_others_of_the_class():
    centre = torch.tensor([1.0, 1.0])
    features = centre + torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0], [1.0, 1.0]])
    found = dispersion(features, torch.tensor([0, 0, 0, 1]), centre)
    assert found.tolist() == pytest.approx([0.5, 0.0, 0.5, 0.0])  # the last one is alone


def test_dispersion_is_that_of_torch():
    features, centre = noise(5, SIZE), noise(SIZE, seed=1)
    pairs = functional.cosine_similarity(
        (features - centre)[:, None], (features - centre)[None], dim=-1
    )
    expected = (pairs.sum(1) - 1) / 4
    assert torch.allclose(dispersion(features, torch.zeros(5).long(), centre), expected, atol=1e-6)


def test_feature_distillation_is_1_at_the_mean_distance_from_the_centre():
    targets, centre = noise(50, SIZE), noise(50, SIZE).mean(0)
    spread = (targets - centre).square().sum(-1).mean()
    assert feature_distillation(targets, targets, spread).max() == 0
    at_centre = feature_distillation(centre.expand(50, -1), targets, spread)
    assert float(at_centre.mean()) == pytest.approx(1.0, rel=1e-5)


def test_images_are_drawn_by_the_bases_answer_without_forgotten_classes():
    # Class 1 is forgotten, class 3 has no image; 0 and 2 have three and one, in rows 0 to 3.
    logits = torch.tensor([[0.0, 9.0, 1.0, 9.0]]).expand(4000, -1)
    forgotten = torch.tensor([False, True, False, False])
    starts, counts = torch.tensor([0, 3, 3, 4]), torch.tensor([3, 0, 1, 0])
    drawn = torch.rand(4000, 2, generator=torch.Generator().manual_seed(0))
    rows = drawn_images(logits, forgotten, starts, counts, drawn)
    share = torch.bincount(rows, minlength=4) / 4000
    first = 1 / (1 + torch.e)
    assert share.tolist() == pytest.approx([first / 3] * 3 + [1 - first], abs=0.03)


def test_drawing_stays_inside_at_the_ends_of_the_noise():
    starts, counts = torch.tensor([0, 2]), torch.tensor([2, 0])
    ends = torch.tensor([[0.0, 0.0], [1 - 2**-24, 1 - 2**-24]])
    rows = drawn_images(torch.zeros(2, 2), torch.zeros(2, dtype=torch.bool), starts, counts, ends)
    assert rows.tolist() == [0, 1]


def test_translation_takes_the_mean_of_look_alikes_to_the_mean_of_the_class():
    """Forget images near two retained classes: each group moves onto its class, as a whole."""
    far = 20 * torch.eye(SIZE)[: BASE - 1]
    ids = {"forget": torch.tensor([3] * 10), "retain": torch.tensor([0, 1, 2] * 8)}
    looks = torch.tensor([0] * 6 + [2] * 4)
    features = {
        "retain": {n: far[ids["retain"]] + noise(24, SIZE, seed=1) for n in ("head", "2 mean")},
        "forget": {
            "head": 0.8 * far[looks] + noise(10, SIZE, seed=2),
            "2 mean": noise(10, SIZE, seed=3),
        },
    }
    made = build_bank(features, ids, forget_ids=(3,), num_base=BASE)
    assert made.pairs.tolist() == [[0] * BASE] * 3 + [[1, 0, 2, 0]]
    given = units(10, bank=made, base_features=features["forget"], features=features["forget"])
    for whiten in (False, True):
        term = TermConfig(roles=["forget"], objective="translation", layers=[1.0], whiten=whiten)
        place = made.places[white("2 mean") if whiten else "2 mean"]
        found = OBJECTIVES["translation"](given, term, 10.0)
        moves = place.shifts[1:].square().sum(-1) / place.spread  # from where the base is
        assert torch.allclose(found, moves[(looks > 0).long()], rtol=1e-4)
    for number, other in ((1, 0), (2, 2)):
        moved = features["forget"]["2 mean"] + made.places["2 mean"].shifts[number]
        mean = features["retain"]["2 mean"][ids["retain"] == other].mean(0)
        assert torch.allclose(moved[looks == other].mean(0), mean, atol=1e-4)


def test_units_without_a_pair_stay_where_they_are():
    given = units(4, class_ids=torch.tensor([0, 1, BASE, BASE + 1]))  # retained, to be learned
    given = replace(given, features=given.base_features)
    term = TermConfig(roles=["forget"], objective="translation", layers=["all"])
    assert OBJECTIVES["translation"](given, term, 4.0).tolist() == [0.0] * 4


def test_discrimination_is_the_mean_product_with_the_others_of_the_class():
    between = torch.eye(3)[:, :1]  # says nothing: retained classes differ there
    features = torch.tensor([[9.0, 3.0, 1.0], [7.0, 2.0, 3.0], [0.0, 3.0, 1.0], [5.0, 8.0, 8.0]])
    squares = torch.tensor([2.0, 2.0, 2.0, 2.0])
    middle = torch.tensor([4.0, 1.0, 1.0])  # what is left: (2, 0), (1, 2), (2, 0), and alone
    found = discrimination(features, torch.tensor([0, 0, 0, 1]), middle, between, squares)
    assert found.tolist() == pytest.approx([1.5, 1.0, 1.5, 0.0])
    none = discrimination(features, torch.zeros(4).long(), middle, between, torch.zeros(4))
    assert none.tolist() == [0.0] * 4


@pytest.mark.parametrize("whiten", [False, True])
def test_discrimination_estimates_the_square_of_the_mean_without_bias(whiten):
    made, features, ids = bank()
    count = len(ids["forget"])
    term = TermConfig(roles=["forget"], objective="discrimination", layers=["head"], whiten=whiten)
    means = []
    for pair in torch.combinations(torch.arange(count)):  # batches of two
        given = units(2, features={name: rows[pair] for name, rows in features["forget"].items()})
        means.append(OBJECTIVES["discrimination"](given, term, 2.0).mean())
    place = made.places[white("head") if whiten else "head"]
    rows, retained = features["forget"]["head"], features["retain"]["head"]
    if whiten:
        was = made.places["head"]
        rows, retained = ((x - was.centre) @ was.whitening for x in (rows, retained))
    middle = torch.stack([retained[ids["retain"] == c].mean(0) for c in range(3)]).mean(0)
    assert torch.allclose(place.middle, middle, atol=1e-4)
    left = (rows - middle) @ (torch.eye(SIZE) - place.between @ place.between.T)
    # Without the products of images with themselves, of which a mean's square is full.
    wanted = (left.sum(0).square().sum() - left.square().sum()) / (count * (count - 1))
    assert float(torch.stack(means).mean()) == pytest.approx(
        float(wanted / left.mean(0).square().sum()), rel=1e-3
    )


@pytest.mark.parametrize("whiten", [False, True])
def test_discrimination_goes_by_the_frame_of_the_model_as_it_is(whiten):
    """A model that moves and turns as a whole tells by no more and no less than before."""
    made, features, ids = bank()
    turn = torch.linalg.qr(noise(SIZE, SIZE, seed=3)).Q
    moved = {
        role: {name: rows @ turn + 5.0 for name, rows in found.items()}
        for role, found in features.items()
    }
    term = TermConfig(roles=["forget"], objective="discrimination", layers=["all"], whiten=whiten)
    stage = StageConfig.model_validate(
        {"epochs": 1.0, "streams": {"forget": {"roles": ["forget"], "batch_size": 1}},
         "anchor": "forget", "terms": {"blur": term}, "optimiser": {}}
    )  # fmt: skip
    now = build_bank(moved, ids, forget_ids=(3,), num_base=BASE)
    frames = frames_of(now, renewed_places(stage, now, 2))
    kept = Renewal(1, dict, frames).tensors()
    again = replace(made, frames=frames_from(kept, torch.device("cpu")))

    def loss(found, by):
        return OBJECTIVES["discrimination"](units(8, features=found["forget"], bank=by), term, 8.0)

    assert torch.allclose(loss(moved, again), loss(features, made), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(loss(moved, made), loss(features, made), rtol=0.1, atol=0.1)


def test_whitening_makes_what_varies_within_retained_classes_round():
    made, features, ids = bank()
    place, rows = made.places["head"], features["retain"]["head"]
    within = rows - torch.stack([rows[ids["retain"] == c].mean(0) for c in range(3)])[ids["retain"]]
    covariance = within.T @ within / len(within)
    both = covariance + covariance.diagonal().mean() * torch.eye(SIZE)
    found = place.whitening @ both @ place.whitening
    assert torch.allclose(found, torch.eye(SIZE), atol=1e-4)


def test_classes_to_learn_and_what_many_means_leave_have_no_discriminant():
    given = units(4, class_ids=torch.tensor([BASE, BASE, BASE + 1, BASE + 1]))
    term = TermConfig(roles=["forget"], objective="discrimination", layers=["all"])
    assert OBJECTIVES["discrimination"](given, term, 4.0).tolist() == [0.0] * 4
    classes = 5 * SIZE
    ids = {"forget": torch.full((4,), classes), "retain": torch.arange(classes).repeat(2)}
    features = {role: {"head": noise(len(i), SIZE, seed=len(i))} for role, i in ids.items()}
    place = build_bank(features, ids, forget_ids=(classes,), num_base=classes + 1).places["head"]
    assert place.between.shape == (SIZE, SIZE // 4)  # more means than directions
    assert place.apart[classes] > 0


def test_class_mean_head_is_the_divergence_of_an_attackers_head():
    features, base, ids = noise(3, SIZE), noise(3, BASE, seed=2), torch.tensor([3, 3, 1])
    means, centre = noise(BASE, SIZE, seed=3), noise(SIZE, seed=4)
    forgotten = torch.tensor([False, False, False, True])
    found = class_mean_head(features, ids, base, forgotten, means, centre, 0.1)
    moved = features - centre
    rows = torch.stack([*(means[:3] - centre), moved[1]])  # the mean of the others is unit 1
    cosines = functional.cosine_similarity(moved[0][None], rows, dim=-1) / 0.1
    q = base[0, :3].softmax(-1)
    expected = (q * (q.log() - cosines.log_softmax(-1)[:3])).sum()
    assert float(found[0]) == pytest.approx(float(expected), rel=1e-5)
    assert found[2] == 0  # alone in its class


def test_subspace_sees_what_lies_in_it_and_nothing_else():
    basis = torch.eye(4)[:, :2]
    features = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 7.0, 1.0]])
    found = subspace(features, basis, torch.zeros(4), torch.tensor(5.0))
    assert found.tolist() == pytest.approx([5.0, 0.0])


def test_prototype_is_kl_of_torch_and_0_for_classes_without_a_mean():
    features, means = noise(3, SIZE), noise(BASE, SIZE, seed=1)
    means[2] = 0
    found = prototype(features, torch.tensor([1, 2, BASE]), means)
    expected = functional.kl_div(
        features[0].log_softmax(-1), means[1].log_softmax(-1), log_target=True, reduction="sum"
    )
    assert float(found[0]) == pytest.approx(float(expected), rel=1e-5)
    assert found[1:].tolist() == [0.0, 0.0]


def test_tilted_distillation_without_tilt_is_masked_distillation_and_tilts_to_what_is_like():
    logits, base, ids = noise(3, BASE + 1), noise(3, BASE, seed=1), torch.tensor([3, 3, 3])
    forgotten = torch.tensor([False, False, False, True])
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0], [0.9, 0.1]])
    given = (logits, base, ids, forgotten, means, torch.zeros(2))
    assert torch.allclose(
        tilted_distillation(*given, tilt=0.0), masked_distillation(logits, base, forgotten)
    )
    like = torch.full((3, BASE + 1), -30.0)
    like[:, 0] = 0  # class 0 has the mean most like that of class 3
    far = tilted_distillation(like, base, ids, forgotten, means, torch.zeros(2), tilt=50.0)
    assert far.max() < 1e-3


def test_the_bank_knows_means_images_and_scale():
    made, features, ids = bank()
    place = made.places["head"]
    assert made.counts.tolist() == [8, 8, 8, 0]
    assert made.starts.tolist() == [0, 8, 16, 24]
    own = features["retain"]["head"][ids["retain"] == 1]
    assert torch.allclose(place.means[1], own.mean(0), atol=1e-6)
    assert torch.equal(place.images[made.starts[1] : made.starts[2]], own)
    assert torch.allclose(place.means[3], features["forget"]["head"].mean(0), atol=1e-6)
    rows = torch.cat([features["forget"]["head"], features["retain"]["head"]])
    after = (rows - place.centre) @ place.whitening
    labels = torch.cat([ids["forget"], ids["retain"]])
    assert torch.allclose(
        made.places[white("head")].means[1], after[labels == 1].mean(0), atol=1e-5
    )


def test_the_basis_of_a_class_is_orthonormal_and_off_the_retained_directions():
    # Retained images vary in the first direction alone, those of class 1 in the first and second.
    retained = torch.zeros(20, 3)
    retained[:, 0] = torch.linspace(-1, 1, 20)
    forget = torch.tensor([[1.0, 2.0, 0.0], [-1.0, 2.0, 0.0], [3.0, -1.0, 0.0]])
    ids = {"forget": torch.ones(3).long(), "retain": torch.zeros(20).long()}
    made = build_bank(
        {"forget": {"head": forget}, "retain": {"head": retained - retained.mean(0)}},
        ids,
        forget_ids=[1],
        num_base=2,
    )
    place = made.places["head"]
    basis = place.basis[1]
    assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1]), atol=1e-5)
    assert place.energy[1][-1] == pytest.approx(1.0)


def test_a_bank_without_retained_images_has_means_of_the_others():
    _, features, ids = bank()
    made = build_bank(
        {"forget": features["forget"]}, {"forget": ids["forget"]}, forget_ids=[3], num_base=BASE
    )
    assert made.counts.tolist() == [0] * BASE
    assert made.known.tolist() == [False, False, False, True]
    values = OBJECTIVES["dispersion"](units(bank=made), term("dispersion"), 1)
    assert values.isfinite().all()


def term(objective, **changes):
    return TermConfig(roles=("forget",), objective=objective, **changes)


@pytest.mark.parametrize("changes", [{}, {"layers": ("all",)}, {"layers": (1.0,), "whiten": True}])
@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_every_objective_gives_one_finite_loss_and_gradient_per_unit(objective, changes):
    given = units()
    loss = OBJECTIVES[objective](given, term(objective, **changes), 6)
    assert loss.shape == (6,)
    assert loss.isfinite().all()
    loss.sum().backward()
    leaves = [given.logits, *given.features.values()]
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_the_order_of_units_does_not_matter(objective):
    given = units()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    settings = term(objective, layers=("all",))
    whole = OBJECTIVES[objective](given, settings, 6)
    assert torch.allclose(OBJECTIVES[objective](given.rows(order), settings, 6), whole[order])


@pytest.mark.parametrize("objective", sorted(NEEDS_BANK - {"tilted_distillation"}))
def test_layers_decide_which_features_are_pulled(objective):
    for layers, moved in ((("head",), "head"), ((0.9,), "2 mean")):
        given = units()
        OBJECTIVES[objective](given, term(objective, layers=layers), 6).sum().backward()
        with_gradient = [n for n, f in given.features.items() if f.grad is not None]
        assert with_gradient == [moved]


def test_layers_are_shares_of_the_depth():
    numbers = [block_number(share, 12) for share in (0.01, 0.25, 0.5, 0.51, 1.0)]
    assert numbers == [1, 3, 6, 7, 12]
    assert is_at("7 first", [0.51], 12)
    assert not is_at("7 first", ["head", 0.5], 12)
    assert is_at("head 2", ["head"], 12)
