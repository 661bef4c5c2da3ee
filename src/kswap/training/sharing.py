"""How a stream is shared between roles whose images are not kept and the others."""

from __future__ import annotations

import math
from collections.abc import Mapping

from kswap.errors import UserError
from kswap.settings import Role


def shares(
    where: str, batch_size: int, lengths: Mapping[Role, int | None], num_kept: int
) -> dict[Role, int]:
    """Return how many images of a batch each role gives whose images are not kept.

    They are in proportion to the images in a pass, and at least one.

    Args:
        where: the stream, for messages.
        batch_size: of the stream.
        lengths: images in a pass of each of these roles.
        num_kept: images of its other roles, which are drawn together.

    Raises:
        UserError: there is something to share, and a length is not known, or no room for all.
    """
    if len(lengths) == 1 and not num_kept:
        return dict.fromkeys(lengths, batch_size)
    known: dict[Role, int] = {}
    for role, length in lengths.items():
        if length is None:
            raise UserError(
                f"{where}: draws {role}, which streams, together with other roles, in proportion "
                f"to their numbers; give {role}.images_per_pass"
            )
        known[role] = length
    if batch_size < len(known) + bool(num_kept):
        raise UserError(f"{where}.batch_size: {batch_size} is too little for a role each; raise it")
    total = sum(known.values()) + num_kept
    sizes = {role: max(1, round(batch_size * length / total)) for role, length in known.items()}
    while sizes and sum(sizes.values()) > batch_size - bool(num_kept):
        largest = max(sizes, key=lambda role: sizes[role])
        sizes[largest] -= 1
    while sizes and not num_kept and sum(sizes.values()) < batch_size:
        largest = max(sizes, key=lambda role: known[role] / sizes[role])
        sizes[largest] += 1
    return sizes


def steps_in_a_pass(
    num_kept: int, size: int, sizes: Mapping[Role, int], lengths: Mapping[Role, int | None]
) -> int | None:
    """Return steps in a pass over a stream; None: not known."""
    total, batch_size = num_kept, size
    for role, length in lengths.items():
        if length is None:
            return None
        total, batch_size = total + length, batch_size + sizes[role]
    return math.ceil(total / batch_size)
