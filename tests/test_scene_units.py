"""Roles inside an image: every pixel and query is supervised by the role of its class."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from criteria_models import DETECTORS, MASKS, PER_PIXEL
from scene_examples import FORGET, LEARN, RETAIN, TERMS, examples, view_of

from kswap.config import SwapConfig
from kswap.data.sets import IGNORE, OPEN
from kswap.models.head import find_heads, head_linear
from kswap.objectives import Units
from kswap.plan import plan
from kswap.settings import ROLES, TermConfig
from kswap.tasks import Examples, View
from kswap.tasks.boxes import to_centres
from kswap.tasks.criteria import decompose
from kswap.tasks.detection import Detection
from kswap.tasks.mask_units import is_forgotten, seen_without
from kswap.tasks.queries import align, forgotten_by_base
from kswap.tasks.segmentation import Segmentation
from kswap.training.informing import sees_without
from kswap.training.loop import compute_terms

NUM_BASE = 4
"""Of the five classes of the tiny models the last is the one to learn."""
ROLE_OF_ROW = [RETAIN, RETAIN, RETAIN, FORGET, LEARN]
SEGMENTERS = {**MASKS, **PER_PIXEL}


def view(*, forgets: bool = True, learned: bool = True) -> View:
    return view_of(ROLE_OF_ROW[: None if learned else NUM_BASE], NUM_BASE, forgets=forgets)


def teach(task: Any, model: Any, given: Examples) -> dict[str, torch.Tensor]:
    """The answers of a base model that lacks the last class."""
    with torch.no_grad():
        taught = dict(task.teach(model, given))
    logits = taught["logits"].float()
    if "boxes" not in taught and "masks" not in taught:
        return {"logits": logits[:, :NUM_BASE]}
    kept = [logits[..., :NUM_BASE], *([logits[..., -1:]] if logits.shape[-1] > 5 else [])]
    return {**taught, "logits": torch.cat(kept, -1)}


def one_of(given: Examples, row: int) -> Examples:
    """One image of a batch."""
    kept = slice(row, row + 1)
    names = ("pixels", "class_ids", "roles", "complete", "masks", "boxes", "box_ids", "crowd")
    return replace(given, **{name: getattr(given, name)[kept] for name in names})


def total(values: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(values.values())).sum().detach()


def same_random_numbers(function: Any) -> Any:
    torch.manual_seed(3)
    return function()


@pytest.mark.parametrize("family", DETECTORS)
def test_terms_of_weight_one_add_up_to_the_librarys_loss_of_a_detector(family):
    model, given = DETECTORS[family](), examples()
    units = Detection().units(model, given, None, view())
    values = compute_terms(units, TERMS, dict.fromkeys(ROLES, 1.0))
    labels = [
        {"class_labels": ids, "boxes": to_centres(boxes)}
        for ids, boxes in zip(given.box_ids, given.boxes, strict=True)
    ]
    assert set(values) == set(ROLES)
    expected = decompose(model, given.inputs(), labels).total().detach()
    assert total(values) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("family", SEGMENTERS)
def test_features_of_classes_are_of_this_batch_and_this_image(family):
    """Also where a head reads all layers of a decoder at once, more of them than images."""
    model, given = SEGMENTERS[family]().eval(), examples()
    heads = find_heads(model)
    with torch.no_grad():
        _, found = Segmentation().features(model, given, heads)
        alone = Segmentation().features(model, one_of(given, 1), heads)[1]
    assert found
    for name, (rows, class_ids) in found.items():
        assert rows.shape == (len(class_ids), head_linear(model, name).weight.shape[1])
        whole, (num_classes, odd) = class_ids[: len(given)], divmod(len(class_ids), len(given))
        assert whole.tolist() == [-1] * len(given)
        assert not odd, "both images show the same classes"
        if family in MASKS:  # a coarse map of features may have no place of a class
            assert class_ids[len(given) :].tolist() == [0, 3, 4] * len(given)
        last = rows[1 - num_classes :] if num_classes > 1 else rows[:0]
        assert torch.allclose(torch.cat([rows[1:2], last]), alone[name][0], atol=1e-4)


@pytest.mark.parametrize("family", SEGMENTERS)
def test_terms_of_weight_one_add_up_to_the_librarys_loss_of_a_segmenter(family):
    model, given = SEGMENTERS[family](), examples()
    given.masks[given.masks == OPEN] = 1 if family in PER_PIXEL else OPEN
    units = same_random_numbers(lambda: Segmentation().units(model, given, None, view()))
    values = compute_terms(units, TERMS, dict.fromkeys(ROLES, 1.0))
    labels: Any = given.masks
    if family in MASKS:
        labels = [
            {"class_labels": c, "masks": (m[None] == c[:, None, None]).float()}
            for m in given.masks
            for c in [m.unique()[m.unique() >= 0]]
        ]
    expected = same_random_numbers(
        lambda: decompose(model, given.inputs(), labels).total().detach()
    )
    assert set(values) == set(ROLES)
    assert total(values) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("family", {**DETECTORS, **SEGMENTERS})
def test_where_the_model_is_the_base_nothing_pulls_at_what_is_kept(family):
    """Distillation on retained units is zero as long as the model answers like the base."""
    detects = family in DETECTORS
    task = Detection() if detects else Segmentation()
    model, given = {**DETECTORS, **SEGMENTERS}[family](), examples(ids=(0, 1))
    kept = view(forgets=False, learned=False)
    taught = teach(task, model, given)
    keep = TermConfig(roles=("retain",), objective="masked_distillation", reduction="share")
    units = task.units(model, given, taught, kept)
    (value,) = compute_terms(units, {"keep": keep}, {"keep": 1.0}).values()
    own = compute_terms(units, TERMS, dict.fromkeys(ROLES, 1.0))
    assert float(value.detach()) < 1e-3 * float(total(own))


@pytest.mark.parametrize("family", ["rt-detr", "detr"])
def test_forgetting_takes_the_class_away_and_leaves_the_others(family):
    model, given = DETECTORS[family](), examples()
    task = Detection()
    taught = teach(task, model, given)
    forget = TermConfig(roles=("forget",), objective="masked_distillation", reduction="share")
    units = task.units(model, given, taught, view())[-1]
    units.logits.retain_grad()
    (value,) = compute_terms([units], {"forget": forget}, {"forget": 1.0}).values()
    value.backward()
    touched = units.logits.grad.abs().sum(-1) > 0
    assert bool((units.roles[touched] == FORGET).all())
    column = 3 + (1 if family == "detr" else 0)
    assert bool((units.logits.grad[touched][:, column] > 0).all())


@pytest.mark.parametrize("family", ["rt-detr", "segformer"])
def test_what_is_open_is_taught_by_the_base_and_not_as_nothing(family):
    """Of partial labels a loss remains on open units; it is zero where the base would agree."""
    detects = family in DETECTORS
    task = Detection() if detects else Segmentation()
    model, given = {**DETECTORS, **SEGMENTERS}[family](), examples(complete=False, ids=())
    kept = view(forgets=False, learned=False)
    units = same_random_numbers(lambda: task.units(model, given, teach(task, model, given), kept))
    partial = total(compute_terms(units, TERMS, dict.fromkeys(ROLES, 1.0)))
    closed = examples(ids=())
    units = same_random_numbers(lambda: task.units(model, closed, None, kept))
    values = compute_terms(units, TERMS, dict.fromkeys(ROLES, 1.0))
    complete = total(values) if values else torch.tensor(1.0)
    assert float(partial.detach()) < 0.1 * float(complete.detach())


def test_a_class_that_the_stage_does_not_know_yet_leaves_its_image_open():
    model, given = DETECTORS["rt-detr"](), examples()
    task = Detection()
    units = task.units(model, given, teach(task, model, given), view(learned=False))
    assert units[-1].logits.shape[-1] == NUM_BASE
    assert LEARN not in units[0].roles.unique().tolist()


def test_ignored_pixels_are_in_no_unit():
    model, given = PER_PIXEL["segformer"](), examples()
    given.masks[:] = IGNORE
    groups = Segmentation().units(model, given, teach(Segmentation(), model, given), view())
    assert all(len(group.class_ids) == 0 for group in groups)


def test_alignment_finds_the_permutation_of_least_cost():
    noise = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0)) + 1
    wanted = torch.stack([torch.randperm(6), torch.randperm(6)])
    cost = noise.scatter(2, wanted[..., None], 0.0)
    assert torch.equal(align(cost), wanted)
    assert sorted(align(torch.ones(1, 6, 6))[0].tolist()) == list(range(6))


def two_queries(remaining: str) -> dict[str, torch.Tensor]:
    """Return answers of a base: class 0 everywhere but at an object, class 3 (to forget) there."""
    logits = torch.full((1, 2, 6), -6.0)  # five classes and "no object"
    logits[0, 0, 0] = 6.0
    logits[0, 1, 3] = 6.0
    logits[0, 1, 5 if remaining == "nothing" else 2] = 3.0
    masks = torch.full((1, 2, 4, 4), 5.0)
    masks[0, 0, 1:3, 1:3], masks[0, 1] = -4.0, -5.0
    masks[0, 1, 1:3, 1:3] = 5.0
    return {"logits": logits, "masks": masks}


@pytest.mark.parametrize(("remaining", "there"), [("nothing", 0), ("class", 2)])
def test_a_forgotten_object_is_labelled_as_the_base_sees_its_place_without_it(remaining, there):
    view = view_of([RETAIN, RETAIN, RETAIN, FORGET, RETAIN, LEARN], 5)
    truth = torch.zeros(1, 8, 8, dtype=torch.long)
    truth[:, 2:6, 2:6] = 3
    seen = torch.where(
        is_forgotten(truth, view),
        seen_without(two_queries(remaining), truth, view),
        truth,
    )
    assert (seen[:, 3:5, 3:5] == there).all()
    assert (seen[truth == 0] == 0).all()
    learned = truth.masked_fill(truth == 3, 5)
    assert not is_forgotten(learned, view).any()


def test_the_role_to_forget_follows_the_bases_answer_where_labels_follow_it():
    view = view_of([RETAIN, RETAIN, RETAIN, FORGET, RETAIN, LEARN], 5)
    base = torch.full((3, 6), -3.0)
    base[0, 4], base[1, 3], base[2, 0] = 2.0, 2.0, 2.0  # "no object" is the first column
    units = Units(
        class_ids=torch.tensor([1, 0, 4]),
        roles=torch.tensor([RETAIN, RETAIN, FORGET]),
        forgotten=torch.zeros(6, dtype=torch.bool),
        logits=torch.zeros(3, 7),
        base_logits=base,
    )
    told = forgotten_by_base(units, view, nothing=True)
    assert told.roles.tolist() == [FORGET, RETAIN, FORGET]
    assert told.class_ids.tolist() == [4, 0, 4]


@pytest.mark.parametrize(
    ("preset", "replaced"), [("default", True), ("paper", False), ("retain-free", True)]
)
def test_labels_follow_the_base_where_no_term_trains_on_forgotten_labels(preset, replaced):
    sources = {role: {"data": "x", "classes": [role]} for role in ("learn", "forget", "retain")}
    config = SwapConfig.from_mapping(
        {"model": "m", **sources, "preset": preset, "task": "segmentation"}
    ).for_task("segmentation")
    learn, forget = plan(config)
    assert not sees_without(learn, Segmentation())
    assert sees_without(forget, Segmentation()) is replaced
    assert not sees_without(forget, Detection())
