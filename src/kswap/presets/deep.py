"""Preset `deep`: `default`, and forgetting below the answer (docs/method.md, LOG.md)."""

from __future__ import annotations

from typing import Any

from kswap.presets.default import DEFAULT

_DISPERSE = {"roles": ["forget"], "objective": "dispersion", "weight": 3.0}


def _stage(kind: str) -> dict[str, Any]:
    stage = DEFAULT["stages"][kind]
    return {**stage, "terms": {**stage["terms"], "disperse": _DISPERSE}}


DEEP: dict[str, Any] = {
    **DEFAULT,
    "stages": {**DEFAULT["stages"], "forget": _stage("forget"), "joint": _stage("joint")},
}
