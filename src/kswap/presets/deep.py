"""Preset `deep`: `default`, and forgetting below the answer.

What it reaches, measured on the embedded demo, is in LOG.md (2026-11-24); what it costs is one more
forward of the base model on retain and forget images before the first stage, and no forward more in
a step.
"""

from __future__ import annotations

from typing import Any

from kswap.presets.default import DEFAULT, DEFAULT_SCENES

# Early blocks hold little of a class (a probe finds as much in a model that never saw it): from a
# third of the depth on.
_PLACES = ["head", 0.34, 0.56, 0.78, 1.0]
_DEEP = {
    # A forgotten image looks, on its way, like a retained one that the base takes it for: this is
    # what hides it from a probe. The distance starts near 1.7 and cannot fall below that of two
    # images of one class, so that it goes on pulling.
    "like": {
        "roles": ["forget"],
        "objective": "impersonation",
        "weight": 0.5,
        "layers": _PLACES,
    },
    # The class has no direction in common: a mean of a few images says nothing. Where the class is
    # told apart, at the end.
    "spread": {
        "roles": ["forget"],
        "objective": "dispersion",
        "weight": 1.0,
        "layers": ["head", 0.78, 1.0],
    },
    # Retained images keep their features; their labels say little, for the base has learnt them.
    "own": {
        "roles": ["retain"],
        "objective": "feature_distillation",
        "weight": 2.0,
        "layers": _PLACES,
    },
}


def _deep(default: dict[str, Any]) -> dict[str, Any]:
    stages = {
        kind: {**default["stages"][kind], "terms": {**default["stages"][kind]["terms"], **_DEEP}}
        for kind in ("forget", "joint")
    }
    return {**default, "stages": {**default["stages"], **stages}}


DEEP = _deep(DEFAULT)
DEEP_SCENES = _deep(DEFAULT_SCENES)
