"""read_image: every mode becomes upright 8-bit RGB as the pipeline sees it; the rest is a named
error."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from data.pictures import encoded, noise
from PIL import Image
from transformers.image_utils import load_image

from kswap.data import BadImageError, images, read_image

RGB = noise("modes")
GREY = RGB.convert("L")


def palette(transparency: int | bytes | None = None) -> Image.Image:
    image = RGB.quantize(16)
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(Image.fromarray(np.linspace(0, 255, 120).astype(np.uint8).reshape(10, 12)))
    return image


@pytest.mark.parametrize(
    ("image", "suffix"),
    [
        pytest.param(RGB, "PNG", id="rgb"),
        pytest.param(GREY, "PNG", id="grey"),
        pytest.param(GREY.convert("1"), "PNG", id="one-bit"),
        pytest.param(with_alpha(GREY), "PNG", id="grey-alpha"),
        pytest.param(with_alpha(RGB), "PNG", id="rgba"),
        pytest.param(palette(), "PNG", id="palette"),
        pytest.param(palette(3), "PNG", id="palette-one-transparent"),
        pytest.param(palette(), "GIF", id="gif"),
        pytest.param(RGB.convert("CMYK"), "JPEG", id="cmyk"),
        pytest.param(RGB.convert("YCbCr"), "JPEG", id="ycbcr"),
        pytest.param(RGB, "WEBP", id="webp"),
        pytest.param(RGB.convert("LAB"), "TIFF", id="lab"),
    ],
)
def test_modes_are_what_the_pipeline_sees(image: Image.Image, suffix: str) -> None:
    file = encoded(image, suffix)
    read = read_image(file)
    assert read.mode == "RGB"
    assert np.array_equal(read, load_image(Image.open(io.BytesIO(file))))


def test_palette_with_transparency_bytes_keeps_colours_without_a_warning() -> None:
    plain, transparent = palette(), palette(bytes(range(0, 256, 16)))
    read = read_image(encoded(transparent))
    assert np.array_equal(read, plain.convert("RGB"))


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_sixteen_bits_are_scaled_not_clipped(mode: str) -> None:
    ramp = np.linspace(0, 65535, 120).astype(np.uint16).reshape(10, 12)
    grey = Image.fromarray(ramp if mode == "I;16" else ramp.astype(np.int32))
    assert grey.mode == mode
    read = np.asarray(read_image(encoded(grey, "TIFF")))
    assert np.array_equal(read[..., 0], ramp >> 8)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated a quarter clockwise
    tall = noise("upright", 6, 14)
    tall.rotate(90, expand=True).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "x.png"), tall)
    assert np.array_equal(
        read_image(Image.open(io.BytesIO((tmp_path / "x.png").read_bytes()))), tall
    )


@pytest.mark.parametrize("suffix", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(suffix: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "blue", "lime")]
    path = tmp_path / f"x.{suffix}"
    frames[0].save(path, suffix, save_all=True, append_images=frames[1:], lossless=True)
    red = np.asarray(read_image(path))
    assert (red[..., 0] > 240).all()
    assert (red[..., 1:] < 15).all()


def test_pil_image_bytes_and_path_are_the_same(tmp_path: Path) -> None:
    RGB.save(tmp_path / "ä b.png")
    sources = (RGB, encoded(RGB), tmp_path / "ä b.png", str(tmp_path / "ä b.png"))
    assert all(np.array_equal(read_image(source), RGB) for source in sources)


BOMB = b"P5 20000 20000 255\n" + b"0"
BAD = {
    "truncated": (encoded(noise("t", 60, 60))[:2000], "truncated|broken"),
    "truncated-jpeg": (encoded(noise("t", 60, 60), "JPEG")[:1500], "truncated|broken"),
    "text": (b"<html>not found</html>", "no image format"),
    "empty": (b"", "empty"),
    "zeros": (bytes(500), "no image format"),
    "bomb": (BOMB, "400000000|decompression bomb"),
    "long": (encoded(Image.new("L", (1, 300))), "one side is more than 100 times"),
    "float": (encoded(Image.new("F", (4, 4)), "TIFF"), "floating-point"),
    "32-bit": (encoded(Image.new("I", (4, 4), 1 << 20), "TIFF"), "outside 0..65535"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "no image format"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_images_are_named_in_one_line(kind: str, tmp_path: Path) -> None:
    content, reason = BAD[kind]
    path = tmp_path / "bad one.png"
    path.write_bytes(content)
    with pytest.raises(BadImageError, match=rf"bad one\.png: .*({reason}).*replace") as error:
        read_image(path)
    assert "\n" not in str(error.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match=r"no such file"):
        read_image(tmp_path / "none.png")
    for address in ("http://some.where/a.png", tmp_path / "https://some.where/a.png"):
        with pytest.raises(BadImageError, match=r"it is an address, and these are not fetched"):
            read_image(address)
    (tmp_path / "x.jpg").mkdir()
    with pytest.raises(BadImageError, match=r"a folder"):
        read_image(tmp_path / "x.jpg")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(BadImageError, match=r"no permission"):
        read_image(tmp_path / "x.jpg")


def test_large_pictures_below_the_limit_are_read_without_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(encoded(noise("large"))).size == (12, 10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    with pytest.raises(BadImageError, match=r"12x10 pixels are more than 100"):
        read_image(encoded(noise("large")))
