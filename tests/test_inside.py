"""Objectives on features of scenes: their units are those of the audits, in training as well."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from criteria_models import DETECTORS, MASKS, PER_PIXEL, SIDE
from safetensors.torch import load_file
from scene_examples import FORGET, LEARN, RETAIN, TERMS, examples, view_of
from tiny_runs import tiny_run

import kswap
from kswap.audits.features import BEFORE_HEAD, Observed
from kswap.audits.scene_units import ObjectUnits, RegionUnits
from kswap.config import SwapConfig
from kswap.data.samples import Samples
from kswap.data.sets import Boxes, ImageSet
from kswap.errors import UserError
from kswap.models.features import Places
from kswap.models.head import find_heads
from kswap.models.structure import find_ffn_blocks
from kswap.models.tokens import box_masks, pooled
from kswap.objectives import serves
from kswap.plan import plan
from kswap.settings import TermConfig
from kswap.tasks import find
from kswap.tasks.inside import UNIT_IDS, Slots, _noise, num_slots
from kswap.training.informing import Asked, asked, bank_of, check_bank
from kswap.training.loop import compute_terms
from kswap.training.teaching import teach

pytestmark = pytest.mark.usefixtures("undrawn")

FAMILIES = {
    **{
        name: ("detection", DETECTORS[name])
        for name in ("rt-detr", "detr", "detr-auxiliary", "yolos")
    },
    **{name: ("segmentation", MASKS[name]) for name in ("mask2former", "maskformer")},
    "segformer": ("segmentation", PER_PIXEL["segformer"]),
}
IDS = (0, 3, 3)


def places_of_model(model):
    blocks = find_ffn_blocks(model)
    return Places(find_heads(model), tuple(enumerate(blocks, start=1)), len(blocks))


def looked_at(name, *, ids=IDS):
    """A tiny model of five classes, two images, and what it makes of the units inside them."""
    task_name, build = FAMILIES[name]
    torch.manual_seed(0)
    model, task = build().eval(), find(task_name)
    for norm in [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]:
        torch.nn.init.normal_(norm.weight, 1, 0.3)  # twice is not once
    given, places = examples(ids=ids), places_of_model(model)
    return (
        model,
        task,
        given,
        places,
        teach(model, task, given, num_base=4, places=places, num_slots=4),
    )


def test_of_yolos_the_patches_under_a_box_are_read_not_its_detection_tokens():
    model, _, given, places, taught = looked_at("yolos")
    outputs = []
    number, block = places.blocks[0]
    layer = model.get_submodule(block.name)
    handle = layer.register_forward_hook(lambda _, args, out: outputs.append(out))
    with torch.no_grad():
        model(pixel_values=given.pixels)
    handle.remove()
    output = outputs[0] if isinstance(outputs[0], torch.Tensor) else outputs[0][0]
    patches = output[:, 1 : 1 + (SIDE // 16) ** 2]  # a class token before, nine queries behind
    masks = box_masks(given.boxes[0], (SIDE, SIDE))
    expected = pooled(patches[0], masks, extra=0, grids=[(SIDE // 16, SIDE // 16)])
    assert torch.allclose(taught[f"{number} mean"][0, : len(expected)], expected, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_those_that_the_audits_look_at(name):
    model, task, given, _, taught = looked_at(name)
    observed = Observed.of(model, range(5), 5, lambda images, sizes=None: images)
    images = ImageSet(given.pixels.numpy(), given.class_ids.numpy())
    audited = (ObjectUnits if task.name == "detection" else RegionUnits)(
        observed, range(5), images
    ).add(given)
    there = taught[UNIT_IDS] >= 0
    assert torch.equal(taught[UNIT_IDS][there], audited.class_ids)
    names = {tap.label: f"{n} mean" for n, tap in enumerate(observed.taps, start=1)}
    assert {names.get(layer, "head") for layer in audited.layers} == {
        name for name in taught if name == "head" or name.endswith("mean")
    }
    for layer, expected in audited.layers.items():
        found = taught["head" if layer == BEFORE_HEAD else names[layer]][there]
        assert torch.allclose(found, expected, atol=1e-5), layer
    assert (taught["head"][~there] == 0).all()


FEATURES = {
    name: TermConfig(roles=("forget",), objective=name, layers=("all",))
    for name in ("dispersion", "impersonation", "translation", "discrimination", "class_mean_head",
                 "subspace", "prototype")
}  # fmt: skip
ANSWERS = ("logits", "boxes", "masks")
ROLE_OF_ROW = [RETAIN, RETAIN, RETAIN, FORGET, LEARN]


def view_inside(places, taught, *, num_base=4):
    """The stage's view, with a bank of the base's own features of these images."""
    found = {name: rows for name, rows in taught.items() if name not in ANSWERS}
    bank = bank_of(
        {"retain": found}, {"retain": {"train": NO_IMAGES}}, forget_ids=[3], num_base=num_base,
        device=torch.device("cpu"),
    )  # fmt: skip
    view = view_of(ROLE_OF_ROW, num_base)
    return replace(view, places=places, bank=bank, num_slots=4)


NO_IMAGES = ImageSet(np.zeros((0, 1, 1, 3), np.uint8), np.zeros(0, np.int64))


@pytest.mark.parametrize("name", ["rt-detr", "detr-auxiliary", "mask2former", "segformer"])
def test_units_inside_are_objects_with_the_role_of_their_class(name):
    model, task, given, places, taught = looked_at(name, ids=(0, 3, 4))
    view = view_inside(places, taught)
    given = replace(given, noise=torch.rand(2, 2, generator=torch.Generator().manual_seed(0)))
    *others, inside = task.units(model, given, taught, view)
    assert inside.class_ids.tolist() == [0, 3, 4] * 2
    assert inside.roles.tolist() == [RETAIN, FORGET, LEARN] * 2
    assert inside.base_logits.shape == (6, 4)
    for place, rows in inside.features.items():  # nothing has trained yet
        assert torch.allclose(rows, inside.base_features[place], atol=1e-4), place
    counts = task.divisors(samples_of(given), given.roles, FEATURES, view)
    assert counts == dict.fromkeys(FEATURES, 2)
    values = compute_terms([*others, inside], FEATURES, counts)
    assert set(values) == set(FEATURES)
    torch.stack(list(values.values())).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert any(gradient.any() for gradient in gradients)
    assert all(gradient.isfinite().all() for gradient in gradients)
    # Nor do these units take part in terms on answers, or others in terms on features.
    assert not any(serves(inside, term.objective) for term in TERMS.values())
    assert not serves(inside, "masked_distillation")
    assert not any(serves(units, name) for units in others for name in FEATURES)


def samples_of(given):
    """The annotations of examples as the streams bring them."""
    boxes = [
        Boxes(b.numpy(), i.numpy(), c.numpy())
        for b, i, c in zip(given.boxes, given.box_ids, given.crowd, strict=True)
    ]
    return Samples(
        images=given.pixels.numpy(),
        class_ids=given.class_ids.numpy(),
        masks=given.masks.numpy(),
        boxes=boxes,
        sizes=None,
        complete=given.complete.numpy(),
    )


def test_the_bank_of_scenes_goes_by_the_class_of_a_unit_not_by_its_image():
    # Two images of the source `forget`, one of `retain`; rows 0 and 2 are kept, 1 is forgotten.
    taught = {
        "forget": {
            "head": torch.tensor([[[1.0, 0.0], [5.0, 5.0]], [[3.0, 0.0], [0.0, 0.0]]]),
            UNIT_IDS: torch.tensor([[0, 1], [0, -1]]),
        },
        "retain": {
            "head": torch.tensor([[[7.0, 5.0], [0.0, 4.0], [9.0, 9.0]]]),
            UNIT_IDS: torch.tensor([[1, 2, 3]]),  # 3 is a class to learn
        },
    }
    sets = {role: {"train": NO_IMAGES} for role in taught}
    bank = bank_of(taught, sets, forget_ids=[1], num_base=3, device=torch.device("cpu"))
    place = bank.places["head"]
    assert place.means.tolist() == [[2.0, 0.0], [6.0, 5.0], [0.0, 4.0]]
    assert bank.counts.tolist() == [2, 0, 1]
    assert bank.class_ids.tolist() == [0, 0, 2]
    assert place.images.tolist() == [[1.0, 0.0], [3.0, 0.0], [0.0, 4.0]]
    assert set(place.basis) == {1}


def test_noise_of_units_is_uniform_a_function_of_their_image_and_differs_between_them():
    noise = torch.rand(2000, 2, generator=torch.Generator().manual_seed(0))
    slots = Slots(torch.zeros(2000, 5, dtype=torch.long), (), ())
    found = _noise(noise, slots)
    assert torch.allclose(found[:, 0], noise)
    assert float(found.max()) < 1
    assert float(found.min()) >= 0
    assert found.mean((0, 2)).tolist() == pytest.approx([0.5] * 5, abs=0.02)
    assert (found[0].unique(dim=0)).shape == (5, 2)
    assert torch.equal(
        _noise(noise[7:8], replace(slots, class_ids=slots.class_ids[:1]))[0], found[7]
    )


def test_there_are_slots_for_the_image_with_most_units():
    masks = np.full((2, 4, 4), -2, np.int16)
    masks[1, :2], masks[1, 2:, :2] = 3, 0
    images = np.zeros((2, 4, 4, 3), np.uint8)
    assert num_slots([ImageSet(images, np.zeros(2, np.int64), masks=masks)]) == 2
    crowd = np.array([False, True, False, False])
    boxes = (Boxes(np.zeros((4, 4), np.float32), np.zeros(4, np.int64), crowd),)
    assert num_slots([ImageSet(images[:1], np.zeros(1, np.int64), boxes=boxes)]) == 3


@pytest.mark.parametrize("task", ["segmentation", "detection"])
@pytest.mark.parametrize("objective", ["tilted_distillation", "random_labels", "uniform"])
def test_what_needs_one_answer_for_an_image_says_so(task, objective):
    terms = {"other": {"roles": ["forget"], "objective": objective}}
    values = {"model": "m", "task": task, "order": "F", "stages": {"forget": {"terms": terms}}}
    stages = plan(SwapConfig.from_mapping({**values, "forget": {"data": "d"}}))
    with pytest.raises(UserError, match=f"terms.other: '{objective}' needs one answer") as error:
        asked(stages, find(task), sets={}, heads=(), blocks=())
    assert "\n" not in str(error.value)


def test_a_place_that_no_token_belongs_to_says_so():
    # DETR's decoder is behind its encoder: its queries are no tokens of the image, but they have
    # boxes; where neither is so, as if there were no features at all, the term is named.
    bank = bank_of(
        {"retain": {"2 mean": torch.ones(1, 1, 2), UNIT_IDS: torch.tensor([[0]])}},
        {"retain": {"train": NO_IMAGES}},
        forget_ids=[1],
        num_base=2,
        device=torch.device("cpu"),
    )
    term = TermConfig(roles=("forget",), objective="dispersion", layers=("head", 1.0))
    places = Places(num_blocks=2)
    check_bank(bank, Asked(places, terms={"spread": term}))
    term = term.model_copy(update={"layers": ("head", 0.5)})
    with pytest.raises(UserError, match=r"spread: at \['head', 0.5\] no token of this model"):
        check_bank(bank, Asked(places, terms={"spread": term}))


@pytest.fixture(scope="module", params=["segmentation", "detection"])
def made(request, tmp_path_factory):
    """Model and data of a task, made once."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, tiny_run(request.param, folder)


