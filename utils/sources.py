"""Where a task's pictures come from: a picture, a folder, a YOLO data.yaml, a VOC folder or a COCO file -> Source."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

import numpy as np
import numpy.typing as npt

from utils.coco_index import read_coco_index
from utils.datasets import PICTURE_SUFFIXES, list_pictures, read_data_yaml, read_yolo_dataset
from utils.errors import DatasetError, ImageError
from utils.files import open_regular
from utils.labels import (
    Labels,
    LabelSource,
    PictureFile,
    read_coco,
    read_voc,
    read_voc_names,
    read_yolo,
    yolo_label_path,
)
from utils.picture_headers import PictureError, read_header, read_orientation

LabelsOf = Callable[[Path], tuple[PictureFile, Labels]]


@dataclass(frozen=True)
class Source:
    """Pictures, and, where the source has them, their labels.

    root: the folder that the pictures lie below; it tells two of one base name apart.
    splits: `train` and `val` where the source itself divides its pictures, else {}.
    class_names: () where the source names none.
    labels_of: gives one picture's labels in stored pixels (no EXIF turning); raises ImageError where its size can't
    be read, DatasetError where its annotation can't. None: the source has no labels.
    """

    root: Path
    images: tuple[Path, ...]
    splits: Mapping[str, tuple[Path, ...]]
    class_names: tuple[str, ...] = ()
    labels_of: Optional[LabelsOf] = None


def open_source(path: Path, class_names: Sequence[str] = (), images_dir: Optional[Path] = None) -> Source:
    """Find out what a path is, and open it.

    class_names: what to look for in a VOC or COCO source (others are left out); for a YOLO source the names of its
    class ids. (): the source's own. images_dir: where a COCO file's pictures lie, if not beside it. Raises
    DatasetError where nothing is found.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        if (path / "Annotations").is_dir() and (path / "JPEGImages").is_dir():
            return _open_voc(path, class_names)
        if (path / "data.yaml").is_file():
            return _open_yolo(path / "data.yaml", class_names)
        return Source(path, tuple(list_pictures(path)), {})
    if not path.exists():
        raise DatasetError(f"{path}: no such file or folder")
    if suffix in (".yaml", ".yml"):
        return _open_yolo(path, class_names)
    if suffix == ".json":
        return _open_coco(path, class_names, images_dir)
    if suffix in PICTURE_SUFFIXES:
        return Source(path.parent, (path,), {})
    raise DatasetError(
        f"{path}: need a picture, a folder of pictures, a data.yaml, a folder with Annotations and JPEGImages, "
        f"or a COCO .json"
    )


def stored_boxes(boxes: npt.NDArray[np.float64], hw: tuple[int, int], orientation: int) -> npt.NDArray[np.float64]:
    """Turn boxes of an upright picture back to the order in which its pixels are stored.

    boxes: (N, 4) xyxy in pixels of the upright picture, which is `hw` (height, width). orientation: EXIF, 1 to 8.
    """
    height, width = hw
    x1, y1, x2, y2 = boxes.T
    if orientation in (2, 3, 6, 7):
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 7, 8):
        y1, y2 = height - y2, height - y1
    return np.stack([y1, x1, y2, x2] if orientation >= 5 else [x1, y1, x2, y2], axis=1)


def _open_yolo(data_yaml: Path, class_names: Sequence[str]) -> Source:
    content = read_data_yaml(data_yaml)
    splits = {
        split: read_yolo_dataset(data_yaml, split)
        for split in ("train", "val", "test")
        if content.get(split) not in (None, "", [])
    }
    if not splits:
        raise DatasetError(f"{data_yaml}: train: missing; need a folder, a .txt file of paths, or a list of those")
    data = next(iter(splits.values()))
    names = tuple(class_names) or data.names
    if len(names) != data.class_count:
        raise DatasetError(f"{data_yaml}: names: has {data.class_count} classes, but --class-names has {len(names)}")
    pictures = {split: tuple(map(_absolute, data.images)) for split, data in splits.items()}
    images = tuple(dict.fromkeys(image for split in pictures.values() for image in split))
    source = LabelSource(names)

    def labels_of(image: Path) -> tuple[PictureFile, Labels]:
        stored_hw, orientation = _read_frame(image)
        hw = stored_hw if orientation < 5 else stored_hw[::-1]
        labels = read_yolo(yolo_label_path(image), PictureFile(image, hw), source)
        boxes = stored_boxes(labels.boxes_px, hw, orientation)
        # Polygons are not turned with the boxes: no YMIR format has them.
        none = (None,) * len(labels)
        return PictureFile(image, stored_hw), Labels(labels.class_ids, boxes, labels.is_crowd, none, labels.faults)

    return Source(
        Path(os.path.commonpath([image.parent for image in images])),
        images,
        {split: pictures[split] for split in pictures if split != "test"},
        names,
        labels_of,
    )


def _open_voc(folder: Path, class_names: Sequence[str]) -> Source:
    pictures, annotations = folder / "JPEGImages", folder / "Annotations"
    images = tuple(list_pictures(pictures))
    paths = {image: (annotations / image.relative_to(pictures)).with_suffix(".xml") for image in images}
    paths = {image: path for image, path in paths.items() if path.is_file()}
    names = tuple(class_names) or tuple(sorted({name for path in paths.values() for name in read_voc_names(path)}))
    source = LabelSource(names)

    def labels_of(image: Path) -> tuple[PictureFile, Labels]:
        picture = PictureFile(image, _read_frame(image)[0])
        if image not in paths:
            raise DatasetError(f"{image}: has no file in {annotations}")
        return picture, read_voc(paths[image], picture, source)

    return Source(pictures, images, {}, names, labels_of)


def _open_coco(path: Path, class_names: Sequence[str], images_dir: Optional[Path]) -> Source:
    index = read_coco_index(path)
    source = LabelSource(tuple(class_names) or index.category_names, [index])
    folders = [images_dir] if images_dir else [path.parent, path.parent / "images", path.parent.parent / "images"]
    root = next((folder for folder in folders if any((folder / name).exists() for name in index.file_names)), None)
    if root is None:
        places = ", ".join(map(str, folders))
        raise DatasetError(f"{path}: none of its pictures lies in {places}; name their folder with --images")
    file_names = {root / name: name for name in sorted(index.file_names)}

    def labels_of(image: Path) -> tuple[PictureFile, Labels]:
        picture = PictureFile(image, _read_frame(image)[0])
        return picture, read_coco(path, PictureFile(Path(file_names[image]), picture.hw), source)

    return Source(root, tuple(file_names), {}, source.class_names, labels_of)


def _read_frame(image: Path) -> tuple[tuple[int, int], int]:
    """Read a picture's stored (height, width) and its EXIF orientation, 1 to 8."""
    with open_regular(image, ImageError) as file:
        try:
            header = read_header(file)
        except PictureError as cause:
            raise ImageError(f"{image}: {cause}") from None
        return header.stored_hw, read_orientation(file, header.kind)


def _absolute(image: Path) -> Path:
    """Give an absolute path without `..`; links keep their own names."""
    return Path(os.path.abspath(image))  # noqa: PTH100 (resolve would follow links)
