"""LabelTable: all labels of a data set in a few flat arrays, which threads share and which don't grow."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
import numpy.typing as npt

from utils.batches import Shot
from utils.labelled import LabelledSet
from utils.labels import EMPTY, Fault, Labels

CROWD = "boxes left out, of crowds"


@dataclass(frozen=True, eq=False)
class LabelTable:
    """The readable pictures of a data set and their labels. Arrays are read-only.

    names: of the classes. shots: index = position in the table.
    sizes_hw: (N, 2) int32 height, width in the frame in which boxes are meant.
    starts: (N + 1,) int64, picture i has the rows starts[i]:starts[i + 1].
    class_ids: (M,) int32. boxes_px: (M, 4) float32 xyxy, clipped, none empty.
    points_px: (P, 2) float32, corners of polygons; point_starts: (M + 1,) int64, row r has the points
    point_starts[r]:point_starts[r + 1], none where it is only a box.
    """

    names: tuple[str, ...]
    shots: tuple[Shot, ...]
    sizes_hw: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    class_ids: npt.NDArray[np.int32]
    boxes_px: npt.NDArray[np.float32]
    points_px: npt.NDArray[np.float32]
    point_starts: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        for array_ in (self.sizes_hw, self.starts, self.class_ids, self.boxes_px, self.points_px, self.point_starts):
            array_.flags.writeable = False

    def __len__(self) -> int:
        return len(self.shots)

    def rows_of(self, index: int) -> slice:
        """Give the rows of a picture."""
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    def labels(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Give a picture's class ids (n,) and boxes (n, 4) px: views, nothing is copied."""
        rows = self.rows_of(index)
        return self.class_ids[rows], self.boxes_px[rows]

    def picture_of_rows(self) -> npt.NDArray[np.int64]:
        """Give the picture of each row: (M,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def polygon(self, row: int) -> npt.NDArray[np.float32]:
        """Give a row's polygon, (K, 2) px; K = 0 where it is only a box."""
        return self.points_px[self.point_starts[row] : self.point_starts[row + 1]]

    def labelled_set(self) -> LabelledSet:
        """Give the same as a set to validate on; its labels come from this table, not from files."""

        def labels_of(shot: Shot, image_hw: tuple[int, int]) -> Labels:
            class_ids, boxes_px = self.labels(shot.index)
            count = len(class_ids)
            return Labels(
                class_ids.astype(np.int64), boxes_px.astype(np.float64), np.zeros(count, np.bool_), (None,) * count
            )

        return LabelledSet(self.names, self.shots, labels_of)

    def as_one_class(self, name: str) -> LabelTable:
        """Give the same table with all boxes of one class (--single-cls); arrays are shared."""
        return replace(self, names=(name,), class_ids=np.zeros_like(self.class_ids))

    def inconsistency(self) -> Optional[str]:
        """Say what in the arrays contradicts the class's description, None where nothing does."""
        pictures, rows, points = len(self.shots), len(self.class_ids), len(self.points_px)
        expected: list[tuple[str, npt.NDArray[Any], type, tuple[int, ...]]] = [
            ("sizes_hw", self.sizes_hw, np.int32, (pictures, 2)),
            ("starts", self.starts, np.int64, (pictures + 1,)),
            ("class_ids", self.class_ids, np.int32, (rows,)),
            ("boxes_px", self.boxes_px, np.float32, (rows, 4)),
            ("points_px", self.points_px, np.float32, (points, 2)),
            ("point_starts", self.point_starts, np.int64, (rows + 1,)),
        ]
        for name, values, dtype, shape in expected:
            if values.dtype != dtype or values.shape != shape:
                return f"{name} is {values.dtype} of shape {values.shape}, need {dtype.__name__} of {shape}"
        for name, starts, end in (("starts", self.starts, rows), ("point_starts", self.point_starts, points)):
            if starts[0] != 0 or starts[-1] != end or (np.diff(starts) < 0).any():
                return f"{name} doesn't rise from 0 to {end}"
        if (self.sizes_hw < 1).any():
            return "a picture has no pixels"
        if ((self.class_ids < 0) | (self.class_ids >= len(self.names))).any():
            return f"a class id is not in 0 to {len(self.names) - 1}"
        return self._stray()

    def _stray(self) -> Optional[str]:
        """Say which coordinates lie outside of their picture; NaN does."""
        ends = self.sizes_hw[:, ::-1].astype(np.float32)  # (N, 2) width, height
        row_ends = np.repeat(ends, np.diff(self.starts), axis=0)  # (M, 2)
        first, last = self.boxes_px[:, :2], self.boxes_px[:, 2:]
        if not ((first >= 0) & (first < last) & (last <= row_ends)).all():
            return "a box is empty or leaves its picture"
        point_ends = np.repeat(row_ends, np.diff(self.point_starts), axis=0)  # (P, 2)
        if not ((self.points_px >= 0) & (self.points_px <= point_ends)).all():
            return "a polygon leaves its picture"
        return None


class TableBuilder:
    """Collects pictures and their labels into the arrays of a LabelTable."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._shots: list[Shot] = []
        self._sizes_hw, self._starts, self._class_ids = array("i"), array("q", [0]), array("i")
        self._boxes_px, self._points_px, self._point_starts = array("f"), array("f"), array("q", [0])

    def add(self, path: Path, image_hw: tuple[int, int], labels: Labels) -> list[Fault]:
        """Take one picture; boxes of crowds stay out, and so do those that vanish in float32. Gives these faults."""
        boxes = labels.boxes_px.astype(np.float32)
        is_empty = ~(boxes[:, :2] < boxes[:, 2:]).all(axis=1)
        kept = ~(labels.is_crowd | is_empty)
        self._shots.append(Shot(len(self._shots), path))
        self._sizes_hw.extend(image_hw)
        self._class_ids.frombytes(labels.class_ids[kept].astype(np.int32).tobytes())
        self._boxes_px.frombytes(boxes[kept].tobytes())
        self._starts.append(len(self._class_ids))
        for row in np.flatnonzero(kept):
            polygon = labels.polygons_px[row]
            if polygon is not None:
                self._points_px.frombytes(polygon.astype(np.float32).tobytes())
            self._point_starts.append(len(self._points_px) // 2)
        left_out = ((CROWD, labels.is_crowd), (EMPTY, is_empty & ~labels.is_crowd))
        return [Fault(kind, int(which.sum()), str(path)) for kind, which in left_out if which.any()]

    def table(self) -> LabelTable:
        """Give what was collected; nothing can be added afterwards."""
        return LabelTable(
            self._names,
            tuple(self._shots),
            np.frombuffer(self._sizes_hw, np.int32).reshape(-1, 2),
            np.frombuffer(self._starts, np.int64),
            np.frombuffer(self._class_ids, np.int32),
            np.frombuffer(self._boxes_px, np.float32).reshape(-1, 4),
            np.frombuffer(self._points_px, np.float32).reshape(-1, 2),
            np.frombuffer(self._point_starts, np.int64),
        )
