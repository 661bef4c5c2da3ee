"""Writes picked images of CIFAR-10 as parquet, as Hugging Face `datasets` writes an Image column.

Columns: `image`, a struct of `bytes` (an encoded picture file) and `path` (its name, made of split
and position in the canonical order), and `label`, the class name. The schema carries the features,
so `datasets.load_dataset("parquet", ...)` decodes the pictures; a plain reader sees the bytes.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from cifar10 import CLASS_NAMES, class_ids, first_of_each, read_cifar10
from PIL import Image

FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})


def encode(image: np.ndarray, picture_format: str) -> bytes:
    """Return the picture file of one uint8 image (H, W, 3), lossless: `png` or `webp`."""
    options = {"png": {"optimize": True}, "webp": {"lossless": True, "quality": 100, "method": 6}}
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, picture_format, **options[picture_format])
    content = buffer.getvalue()
    if not np.array_equal(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")), image):
        msg = f"Pillow's {picture_format} changed a pixel; install a Pillow that writes it lossless"
        raise ValueError(msg)
    return content


def write_pictures(
    cifar10_dir: Path,
    split: str,
    path: Path,
    *,
    names: Sequence[str],
    counts: Sequence[int],
    picture_format: str,
) -> int:
    """Write the first `counts[i]` images of each class `names[i]`; return how many in all."""
    images, labels = read_cifar10(cifar10_dir, split)
    picked = first_of_each(labels, class_ids(names), counts).tolist()
    rows = [
        {
            "image": {
                "bytes": encode(images[i], picture_format),
                "path": f"cifar10-{split}-{i:05d}.{picture_format}",
            },
            "label": CLASS_NAMES[labels[i]],
        }
        for i in picked
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    pq.write_table(pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema), part)
    part.replace(path)
    return len(rows)
