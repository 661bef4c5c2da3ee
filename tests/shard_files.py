"""Tar shards as WebDataset has them, written for the tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path


def write_tar(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> Path:
    """Write samples: a key, and content by extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, members in samples:
            for extension, content in members.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def write_shards(folder: Path, images: Iterable[tuple[bytes, str]], *, number: int) -> str:
    """Deal images with their classes out to shards; return the pattern that names them."""
    every = list(images)
    for shard in range(number):
        write_tar(
            folder / f"shard-{shard:02d}.tar",
            [
                (f"{row:06d}", {"png": image, "cls": label.encode()})
                for row, (image, label) in enumerate(every[shard::number])
            ],
        )
    return str(folder / f"shard-{{00..{number - 1:02d}}}.tar")
