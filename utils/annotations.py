"""Annotation files as the platform writes them: Labels -> ark, voc or coco. utils/labels.py reads them.

ark and voc hold whole pixels, so a corner moves by up to half a pixel (a box thinner than a pixel becomes one
pixel wide); coco keeps what it is given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable, Protocol
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from utils.labels import SUFFIXES, Labels, PictureFile

COCO_FILE = "coco-annotations.json"


def write_ark(labels: Labels, picture: PictureFile) -> bytes:
    """Give the lines `class_id, xmin, ymin, xmax, ymax, quality, angle`; quality -1 (not known), angle 0."""
    corners = _inclusive_corners(labels, picture)
    rows = zip(labels.class_ids.tolist(), corners.tolist())
    return "".join(f"{class_id}, {x1}, {y1}, {x2}, {y2}, -1, 0\n" for class_id, (x1, y1, x2, y2) in rows).encode()


def write_voc(labels: Labels, picture: PictureFile, class_names: Sequence[str]) -> bytes:
    """Give a VOC XML document, corners inclusive and counted from 0."""
    root = ElementTree.Element("annotation")
    _add_texts(root, {"filename": picture.path.name})
    size = ElementTree.SubElement(root, "size")
    _add_texts(size, {"width": picture.hw[1], "height": picture.hw[0], "depth": 3})
    for class_id, corners in zip(labels.class_ids.tolist(), _inclusive_corners(labels, picture).tolist()):
        entry = ElementTree.SubElement(root, "object")
        _add_texts(entry, {"name": class_names[class_id], "difficult": 0})
        _add_texts(ElementTree.SubElement(entry, "bndbox"), dict(zip(("xmin", "ymin", "xmax", "ymax"), corners)))
    return bytes(ElementTree.tostring(root, encoding="utf-8"))


def write_coco(pictures: Sequence[tuple[str, PictureFile, Labels]], class_names: Sequence[str]) -> bytes:
    """Give one COCO file for a whole data set: (file_name, picture, labels) each; class ids become category ids."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (file_name, picture, labels) in enumerate(pictures, start=1):
        height, width = picture.hw
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        rows = zip(labels.class_ids.tolist(), labels.boxes_px.tolist(), labels.is_crowd.tolist())
        for class_id, (x1, y1, x2, y2), is_crowd in rows:
            bbox = [x1, y1, x2 - x1, y2 - y1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": class_id,
                    "bbox": bbox,
                    "area": bbox[2] * bbox[3],
                    "iscrowd": int(is_crowd),
                }
            )
    categories = [{"id": class_id, "name": name} for class_id, name in enumerate(class_names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return json.dumps(content, ensure_ascii=False).encode()


class AnnotationFolder(Protocol):
    """Where the annotations of many pictures go. name: the picture's path below its own folder."""

    def add(self, name: str, picture: PictureFile, labels: Labels) -> str:
        """Take one picture's labels; give its annotation file's path below the folder."""

    def finish(self) -> None:
        """Write what is written only once."""


class OneFileEach:
    """Writes an annotation file for each picture."""

    def __init__(self, folder: Path, suffix: str, content_of: Callable[[Labels, PictureFile], bytes]) -> None:
        self._folder = folder
        self._suffix = suffix
        self._content_of = content_of
        self._owners: dict[str, str] = {}

    def add(self, name: str, picture: PictureFile, labels: Labels) -> str:
        """Write the file, in the subfolder that the picture is in."""
        path = str(Path(name).with_suffix(self._suffix))
        if self._owners.setdefault(path, name) != name:  # 1.jpg and 1.png
            path = f"{name}{self._suffix}"
        file = self._folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(self._content_of(labels, picture))
        return path

    def finish(self) -> None:
        """Do nothing: all is written."""


class OneFileForAll:
    """Collects all pictures for one COCO file."""

    def __init__(self, folder: Path, class_names: Sequence[str]) -> None:
        self._folder = folder
        self._class_names = class_names
        self._pictures: dict[str, tuple[PictureFile, Labels]] = {}

    def add(self, name: str, picture: PictureFile, labels: Labels) -> str:
        """Keep the labels; a name that comes twice is one picture."""
        self._pictures[name] = picture, labels
        return COCO_FILE

    def finish(self) -> None:
        """Write the file."""
        pictures = [(name, picture, labels) for name, (picture, labels) in self._pictures.items()]
        (self._folder / COCO_FILE).write_bytes(write_coco(pictures, self._class_names))


WRITERS: Mapping[str, Callable[[Path, Sequence[str]], AnnotationFolder]] = MappingProxyType(
    {
        "ark": lambda folder, names: OneFileEach(folder, SUFFIXES["ark"], write_ark),
        "voc": lambda folder, names: OneFileEach(
            folder, SUFFIXES["voc"], lambda labels, picture: write_voc(labels, picture, names)
        ),
        "coco": OneFileForAll,
    }
)


def _inclusive_corners(labels: Labels, picture: PictureFile) -> npt.NDArray[np.int64]:
    """Give (N, 4) xyxy whole pixels, the last ones inside the box: width = x2 - x1 + 1, never below 1."""
    height, width = picture.hw
    first = np.floor(labels.boxes_px[:, :2] + 0.5)  # (N, 2)
    first = np.minimum(first, [width - 1, height - 1])
    last = np.maximum(np.floor(labels.boxes_px[:, 2:] + 0.5) - 1, first)  # (N, 2)
    return np.concatenate([first, last], axis=1).astype(np.int64)


def _add_texts(parent: ElementTree.Element, texts: dict[str, Any]) -> None:
    for tag, text in texts.items():
        ElementTree.SubElement(parent, tag).text = str(text)
