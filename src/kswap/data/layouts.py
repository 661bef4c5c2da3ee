"""The usual ways to lay out images and annotations in folders, found by looking.

| layout | looks like |
|---|---|
| COCO | annotations/instances_train2017.json with train2017/ or images/train2017/ |
| COCO, Roboflow's | train/_annotations.coco.json beside the images, valid/, test/ |
| one COCO file | annotations.json with images/ or beside the images; names may begin with images/ |
| Pascal VOC | JPEGImages/, Annotations/ or SegmentationClass/, ImageSets/Main or /Segmentation |
| YOLO | data.yaml, images/train and labels/train, or train/images and train/labels |
| masks | images/ with masks/, annotations/ or labels/, splits above or below; or in one folder |
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kswap.data.coco import looks_like_coco, read_json, why_not_coco
from kswap.data.images import SUFFIXES
from kswap.data.table import SPLIT_NAMES
from kswap.data.text import listed, one_line
from kswap.errors import UserError
from kswap.settings import Split, TaskName

Part = tuple[Path, Path, list[str] | None]
"""Images, annotations (folder or file), and the names that are in the split (None: all)."""
IMAGE_DIRS = ("images", "image", "imgs", "img", "jpegimages", "leftimg8bit", "rgb")
MASK_DIRS = (
    "annotations", "masks", "mask", "labels", "label", "segmentationclass", "gtfine", "gt",
    "segmentation", "segmentations", "annotation",
)  # fmt: skip
YOLO_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_SPLIT_WORD = re.compile(r"(?<![a-z])(train|training|validation|valid|val|test|testing)(?![a-z])")


@dataclass(frozen=True)
class Layout:
    """Where the parts of a source lie."""

    kind: Literal["coco", "voc", "yolo", "voc-masks", "masks"]
    parts: dict[str, Part]
    """By name of the split, as the folder or file has it."""
    names_file: Path | None = None
    """YOLO: the YAML file with the names."""
    notes: tuple[str, ...] = ()


def find_layout(root: Path, task: TaskName) -> Layout | None:
    """Return the layout of a folder; None: none that is known."""
    finders = (_voc, _coco, _yolo) if task == "detection" else (_voc, _masks, _coco)
    for find in finders:
        layout = find(root, task)
        if layout is not None:
            return layout
    return None


def of_pair(images: Path, annotations: Path, task: TaskName) -> Layout:
    """Return the layout of a folder of images and a folder or file of annotations.

    Raises:
        UserError: the annotations are of no kind that is known.
    """
    if annotations.is_file():
        return Layout("coco", {"train": (images, annotations, None)})
    jsons = _coco_files(annotations)
    if jsons:
        parts = _coco_parts(jsons, [images])
        return Layout("coco", parts)
    splits = _matched(images, annotations)
    pairs: dict[str, Part] = splits or {"train": (images, annotations, None)}
    if task == "segmentation":
        return Layout("masks", pairs)
    first = next(iter(pairs.values()))[1]
    if next(first.rglob("*.xml"), None) is not None:
        return Layout("voc", pairs)
    if next(first.rglob("*.txt"), None) is not None:
        names = [folder / name for folder in (annotations, images.parent) for name in YOLO_FILES]
        found = next((path for path in names if path.is_file()), None)
        return Layout("yolo", pairs, found)
    raise UserError(
        f"{one_line(annotations)}: has no annotations (COCO .json, Pascal VOC .xml or YOLO .txt)"
        f"{not_coco(annotations)}; name a folder or file that has some"
    )


def _folders(root: Path) -> dict[str, Path]:
    return {
        path.name.lower(): path
        for path in sorted(root.iterdir())
        if path.is_dir() and not path.name.startswith((".", "__"))
    }


def _matched(images: Path, annotations: Path) -> dict[str, Part]:
    """Return the split folders that images and annotations have in common."""
    theirs: dict[Split, Path] = {
        SPLIT_NAMES[name]: path
        for name, path in _folders(annotations).items()
        if name in SPLIT_NAMES
    }
    return {
        name: (path, theirs[SPLIT_NAMES[name]], None)
        for name, path in _folders(images).items()
        if name in SPLIT_NAMES and SPLIT_NAMES[name] in theirs
    }


def _first(folders: dict[str, Path], names: tuple[str, ...]) -> Path | None:
    return next((folders[name] for name in names if name in folders), None)


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in SUFFIXES for path in folder.iterdir())


# ------------------------------------------------------------------------------------------- masks
def _masks(root: Path, task: TaskName) -> Layout | None:
    folders = _folders(root)
    images, masks = _first(folders, IMAGE_DIRS), _first(folders, MASK_DIRS)
    if images and masks and not _coco_files(masks):
        return Layout("masks", _matched(images, masks) or {"train": (images, masks, None)})
    parts: dict[str, Part] = {}
    for name, folder in folders.items():
        if name not in SPLIT_NAMES or any(folder.glob("*.coco.json")):
            continue
        inner = _folders(folder)
        images, masks = _first(inner, IMAGE_DIRS), _first(inner, MASK_DIRS)
        if images and masks:
            parts[folder.name] = (images, masks, None)
        elif _mixed(folder):
            parts[folder.name] = (folder, folder, None)
    if parts:
        left = [f.name for n, f in folders.items() if n in SPLIT_NAMES and f.name not in parts]
        notes = (f"{root}: folders left out, without masks: {listed(left)}",) if left else ()
        return Layout("masks", parts, notes=notes)
    if _mixed(root):
        return Layout("masks", {"train": (root, root, None)})
    return None


def _mixed(folder: Path) -> bool:
    """Whether a folder has images and their masks side by side: 1_sat.jpg, 1_mask.png."""
    suffixes = {path.suffix.lower() for path in folder.iterdir() if path.is_file()}
    return ".png" in suffixes and bool(suffixes & {".jpg", ".jpeg"})


# -------------------------------------------------------------------------------------------- COCO
def _coco(root: Path, task: TaskName) -> Layout | None:
    folders = _folders(root)
    parts: dict[str, Part] = {}
    for name, folder in folders.items():
        if name in SPLIT_NAMES:
            files = _coco_files(folder)
            if len(files) == 1:
                inner = _first(_folders(folder), IMAGE_DIRS)
                parts[folder.name] = (inner or folder, files[0], None)
    if parts:
        for name, folder in folders.items():
            if name in SPLIT_NAMES and folder.name not in parts and (why := not_coco(folder)):
                raise UserError(
                    f"{one_line(folder)}: is a split without annotations{why}; correct it"
                )
        return Layout("coco", parts)
    for place in (folders.get("annotations"), root):
        files = _coco_files(place) if place else []
        if files:
            places = [*(p for n, p in folders.items() if n in IMAGE_DIRS), root]
            return Layout("coco", _coco_parts(files, places))
    return None


def not_coco(*folders: Path) -> str:
    """Return which JSON file of some folders cannot be read as COCO's and why, to end a message."""
    for folder in folders:
        for path in _jsons(folder):
            why = why_not_coco(path)
            if why is not None:
                return f"; {one_line(path)} {why}"
    return ""


