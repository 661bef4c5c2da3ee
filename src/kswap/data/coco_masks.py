"""COCO's segmentation of one object, polygons or run lengths, as pixels.

Polygons are drawn by faster-coco-eval (COCO's own rule of which pixels are inside) once their
numbers are checked; run lengths are read here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kswap.data.scenes import BadAnnotationError, Size
from kswap.data.text import one_line


def draw(segmentation: Any, size: Size, where: str) -> NDArray[np.bool_]:
    """Return the pixels of one object, (height, width): a list of polygons or run lengths.

    Raises:
        BadAnnotationError: numbers or counts are not possible for an image of this size.
    """
    if isinstance(segmentation, dict):
        return _from_runs(segmentation, size, where)
    from faster_coco_eval.core import mask as coco_mask

    height, width = size
    limit = 4 * max(size)
    polygons = []
    for polygon in segmentation if isinstance(segmentation, list) else [segmentation]:
        try:
            points = np.asarray(polygon, np.float64)
        except (TypeError, ValueError):
            points = np.zeros(0)
        if points.ndim != 1 or len(points) < 6 or len(points) % 2:
            raise BadAnnotationError(
                where,
                f"a polygon is {one_line(polygon, 60)}, not x and y of three or more points",
                "correct segmentation",
            )
        if not np.isfinite(points).all() or np.abs(points).max() > limit:
            raise BadAnnotationError(
                where,
                f"a polygon has a coordinate of {points[np.argmax(np.abs(points))]:g}, far outside "
                f"the image of {width}x{height}",
                "correct segmentation",
            )
        polygons.append(points.tolist())
    runs = coco_mask.frPyObjects(polygons, height, width)
    inside: NDArray[np.bool_] = coco_mask.decode(coco_mask.merge(runs)).astype(bool)
    return inside


def _from_runs(segmentation: dict[str, Any], size: Size, where: str) -> NDArray[np.bool_]:
    counts, own = segmentation.get("counts"), segmentation.get("size")
    if not isinstance(own, list) or tuple(own) != size:
        raise BadAnnotationError(
            where,
            f"run lengths of size {one_line(own, 40)} (height, width) for an image of {list(size)}",
            "correct segmentation",
        )
    if isinstance(counts, str):
        counts = _unpacked(counts)
    try:
        runs = np.asarray(counts, dtype=np.int64)
    except (TypeError, ValueError, OverflowError):
        runs = np.zeros(0, np.int64)
    total = size[0] * size[1]
    if (
        runs.ndim != 1
        or not len(runs)
        or not 0 <= runs.min() <= runs.max() <= total
        or runs.sum() != total
    ):
        raise BadAnnotationError(
            where,
            f"run lengths that do not add up to the {total} pixels of the image",
            "correct segmentation",
        )
    values = np.arange(len(runs)) % 2 == 1  # runs of 0 and of 1 by turns, column by column
    return np.repeat(values, runs).reshape(size[1], size[0]).T


def _unpacked(text: str) -> list[int]:
    """Return the run lengths of COCO's compressed text: base 32, differences from the third on."""
    runs: list[int] = []
    place = 0
    codes = text.encode("latin-1", "replace")
    while place < len(codes):
        value = shift = 0
        more = True
        while more:
            if place == len(codes) or not 48 <= codes[place] < 112 or shift > 60:
                return []
            code = codes[place] - 48
            value |= (code & 0x1F) << shift
            more = bool(code & 0x20)
            place += 1
            shift += 5
            if not more and code & 0x10:
                value |= -1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs
