"""From a cell of a stream to a training image: which ones are wanted, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kswap.data.cells import Cell, StreamCell
from kswap.data.decode import class_array, fit
from kswap.data.images import BadImageError
from kswap.data.pixels import Fitter
from kswap.data.sets import ImageSet

PASSED, UNKNOWN = -1, -2
"""Instead of a row: the class has another role or none; neither model nor sample have it."""


class Maker(Protocol):
    """Makes training images of the cells of one role."""

    def row_of(self, cell: StreamCell) -> int:
        """Return the row of an image's class; of a scene 0, where it may be trained on.

        PASSED or UNKNOWN: it may not, as far as can be told before it is decoded.
        """

    def unknown(self, cell: StreamCell) -> str | int | None:
        """Return the class of an image that is UNKNOWN; None: it has none."""

    def said(self, cell: StreamCell, row: int) -> Any:
        """Return what is said of an image, before it is decoded; None: nothing of the role.

        Raises:
            BadImageError: its annotations cannot be used.
        """

    def make(self, cell: StreamCell, said: Any, image: Image.Image) -> Any:
        """Return a decoded image as a training image; None: it has nothing of the role.

        Raises:
            BadImageError: the processor cannot handle it, or its annotations cannot be used.
        """

    def together(self, made: Sequence[Any]) -> ImageSet:
        """Return training images as one set, in their order."""


@dataclass(frozen=True)
class WholeMaker:
    """Makes images of one class each."""

    find: Callable[[str], int]
    """Class name of the source -> row of the extended head, PASSED or UNKNOWN."""
    fitter: Fitter
    example: NDArray[Any]
    """A fitted image: shape and type of all."""

    def row_of(self, cell: StreamCell) -> int:
        """Return the row of its class."""
        label = self.unknown(cell)
        return UNKNOWN if label is None else self.find(str(label))

    def unknown(self, cell: StreamCell) -> str | int | None:
        """Return its class."""
        assert isinstance(cell, Cell)
        return cell.label

    def said(self, cell: StreamCell, row: int) -> int:
        """Return the row of its class."""
        return row

    def make(
        self, cell: StreamCell, said: int, image: Image.Image
    ) -> tuple[NDArray[Any], int] | None:
        """Return the fitted image with the row of its class."""
        fitted = fit(image, self.fitter, lambda: cell.name)
        if fitted.shape != self.example.shape:
            raise BadImageError(
                cell.name,
                f"the processor gives it the shape {fitted.shape}, the first image "
                f"{self.example.shape}",
            )
        return fitted, said

    def together(self, made: Sequence[tuple[NDArray[Any], int]]) -> ImageSet:
        """Return them as one set."""
        images, rows = zip(*made, strict=True)
        return ImageSet(np.stack(images), class_array(rows))
