"""LabelTable: all labels of a data set in a few flat arrays, which threads share and which don't grow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from utils.batches import Shot
from utils.labelled import LabelledSet
from utils.labels import Labels


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
        for array in (self.sizes_hw, self.starts, self.class_ids, self.boxes_px, self.points_px, self.point_starts):
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.shots)

    def rows_of(self, index: int) -> slice:
        """Give the rows of a picture."""
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    def polygon(self, row: int) -> npt.NDArray[np.float32]:
        """Give a row's polygon, (K, 2) px; K = 0 where it is only a box."""
        return self.points_px[self.point_starts[row] : self.point_starts[row + 1]]

    def labelled_set(self) -> LabelledSet:
        """Give the same as a set to validate on; its labels come from this table, not from files."""

        def labels_of(shot: Shot, image_hw: tuple[int, int]) -> Labels:
            rows = self.rows_of(shot.index)
            count = rows.stop - rows.start
            return Labels(
                self.class_ids[rows].astype(np.int64),
                self.boxes_px[rows].astype(np.float64),
                np.zeros(count, np.bool_),
                (None,) * count,
            )

        return LabelledSet(self.names, self.shots, labels_of)
