"""Labels: the boxes that people drew in one picture, read from the four annotation formats of SPEC section 2.

A reader gets the annotation's path, the picture it belongs to, and what all files of the data set share. Boxes come
out in the picture's pixels, corners, exclusive: width = x2 - x1 in every format. Whether these are stored pixels or
pixels after the EXIF turning is decided by the size that the caller gives. A bad box is left out and counted, the
others of its picture stay; only a file that can't be read as a whole is an error.
"""

from __future__ import annotations

import math
import threading
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Callable, Optional
from xml.etree import ElementTree  # only its tree: the parser below refuses what this module's would expand
from xml.parsers import expat

import numpy as np
import numpy.typing as npt

from utils.coco_index import CocoIndex, read_coco_index
from utils.errors import ConfigError, DatasetError
from utils.files import PathLike, read_bytes

MAX_LABEL_BYTES = 16_000_000  # one picture's annotation
SMALLEST_CLIP_PX = 0.01  # less sticks out by rounding alone: six decimals of a picture 10,000 px wide

CLIPPED = "boxes clipped, partly outside their picture"
EMPTY = "boxes dropped, nothing of them inside their picture"
NOT_FINITE = "boxes dropped, a coordinate is NaN or infinite"
UNKNOWN_CLASS = "boxes dropped, not of the task's classes"
MALFORMED = "entries dropped, malformed"
NO_PICTURE = "entries dropped, their picture is not in the file"
REPEATED = "rows dropped, repeated"
NO_ENTRY = "pictures without labels, taken as empty"


@dataclass(frozen=True)
class Fault:
    """One kind of fault: how often it came up, and where first (`file line 3`, perhaps with the reason)."""

    kind: str
    count: int
    example: str


@dataclass(frozen=True)
class Labels:
    """The labelled boxes of one picture, in the order of the file.

    class_ids: (N,) int64.
    boxes_px: (N, 4) float64 xyxy, inside the picture, none of them empty.
    is_crowd: (N,) bool, COCO's iscrowd: not to be trained on, and no mistake to miss; False in other formats.
    polygons_px: one entry a box: (K, 2) float64 corners in pixels where the file had a polygon, else None.
    faults: what was clipped or left out.
    """

    class_ids: npt.NDArray[np.int64]
    boxes_px: npt.NDArray[np.float64]
    is_crowd: npt.NDArray[np.bool_]
    polygons_px: tuple[Optional[npt.NDArray[np.float64]], ...]
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.class_ids)
        if self.boxes_px.shape != (count, 4) or self.is_crowd.shape != (count,) or len(self.polygons_px) != count:
            raise ValueError(
                f"expected {count} boxes, crowd flags and polygons, got shapes {self.boxes_px.shape}, "
                f"{self.is_crowd.shape} and {len(self.polygons_px)}"
            )

    def __len__(self) -> int:
        return len(self.class_ids)


class FaultLog:
    """Adds up the faults of many pictures, so that each kind is reported once."""

    def __init__(self) -> None:
        self._seen: dict[str, Fault] = {}

    def add(self, faults: Iterable[Fault]) -> None:
        """Count these faults in; of each kind the first example is kept."""
        for fault in faults:
            first = self._seen.get(fault.kind)
            if first is not None:
                fault = Fault(fault.kind, first.count + fault.count, first.example)
            self._seen[fault.kind] = fault

    def lines(self) -> list[str]:
        """Give one line for each kind: `rows dropped, repeated: 3; first: labels/7.txt line 2`."""
        return [f"{fault.kind}: {fault.count}; first: {fault.example}" for fault in self._seen.values()]

    def __iter__(self) -> Iterator[Fault]:
        return iter(self._seen.values())

    def __len__(self) -> int:
        return len(self._seen)


@dataclass(frozen=True)
class PictureFile:
    """What a reader has to know of the picture: its path, and its (height, width) in the pixels that boxes are in."""

    path: Path
    hw: tuple[int, int]


