"""Tasks: what a model's answers are made of, and how they are scored. One file each, one protocol.

A task turns a batch into units (an image, a pixel, a query), each with a class; the role of that
class at a stage decides which terms of the loss the unit is in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kswap.arrays import Confusion, Marks, Unit
from kswap.data import ImageSet
from kswap.data.samples import Samples, take
from kswap.gathering import batches
from kswap.models.features import Places
from kswap.objectives import Units
from kswap.objectives.units import Bank
from kswap.settings import Role, TermConfig

if TYPE_CHECKING:
    from kswap.tasks.inside import Slots


class Pixels(Protocol):
    """From images as they are kept to what the model takes."""

    def __call__(self, images: Any, *, sizes: NDArray[np.int32] | None = None) -> Tensor:
        """Return (images, 3, height, width) on the model's device.

        Beyond `sizes` (images, 2), where given, it is what the image processor pads with.
        """


Teacher = dict[str, Tensor]
"""Outputs of the base model by name; the first axis is that of the images."""


@dataclass(frozen=True)
class Scores:
    """The task's number over a set of images, from 0 to 1."""

    total: float
    """Over the whole set."""
    per_class: dict[int, float]
    """Of each class that occurs in it, by class id."""
    more: dict[str, float] = field(default_factory=dict)
    """Other numbers of the field over the same answers, by name (ap50 ...)."""
    confusion: Confusion = field(default_factory=dict)
    """Of each class of the role: what its images, pixels or objects were answered as."""
    kept: tuple[Marks, ...] = ()
    """The answers on the images that were to be kept."""


@dataclass(frozen=True)
class Examples:
    """Samples as tensors on the device of the model; rows of all fields belong together."""

    pixels: Tensor
    """(images, 3, height, width)."""
    class_ids: Tensor
    """(images,)."""
    roles: Tensor
    """(images,), index into ROLES: the role whose source the image comes from."""
    complete: Tensor
    """(images,): whether what is not annotated is known not to be there."""
    masks: Tensor | None = None
    """(images, height, width), rows of the head, OPEN or IGNORE."""
    boxes: tuple[Tensor, ...] | None = None
    """(objects, 4) of each image: left, top, right, bottom as fractions of the image."""
    box_ids: tuple[Tensor, ...] | None = None
    """(objects,) of each image, rows of the head."""
    crowd: tuple[Tensor, ...] | None = None
    """(objects,) of each image: neither trained nor scored."""
    sizes: Tensor | None = None
    """(images, 2), height and width of the images within `pixels`; None: they are whole."""
    noise: Tensor | None = None
    """(images, 2), uniform in [0, 1), for objectives that draw; None: nothing trains."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.class_ids)

    def inputs(self) -> dict[str, Tensor]:
        """Return the arguments of a forward: pixels, and where they end."""
        if self.sizes is None:
            return {"pixel_values": self.pixels}
        height, width = self.pixels.shape[-2:]
        rows = torch.arange(height, device=self.pixels.device)[None, :, None]
        columns = torch.arange(width, device=self.pixels.device)[None, None]
        inside = (rows < self.sizes[:, :1, None]) & (columns < self.sizes[:, 1:, None])
        return {"pixel_values": self.pixels, "pixel_mask": inside.long()}


@dataclass(frozen=True)
class View:
    """What the classes are at a stage."""

    role_of_row: Tensor
    """(rows,), index into ROLES; -1: the stage does not know the class (yet)."""
    num_base: int
    """Rows of the base model."""
    forgotten: Tensor
    """(base rows,), true for classes that are to be forgotten at this stage, or were before."""
    places: Places = field(default_factory=Places)
    """Where the features of units are recorded, for terms that ask for them."""
    bank: Bank | None = None
    """What the base model makes of classes, for terms that ask for it."""
    num_slots: int = 0
    """Of scenes: the largest number of units that an image has for objectives on features."""
    draws: bool = False
    """Whether a term draws by the noise of its units."""
    as_if_absent: bool = False
    """Whether the places of forgotten objects are labelled as the base sees them without those
    classes: where every term of forgotten units compares them with the base's answers."""

    @property
    def num_rows(self) -> int:
        """Rows that take part: rows that are not learned yet do not."""
        return len(self.role_of_row)


