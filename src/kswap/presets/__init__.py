"""The presets: every value with its source and reason. A config's own keys go before a preset's.

`paper`        the reference's setting for classification (docs/method.md lists what still differs)
`default`      what we found best on validation (docs/results.md)
`retain-free`  `default` without any retain image in training
`deep`         `default`, and forgetting below the answer

and those of methods to compare with (`baselines.py`, classification; `ssd` for every task).
"""

from __future__ import annotations

from typing import Any

from kswap.presets.baselines import BASELINES, SSD, SSD_SCENES
from kswap.presets.deep import DEEP, DEEP_SCENES
from kswap.presets.default import DEFAULT, DEFAULT_SCENES, RETAIN_FREE, RETAIN_FREE_SCENES
from kswap.presets.paper import PAPER, PAPER_DETECTION, PAPER_SEGMENTATION

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {
        "classification": DEFAULT,
        "segmentation": DEFAULT_SCENES,
        "detection": DEFAULT_SCENES,
    },
    "paper": {
        "classification": PAPER,
        "segmentation": PAPER_SEGMENTATION,
        "detection": PAPER_DETECTION,
    },
    "retain-free": {
        "classification": RETAIN_FREE,
        "segmentation": RETAIN_FREE_SCENES,
        "detection": RETAIN_FREE_SCENES,
    },
    "deep": {"classification": DEEP, "segmentation": DEEP_SCENES, "detection": DEEP_SCENES},
    **{name: {"classification": values} for name, values in BASELINES.items()},
    "ssd": {"classification": SSD, "segmentation": SSD_SCENES, "detection": SSD_SCENES},
}
"""Preset -> task -> values."""
