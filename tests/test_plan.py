"""An order string becomes stages; roles depend on the stage."""

from __future__ import annotations

import pytest

from kswap.config import SwapConfig
from kswap.errors import UserError
from kswap.plan import plan

SOURCES = {
    "learn": {"data": "a"},
    "forget": {"data": "b", "classes": ["x"]},
    "retain": {"data": "b"},
}


def config(order: str, **more):
    return SwapConfig.from_mapping({"model": "m", **SOURCES, "order": order, **more})


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("LF", [("1-learn", {"learn", "retain"}), ("2-forget", {"learn", "forget", "retain"})]),
        ("FL", [("1-forget", {"forget", "retain"}), ("2-learn", {"learn", "forget", "retain"})]),
        ("J", [("1-joint", {"learn", "forget", "retain"})]),
        ("L", [("1-learn", {"learn", "retain"})]),
        ("F", [("1-forget", {"forget", "retain"})]),
        (
            "LFLF",
            [
                ("1-learn", {"learn", "retain"}),
                ("2-forget", {"learn", "forget", "retain"}),
                ("3-learn", {"learn", "forget", "retain"}),
                ("4-forget", {"learn", "forget", "retain"}),
            ],
        ),
    ],
)
def test_roles_are_active_from_the_stage_that_brings_them(order, expected):
    stages = plan(config(order))
    assert [(s.name, set(s.active)) for s in stages] == expected
    for stage in stages:
        roles = {role for term in stage.config.terms.values() for role in term.roles}
        assert roles == set(stage.active)
        drawn = {role for stream in stage.config.streams.values() for role in stream.roles}
        assert drawn == set(stage.active)


def test_a_forget_class_is_retained_until_a_stage_forgets_it():
    learn, forget = plan(config("LF"))
    assert learn.role_of("forget") == "retain"
    assert forget.role_of("forget") == "forget"
    forget, learn = plan(config("FL"))
    assert forget.role_of("learn") is None
    assert learn.role_of("forget") == "forget"
    assert not forget.knows_learned
    assert learn.forgets


def test_paper_replays_learned_images_in_the_retain_loader():
    _, forget = plan(config("LF", preset="paper"))
    assert set(forget.config.streams["kept"].roles) == {"retain", "learn"}
    assert forget.config.terms["forget"].bound == 105


def test_paper_fl_without_the_forget_term_is_the_references_order():
    stages = {"learn": {"terms": {"forget": {"weight": 0}}}}
    _, learn = plan(config("FL", preset="paper", stages=stages))
    assert set(learn.config.terms) == {"learn", "retain"}
    assert set(learn.config.streams) == {"learn", "retain"}


def test_retain_free_draws_no_retain_image():
    for order in ("LF", "FL", "J"):
        for stage in plan(config(order, preset="retain-free")):
            drawn = {role for stream in stage.config.streams.values() for role in stream.roles}
            assert "retain" not in drawn


def test_a_stage_without_a_term_for_its_purpose_is_refused():
    stages = {"forget": {"terms": {"forget": {"weight": 0}}}}
    with pytest.raises(UserError, match=r"stages\.forget\.terms: no term .* 'forget'"):
        plan(config("LF", stages=stages))


def test_a_term_without_a_stream_is_refused():
    stages = {"forget": {"streams": {"forget": {"roles": ["retain"]}}}}
    with pytest.raises(UserError, match="no stream draws that role"):
        plan(config("LF", stages=stages))
