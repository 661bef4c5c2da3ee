"""What a unit is, by task."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kswap.audits.features import ImageUnits, Observed, Units
from kswap.data import ImageSet


def units_of(task: str) -> Callable[[Observed, Sequence[int], ImageSet], Units]:
    """Return what makes units of batches."""
    return {"classification": ImageUnits}[task]
