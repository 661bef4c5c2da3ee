"""Who is in train, validation and test: pure functions of content hashes, classes and a seed.

The place of a picture depends on the seed and its pixels only: within a class, pictures are sorted
by a keyed hash of their content; the first go to the test, the next to validation, the rest to
train, thinned from the end. So the order and the names of the files do not matter, and two roles
that read the same data agree. A picture that is in the test anywhere is in validation and train
nowhere; one in validation is in train nowhere.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeVar

from kswap.settings import DataConfig, Role, SourceConfig, Split

KEY_BITS = 64


@dataclass(frozen=True, slots=True)
class Picture:
    """What a split needs to know of an image."""

    role: Role
    split: Split
    """The split the source gives it; train where the source has none."""
    class_id: int
    digest: bytes
    """Hash of the decoded pixels."""


@dataclass(frozen=True)
class Cut:
    """What is cut from the train images of a role, and how many of the rest are used."""

    test_fraction: float
    """0: the source has a test split of its own."""
    validation_fraction: float
    """0: the source has a validation split of its own, or none is wanted."""
    train_fraction: float
    """Share of the remaining train images that is used."""

    @classmethod
    def of(cls, own: Collection[Split], data: DataConfig, settings: SourceConfig) -> Self:
        """Return what the config says of a source that has the splits `own` already.

        A stream is thinned out as it is read.
        """
        return cls(
            test_fraction=0.0 if "test" in own else data.test_fraction,
            validation_fraction=0.0 if "validation" in own else data.validation_fraction,
            train_fraction=1.0 if settings.streaming else settings.fraction,
        )

    @property
    def share(self) -> float:
        """Share of the source's train images that is kept in the end."""
        rest = max(0.0, 1 - self.test_fraction - self.validation_fraction)
        return min(1.0, self.test_fraction + self.validation_fraction + self.train_fraction * rest)


@dataclass
class Arrangement:
    """Where every picture went, and what was left out on the way."""

    splits: list[Split | None]
    """Split of each picture, in the order given; None: not used."""
    copies: int = 0
    """Exact copies within a split and class."""
    leaks: int = 0
    """Pictures removed from train or validation because the test or validation has them."""
    two_classes: int = 0
    """Pictures that one split has under more than one class."""
    thinned: dict[Role, int] = field(default_factory=dict)
    """Train images left out by `fraction`."""
    lonely: list[tuple[Role, int]] = field(default_factory=list)
    """Classes with one image, where a test image had to be cut."""


def order_key(seed: int, digest: bytes) -> int:
    """Return the place of a picture among all under `seed`, in [0, 2 ** KEY_BITS)."""
    keyed = hashlib.blake2b(digest, digest_size=KEY_BITS // 8, key=str(seed).encode())
    return int.from_bytes(keyed.digest(), "big")


def cut_counts(number: int, cut: Cut) -> tuple[int, int]:
    """Return how many of a class's `number` images go to test and validation.

    Three or more give at least one to each that is cut and one to train; two give one test and one
    train image (or two train images where no test is cut); one gives a train image.
    """
    if number < 2:
        return 0, 0
    num_test = max(1, round(number * cut.test_fraction)) if cut.test_fraction else 0
    num_validation = 0
    if cut.validation_fraction and number >= 3:
        num_validation = max(1, round(number * cut.validation_fraction))
    num_test = min(num_test, number - 1 - min(num_validation, 1))
    return num_test, min(num_validation, number - 1 - num_test)


class Placed(Protocol):
    """What the rules against leaks need to know of a picture."""

    @property
    def digest(self) -> bytes:
        """Hash of the decoded pixels."""


def arrange(pictures: Sequence[Picture], cuts: Mapping[Role, Cut], *, seed: int) -> Arrangement:
    """Give every picture its split, or none."""
    result = Arrangement(splits=[picture.split for picture in pictures])
    _drop_copies(pictures, result)
    drop_leaks(pictures, result)  # before cutting, so that the counts are those of what is left
    by_class = _train_by_class(pictures, result, seed)
    for (role, class_id), indices in by_class.items():
        cut = cuts[role]
        num_test, num_validation = cut_counts(len(indices), cut)
        if cut.test_fraction and len(indices) == 1:
            result.lonely.append((role, class_id))
        for place, index in enumerate(indices[: num_test + num_validation]):
            result.splits[index] = "test" if place < num_test else "validation"
    drop_leaks(pictures, result)  # a test image of one class may be a train image of another
    _thin(pictures, result, cuts, seed)
    result.two_classes = _count_two_classes(pictures, result)
    return result


P = TypeVar("P", bound=Placed)


def used(pictures: Sequence[P], result: Arrangement) -> Iterable[tuple[int, P, Split]]:
    """Yield the pictures that have a split."""
    for index, picture in enumerate(pictures):
        split = result.splits[index]
        if split is not None:
            yield index, picture, split


def _drop_copies(pictures: Sequence[Picture], result: Arrangement) -> None:
    seen: set[Picture] = set()
    for index, picture in enumerate(pictures):
        if picture in seen:
            result.splits[index] = None
            result.copies += 1
        seen.add(picture)


def drop_leaks(pictures: Sequence[Placed], result: Arrangement) -> None:
    """Take out of train and validation what the test has, and out of train what validation has."""
    held: dict[Split, set[bytes]] = defaultdict(set)
    for _, picture, split in used(pictures, result):
        held[split].add(picture.digest)
    for index, picture, split in list(used(pictures, result)):
        leaks_test = split != "test" and picture.digest in held["test"]
        leaks_validation = split == "train" and picture.digest in held["validation"]
        if leaks_test or leaks_validation:
            result.splits[index] = None
            result.leaks += 1


def _train_by_class(
    pictures: Sequence[Picture], result: Arrangement, seed: int
) -> dict[tuple[Role, int], list[int]]:
    by_class: dict[tuple[Role, int], list[int]] = defaultdict(list)
    for index, picture, split in used(pictures, result):
        if split == "train":
            by_class[picture.role, picture.class_id].append(index)
    for indices in by_class.values():
        indices.sort(key=lambda i: (order_key(seed, pictures[i].digest), pictures[i].digest))
    return by_class


def _thin(
    pictures: Sequence[Picture], result: Arrangement, cuts: Mapping[Role, Cut], seed: int
) -> None:
    for (role, _), indices in _train_by_class(pictures, result, seed).items():
        num_kept = max(1, round(len(indices) * cuts[role].train_fraction))
        for index in indices[num_kept:]:
            result.splits[index] = None
            result.thinned[role] = result.thinned.get(role, 0) + 1


def _count_two_classes(pictures: Sequence[Picture], result: Arrangement) -> int:
    classes: dict[tuple[Split, bytes], set[int]] = defaultdict(set)
    for _, picture, split in used(pictures, result):
        classes[split, picture.digest].add(picture.class_id)
    return sum(len(found) > 1 for found in classes.values())
