"""Preset `deep`: `default`, and forgetting below the answer.

What it reaches, measured on the embedded demo, is in docs/results.md; how its values were chosen in
LOG.md (2026-11-25). What it costs is a longer forgetting stage, and one more forward of the base
model on retain and forget images before the first stage.
"""

from __future__ import annotations

from typing import Any

from kswap.presets.default import DEFAULT, DEFAULT_SCENES
from kswap.yaml_text import merge

# Early blocks hold little of a class (a probe finds as much in a model that never saw it): from a
# third of the depth on.
_PLACES = ["head", 0.34, 0.56, 0.78, 1.0]
_END = ["head", 1.0]
_DEEP = {
    # Forgotten images move onto the retained class that they look like, each group as a whole, so
    # that they go on varying as images do: a cloud in one place is what a probe would find.
    "like": {
        "roles": ["forget"],
        "objective": "translation",
        "weight": 8.0,
        "layers": _PLACES,
    },
    # What a head that is fitted to a few of them would tell the others by, at the end. From the
    # products of different images, as the mean of a batch is mostly noise.
    "blur": {
        "roles": ["forget"],
        "objective": "discrimination",
        "weight": 3.0,
        "layers": _END,
        "whiten": True,
    },
    # The class has no direction in common: a mean of a few images says nothing. Where the class is
    # told apart, at the end.
    "spread": {
        "roles": ["forget"],
        "objective": "dispersion",
        "weight": 1.0,
        "layers": ["head", 0.78, 1.0],
    },
    # Retained images keep their features, or forgotten ones move to where a class has been.
    "own": {
        "roles": ["retain"],
        "objective": "feature_distillation",
        "weight": 4.0,
        "layers": _PLACES,
    },
}
# While learning as well: what drifts then is drift for the forgetting stage.
_HELD = {**_DEEP["own"], "weight": 2.0, "layers": ["head", 0.78, 1.0]}
# A batch of scenes has few forgotten objects, whose means are noise: twice the scenes that show
# some, more steps, and lighter terms; what is to be learnt, kept and forgotten weighs more instead,
# or features take the gradient from answers. Chosen on scenes in no split (LOG.md, 2026-11-26 and
# 27).
_SCENES = {
    "learn": 4.0,
    "retain": 1.5,
    "keep": 1.5,
    "forget": 15.0,
    "like": 2.0,
    "blur": 0.8,
    "spread": 1.0,
    "own": 1.0,
}
# In a decoder retained classes drift most: they are held there, and what a head that is fitted anew
# would find is looked at in the model as it is by then.
_HOLD = {**_DEEP["own"], "weight": 2.0, "layers": ["head", 0.78, 0.9, 1.0]}


def _stages(learn: dict[str, Any], forget: dict[str, Any]) -> dict[str, Any]:
    return {"stages": {"learn": learn, "forget": forget, "joint": forget}}


_TERMS = _stages({"terms": {"own": _HELD}}, {"terms": _DEEP})
DEEP = merge(
    merge(DEFAULT, _TERMS),
    _stages(
        {},
        {
            "streams": {"forget": {"batch_size": 32}},  # twice `default`'s: steadier means
            "min_steps": 180,  # features move more slowly than answers
        },
    ),
)
DEEP_SCENES = merge(
    merge(DEFAULT_SCENES, _TERMS),
    _stages(
        {"terms": {"own": {"weight": 0.5}}},
        {
            "streams": {"forget": {"batch_size": 8}},
            "min_steps": 200,
            "renew_steps": 20,
            "terms": {
                **{name: {"weight": weight} for name, weight in _SCENES.items()},
                "hold": _HOLD,
            },
        },
    ),
)
