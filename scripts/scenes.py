"""Composes scenes: 1 to 4 cut-outs of everyday things pasted on a photograph or a drawn texture.

What: an RGB picture with one visible mask per instance (alpha > 127, less what later cut-outs
hide). Scale, place, flip, slight rotation and colour are drawn from a generator, so a seed fixes a
scene. An instance with fewer than 60 visible pixels is left out of the picture. Why: real pixels
with exact masks and boxes where only package registries can be reached.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scene_art import TEST_BACKGROUNDS

SCENE_SIZE = 128
RETAIN_CLASSES = ("apple", "ball", "bird", "bus", "car", "cat", "fish", "tree")
FORGET_CLASSES = ("boat", "dog")
LEARN_CLASSES = ("airplane", "flower")
BASE_CLASSES = tuple(sorted(RETAIN_CLASSES + FORGET_CLASSES))
"""What the base model knows."""
REFERENCE_CLASSES = tuple(sorted(RETAIN_CLASSES + LEARN_CLASSES))
"""What the reference model knows: never the forgotten classes."""
ALL_CLASSES = (*BASE_CLASSES, *LEARN_CLASSES)
"""Class number = position + 1, in masks and in COCO's category ids; 0 is background."""

MIN_SIDE, MAX_SIDE = 28, 72
"""The longer side of a cut-out in pixels, before rotation."""
MIN_VISIBLE = 60
MAX_TURN = 20.0
"""Degrees."""
DRAWN_SHARE = 0.3
"""Share of scenes on a drawn texture instead of a photograph."""


@dataclass(frozen=True)
class Art:
    """What scenes are made of."""

    cutouts: dict[str, list[Image.Image]]
    """RGBA drawings of each class."""
    backgrounds: list[np.ndarray]
    """Photographs (rows, columns, 3) uint8."""


@dataclass(frozen=True)
class Scene:
    """One picture and what is in it."""

    image: np.ndarray
    """(size, size, 3) uint8."""
    names: list[str]
    """Class of each instance."""
    masks: np.ndarray
    """(instances, size, size) bool: the visible pixels of each, disjoint."""


def load_art(art_dir: Path, *, test: bool = False) -> Art:
    """Read the cut-outs and the photographs of the train or of the test scenes."""
    cutouts = {
        name: [
            Image.open(p).convert("RGBA") for p in sorted((art_dir / "cutouts" / name).iterdir())
        ]
        for name in ALL_CLASSES
    }
    paths = sorted((art_dir / "backgrounds").iterdir())
    paths = [p for p in paths if (p.stem in TEST_BACKGROUNDS) == test]
    return Art(cutouts, [np.asarray(Image.open(p).convert("RGB")) for p in paths])


def drawn_texture(rng: np.random.Generator) -> np.ndarray:
    """Return smooth noise between random colours: few coarse cells, sometimes fine ones on top."""
    cells = int(rng.integers(2, 12))
    colours = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    if rng.random() < 0.5:  # near one colour
        colours = (0.35 * colours + 0.65 * rng.integers(0, 256, 3)).astype(np.uint8)
    size = (SCENE_SIZE, SCENE_SIZE)
    image = np.asarray(Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC), np.float32)
    grain = rng.normal(0, rng.uniform(0, 14), (*size, 1)).astype(np.float32)
    return image + grain


def background(rng: np.random.Generator, art: Art, *, vary: bool = False) -> np.ndarray:
    """Return a float picture (size, size, 3): a jittered piece of a photograph, or a texture.

    With `vary` some are mixed with a second one, turned over, or have their colours exchanged: few
    photographs then teach a model more of what it has never seen.
    """
    image = _plain_background(rng, art)
    if not vary:
        return image
    if rng.random() < 0.3:
        weight = rng.uniform(0.3, 0.7)
        image = weight * image + (1 - weight) * _plain_background(rng, art)
    if rng.random() < 0.3:
        image = image[..., rng.permutation(3)]
    return image[::-1] if rng.random() < 0.3 else image


def _plain_background(rng: np.random.Generator, art: Art) -> np.ndarray:
    if rng.random() < DRAWN_SHARE:
        return drawn_texture(rng)
    photo = art.backgrounds[int(rng.integers(len(art.backgrounds)))]
    rows, columns = photo.shape[:2]
    side = int(rng.integers(90, min(rows, columns) + 1))
    top, left = int(rng.integers(rows - side + 1)), int(rng.integers(columns - side + 1))
    piece = Image.fromarray(photo[top : top + side, left : left + side])
    piece = piece.resize((SCENE_SIZE, SCENE_SIZE), Image.Resampling.BILINEAR)
    image = np.asarray(piece, np.float32)
    if rng.random() < 0.5:
        image = image[:, ::-1]
    return image * rng.uniform(0.6, 1.3) * rng.uniform(0.88, 1.12, 3).astype(np.float32)