def _jsons(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.json")) if not path.name.startswith(".")]


def _coco_files(folder: Path) -> list[Path]:
    every = _jsons(folder)
    files = [path for path in every if looks_like_coco(path)]
    for path in every if files else ():
        if path not in files:  # JSON may be something else; what is none may be of a split
            read_json(path)
    instances = [path for path in files if path.name.lower().startswith("instances")]
    return instances or files


def _coco_parts(files: list[Path], places: list[Path]) -> dict[str, Part]:
    if len(files) == 1:
        return {"train": (_images_of(files[0], places), files[0], None)}
    parts: dict[str, Part] = {}
    unknown = []
    for path in files:
        word = _SPLIT_WORD.search(re.sub(r"[\d_]+", " ", path.stem.lower()))
        if word is None:
            unknown.append(path.name)
        elif word[0] in parts:
            raise UserError(
                f"{one_line(path)}: {parts[word[0]][1].name} is of the {word[0]} split too; leave "
                "one of them, or name the parts: data: {train: {images: ..., annotations: ...}}"
            )
        else:
            parts[word[0]] = (_images_of(path, places), path, None)
    if unknown:
        raise UserError(
            f"{one_line(files[0].parent)}: cannot tell the split of {listed(unknown)}; name the "
            "parts: data: {train: {images: ..., annotations: ...}, test: ...}"
        )
    return parts


def _images_of(path: Path, places: list[Path]) -> Path:
    """Return the folder of images of `instances_train2017.json`: train2017, train, or all."""
    words = re.findall(r"[a-z]+\d*", path.stem.lower())
    for place in places:
        inner = _folders(place)
        for word in words:
            if any(word.startswith(split) for split in SPLIT_NAMES):
                for name in (word, re.sub(r"\d+", "", word)):
                    if name in inner:
                        return inner[name]
    return places[0]


# -------------------------------------------------------------------------------------- Pascal VOC
def _voc(root: Path, task: TaskName) -> Layout | None:
    base = next(
        (
            folder
            for folder in (root, *root.glob("VOC*"), *root.glob("VOCdevkit/VOC*"))
            if (folder / "JPEGImages").is_dir()
        ),
        None,
    )
    if base is None:
        return _flat_voc(root) if task == "detection" else None
    annotations = base / ("Annotations" if task == "detection" else "SegmentationClass")
    if not annotations.is_dir():
        return None
    lists = base / "ImageSets" / ("Main" if task == "detection" else "Segmentation")
    parts: dict[str, Part] = {}
    for name in ("train", "val", "test", "trainval"):
        names = _listed_names(lists / f"{name}.txt")
        if names is None or (name == "trainval" and parts):
            continue
        if name == "test" and not any(_is_annotated(annotations, n) for n in names):
            continue  # the labels of VOC's own test split are not public
        parts["train" if name == "trainval" else name] = (base / "JPEGImages", annotations, names)
    parts = parts or {"train": (base / "JPEGImages", annotations, None)}
    return Layout("voc" if task == "detection" else "voc-masks", parts)


def _is_annotated(folder: Path, name: str) -> bool:
    return any((folder / f"{name}{suffix}").is_file() for suffix in (".xml", ".png"))


def _listed_names(path: Path) -> list[str] | None:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{one_line(path)}: cannot be read ({one_line(error)})") from None
    return [line.split()[0] for line in lines if line.strip()]


def _flat_voc(root: Path) -> Layout | None:
    """XML files beside the images (Roboflow), with or without split folders."""
    parts: dict[str, Part] = {
        folder.name: (folder, folder, None)
        for name, folder in _folders(root).items()
        if name in SPLIT_NAMES and any(folder.glob("*.xml"))
    }
    if not parts and any(root.glob("*.xml")):
        parts = {"train": (root, root, None)}
    if not parts:
        folders = _folders(root)
        images, xml = _first(folders, IMAGE_DIRS), folders.get("annotations")
        if images and xml and next(xml.rglob("*.xml"), None) is not None:
            parts = _matched(images, xml) or {"train": (images, xml, None)}
    return Layout("voc", parts) if parts else None


# -------------------------------------------------------------------------------------------- YOLO
def _yolo(root: Path, task: TaskName) -> Layout | None:
    folders = _folders(root)
    file = next((root / name for name in YOLO_FILES if (root / name).is_file()), None)
    parts: dict[str, Part] = {}
    images, labels = folders.get("images"), folders.get("labels")
    if images and labels:
        parts = _matched(images, labels) or {"train": (images, labels, None)}
    for name, folder in folders.items():
        inner = _folders(folder)
        if name in SPLIT_NAMES and "images" in inner and "labels" in inner:
            parts[folder.name] = (inner["images"], inner["labels"], None)
    if not parts:
        return None
    return Layout("yolo", parts, file)
