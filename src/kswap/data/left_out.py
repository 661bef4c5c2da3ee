"""What was left out and what is missing, as notes: alike for images of one class and scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kswap.data.roles import Roles
from kswap.data.splits import Arrangement, Cut
from kswap.data.text import count, listed
from kswap.settings import Role


def notes_on_gaps(
    role: Role, roles: Roles, *, no_train: Sequence[int], no_test: Sequence[int]
) -> list[str]:
    """Return a note on the classes (rows of the head) without train, and without test images."""
    gaps = {"train images": no_train, "test images, so without a score": no_test}
    return [
        f"{role}: {count(len(missing), 'class')} without {what}: "
        f"{listed(roles.id2label[row] for row in missing)}"
        for what, missing in gaps.items()
        if missing
    ]


def notes_on_splits(
    arrangement: Arrangement, cuts: Mapping[Role, Cut], *, copies_within: str
) -> list[str]:
    """Return notes on what was left out when splits were cut, or lies there twice.

    Args:
        arrangement: of all roles.
        cuts: by role.
        copies_within: what equal pictures are copies within: a class and split, or a split.
    """
    notes = []
    if arrangement.copies:
        notes.append(
            f"{count(arrangement.copies, 'exact copy')} of images within {copies_within} left out"
        )
    if arrangement.leaks:
        notes.append(
            f"{count(arrangement.leaks, 'image')} left out of train or validation, "
            "because a test or validation split has the same picture"
        )
    if arrangement.two_classes:
        notes.append(
            f"{count(arrangement.two_classes, 'picture')} in one split under more than one class, "
            "kept under each"
        )
    for role, number in arrangement.thinned.items():
        share = cuts[role].train_fraction
        notes.append(f"{role}: {count(number, 'train image')} left out by fraction {share:g}")
    return notes
