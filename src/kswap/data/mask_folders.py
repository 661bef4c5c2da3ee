"""Folders of images with a folder of masks of the same names: ADE20K, DeepGlobe, Pascal VOC."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from kswap.data.images import SUFFIXES
from kswap.data.mask_files import MaskReader, colour_reader, scan
from kswap.data.scenes import Annotation, SceneTable, is_background, make_legend, scene_table
from kswap.data.sets import IGNORE, OPEN
from kswap.data.text import count, listed, one_line
from kswap.errors import UserError
from kswap.settings import SourceConfig

_TAGS = re.compile(
    r"[_\-.]?(mask|masks|label|labels|labelids|labeltrainids|gt|gtfine|segmentation|seg|sat|img|"
    r"image|rgb|leftimg8bit|annotation|color)$",
    re.IGNORECASE,
)
"""What people add to the names of images or masks: 1_sat.jpg, 1_mask.png."""
NAME_FILES = ("id2label.json", "classes.txt", "class_names.txt", "labels.txt", "objectInfo150.txt")
COLOUR_FILES = ("class_dict.csv", "class_dict_seg.csv")


def mask_table(
    images_dir: Path,
    masks_dir: Path,
    reader: MaskReader,
    *,
    only: list[str] | None = None,
    skip_bad: bool = False,
) -> SceneTable:
    """Return the images of a folder that have masks; `only` names them without suffix.

    Every mask is read once here, to know which classes are in it.

    Raises:
        UserError: there are no images, images have no masks, or a mask is not as it has to be.
    """
    mixed = images_dir == masks_dir  # 1.jpg beside 1.png, or 1_sat.jpg beside 1_mask.png
    images = files_below(images_dir, SUFFIXES - {".png"} if mixed else SUFFIXES)
    masks = files_below(masks_dir, frozenset({".png"}) if mixed else SUFFIXES)
    pairs, notes = _paired(images, masks, images_dir, masks_dir, only)
    rows = sorted(pairs)
    present, scanned = scan(
        len(rows),
        lambda row: reader.present(pairs[rows[row]][1], str(pairs[rows[row]][1])),
        str(images_dir),
        skip_bad=skip_bad,
    )

    def annotate(row: int, size: tuple[int, int]) -> Annotation:
        path = pairs[rows[row]][1]
        return reader.annotation(path, str(path))

    return scene_table(
        str(images_dir),
        reader.classes,
        present,
        read=lambda row: pairs[rows[row]][0],
        name=lambda row: str(pairs[rows[row]][0]),
        annotate=annotate,
        notes=[*notes, *scanned],
    )


def files_below(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    """Return the files below a folder, by path without suffix.

    Raises:
        UserError: there is no such folder, or two files differ in suffix only.
    """
    if not folder.is_dir():
        raise UserError(f"{one_line(folder)}: there is no such folder; name a folder")
    found: dict[str, Path] = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in sorted(names):
            path = Path(parent, name)
            if name.startswith(".") or path.suffix.lower() not in suffixes:
                continue
            key = path.relative_to(folder).with_suffix("").as_posix()
            if key in found:
                raise UserError(
                    f"{one_line(path)}: {found[key].name} has the same name; leave one of them"
                )
            found[key] = path
    return found


def _paired(
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    images_dir: Path,
    masks_dir: Path,
    only: list[str] | None,
) -> tuple[dict[str, tuple[Path, Path]], list[str]]:
    notes = []
    if not images:
        raise UserError(f"{one_line(images_dir)}: has no images; name a folder that has some")
    by_core = {_core(name): path for name, path in masks.items()}
    if len(by_core) != len(masks):
        by_core = {}
    wanted = images if only is None else {name: images.get(name) for name in only}
    pairs, without = {}, []
    for name, image in wanted.items():
        if image is None:
            raise UserError(
                f"{one_line(images_dir)}: there is no image {one_line(name)!r}, which is listed in "
                "the split; add it, or take it off the list"
            )
        mask = masks.get(name) or by_core.get(_core(name))
        if mask is None or mask == image:
            without.append(name)
        else:
            pairs[name] = (image, mask)
    if not pairs:
        raise UserError(
            f"{one_line(images_dir)}: no image has a mask of the same name in "
            f"{one_line(masks_dir)}; give an image 1.jpg the mask 1.png"
        )
    if without:
        notes.append(
            f"{images_dir}: {count(len(without), 'image')} without a mask left out: "
            f"{listed(without)}"
        )
    used = {mask for _, mask in pairs.values()}
    unused = [name for name, path in masks.items() if path not in used]
    if unused and only is None and images_dir != masks_dir:
        notes.append(
            f"{masks_dir}: {count(len(unused), 'mask')} without an image left out: {listed(unused)}"
        )
    return pairs, notes


def _core(name: str) -> str:
    while True:
        shorter = _TAGS.sub("", name)
        if shorter in (name, "") or shorter.endswith("/"):
            return name
        name = shorter


def folder_reader(
    settings: SourceConfig,
    places: list[Path],
    where: str,
    *,
    id2label: Mapping[int, str],
    reduce_zero: bool,
    partial: bool,
) -> MaskReader:
    """Return how masks are read: the config's names or colours, a file's beside, the model's.

    Raises:
        UserError: a file with names cannot be read, or names are given twice.
    """
    labels = list(id2label.values())
    where = one_line(where)
    if settings.palette is not None:
        return colour_reader(settings.palette, f"{where}: palette", labels)
    if settings.reduce_zero_label is not None:
        reduce_zero = settings.reduce_zero_label
    names: dict[int, str] | None = None
    if settings.class_names is not None:
        given = settings.class_names
        names = dict(given) if isinstance(given, dict) else dict(enumerate(given))
    else:
        beside = [place / name for place in places for name in (*COLOUR_FILES, *NAME_FILES)]
        found = next((path for path in beside if path.is_file()), None)
        if found is not None and found.name in COLOUR_FILES:
            return colour_reader(_read_colours(found), one_line(found), labels)
        if found is not None:
            names = read_names(found, reduce_zero=reduce_zero)
            where = one_line(found)
    if reduce_zero and names and is_background(names.get(0, "")):
        # Then 0 is "not labelled", which they name: they count what stands in the files.
        names = {value - 1: name for value, name in names.items() if value}
    fix = "add its name to class_names, or correct the mask"
    if names is None:
        names, fix = dict(id2label), "give the names of the values in class_names"
        where = f"{where}: the model's labels"
    return MaskReader(
        make_legend(names, where, labels),
        settings.ignore_index,
        reduce_zero,
        zero=OPEN if partial else IGNORE,  # where labels are partial, unlabelled is open
        fix=fix,
    )


def read_names(path: Path, *, reduce_zero: bool = False) -> dict[int, str]:
    """Return `{value: name}` of a JSON mapping, a list of lines or ADE20K's objectInfo table.

    Raises:
        UserError: it is none of these.
    """
    where = one_line(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot be read ({one_line(error)})") from None
    try:
        if path.suffix.lower() == ".json":
            content = json.loads(text)
            pairs = content.items() if isinstance(content, dict) else enumerate(content)
            return _from_zero({int(value): str(name) for value, name in pairs}, where)
        lines = [line for line in text.splitlines() if line.strip()]
        if lines and lines[0].lower().startswith("idx"):
            columns = [line.split("\t") for line in lines[1:]]
            # the table counts the values of the files, from 1
            return {int(row[0]) - reduce_zero: row[-1].strip() for row in columns}
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{where}: holds no names of classes ({one_line(error)}); write {{value: name}} as "
            "JSON, or one name a line"
        ) from None
    return {value: line.strip() for value, line in enumerate(lines)}


def _from_zero(names: dict[int, str], where: str) -> dict[int, str]:
    below = [value for value in names if value < 0]
    if below:
        raise UserError(
            f"{where}: {below[0]} has the name {one_line(names[below[0]])!r}, but values are "
            "from 0 up; take it out, or correct it"
        )
    return names


def _read_colours(path: Path) -> dict[str, tuple[int, int, int]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
        palette = {row[0]: (int(row[1]), int(row[2]), int(row[3])) for row in rows[1:]}
        if len(palette) != len(rows) - 1 or not palette:
            raise ValueError("it has no classes, or one twice")
        if any(not 0 <= value <= 255 for colour in palette.values() for value in colour):
            raise ValueError("a colour is not 0 to 255")
    except (OSError, ValueError, IndexError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{one_line(path)}: holds no colours of classes ({one_line(error)}); write name,r,g,b "
            "under a heading"
        ) from None
    return palette