class LabelSource:
    """What all annotation files of one data set share: the task's class names, and COCO files, parsed once.

    coco: files that are parsed already.
    """

    def __init__(self, class_names: Sequence[str], coco: Iterable[CocoIndex] = ()) -> None:
        self.class_names = tuple(class_names)
        self._class_ids = {name: class_id for class_id, name in reversed(list(enumerate(class_names)))}
        for class_id, name in enumerate(class_names):
            self._class_ids.setdefault(_fold(name), class_id)
        self._coco = {index.path: self._with_classes(index) for index in coco}
        self._lock = threading.Lock()

    def class_id_of(self, name: str) -> int:
        """Give the class of a name, in the same spelling or else in another case; -1 if there is none."""
        return self._class_ids.get(name, self._class_ids.get(_fold(name), -1))

    def coco_index(self, path: Path) -> tuple[CocoIndex, npt.NDArray[np.int64]]:
        """Give a COCO file's index and, for each of its categories, our class (-1: none). Threads may call it."""
        with self._lock:
            if path not in self._coco:
                self._coco[path] = self._with_classes(read_coco_index(path))
            return self._coco[path]

    def shared_faults(self) -> tuple[Fault, ...]:
        """Give the faults of the COCO files met so far that belong to no picture."""
        return tuple(
            Fault(NO_PICTURE, len(index.lost), f"{index.path} annotation {index.lost[0] + 1}")
            for index, _ in self._coco.values()
            if len(index.lost)
        )

    def _with_classes(self, index: CocoIndex) -> tuple[CocoIndex, npt.NDArray[np.int64]]:
        return index, np.array([self.class_id_of(name) for name in index.category_names] + [-1], np.int64)


Reader = Callable[[Path, PictureFile, LabelSource], Labels]


def read_ark(annotation: Path, picture: PictureFile, source: LabelSource) -> Labels:
    """Read `class_id, xmin, ymin, xmax, ymax[, quality[, angle…]]` in pixels, corners inclusive.

    What follows the box is not read. Raises DatasetError where the file can't be read.
    """
    rows = _Rows(annotation, picture, len(source.class_names))
    for number, line in _lines_of(annotation):
        fields = line.split(",")
        place = f"line {number}"
        if len(fields) < 5:
            rows.fault(MALFORMED, f"{place}: {len(fields)} fields, need 5: class, xmin, ymin, xmax, ymax")
            continue
        numbers = _numbers_of(fields[:5])
        if numbers is None:
            rows.fault(MALFORMED, f"{place}: not a number")
            continue
        class_id, x_min, y_min, x_max, y_max = numbers
        rows.add(class_id, (x_min, y_min, x_max + 1, y_max + 1), place)
    return rows.labels()


