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
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from kswap.data.text import count, listed, one_line
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
MAX_PIXELS = 89_478_485
"""`Image.MAX_IMAGE_PIXELS`, beyond which Pillow warns of a decompression bomb: a file of some
kilobytes may hold so many, and decoding them takes up to 0.8 GB for a moment."""
_BOMB_PIXELS, _BOMB_PIXELS_PER_BYTE = 1 << 25, 100
"""Beyond both a file is no picture that anybody took: decoding it would take seconds."""
_STRIP_PIXELS = 1 << 20
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


def or_skip(error: BadImageError) -> UserError:
    """Return what to say where bad images are not skipped."""
    return UserError(f"{error}, or set data.on_bad_image: skip")


def skipped(bad: Sequence[BadImageError], what: str = "bad image") -> str:
    """Return how many were skipped, and the first of them with their reasons."""
    names = listed((f"{error.name} ({error.reason})" for error in bad), 20, width=400)
    return f"{count(len(bad), what)} skipped: {names}"


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
        reason = "it is an address, and these are not fetched: download it, and name the file"
        is_address = not {"http:", "https:"}.isdisjoint(Path(str(source)).parts)
        raise BadImageError(name, reason if is_address else "there is no such file") from None
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
    num_bytes = None
    if isinstance(source, Image.Image):
        image = source
    elif isinstance(source, bytes | bytearray | memoryview):
        num_bytes = len(source)
        if not num_bytes:
            raise ValueError("it is empty")
        image = Image.open(io.BytesIO(source), formats=known_formats())
    else:
        path = Path(source)
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ValueError("it is a pipe or a device, not a file")  # reading might never end
        data = path.read_bytes()
        num_bytes = len(data)
        if not data:
            raise ValueError("it is empty")
        image = Image.open(io.BytesIO(data), formats=known_formats())
    width, height = image.size
    if not width or not height:
        raise ValueError("it has no pixels")
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels are more than {MAX_PIXELS}")
    packed = num_bytes is not None and width * height > _BOMB_PIXELS_PER_BYTE * num_bytes
    if packed and width * height > _BOMB_PIXELS:
        raise ValueError(f"{width}x{height} pixels in {num_bytes} bytes, a decompression bomb")
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
        # the same colours as straight to RGB, without Pillow's warning
        image = image.convert("RGBA")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    grey = Image.new("L", image.size)
    rows = max(1, _STRIP_PIXELS // image.width)  # all at once would take gigabytes
    for top in range(0, image.height, rows):
        part = image.crop((0, top, image.width, min(top + rows, image.height)))
        values = np.asarray(part).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit grey values outside 0..65535, save it with 8 or 16 bits")
        grey.paste(Image.fromarray((values >> 8).astype(np.uint8)), (0, top))
    return grey
