"""Pascal VOC's XML: one file an image, corners counted from 1, difficult objects as crowd.

Read by defusedxml, which refuses entities before they are expanded; supervision reads no difficult
flag and takes the size of each picture by opening it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kswap.data.boxes import clean_boxes
from kswap.data.images import SUFFIXES
from kswap.data.mask_files import VOC_NAMES
from kswap.data.mask_folders import NAME_FILES, files_below, read_names
from kswap.data.scenes import (
    Annotation,
    Objects,
    SceneTable,
    Size,
    below,
    is_background,
    is_ignored,
    scene_table,
)
from kswap.data.text import count, listed, one_line
from kswap.errors import UserError
from kswap.settings import SourceConfig

_XML = frozenset({".xml"})


def voc_names(settings: SourceConfig, root: Path) -> tuple[str, ...]:
    """Return the names of the values 1, 2, ... of masks: the config's, a file's, or VOC's own.

    Raises:
        UserError: a file with names cannot be read.
    """
    given = settings.class_names
    if given is None:
        found = next((root / name for name in NAME_FILES if (root / name).is_file()), None)
        if found is None:
            return VOC_NAMES
        given = read_names(found)
    names = list(given.values() if isinstance(given, dict) else given)
    names = names[1:] if names and is_background(names[0]) else names
    return tuple(name for name in names if not is_ignored(name))


def voc_table(xml_dir: Path, images_dir: Path, *, only: list[str] | None = None) -> SceneTable:
    """Return the images that XML files annotate; `only` names those of the split.

    Raises:
        UserError: a file is no VOC XML, names no image, or has wrong numbers.
    """
    files = files_below(xml_dir, _XML)
    images = files_below(images_dir, SUFFIXES)
    rows = sorted(files) if only is None else sorted(set(only))
    missing = [row for row in rows if row not in files]
    if missing:
        raise UserError(
            f"{one_line(xml_dir)}: there are no annotations of {listed(missing)}, which the split "
            "lists; add them, or take them off the list"
        )
    if not rows:
        raise UserError(f"{one_line(xml_dir)}: has no .xml files; name a folder that has some")
    parsed = [_XmlFile(files[row]) for row in rows]
    names = sorted({name for one in parsed for name in one.names})
    code = {name: place for place, name in enumerate(names)}
    paths = [
        images.get(row) or below(images_dir, one.file_name or row, str(files[row]))
        for row, one in zip(rows, parsed, strict=True)
    ]
    objects = [
        Objects(one.boxes, np.asarray([code[n] for n in one.names], np.int64), one.crowd)
        for one in parsed
    ]
    notes = []
    empty = sum(one.num_empty for one in parsed)
    if empty:
        notes.append(f"{xml_dir}: {count(empty, 'empty box')} left out")
    without = sum(not len(one.names) for one in parsed)
    if without:
        notes.append(f"{images_dir}: {count(without, 'image')} without objects")
    return scene_table(
        str(xml_dir),
        names,
        [set(one.labels[~one.crowd].tolist()) for one in objects],
        read=paths.__getitem__,
        name=lambda row: str(paths[row]),
        annotate=lambda row, size: Annotation(objects=objects[row], size=parsed[row].size),
        notes=notes,
    )


class _XmlFile:
    """The content of one XML file."""

    def __init__(self, path: Path) -> None:
        where = one_line(path)
        root = _root(path)
        self.file_name = (root.findtext("filename") or "").strip()
        self.size = _size(root, where)
        raw, names, crowd = [], [], []
        for item in root.findall("object"):
            name = (item.findtext("name") or "").strip()
            if not name:
                raise UserError(f"{where}: an object has no name; give it one")
            if is_background(name):
                continue
            box = item.find("bndbox")
            if box is None:
                raise UserError(f"{where}: an object {one_line(name)!r} has no bndbox; add it")
            raw.append([box.findtext(key) for key in ("xmin", "ymin", "xmax", "ymax")])
            names.append(name)
            crowd.append((item.findtext("difficult") or "0").strip() == "1")
        self.boxes, kept = clean_boxes(raw, "xyxy", where, of_pixels=True)
        self.names = [name for name, keep in zip(names, kept, strict=True) if keep]
        self.crowd = np.asarray(crowd, bool)[kept]
        self.num_empty = int((~kept).sum())


def _root(path: Path) -> Any:
    from defusedxml import DefusedXmlException, ElementTree

    try:
        root = ElementTree.parse(path).getroot()
    except DefusedXmlException:
        raise UserError(
            f"{one_line(path)}: defines XML entities, which annotations never need; remove them"
        ) from None
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(
            f"{one_line(path)}: is not valid XML ({one_line(error)}); mend or replace the file"
        ) from None
    if root.tag != "annotation":
        raise UserError(
            f"{one_line(path)}: is XML of {one_line(root.tag, 40)!r}, not of a Pascal VOC "
            "annotation; name another folder"
        )
    return root


def _size(root: Any, where: str) -> Size | None:
    texts = root.findtext("size/height"), root.findtext("size/width")
    if None in texts:
        return None
    try:
        height, width = (int(float(text)) for text in texts)
    except (ValueError, OverflowError):
        height = width = -1
    if height < 0 or width < 0:
        raise UserError(
            f"{where}: the size {one_line(texts, 60)} is not a height and width; correct it"
        )
    return (height, width) if height and width else None  # some tools write 0