def read_voc(annotation: Path, picture: PictureFile, source: LabelSource) -> Labels:
    """Read a VOC XML file, corners inclusive and counted from 0 (as YMIR writes them); difficult objects are kept.

    Raises DatasetError for a file that is no XML or that declares a document type, and so perhaps entities.
    """
    rows = _Rows(annotation, picture, len(source.class_names))
    for number, entry in enumerate(_parse_xml(annotation).findall("object"), start=1):
        place = f"object {number}"
        name = entry.findtext("name")
        corners = [entry.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
        numbers = _numbers_of([corner or "" for corner in corners])
        if name is None or numbers is None:
            rows.fault(MALFORMED, f"{place}: needs a name and bndbox with xmin, ymin, xmax, ymax")
            continue
        x_min, y_min, x_max, y_max = numbers
        rows.add(source.class_id_of(name.strip()), (x_min, y_min, x_max + 1, y_max + 1), place)
    return rows.labels()


def read_voc_names(annotation: Path) -> list[str]:
    """Give the class names of a VOC file's objects, in their order, with repetitions."""
    names = [entry.findtext("name") or "" for entry in _parse_xml(annotation).findall("object")]
    return [name.strip() for name in names if name.strip()]


def read_coco(annotation: Path, picture: PictureFile, source: LabelSource) -> Labels:
    """Read one picture's rows of a COCO file; categories are mapped by name.

    A picture that the file doesn't list has no labels, and that is a fault. Raises DatasetError where the file is
    no COCO file at all.
    """
    index, class_ids = source.coco_index(annotation)
    rows = _Rows(annotation, picture, len(source.class_names))
    found = index.rows_of(picture.path)
    if found is None:
        rows.fault(NO_ENTRY, f"has no {picture.path.name}")
    for row in found or ():
        x, y, width, height = index.boxes_xywh[row].tolist()
        box = (x, y, x + width, y + height)
        class_id = float(class_ids[index.categories[row]])
        rows.add(class_id, box, f"annotation {index.positions[row] + 1}", is_crowd=bool(index.is_crowd[row]))
    return rows.labels()


def read_yolo(annotation: Path, picture: PictureFile, source: LabelSource) -> Labels:
    """Read `class cx cy w h` or `class x1 y1 x2 y2 x3 y3…` (a polygon), in 0..1 of the picture.

    A repeated row is left out; without a file the picture has no objects, and that is counted too.
    """
    rows = _Rows(annotation, picture, len(source.class_names))
    if not annotation.exists():
        rows.fault(NO_ENTRY, "no such file")
        return rows.labels()
    height, width = picture.hw
    seen = set()
    for number, line in _lines_of(annotation):
        fields = line.split()
        place = f"line {number}"
        if len(fields) < 5 or len(fields) % 2 == 0:
            rows.fault(MALFORMED, f"{place}: {len(fields)} fields, need 5 (class cx cy w h) or a polygon's 7, 9, 11…")
            continue
        numbers = _numbers_of(fields)
        if numbers is None:
            rows.fault(MALFORMED, f"{place}: not a number")
            continue
        # Bytes, since rows of floats can be made to hash alike; + 0.0 makes -0.0 to 0.0.
        key = array("d", [one + 0.0 for one in numbers]).tobytes()
        if key in seen:
            rows.fault(REPEATED, place)
            continue
        seen.add(key)
        if len(numbers) == 5:
            class_id, cx, cy, w, h = numbers
            box = ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
            rows.add(class_id, box, place)
        else:
            with np.errstate(over="ignore"):  # what overflows is counted as infinite
                corners = np.array(numbers[1:]).reshape(-1, 2) * [width, height]  # (K, 2)
            hull = (*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist())
            rows.add(numbers[0], hull, place, polygon_px=np.clip(corners, 0, [width, height]))
    return rows.labels()


READERS: Mapping[str, Reader] = MappingProxyType(
    {"ark": read_ark, "voc": read_voc, "coco": read_coco, "yolo": read_yolo}
)
SUFFIXES: Mapping[str, str] = MappingProxyType({"ark": ".txt", "voc": ".xml", "coco": ".json", "yolo": ".txt"})


def detect_format(export_format: str, annotations: Iterable[PathLike]) -> str:
    """Give the name of the reader: what export_format says (`voc:raw`), or, where it is '', what the files are.

    Files are looked at until one tells: `.xml` and `.json` by their name, `.txt` by the comma in its first line.
    Raises ConfigError for a format that isn't known, DatasetError where the files are of another kind than told.
    """
    name = _known_format(export_format)
    for annotation in map(Path, annotations):
        suffix = annotation.suffix.lower()
        if name and suffix != SUFFIXES[name]:
            raise DatasetError(
                f"{annotation}: export_format is {export_format}, whose files end in {SUFFIXES[name]}; "
                f"set export_format to what the annotations are"
            )
        if name:
            return name
        if suffix in (".xml", ".json"):
            return "voc" if suffix == ".xml" else "coco"
        if suffix != ".txt":
            raise DatasetError(f"{annotation}: no known annotation format; need .txt, .xml or .json")
        for _, line in _lines_of(annotation):
            return "ark" if "," in line else "yolo"
    return name or "ark"  # no annotation has anything in it


def yolo_label_path(image: Path) -> Path:
    """Give the label file of a picture of a YOLO data set: the last folder `images` becomes `labels`."""
    parts = list(image.with_suffix(".txt").parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts)


class _Rows:
    """Collects one picture's boxes: clips and checks each, and counts what it can't keep."""

    def __init__(self, annotation: Path, picture: PictureFile, class_count: int) -> None:
        self._annotation = annotation
        self._height, self._width = picture.hw
        self._class_count = class_count
        self._class_ids: list[int] = []
        self._boxes: list[tuple[float, float, float, float]] = []
        self._is_crowd: list[bool] = []
        self._polygons: list[Optional[npt.NDArray[np.float64]]] = []
        self._faults: dict[str, Fault] = {}

    def fault(self, kind: str, place: str) -> None:
        """Count one fault."""
        first = self._faults.get(kind)
        if first is None:
            self._faults[kind] = Fault(kind, 1, f"{self._annotation} {place}")
        else:
            self._faults[kind] = Fault(kind, first.count + 1, first.example)

    def add(
        self,
        class_id: float,
        box: tuple[float, float, float, float],
        place: str,
        is_crowd: bool = False,
        polygon_px: Optional[npt.NDArray[np.float64]] = None,
    ) -> None:
        """Take a box in pixels, exclusive corners, as it stands in the file."""
        if not all(map(math.isfinite, box)):
            return self.fault(NOT_FINITE, place)
        if not 0 <= class_id < self._class_count or class_id != int(class_id):
            return self.fault(UNKNOWN_CLASS, place)
        x1, y1, x2, y2 = box
        left, top = max(x1, 0.0), max(y1, 0.0)
        right, bottom = min(x2, float(self._width)), min(y2, float(self._height))
        if not (left < right and top < bottom):
            return self.fault(EMPTY, place)
        if max(left - x1, top - y1, x2 - right, y2 - bottom) > SMALLEST_CLIP_PX:
            self.fault(CLIPPED, place)
        self._class_ids.append(int(class_id))
        self._boxes.append((left, top, right, bottom))
        self._is_crowd.append(is_crowd)
        self._polygons.append(polygon_px)
        return None

    def labels(self) -> Labels:
        """Give what was kept."""
        return Labels(
            np.array(self._class_ids, np.int64),
            np.array(self._boxes, np.float64).reshape(-1, 4),
            np.array(self._is_crowd, np.bool_),
            tuple(self._polygons),
            tuple(self._faults.values()),
        )


def _fold(name: str) -> str:
    return name.strip().casefold()


def _known_format(export_format: str) -> str:
    """Give `voc` for `voc:raw`, `VOC` or `det-voc:raw`, '' for ''; anything else is a ConfigError."""
    name, _, storage = export_format.strip().lower().partition(":")
    name = name[4:] if name.startswith("det-") else name
    if (name and name not in READERS) or storage not in ("", "raw"):
        allowed = ", ".join(f"{known}:raw" for known in READERS)
        raise ConfigError(f"export_format: got {export_format!r}, need one of {allowed}")
    return name


def _lines_of(annotation: Path) -> list[tuple[int, str]]:
    """Give the numbered lines of a text file that hold something."""
    text = read_bytes(annotation, MAX_LABEL_BYTES, DatasetError).decode("utf-8-sig", errors="replace")
    return [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _numbers_of(fields: Sequence[str]) -> Optional[list[float]]:
    try:
        return [float(text) for text in fields]
    except ValueError:
        return None


def _parse_xml(path: Path) -> ElementTree.Element:
    """Parse XML that declares no document type: so there are no entities to expand and nothing outside to read."""

    def refuse(*_: object) -> None:
        raise DatasetError(f"{path}: declares a document type (DOCTYPE), which an annotation must not; remove it")

    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(read_bytes(path, MAX_LABEL_BYTES, DatasetError), True)
        return builder.close()
    except (expat.ExpatError, LookupError, ValueError) as cause:  # the last two: an encoding that isn't known
        line = f" line {cause.lineno}" if isinstance(cause, expat.ExpatError) else ""
        raise DatasetError(f"{path}{line}: is not valid XML") from None
