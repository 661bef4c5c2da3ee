"""What a unit is, by task."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kswap.audits.features import ImageUnits, Observed, Units
from kswap.audits.scene_units import ObjectUnits, RegionUnits
from kswap.data import ImageSet

_UNITS: dict[str, Callable[[Observed, Sequence[int], ImageSet], Units]] = {
    "classification": ImageUnits,
    "segmentation": RegionUnits,
    "detection": ObjectUnits,
}


def units_of(task: str) -> Callable[[Observed, Sequence[int], ImageSet], Units]:
    """Return what makes units of batches."""
    return _UNITS[task]
