"""Data sets in YOLOv5's own form: a data.yaml that names classes and the pictures of each split."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.class_names import unusable_names
from utils.errors import DatasetError
from utils.files import PathLike, read_bytes
from utils.safe_yaml import read_yaml

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
MAX_LIST_BYTES = 1_000_000_000  # a .txt of paths: ten million of them


@dataclass(frozen=True)
class YoloDataset:
    """One split of a data set.

    names: of the classes, by class id. images: in the order of their paths (a folder) or of the list. root: the
    folder that data.yaml's `path` names, or data.yaml's own.
    """

    names: tuple[str, ...]
    images: tuple[Path, ...]
    root: Path

    @property
    def class_count(self) -> int:
        """How many classes there are: data.yaml's nc."""
        return len(self.names)


def read_yolo_dataset(data_yaml: PathLike, split: str) -> YoloDataset:
    """Read the pictures and class names of one split: `train`, `val` or `test`.

    The split is a folder (searched with its subfolders), a .txt file of paths, or a list of those. Raises
    DatasetError, naming file and key, where a key is missing or wrong, or nothing is found.
    """
    data_yaml = Path(data_yaml)
    content = read_data_yaml(data_yaml)
    names = read_names(content, data_yaml)
    root = _find_root(content.get("path"), data_yaml)
    places = content.get(split)
    if places is None or places in ("", []):
        raise DatasetError(f"{data_yaml}: {split}: missing; need a folder, a .txt file of paths, or a list of those")
    images: list[Path] = []
    for place in places if isinstance(places, list) else [places]:
        images += _images_at(place, root, f"{data_yaml}: {split}")
    if not images:
        raise DatasetError(
            f"{data_yaml}: {split}: no pictures; need files ending in {', '.join(sorted(PICTURE_SUFFIXES))}"
        )
    return YoloDataset(names, tuple(images), root)


def read_data_yaml(data_yaml: Path) -> dict[Any, Any]:
    """Read a data.yaml as it stands. Raises DatasetError where it is no mapping."""
    content = read_yaml(data_yaml, DatasetError)
    if not isinstance(content, dict):
        raise DatasetError(f"{data_yaml}: is no data set: need the keys names, train and val")
    return content


def read_names(content: dict[Any, Any], data_yaml: Path) -> tuple[str, ...]:
    """Give the class names of a parsed data.yaml: a list, or ids from 0 with a name each; `nc` has to agree."""
    names = content.get("names")
    count = content.get("nc")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DatasetError(f"{data_yaml}: names: the ids have to be 0 to {len(names) - 1}, each once")
        names = [names[class_id] for class_id in range(len(names))]
    if names is None and isinstance(count, int):
        names = [f"class{class_id}" for class_id in range(count)]
    if not isinstance(names, list) or not names or any(isinstance(name, (dict, list)) for name in names):
        raise DatasetError(f"{data_yaml}: names: need a list of class names, or ids with a name each")
    if count is not None and count != len(names):
        raise DatasetError(
            f"{data_yaml}: nc: is {count}, but names has {len(names)}; take nc out or correct one of them"
        )
    texts = tuple(str(name) for name in names)
    need = unusable_names(texts)
    if need:
        raise DatasetError(f"{data_yaml}: names: {need}")
    return texts


def list_pictures(folder: Path) -> list[Path]:
    """Give the files below a folder whose suffix is a picture's, in any case, in the order of their paths.

    Links to folders are followed, once each; hidden files and folders are left out.
    """
    return sorted(_walk_pictures(folder))


def _walk_pictures(folder: Path) -> Iterator[Path]:
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = Path(place, name)
            if not name.startswith(".") and path.suffix.lower() in PICTURE_SUFFIXES:
                yield path


def _find_root(path: Any, data_yaml: Path) -> Path:
    """Find the folder of data.yaml's `path`: beside data.yaml, or else, as YOLOv5 users know it, below where we run."""
    if path is None or path == "":
        return data_yaml.parent
    if not isinstance(path, str):
        raise DatasetError(f"{data_yaml}: path: need the name of a folder")
    for root in (data_yaml.parent / path, Path(path)):
        if root.is_dir():
            return root
    raise DatasetError(f"{data_yaml}: path: no folder {data_yaml.parent / path}")


def _images_at(place: Any, root: Path, where: str) -> list[Path]:
    """Give the pictures of one entry of a split; `where` begins the messages."""
    if not isinstance(place, str):
        raise DatasetError(f"{where}: need a folder, a .txt file of paths, or a list of those")
    found = root / place
    if not found.exists() and place.startswith("../"):  # what a well-known labelling service exports
        found = root / place[len("../") :]
    if found.is_dir():
        return list_pictures(found)
    if found.suffix.lower() != ".txt":
        raise DatasetError(f"{where}: {root / place} is neither a folder nor a .txt file of paths")
    try:
        text = read_bytes(found, MAX_LIST_BYTES, DatasetError).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DatasetError(f"{where}: {found} is not UTF-8 text") from None
    return [found.parent / line.strip() for line in text.splitlines() if line.strip()]
