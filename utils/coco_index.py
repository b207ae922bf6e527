"""A COCO file, parsed once: which annotations belong to which picture. What they mean is for utils/labels.py."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Optional, Union

import numpy as np
import numpy.typing as npt

from utils.errors import DatasetError
from utils.files import read_bytes

MAX_ID = 1 << 60  # numbers below it all hash differently
MAX_COCO_BYTES = 2_000_000_000  # one file for a whole data set; COCO's own training set is 0.45 GB


@dataclass(frozen=True)
class CocoIndex:
    """One COCO file, parsed: for each picture its rows, in the order of the file.

    file_names: of the P pictures, as the file has them, backslashes turned.
    numbers: for a `file_name` of the file, its picture's number; for a bare name that only one has, too.
    starts: (P + 1,) int64; rows starts[p] to starts[p + 1] belong to picture p.
    categories: (A,) int64 index into category_names, -1 for an id that the file doesn't define.
    boxes_xywh: (A, 4) float64 in pixels, NaN where the file has something else than four numbers.
    is_crowd: (A,) bool. positions: (A,) int64, from 0, in the file's list of annotations.
    lost: such positions of annotations that belong to no picture.
    """

    path: Path
    category_names: tuple[str, ...]
    file_names: tuple[str, ...]
    numbers: Mapping[str, int]
    starts: npt.NDArray[np.int64]
    categories: npt.NDArray[np.int64]
    boxes_xywh: npt.NDArray[np.float64]
    is_crowd: npt.NDArray[np.bool_]
    positions: npt.NDArray[np.int64]
    lost: npt.NDArray[np.int64]

    def rows_of(self, picture: Path) -> Optional[range]:
        """Give a picture's rows, or None if the file doesn't list it.

        The longest end of the path that is a file_name counts: /in/assets/a/1.jpg is found as a/1.jpg or 1.jpg.
        """
        name = picture.as_posix()
        while name:
            number = self.numbers.get(name)
            if number is not None:
                return range(int(self.starts[number]), int(self.starts[number + 1]))
            name = name.partition("/")[2]
        return None


def read_coco_index(path: Path) -> CocoIndex:
    """Parse a COCO file once. Raises DatasetError, naming the file and the key, where it is none."""
    images, annotations, categories = _coco_lists(path)
    names = {id_key(_entry(path, "categories", n, c, "id")): str(c.get("name")) for n, c in enumerate(categories)}
    category_of = {key: position for position, key in enumerate(names)}
    file_names: dict[str, int] = {}
    number_of = {}
    for position, image in enumerate(images):
        file_name = str(_entry(path, "images", position, image, "file_name")).replace("\\", "/")
        image_id = id_key(_entry(path, "images", position, image, "id"))
        number_of[image_id] = file_names.setdefault(file_name, len(file_names))
    picture_of = np.full(len(annotations), -1, np.int64)  # (A,)
    category = np.full(len(annotations), -1, np.int64)  # (A,)
    boxes = np.full((len(annotations), 4), np.nan)  # (A, 4)
    is_crowd = np.zeros(len(annotations), bool)  # (A,)
    for position, annotation in enumerate(annotations):
        picture_of[position] = _look_up(number_of, annotation, "image_id")
        category[position] = _look_up(category_of, annotation, "category_id")
        if isinstance(annotation, dict):
            boxes[position] = _coco_box(annotation.get("bbox"))
            is_crowd[position] = annotation.get("iscrowd") in (1, True)
    order = np.argsort(picture_of, kind="stable")
    lost, order = np.split(order, [int((picture_of < 0).sum())])
    return CocoIndex(
        path,
        tuple(names.values()),
        tuple(file_names),
        MappingProxyType(_with_bare_names(file_names)),
        np.searchsorted(picture_of[order], np.arange(len(file_names) + 1)),
        category[order],
        boxes[order],
        is_crowd[order],
        order,
        lost,
    )


def _coco_lists(path: Path) -> tuple[list[Any], list[Any], list[Any]]:
    """Give images, annotations and categories of a COCO file; what they hold is not checked yet."""
    try:
        content = json.loads(read_bytes(path, MAX_COCO_BYTES, DatasetError))
    except (ValueError, RecursionError) as cause:
        line = f" line {cause.lineno}" if isinstance(cause, json.JSONDecodeError) else ""
        raise DatasetError(f"{path}{line}: is not valid JSON") from None
    found = []
    for key in ("images", "annotations", "categories"):
        value = content.get(key) if isinstance(content, dict) else None
        if not isinstance(value, list):
            raise DatasetError(f"{path}: has no list {key!r}; a COCO file needs images, annotations and categories")
        found.append(value)
    return found[0], found[1], found[2]


def _entry(path: Path, key: str, position: int, entry: Any, field: str) -> Any:
    """Give the id of one image or category of a COCO file."""
    value = entry.get(field) if isinstance(entry, dict) else None
    if not isinstance(value, (int, str)):
        raise DatasetError(f"{path}: {key} entry {position + 1}: has no {field}")
    return value


def id_key(value: Union[int, str]) -> Union[int, str, tuple[str]]:
    """Give what an id is found by: itself, but a text for a huge number, since such can be made to hash alike."""
    return value if isinstance(value, str) or abs(value) <= MAX_ID else (str(value),)


def _look_up(numbers: Mapping[Any, int], annotation: Any, key: str) -> int:
    value = annotation.get(key) if isinstance(annotation, dict) else None
    return numbers.get(id_key(value), -1) if isinstance(value, (int, str)) else -1


def _coco_box(value: Any) -> Sequence[float]:
    """Give four numbers, or four NaN for anything else."""
    if isinstance(value, list) and len(value) == 4 and all(isinstance(number, (int, float)) for number in value):
        try:
            return [float(number) for number in value]
        except OverflowError:
            pass
    return [math.nan] * 4


def _with_bare_names(file_names: Mapping[str, int]) -> dict[str, int]:
    """Add to each file name its last part, where no other file has the same."""
    owners: dict[str, set[int]] = {}
    for name, number in file_names.items():
        owners.setdefault(name.rpartition("/")[2], set()).add(number)
    bare = {name: numbers.pop() for name, numbers in owners.items() if len(numbers) == 1}
    return {**bare, **file_names}
