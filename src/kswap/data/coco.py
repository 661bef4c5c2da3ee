"""COCO JSON: boxes for detection, polygons and run lengths for segmentation.

Read here and not by supervision or pycocotools: these read every picture or build an index at once,
fail with a KeyError, and trust the numbers (coordinates of 1e9, run lengths that do not add up).

In a semantic mask smaller objects lie over larger ones; crowd regions are ignored where nothing
else is.
"""

from __future__ import annotations

import json
import posixpath
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from kswap.data.boxes import are_fractions, clean_boxes
from kswap.data.coco_masks import draw
from kswap.data.images import MAX_PIXELS
from kswap.data.scenes import (
    Annotation,
    BadAnnotationError,
    Legend,
    Objects,
    SceneTable,
    Size,
    below,
    check_crowd,
    make_legend,
    scene_table,
)
from kswap.data.sets import IGNORE, OPEN
from kswap.data.text import count, listed, one_line
from kswap.errors import UserError
from kswap.settings import TaskName

MAX_JSON_BYTES = 4 * 1024**3


def coco_table(path: Path, images_dir: Path, task: TaskName) -> SceneTable:
    """Return the images of a COCO file; all that it lists, in the order of their names.

    Raises:
        UserError: it is not COCO JSON, or ids, names or numbers in it are wrong.
    """
    where = one_line(path)
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise UserError(
            f"{where}: is not COCO JSON, which is a mapping with images, annotations and "
            "categories; name another file"
        )
    if not isinstance(content.get("annotations"), list):
        raise UserError(f"{where}: has no list of annotations; name a file with annotations")
    legend = _categories(content, where)
    images = _images(content, where)
    by_image, notes = _by_image(content, legend, images, where)
    ordered = sorted(images.values(), key=lambda image: str(image["file_name"]))
    names = _below_images([str(image["file_name"]) for image in ordered], images_dir)
    paths = [below(images_dir, name, where) for name in names]
    scenes = [_Scene(by_image.get(image["id"], []), image, legend, where) for image in ordered]
    dropped = Counter[str]()
    for scene in scenes:
        dropped.update(scene.prepare(task))
    if are_fractions([scene.objects.boxes for scene in scenes if scene.objects is not None]):
        raise UserError(
            f"{where}: all bbox are fractions, none has a number above 1; COCO's are pixels: x, y, "
            "width, height; multiply them by the size of the image"
        )
    notes += [f"{where}: {count(number, what)} left out" for what, number in dropped.items()]
    empty = sum(not scene.present for scene in scenes)
    if empty:
        notes.append(f"{where}: {count(empty, 'image')} without objects")
    table = scene_table(
        where,
        legend.classes,
        [scene.present for scene in scenes],
        read=paths.__getitem__,
        name=lambda row: str(paths[row]),
        annotate=lambda row, size: scenes[row].annotate(task, size),
        notes=notes,
    )
    if empty < len(scenes):
        return table
    return replace(table, why_empty=_why_empty(chain(*by_image.values()), legend, task, where))


def _below_images(names: Sequence[str], images_dir: Path) -> list[str]:
    """Return file names below the folder of images, also where every one begins with its name.

    Label Studio counts from the folder that holds the JSON file and the folder of images.
    """
    own = f"{images_dir.name}/"
    plain = [posixpath.normpath(name.replace("\\", "/")) for name in names]
    if (images_dir / own).is_dir() or not all(name.startswith(own) for name in plain):
        return list(names)
    return [name.removeprefix(own) for name in plain]


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        UserError: it cannot be read or is not JSON.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UserError(f"{one_line(path)}: is larger than {MAX_JSON_BYTES} bytes; split it")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{one_line(path)}: cannot be read ({one_line(error.strerror)})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{one_line(path)}: is not valid JSON ({one_line(error)}); mend or replace the file"
        ) from None


def looks_like_coco(path: Path) -> bool:
    """Whether the start of a JSON file mentions what COCO has; the whole is read later."""
    try:
        with path.open("rb") as file:
            start = file.read(1 << 16)
            file.seek(max(0, path.stat().st_size - (1 << 16)))
            text = start + file.read()
    except OSError:
        return False
    return any(f'"{key}"'.encode() in text for key in ("annotations", "categories", "images"))


