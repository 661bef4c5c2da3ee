"""One picture file, bytes or PIL image to 8-bit RGB, or an error that names it.

The result is what `transformers.pipeline("image-classification")` sees (`image_utils.load_image`:
EXIF orientation applied, then `convert("RGB")`), so that scores agree with it: transparency is
dropped, not blended; of an animation the first frame counts. One exception: grey images of 16 bits
are scaled to 8 (the high byte, as Pillow does for 16-bit RGB), where `convert` would clip nearly
every pixel to white. Formats that call other programs (EPS) or hold documents (PDF) are not opened.
"""

from __future__ import annotations

import functools
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from kswap.data.text import one_line
from kswap.errors import UserError

SUFFIXES = frozenset({
    ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
})  # fmt: skip
FORMATS = (
    "AVIF",
    "BMP",
    "DIB",
    "GIF",
    "ICO",
    "JPEG",
    "JPEG2000",
    "PNG",
    "PPM",
    "TGA",
    "TIFF",
    "WEBP",
)
MAX_PIXELS = 178_956_970
"""Pillow's own limit of a decompression bomb error (twice `Image.MAX_IMAGE_PIXELS`)."""
MAX_ASPECT = 100
"""Beyond this ratio of the sides, resizing the short side to a model's size would need
gigabytes."""


class BadImageError(UserError):
    """A picture that cannot be used; `name` and `reason` are kept apart for lists."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = one_line(name)
        self.reason = one_line(reason)
        super().__init__(
            f"{self.name}: is not an image that can be decoded ({self.reason}); replace or remove "
            "it"
        )


def read_image(source: str | Path | bytes | Image.Image, *, name: str | None = None) -> Image.Image:
    """Return `source` (path, encoded bytes or PIL image) as an upright 8-bit RGB image.

    Raises:
        BadImageError: it cannot be decoded; the message names it (`name`, or the path).
    """
    with warnings.catch_warnings():
        silence_pillow()
        return decode(source, name=name)


def silence_pillow() -> None:
    """Ignore Pillow's warnings, inside a `catch_warnings` block; sizes are checked here."""
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(source: str | Path | bytes | Image.Image, *, name: str | None = None) -> Image.Image:
    """Return what `read_image` returns, without touching the warning filters (for threads)."""
    name = name or (str(source) if isinstance(source, str | Path) else type(source).__name__)
    try:
        return _to_rgb(_open(source))
    except FileNotFoundError:
        raise BadImageError(name, "there is no such file") from None
    except PermissionError:
        raise BadImageError(name, "no permission to read it") from None
    except IsADirectoryError:
        raise BadImageError(name, "it is a folder") from None
    except UnidentifiedImageError:
        raise BadImageError(name, "no image format that is known") from None
    except Exception as error:  # decoders of damaged files raise nearly anything
        reason = str(error) or type(error).__name__
        raise BadImageError(name, reason) from None


def exif_orientation(source: str | Path | bytes | Image.Image) -> int:
    """Return how an image that can be decoded is turned: 1 to 8, as EXIF has it; 1 is upright."""
    value = _open(source).getexif().get(ExifTags.Base.Orientation, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _open(source: str | Path | bytes | Image.Image) -> Image.Image:
    if isinstance(source, Image.Image):
        image = source
    elif isinstance(source, bytes | bytearray | memoryview):
        if not len(source):
            raise ValueError("it is empty")
        image = Image.open(io.BytesIO(source), formats=known_formats())
    else:
        path = Path(source)
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ValueError("it is a pipe or a device, not a file")  # reading might never end
        data = path.read_bytes()
        if not data:
            raise ValueError("it is empty")
        image = Image.open(io.BytesIO(data), formats=known_formats())
    width, height = image.size
    if not width or not height:
        raise ValueError("it has no pixels")
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels are more than {MAX_PIXELS}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{width}x{height}: one side is more than {MAX_ASPECT} times the other")
    return image


@functools.cache
def known_formats() -> tuple[str, ...]:
    """Return those of FORMATS that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        return _from_16_bit(image).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range, save it with 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert(
            "RGBA"
        )  # the same colours as straight to RGB, without Pillow's warning
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError("32-bit grey values outside 0..65535, save it with 8 or 16 bits")
    return Image.fromarray((grey >> 8).astype(np.uint8))
