"""YOLO folders: for each image a text file with lines `class centre-x centre-y width height`.

Read here and not by supervision, which opens every picture to know its size and takes lines with
other numbers of fields for polygons.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import yaml

from kswap.data.boxes import clean_boxes
from kswap.data.images import SUFFIXES
from kswap.data.mask_folders import files_below, read_names
from kswap.data.scenes import Annotation, Legend, Objects, SceneTable, make_legend, scene_table
from kswap.data.text import count, listed, one_line
from kswap.errors import UserError
from kswap.settings import SourceConfig
from kswap.yaml_text import MISCAST

NAME_FILES = ("classes.txt", "obj.names", "names.txt")
_BYTES = frozenset({".txt"})


def yolo_names(settings: SourceConfig, file: Path | None, root: Path) -> Legend:
    """Return the classes: the config's, those of data.yaml or of classes.txt.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    given = settings.class_names
    if given is not None:
        names = dict(given) if isinstance(given, dict) else dict(enumerate(given))
        return make_legend(names, "class_names")
    if file is not None:
        return make_legend(_names_of(file), one_line(file))
    places = [root / name for name in NAME_FILES] + [root / "labels" / name for name in NAME_FILES]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise UserError(
            f"{one_line(root)}: the classes are numbers without names; give them in class_names, or"
            " in a data.yaml beside the images (names: [cat, dog])"
        )
    return make_legend(read_names(found), one_line(found))


class _TextLoader(yaml.SafeLoader):
    """Reads what is not quoted as the text that stands there.

    As YAML 1.1 has it, classes called no, 010, 1.10 and null would be False, 8, 1.1 and None.
    """


_TextLoader.yaml_implicit_resolvers = {}
_TextLoader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile("^<<$"), ["<"])


def _names_of(file: Path) -> dict[int, str]:
    where = one_line(file)
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_TextLoader)
    except (OSError, yaml.YAMLError, RecursionError, *MISCAST) as error:
        raise UserError(f"{where}: is not YAML that can be read ({one_line(error)})") from None
    names = content.get("names") if isinstance(content, dict) else None
    try:
        pairs = names.items() if isinstance(names, dict) else enumerate(names or [])
        legend = {int(number): name for number, name in pairs}
    except (TypeError, ValueError):
        legend = {}
    if isinstance(names, str) or not (legend and all(isinstance(n, str) for n in legend.values())):
        raise UserError(f"{where}: has no names of classes; write names: [cat, dog]")
    return legend


def yolo_table(images_dir: Path, labels_dir: Path, legend: Legend) -> SceneTable:
    """Return the images of a folder with the boxes of their text files.

    An image without a file has no objects, as ultralytics has it.

    Raises:
        UserError: a line is not five numbers, a value is not a fraction, or a class has no name.
    """
    images = files_below(images_dir, SUFFIXES)
    if not images:
        raise UserError(f"{one_line(images_dir)}: has no images; name a folder that has some")
    labels = files_below(labels_dir, _BYTES)
    rows = sorted(images)
    objects, empty_boxes = [], 0
    for row in rows:
        found, empty = _objects(labels.get(row), legend)
        objects.append(found)
        empty_boxes += empty
    notes = []
    orphans = [n for n in labels if n not in images and labels[n].name not in NAME_FILES]
    if orphans:
        notes.append(
            f"{labels_dir}: {count(len(orphans), 'file')} without an image left out: "
            f"{listed(orphans)}"
        )
    if empty_boxes:
        notes.append(f"{labels_dir}: {count(empty_boxes, 'empty box')} left out")
    without = sum(not len(one.labels) for one in objects)
    if without:
        notes.append(f"{images_dir}: {count(without, 'image')} without objects")
    return scene_table(
        str(images_dir),
        legend.classes,
        [set(one.labels.tolist()) for one in objects],
        read=lambda row: images[rows[row]],
        name=lambda row: str(images[rows[row]]),
        annotate=lambda row, size: Annotation(objects=objects[row], upright=True),
        notes=notes,
    )


def _objects(path: Path | None, legend: Legend) -> tuple[Objects, int]:
    boxes, labels = [], []
    for number, line in enumerate(_lines(path), 1):
        where = f"{one_line(path)}, line {number}"
        fields = line.split()
        if len(fields) != 5:
            raise UserError(
                f"{where}: has {len(fields)} fields; a box is written as class, centre x, centre y,"
                " width, height"
            )
        try:
            code, values = float(fields[0]), [float(field) for field in fields[1:]]
        except ValueError:
            raise UserError(
                f"{where}: {one_line(line, 60)!r} are not numbers; correct it"
            ) from None
        if not all(0 <= value <= 1 for value in values):
            raise UserError(
                f"{where}: {one_line(line, 60)!r} has a value outside 0..1; boxes are fractions of "
                "the image's width and height"
            )
        if not code.is_integer() or int(code) not in legend.codes:
            raise UserError(
                f"{where}: the class {one_line(fields[0], 30)} has no name (there are "
                f"{listed(legend.codes)}); add it to the names or correct it"
            )
        if legend.codes[int(code)] >= 0:
            boxes.append(values)
            labels.append(legend.codes[int(code)])
    clean, kept = clean_boxes(boxes, "cxcywh", one_line(path))
    classes = np.asarray(labels, np.int64)[kept]
    return Objects(clean, classes, np.zeros(len(classes), bool), fractions=True), int((~kept).sum())


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{one_line(path)}: cannot be read ({one_line(error)})") from None
