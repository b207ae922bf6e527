"""Detections: what was found in one picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Detections:
    """Boxes of one picture, best score first.

    boxes_px: (N, 4) float32 xyxy in the pixels of the picture as it was decoded, unrounded, inside it.
    scores: (N,) float32 in 0..1, falling.
    class_ids: (N,) int64.
    """

    boxes_px: FloatArray
    scores: FloatArray
    class_ids: IntArray

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.boxes_px.shape != (count, 4) or self.class_ids.shape != (count,):
            raise ValueError(
                f"expected {count} boxes of 4 and {count} classes, got shapes "
                f"{self.boxes_px.shape} and {self.class_ids.shape}"
            )

    def __len__(self) -> int:
        return len(self.scores)

    def pick(self, rows: Any) -> Detections:
        """Give the rows that a numpy index or mask names."""
        return Detections(self.boxes_px[rows], self.scores[rows], self.class_ids[rows])

    @staticmethod
    def empty() -> Detections:
        """Give the detections of a picture in which nothing was found."""
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