def cutout(rng: np.random.Generator, art: Art, name: str) -> np.ndarray:
    """Return one jittered drawing (rows, columns, 4) as float RGB and alpha of 0 to 255."""
    drawings = art.cutouts[name]
    image = drawings[int(rng.integers(len(drawings)))]
    side = float(np.exp(rng.uniform(np.log(MIN_SIDE), np.log(MAX_SIDE))))
    scale = side / max(image.size)
    size = tuple(max(1, round(s * scale)) for s in image.size)
    image = image.resize(size, Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turn = rng.uniform(-MAX_TURN, MAX_TURN)
    pixels = np.array(
        image.rotate(turn, Image.Resampling.BILINEAR, expand=True), np.float32, copy=True
    )
    rgb = pixels[..., :3]
    rgb = (rgb - 128) * rng.uniform(0.8, 1.15) + 128
    pixels[..., :3] = rgb * rng.uniform(0.75, 1.2) * rng.uniform(0.9, 1.1, 3)
    return pixels


def place(rng: np.random.Generator, size: tuple[int, int], taken: np.ndarray) -> tuple[int, int]:
    """Return top and left, at most an eighth outside, the least crowded of 4 random places."""
    best, least = (0, 0), np.inf
    for _ in range(4):
        corner = [int(rng.integers(-n // 8, SCENE_SIZE - n + n // 8 + 1)) for n in size]
        top, left = max(corner[0], 0), max(corner[1], 0)
        crowd = taken[top : corner[0] + size[0], left : corner[1] + size[1]].mean()
        if crowd < least:
            best, least = (corner[0], corner[1]), crowd
    return best


def compose(rng: np.random.Generator, art: Art, names: list[str], *, vary: bool = False) -> Scene:
    """Paste one cut-out per name, in this order, on a random background."""
    image = np.array(background(rng, art, vary=vary))
    layers = []
    taken = np.zeros((SCENE_SIZE, SCENE_SIZE), np.float32)
    for name in names:
        pixels = cutout(rng, art, name)
        top, left = place(rng, pixels.shape[:2], taken)
        rows = slice(max(top, 0), min(top + pixels.shape[0], SCENE_SIZE))
        columns = slice(max(left, 0), min(left + pixels.shape[1], SCENE_SIZE))
        pixels = pixels[
            rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
        ]
        taken[rows, columns] = np.maximum(taken[rows, columns], pixels[..., 3] > 127)
        layers.append((name, rows, columns, pixels))
    kept, masks, hidden = [], [], np.zeros((SCENE_SIZE, SCENE_SIZE), bool)
    for name, rows, columns, pixels in reversed(layers):
        mask = np.zeros((SCENE_SIZE, SCENE_SIZE), bool)
        mask[rows, columns] = pixels[..., 3] > 127
        visible = mask & ~hidden
        if visible.sum() >= MIN_VISIBLE:
            hidden |= mask
            kept.append((name, rows, columns, pixels))
            masks.append(visible)
    for _, rows, columns, pixels in reversed(kept):
        alpha = pixels[..., 3:] / 255
        image[rows, columns] = image[rows, columns] * (1 - alpha) + pixels[..., :3] * alpha
    image = np.clip(image * rng.uniform(0.85, 1.15), 0, 255).astype(np.uint8)
    shape = (0, SCENE_SIZE, SCENE_SIZE)
    return Scene(image, [k[0] for k in kept], np.stack(masks) if masks else np.zeros(shape, bool))


def draw_names(
    rng: np.random.Generator, classes: tuple[str, ...], *, focus: tuple[str, ...] = ()
) -> list[str]:
    """Return 1 to 4 classes in pasting order; at least one of `focus`, where it names any."""
    names = list(rng.choice(classes, int(rng.integers(1, 5))))
    if focus and not set(names) & set(focus):
        names[int(rng.integers(len(names)))] = str(rng.choice(focus))
    return [str(name) for name in names]


def index_mask(scene: Scene, numbers: dict[str, int]) -> np.ndarray:
    """Return (size, size) uint8 class numbers, 0 where no instance of `numbers` is visible."""
    mask = np.zeros(scene.image.shape[:2], np.uint8)
    for name, visible in zip(scene.names, scene.masks, strict=True):
        mask[visible] = numbers.get(name, 0)
    return mask


def box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom (exclusive) of the true pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
