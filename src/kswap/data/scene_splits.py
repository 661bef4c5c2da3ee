"""Splits of images that hold several classes: pure functions of content, classes and a seed.

As in `splits.py`, the place of a picture depends on the seed and its pixels. Classes are served the
rarest first (iterative stratification, Sechidis et al. 2011), over all roles at once, so that an
image that serves two roles lies in the same split for both. Then every class is looked at again:
one without train images gets one, and one without test images too, where other classes keep theirs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kswap.data.splits import Arrangement, Cut, cut_counts, drop_leaks, order_key, used
from kswap.settings import Role, Split

Class = tuple[Role, int]


@dataclass(frozen=True)
class ScenePicture:
    """What a split needs to know of an image with several classes."""

    role: Role
    split: Split
    """The split the source gives it; train where the source has none."""
    class_ids: tuple[int, ...]
    """Rows of the role's classes in it, at least one."""
    digest: bytes
    """Hash of the decoded pixels."""


def rarest_classes(pictures: Sequence[ScenePicture]) -> list[int]:
    """Return for each picture the class of its role that the fewest pictures have."""
    counts = Counter((p.role, class_id) for p in pictures for class_id in p.class_ids)
    return [min(p.class_ids, key=lambda c: (counts[p.role, c], c)) for p in pictures]


def arrange_scenes(
    pictures: Sequence[ScenePicture], cuts: Mapping[Role, Cut], *, seed: int
) -> Arrangement:
    """Give every picture its split, or none."""
    result = Arrangement(splits=[picture.split for picture in pictures])
    _drop_copies(pictures, result)
    drop_leaks(pictures, result)
    places: dict[bytes, list[int]] = defaultdict(list)
    for index, picture, split in used(pictures, result):
        cut = cuts[picture.role]
        if split == "train" and (cut.test_fraction or cut.validation_fraction):
            places[picture.digest].append(index)
    board = _Board(pictures, cuts, places, result, seed)
    board.cut()
    board.repair()
    drop_leaks(pictures, result)  # of sources that have splits of their own
    _thin(pictures, cuts, result, seed)
    return result


def _drop_copies(pictures: Sequence[ScenePicture], result: Arrangement) -> None:
    seen = set()
    for index, picture in enumerate(pictures):
        key = (picture.role, picture.split, picture.digest)
        if key in seen:
            result.splits[index] = None
            result.copies += 1
        seen.add(key)


class _Board:
    """Pictures that are cut, by content."""

    def __init__(
        self,
        pictures: Sequence[ScenePicture],
        cuts: Mapping[Role, Cut],
        places: Mapping[bytes, list[int]],
        result: Arrangement,
        seed: int,
    ) -> None:
        self.pictures, self.cuts, self.places, self.result = pictures, cuts, places, result
        self.order = sorted(places, key=lambda digest: (order_key(seed, digest), digest))
        self.classes: dict[bytes, set[Class]] = {
            digest: {(pictures[i].role, c) for i in indices for c in pictures[i].class_ids}
            for digest, indices in places.items()
        }
        self.held: Counter[tuple[Class, Split]] = Counter()
        for classes in self.classes.values():
            self.held.update((one, "train") for one in classes)
        self.now: dict[bytes, Split] = dict.fromkeys(self.order, "train")
        self.counts = {one: number for (one, _), number in self.held.items()}
        self.rare_first = sorted(self.counts, key=lambda one: (self.counts[one], one))
        self.by_class: dict[Class, list[bytes]] = defaultdict(list)
        for digest in self.order:
            for one in self.classes[digest]:
                self.by_class[one].append(digest)

    def cut(self) -> None:
        """Class by class, the rarest first: send what is missing to test, then to validation."""
        settled: set[bytes] = set()
        for one in self.rare_first:
            num_test, num_validation = cut_counts(self.counts[one], self.cuts[one[0]])
            free = [digest for digest in self.by_class[one] if digest not in settled]
            need = max(0, num_test - self.held[one, "test"])
            need_validation = max(0, num_validation - self.held[one, "validation"])
            for place, digest in enumerate(free[: need + need_validation]):
                self._move(digest, "test" if place < need else "validation")
            settled.update(free)

    def repair(self) -> None:
        """Give classes without train or test images one each, where others do not lose theirs."""
        for one in self.rare_first:
            if not self.held[one, "train"]:
                members = self.by_class[one]
                spare = [digest for digest in members if self._can_leave(digest)] or members
                self._move(spare[-1], "train")
        for one in self.rare_first:
            if self.cuts[one[0]].test_fraction and not self.held[one, "test"]:
                spare = [digest for digest in self.by_class[one] if self._can_leave(digest)]
                if spare:
                    self._move(spare[0], "test")

    def _can_leave(self, digest: bytes) -> bool:
        split = self.now[digest]
        if split == "validation":
            return True
        return all(self.held[one, split] > 1 for one in self.classes[digest])

    def _move(self, digest: bytes, split: Split) -> None:
        for one in self.classes[digest]:
            self.held[one, self.now[digest]] -= 1
            self.held[one, split] += 1
        self.now[digest] = split
        for index in self.places[digest]:
            cut = self.cuts[self.pictures[index].role]
            share = {"test": cut.test_fraction, "validation": cut.validation_fraction}
            # a source with a test split of its own gives no test image; drop_leaks leaves it out
            self.result.splits[index] = split if share.get(split, 1.0) else "train"


def _thin(
    pictures: Sequence[ScenePicture], cuts: Mapping[Role, Cut], result: Arrangement, seed: int
) -> None:
    rarest = rarest_classes(pictures)
    strata: dict[Class, list[int]] = defaultdict(list)
    for index, picture, split in used(pictures, result):
        if split == "train" and cuts[picture.role].train_fraction < 1:
            strata[picture.role, rarest[index]].append(index)
    left: set[Class] = set()
    out: list[int] = []

    def place(index: int) -> tuple[int, bytes]:
        return order_key(seed, pictures[index].digest), pictures[index].digest

    for (role, _), indices in strata.items():
        indices.sort(key=place)
        num_kept = max(1, round(len(indices) * cuts[role].train_fraction))
        left |= {(role, c) for index in indices[:num_kept] for c in pictures[index].class_ids}
        out += indices[num_kept:]
    for index in sorted(out, key=place):
        role = pictures[index].role
        classes = {(role, class_id) for class_id in pictures[index].class_ids}
        if classes <= left:
            result.splits[index] = None
            result.thinned[role] = result.thinned.get(role, 0) + 1
        left |= classes