def why_not_coco(path: Path) -> str | None:
    """Return what keeps a JSON file from being read as COCO's, without its name; None: nothing."""
    try:
        content = read_json(path)
    except UserError as error:
        return str(error).removeprefix(f"{one_line(path)}: ").partition("; ")[0]
    if isinstance(content, dict) and {"images", "annotations", "categories"} & set(content):
        return None
    return "is not COCO JSON, which is a mapping with images, annotations and categories"


def _items(content: dict[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    values = content.get(key)
    if not isinstance(values, list):
        raise UserError(f"{where}: has no list of {key}; COCO JSON needs one")
    for place, value in enumerate(values):
        if not isinstance(value, dict):
            raise UserError(f"{where}: {key}[{place}] is {one_line(value, 60)!r}, not a mapping")
    return values


def _id(value: Any, what: str, where: str) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{where}: {what} is {one_line(value, 60)!r}; an id is a number or a text")
    return value


def _categories(content: dict[str, Any], where: str) -> Legend:
    names: dict[Any, str] = {}
    for place, category in enumerate(_items(content, "categories", where)):
        number = _id(category.get("id"), f"categories[{place}].id", where)
        name = category.get("name")
        if not isinstance(name, str):
            raise UserError(f"{where}: categories[{place}] has no name; give it one")
        if names.get(number, name) != name:
            raise UserError(
                f"{where}: category id {number!r} stands for {one_line(names[number])!r} and "
                f"{one_line(name)!r}; ids are given once, renumber one"
            )
        names[number] = name
    if len({type(number) for number in names}) > 1:
        raise UserError(f"{where}: category ids are both numbers and texts; write one kind")
    return make_legend(names, where)


def _images(content: dict[str, Any], where: str) -> dict[int | str, dict[str, Any]]:
    images: dict[int | str, dict[str, Any]] = {}
    files: set[str] = set()
    for place, image in enumerate(_items(content, "images", where)):
        number = _id(image.get("id"), f"images[{place}].id", where)
        name = image.get("file_name")
        if not isinstance(name, str):
            raise UserError(f"{where}: images[{place}] has no file_name; give it one")
        if images.get(number) == image:  # an exact copy, as merged files have them
            continue
        if number in images:
            raise UserError(
                f"{where}: image id {number!r} is given twice ({one_line(name)!r} and "
                f"{one_line(images[number]['file_name'])!r}); ids are given once, renumber one"
            )
        if name in files:
            raise UserError(
                f"{where}: file_name {one_line(name)!r} is listed twice; an image is listed once, "
                "with all its annotations"
            )
        files.add(name)
        images[number] = image
    return images


def _by_image(
    content: dict[str, Any], legend: Legend, images: Collection[int | str], where: str
) -> tuple[dict[int | str, list[dict[str, Any]]], list[str]]:
    found: dict[int | str, list[dict[str, Any]]] = defaultdict(list)
    seen: dict[Any, dict[str, Any]] = {}
    strangers: dict[int | str, None] = {}
    orphans = repeated = 0
    for place, annotation in enumerate(_items(content, "annotations", where)):
        image_id = _id(annotation.get("image_id"), f"annotations[{place}].image_id", where)
        category = annotation.get("category_id")
        number = annotation.get("id")
        if number is not None:
            other = seen.setdefault(_id(number, f"annotations[{place}].id", where), annotation)
            if other is not annotation and other == annotation:
                repeated += 1
                continue
            if other is not annotation:
                raise UserError(
                    f"{where}: annotation id {number!r} is given to two annotations; ids are given "
                    "once, renumber one"
                )
        if isinstance(category, list | dict) or category not in legend.codes:
            raise UserError(
                f"{where}: annotations[{place}].category_id is {one_line(category, 60)!r}, which "
                f"is not in categories ({listed(legend.codes)}); add it there or correct it"
            )
        check_crowd(annotation.get("iscrowd"), f"{where}: annotations[{place}].iscrowd")
        if image_id not in images:
            orphans += 1
            strangers[image_id] = None
            continue
        found[image_id].append(annotation)
    if orphans and not found:
        raise UserError(
            f"{where}: no image_id of its {count(orphans, 'annotation')} "
            f"({listed(map(repr, strangers), 3)}) is the id of one of images "
            f"({listed(map(repr, images), 3)}); ids are the same in both, numbers or texts"
        )
    notes = []
    if orphans:
        notes.append(
            f"{where}: {count(orphans, 'annotation')} left out, of images that are not listed"
        )
    if repeated:
        notes.append(f"{where}: {count(repeated, 'annotation')} left out, exact copies of others")
    return found, notes


_NO_OBJECT = {
    "whose category is background or to be ignored": "name a file with other categories",
    "with a bbox but no segmentation": "a segmenter needs polygons or run lengths, name a file "
    "that has them, or take a model that detects",
    "without segmentation": "give them polygons or run lengths, or name another file",
    "of a crowd (iscrowd: 1)": "annotate single objects, with iscrowd: 0",
    "with an empty box": "give the boxes a width and a height above 0",
}
"""Annotations that are no object of a class -> what to do about them."""


def _no_object(annotation: dict[str, Any], legend: Legend, task: TaskName) -> str:
    background, boxed, bare, crowd, empty = _NO_OBJECT
    if legend.codes[annotation["category_id"]] < 0:
        return background
    if task == "segmentation" and not annotation.get("segmentation"):
        return boxed if annotation.get("bbox") else bare
    return crowd if annotation.get("iscrowd") else empty


def _why_empty(
    annotations: Iterable[dict[str, Any]], legend: Legend, task: TaskName, where: str
) -> str:
    """Return why none of the annotations is an object of a class, and what to do."""
    reasons = Counter(_no_object(annotation, legend, task) for annotation in annotations)
    if not reasons:
        return f"{where} has no annotations, its list of them is empty; name a file that has some"
    numbers = ", ".join(f"{number} {what}" for what, number in reasons.most_common())
    return (
        f"{where} has no object of a class in {count(reasons.total(), 'annotation')} ({numbers}); "
        f"{_NO_OBJECT[reasons.most_common(1)[0][0]]}"
    )


class _Scene:
    """One image of a COCO file."""

    def __init__(
        self, annotations: list[dict[str, Any]], image: dict[str, Any], legend: Legend, where: str
    ) -> None:
        self.name = str(image["file_name"])
        self.where = where
        self.size = _size(image, f"{where}: image {one_line(self.name)!r}")
        self.present: set[int] = set()
        self._annotations = [
            (legend.codes[a["category_id"]], bool(a.get("iscrowd", 0)), a) for a in annotations
        ]
        self.objects: Objects | None = None

    def prepare(self, task: TaskName) -> Counter[str]:
        """Check what can be checked without the image; return what was left out."""
        if task == "detection":
            chosen = [(c, d, a) for c, d, a in self._annotations if c >= 0]
            place = f"{self.where}: image {one_line(self.name)!r}"
            raw = [a.get("bbox") for _, _, a in chosen]
            boxes, kept = clean_boxes(raw, "xywh", place)
            labels = np.asarray([c for c, _, _ in chosen], np.int64)[kept]
            crowd = np.asarray([d for _, d, _ in chosen], bool)[kept]
            self.objects = Objects(boxes, labels, crowd, sides=True)
            self._annotations = []  # frees the polygons
            self.present = set(labels[~crowd].tolist())
            return Counter({"empty box": int((~kept).sum())} if not kept.all() else {})
        without = [a for _, _, a in self._annotations if not a.get("segmentation")]
        self._annotations = [t for t in self._annotations if t[2].get("segmentation")]
        self.present = {c for c, crowd, _ in self._annotations if c >= 0 and not crowd}
        return Counter({"unsegmented annotation": len(without)} if without else {})

    def annotate(self, task: TaskName, upright: Size) -> Annotation:
        if task == "detection":
            return Annotation(objects=self.objects, size=self.size)
        size = self.size or upright
        if size[0] * size[1] > MAX_PIXELS:
            raise BadAnnotationError(self.name, f"{size[1]}x{size[0]} is too large", "correct it")
        mask = np.full(size, OPEN, np.int32)
        drawn = []
        for code, crowd, annotation in self._annotations:
            inside = draw(annotation["segmentation"], size, f"{self.where}: {self.name}")
            # crowd first, then large before small; the id settles what is equal
            order = (not crowd, -int(inside.sum()), str(annotation.get("id")))
            drawn.append((order, IGNORE if crowd else code, inside))
        for _, code, inside in sorted(drawn, key=lambda one: one[0]):
            mask[inside] = code
        return Annotation(mask=mask, size=self.size)


def _size(image: dict[str, Any], where: str) -> Size | None:
    height, width = image.get("height"), image.get("width")
    if height is None or width is None:
        return None
    for value in (height, width):
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1:
            raise UserError(
                f"{where}: width {one_line(width, 30)!r} and height {one_line(height, 30)!r} are "
                "not a size in pixels; correct them or leave them out"
            )
    return int(height), int(width)
