"""What a step draws is a function of seed, stage, stream and step alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kswap.config import SwapConfig
from kswap.data import ImageSet
from kswap.errors import UserError
from kswap.plan import plan
from kswap.settings import ROLES
from kswap.training.streams import Source, Streams


def image_set(count: int, class_id: int) -> ImageSet:
    images = np.zeros((count, 2, 2, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return ImageSet(images, np.full(count, class_id))


SETS = {"learn": image_set(10, 2), "forget": image_set(3, 0), "retain": image_set(20, 1)}


SOURCES = {role: [Source(images)] for role, images in SETS.items()}


def stage(preset="default", order="LF", index=1, **more):
    sources = {role: {"data": "x", "classes": [role]} for role in ROLES}
    config = SwapConfig.from_mapping(
        {"model": "m", **sources, "order": order, "preset": preset, **more}
    )
    return plan(config)[index]


def test_the_same_step_draws_the_same_images_in_any_order():
    one, two = (Streams(stage(), SOURCES, seed=5) for _ in range(2))
    for step in (7, 0, 3):
        a, b = one.batch(step), two.batch(step)
        assert np.array_equal(a.samples.images, b.samples.images)
        assert torch.equal(a.roles, b.roles)
    other = Streams(stage(), SOURCES, seed=6)
    assert any(
        not np.array_equal(one.batch(s).samples.images, other.batch(s).samples.images)
        for s in range(3)
    )


def test_every_epoch_draws_every_image_once():
    streams = Streams(stage("paper"), SOURCES, seed=0)
    # kept = 20 retain + 10 learn images with batches of 30: each batch is one epoch.
    for step in range(3):
        batch = streams.batch(step)
        kept = batch.samples.images[batch.roles != ROLES.index("forget")][:, 0, 0, 0]
        assert sorted(kept.tolist()) == sorted([*range(20), *range(10)])


def test_a_stream_smaller_than_its_batch_gives_all_it_has():
    batch = Streams(stage(), SOURCES, seed=0).batch(0)
    assert int((batch.roles == ROLES.index("forget")).sum()) == 3


def test_rows_of_a_batch_belong_together():
    logits = {"retain": {"logits": torch.arange(20.0)[:, None].repeat(1, 2)}}
    taught = {r: [Source(images, logits.get(r))] for r, images in SETS.items()}
    batch = Streams(stage(), taught, seed=0).batch(1)
    for image, class_id, role, teacher in zip(
        batch.samples.images,
        batch.samples.class_ids,
        batch.roles,
        batch.teacher["logits"],
        strict=True,
    ):
        name = ROLES[int(role)]
        assert int(class_id) == int(SETS[name].class_ids[0])
        assert teacher[0] == (image[0, 0, 0] if name == "retain" else 0)


def test_micro_batches_partition_the_batch_and_share_its_roles():
    batch = Streams(stage(), SOURCES, seed=0).batch(0)
    parts = list(batch.split(3))
    assert sum(map(len, parts)) == len(batch)
    for code in range(3):
        counts = [int((part.roles == code).sum()) for part in parts]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"epochs": 5.0, "min_steps": 1}, 5),  # the anchor, 3 forget images, is one batch
        ({"epochs": 2.0, "min_steps": 40}, 40),
        ({"epochs": 9.0, "min_steps": 1, "max_steps": 4}, 4),
        ({"epochs": 2.0, "min_steps": 1, "anchor": "retain"}, 2),
        (
            {
                "epochs": 2.0,
                "min_steps": 1,
                "anchor": "retain",
                "streams": {"retain": {"batch_size": 4}},
            },
            10,
        ),
    ],
)
def test_length_of_a_stage(settings, steps):
    streams = Streams(stage(stages={"forget": settings}), SOURCES, seed=0)
    assert streams.num_steps == steps


def test_a_stream_without_images_is_refused():
    with pytest.raises(UserError, match=r"streams\.retain: no training images for retain"):
        Streams(stage(), {k: v for k, v in SOURCES.items() if k != "retain"}, seed=0)
