"""Preset `deep`: `default`, and forgetting below the answer.

What it reaches, measured on the embedded demo, is in docs/results.md; how its values were chosen in
LOG.md (2026-11-25). What it costs is a longer forgetting stage, and one more forward of the base
model on retain and forget images before the first stage.
"""

from __future__ import annotations

from typing import Any

from kswap.presets.default import DEFAULT, DEFAULT_SCENES

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
    # What is left between the means, where directions that hardly vary count as for a probe.
    "align": {
        "roles": ["forget"],
        "objective": "alignment",
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
_FORGET_BATCH = {"roles": ["forget"], "batch_size": 32}  # twice `default`'s: steadier means
_MIN_STEPS = 120  # features move more slowly than answers
# A batch of scenes has few forgotten objects, whose means are noise; and with the weights above
# their features took the gradient from their answers (LOG.md, 2026-11-25).
_SCENES = {
    "forget": {"like": 1.0, "align": 0.0, "spread": 0.5, "own": 1.0, "forget": 5.0},
    "learn": {"own": 0.5},
}


def _deep(default: dict[str, Any]) -> dict[str, Any]:
    """Return `default` with these terms."""
    stages = dict(default["stages"])
    learn = stages["learn"]
    stages["learn"] = {**learn, "terms": {**learn["terms"], "own": _HELD}}
    for kind in ("forget", "joint"):
        own = stages[kind]
        stages[kind] = {**own, "terms": {**own["terms"], **_DEEP}}
    return {**default, "stages": stages}


def _of_images(deep: dict[str, Any]) -> dict[str, Any]:
    stages = dict(deep["stages"])
    for kind in ("forget", "joint"):
        streams = {**stages[kind]["streams"], "forget": _FORGET_BATCH}
        stages[kind] = {**stages[kind], "streams": streams, "min_steps": _MIN_STEPS}
    return {**deep, "stages": stages}


def _of_scenes(deep: dict[str, Any]) -> dict[str, Any]:
    stages = dict(deep["stages"])
    for kind, weights in {**_SCENES, "joint": _SCENES["forget"]}.items():
        terms = dict(stages[kind]["terms"])
        for name, weight in weights.items():
            terms[name] = {**terms[name], "weight": weight}
        stages[kind] = {**stages[kind], "terms": terms}
    return {**deep, "stages": stages}


DEEP = _of_images(_deep(DEFAULT))
DEEP_SCENES = _of_scenes(_deep(DEFAULT_SCENES))