class Task(Protocol):
    """What the core asks of a task."""

    name: str
    """As `transformers.pipeline` names it, without `image-`: classification."""
    score_name: str
    """The task's number: top1, miou, map."""
    counts: Unit
    """What its confusion counts."""
    teacher_sees_views: bool
    """Whether the base model's outputs depend on how an image was augmented (where things are), so
    that they are computed on the augmented image."""

    units_are_images: bool
    """Whether an image is one unit, whose features are those of the whole image."""
    new_rows_lead: bool
    """Whether a new row of the head leads the old ones at the mean of its class from the start; not
    where most units are nothing, which would then be answered with it."""

    def units(
        self, model: nn.Module, examples: Examples, teacher: Teacher | None, view: View
    ) -> list[Units]:
        """Do one forward, with gradient, and return the units of a batch.

        Scenes have units of their own for objectives on features, where the view has places.
        """

    def slots(self, examples: Examples, answers: Teacher, most: int) -> Slots | None:
        """Return the units of a batch of scenes that objectives on features look at, or None.

        None: an image is one unit.

        Args:
            examples: the batch, with its annotations.
            answers: what a model says of it, as `teach` returns it.
            most: units of an image.
        """

    def divisors(
        self, samples: Samples, roles: Tensor, terms: Mapping[str, TermConfig], view: View
    ) -> dict[str, float]:
        """Return what each term's sum over a whole batch is divided by; 0: it has no units."""

    def share(self, part: Samples, whole: Samples) -> float:
        """Return the factor by which the units of a micro-batch count in the whole batch."""

    def teach(
        self, model: nn.Module, examples: Examples, *, num_base: int | None = None
    ) -> Teacher:
        """Return what the base model answers, without gradient.

        `num_base` says how many rows are the base's where the head has been extended since.
        """

    def features(
        self, model: nn.Module, examples: Examples, heads: Sequence[str]
    ) -> tuple[Teacher, dict[str, tuple[Tensor, Tensor]]]:
        """Return `teach`'s answers and, by head, the features of units with their class ids.

        Features are (units, size); class ids are (units,), -1 where a unit has no class.
        """

    def score(
        self,
        model: nn.Module,
        images: ImageSet,
        *,
        pixels: Pixels,
        class_ids: Sequence[int],
        num_rows: int,
        batch_size: int,
        keep: Sequence[int] = (),
    ) -> Scores:
        """Score the answers among the first `num_rows` classes; `images` is not empty.

        Args:
            model: bare or wrapped.
            images: of one role and split.
            pixels: from images to tensors.
            class_ids: the classes of the role.
            num_rows: rows that may be answered.
            batch_size: images in a forward.
            keep: images whose answers are returned as well, in ascending order.
        """


def make_examples(samples: Samples, pixels: Pixels, roles: Tensor | None = None) -> Examples:
    """Put samples on the device that `pixels` puts images on."""
    images = pixels(samples.images, sizes=samples.sizes)
    device = images.device
    class_ids = torch.from_numpy(samples.class_ids)
    roles = torch.zeros_like(class_ids) if roles is None else roles
    examples = Examples(
        images,
        class_ids.to(device),
        roles.to(device),
        torch.from_numpy(samples.complete).to(device),
    )
    if samples.masks is not None:
        masks = torch.from_numpy(np.ascontiguousarray(samples.masks)).to(device).long()
        examples = replace(examples, masks=masks)
    if samples.boxes is not None:
        examples = replace(
            examples,
            boxes=tuple(torch.from_numpy(b.boxes).to(device) for b in samples.boxes),
            box_ids=tuple(torch.from_numpy(b.class_ids).to(device) for b in samples.boxes),
            crowd=tuple(torch.from_numpy(b.crowd).to(device) for b in samples.boxes),
        )
    if samples.sizes is not None:
        examples = replace(examples, sizes=torch.from_numpy(samples.sizes).to(device).long())
    return examples


def example_batches(images: ImageSet, pixels: Pixels, batch_size: int) -> Iterable[Examples]:
    """Yield a set in batches, in order."""
    for rows in batches(len(images), batch_size):
        yield make_examples(take(images, rows), pixels)


def find(name: str) -> Task:
    """Return the task of this name: a new one is one file and one line."""
    from kswap.tasks.classification import Classification
    from kswap.tasks.detection import Detection
    from kswap.tasks.segmentation import Segmentation

    tasks: dict[str, Task] = {t.name: t for t in (Classification(), Segmentation(), Detection())}
    return tasks[name]


def roles_of_rows(
    class_ids: Mapping[Role, Sequence[int]], active: Mapping[Role, int], num_rows: int
) -> Tensor:
    """Return (num_rows,) index into ROLES of each row; -1 where it has no role, or none active."""
    rows = {row: active.get(role, -1) for role, ids in class_ids.items() for row in ids}
    return torch.tensor([rows.get(row, -1) for row in range(num_rows)])