def swap(made, name, **changes):
    """Swap with preset deep; return the lines of its events."""
    _, folder, values = made
    if not (folder / name).exists():
        config = {**values, "preset": "deep", "output": str(folder / name), **changes}
        kswap.swap(SwapConfig.from_mapping(config))
    lines = (folder / name / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def weights(made, name):
    return load_file(made[1] / name / "adapter" / "adapter_model.safetensors")


def test_preset_deep_trains_on_features_of_scenes(made):
    lines = swap(made, "deep")
    forget = [line["terms"] for line in lines if line["stage"] == "2-forget"]
    assert all({"like", "spread", "own"} <= set(terms) for terms in forget)
    assert all(terms["like"] > 0 for terms in forget)
    assert not any("like" in line["terms"] for line in lines if line["stage"] == "1-learn")


@pytest.mark.slow
def test_terms_on_features_move_the_adapter_and_are_the_same_bits_again(made):
    swap(made, "deep")
    swap(made, "default", preset="default")
    deep, default = weights(made, "deep"), weights(made, "default")
    assert any(not torch.equal(deep[name], default[name]) for name in deep)
    swap(made, "again")
    again = weights(made, "again")
    assert all(torch.equal(deep[name], again[name]) for name in deep)


def terms_of(lines):
    return [line["terms"] for line in lines]


def close(one, other, names=None):
    for a, b in zip(terms_of(one), terms_of(other), strict=True):
        assert set(a) == set(b)
        assert {n: a[n] for n in names or a} == pytest.approx(
            {n: b[n] for n in names or b}, rel=2e-3, abs=1e-4
        )


@pytest.mark.slow
def test_what_the_base_makes_of_units_can_be_computed_at_every_step(made):
    """Answers that do not fit into memory are those that were kept."""
    from kswap.running import knowledge

    kept = swap(made, "deep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knowledge, "answers_fit", lambda *args, **kwargs: False)
        close(kept, swap(made, "now"))


@pytest.mark.slow
def test_a_kept_prefix_gives_what_blocks_below_it_return(made):
    stages = {
        kind: {"max_steps": 2, "min_steps": 1, "depth": "last-1"}
        for kind in ("learn", "forget", "joint")
    }
    whole = swap(made, "whole", stages=stages, training={"device": "cpu", "prefix_cache": False})
    close(whole, swap(made, "kept", stages=stages, training={"device": "cpu"}))


@pytest.mark.slow
@pytest.mark.parametrize("augment", ["flip", "flip-crop-colour"])
def test_units_follow_augmentation(made, augment):
    lines = swap(made, augment, data={"augment": augment})
    assert "own" in lines[-1]["terms"]


@pytest.mark.slow
def test_terms_of_single_units_are_those_of_micro_batches(made):
    """Pairs are pairs within a micro-batch, so that dispersion may differ."""
    whole = swap(made, "deep")
    parts = swap(made, "parts", training={"device": "cpu", "accumulation": 2})
    close(whole[2:3], parts[2:3], ["own"])
