"""Objectives on features of scenes: their units are those of the audits, in training as well."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from criteria_models import DETECTORS, MASKS, PER_PIXEL
from safetensors.torch import load_file
from scene_examples import FORGET, LEARN, RETAIN, examples, view_of
from tiny_runs import tiny_run

import kswap
from kswap.audits.features import BEFORE_HEAD, Observed
from kswap.audits.scene_units import ObjectUnits, RegionUnits
from kswap.config import SwapConfig
from kswap.data.sets import OPEN, ImageSet
from kswap.errors import UserError
from kswap.models.features import Places
from kswap.models.head import find_heads
from kswap.models.structure import find_ffn_blocks
from kswap.settings import ROLES, TermConfig
from kswap.tasks import find
from kswap.tasks.inside import UNIT_IDS, _noise, num_slots, padded, Slots
from kswap.training.informing import bank_of
from kswap.training.loop import compute_terms
from kswap.training.teaching import teach

FAMILIES = {
    **{name: ("detection", DETECTORS[name]) for name in ("rt-detr", "detr", "yolos")},
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
    given, places = examples(ids=ids), places_of_model(model)
    return model, task, given, places, teach(model, task, given, places=places, num_slots=4)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_those_that_the_audits_look_at(name):
    model, task, given, places, taught = looked_at(name)
    observed = Observed.of(model, range(5), 5, lambda images: images)
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
