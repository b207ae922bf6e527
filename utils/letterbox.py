"""Letterbox: the map between a picture's pixels and the model's input pixels, and the drawing of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

BoxArray = npt.NDArray[np.floating]
GREY = 114  # YOLOv5's border
LEAST_STRIDE = 32  # of what an input's sides are multiples of: a network without output there may yet shrink that far


def input_stride(strides: Sequence[int]) -> int:
    """Give what the sides of an input must be multiples of, in px. strides: of a network's outputs."""
    return max(LEAST_STRIDE, *strides)


@dataclass(frozen=True)
class Letterbox:
    """Where one picture lies on the model's input canvas.

    Sizes are (height, width). The padding is what is drawn, in whole pixels, and is the same both ways
    (YOLOv5 draws whole pixels but takes off half ones: boxes may differ from its by half an input pixel).
    """

    image_hw: tuple[int, int]  # the picture, at its full size
    resized_hw: tuple[int, int]  # the picture on the canvas
    canvas_hw: tuple[int, int]  # the model's input
    scale: float  # input px per picture px, the same on both axes
    pad_left: int
    pad_top: int
    shrink_by_area: bool = False  # validation's loader averages when it shrinks

    def to_letterbox(self, boxes_px: BoxArray) -> BoxArray:
        """Map (N, 4) xyxy boxes from picture pixels to input pixels."""
        return boxes_px * self.scale + self._pad(boxes_px)

    def to_px(self, boxes_letterbox: BoxArray) -> BoxArray:
        """Map (N, 4) xyxy boxes from input pixels to picture pixels, clipped to the picture."""
        boxes_px = (boxes_letterbox - self._pad(boxes_letterbox)) / self.scale
        height, width = self.image_hw
        np.clip(boxes_px[:, 0::2], 0, width, out=boxes_px[:, 0::2])
        np.clip(boxes_px[:, 1::2], 0, height, out=boxes_px[:, 1::2])
        return boxes_px

    def _pad(self, like: BoxArray) -> BoxArray:
        return np.array([self.pad_left, self.pad_top] * 2, dtype=like.dtype)  # (4,)

    def draw(self, rgb: npt.NDArray[np.uint8], canvas: npt.NDArray[np.uint8]) -> None:
        """Draw the picture and its grey border over the whole of `canvas`.

        rgb: (h, w, 3) uint8, the picture at its full size or decoded smaller.
        canvas: (canvas height, canvas width, 3) uint8, written in place.
        """
        height, width = self.resized_hw
        top, left = self.pad_top, self.pad_left
        canvas[:top] = GREY
        canvas[top + height :] = GREY
        canvas[top : top + height, :left] = GREY
        canvas[top : top + height, left + width :] = GREY
        window = canvas[top : top + height, left : left + width]
        if rgb.shape[:2] == (height, width):
            window[:] = rgb
            return
        shrinks = self.shrink_by_area and self.scale < 1
        cv2.resize(rgb, (width, height), dst=window, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def place_on(
    canvas_hw: tuple[int, int],
    image_hw: tuple[int, int],
    resized_hw: tuple[int, int],
    scale: float,
    shrink_by_area: bool = False,
) -> Letterbox:
    """Centre a resized picture on a canvas; of an odd border the smaller half goes left and on top."""
    pad_top = round((canvas_hw[0] - resized_hw[0]) / 2 - 0.1)
    pad_left = round((canvas_hw[1] - resized_hw[1]) / 2 - 0.1)
    return Letterbox(image_hw, resized_hw, canvas_hw, scale, pad_left, pad_top, shrink_by_area)


def letterbox_square(image_hw: tuple[int, int], side: int, stride: int) -> Letterbox:
    """Fit a picture onto the whole `side` x `side` square, enlarging small ones."""
    return letterbox_onto((side, side), image_hw)


def letterbox_onto(canvas_hw: tuple[int, int], image_hw: tuple[int, int]) -> Letterbox:
    """Fit a picture onto a whole canvas of any shape, enlarging small ones."""
    scale, resized_hw = _fit(image_hw, canvas_hw)
    return place_on(canvas_hw, image_hw, resized_hw, scale)


def letterbox_minimal(image_hw: tuple[int, int], side: int, stride: int) -> Letterbox:
    """Fit a picture into `side` x `side` with no more border than the stride asks for."""
    scale, resized_hw = _fit(image_hw, (side, side))
    canvas_hw = tuple(math.ceil(length / stride) * stride for length in resized_hw)
    return place_on((canvas_hw[0], canvas_hw[1]), image_hw, resized_hw, scale)


def _fit(image_hw: tuple[int, int], side_hw: tuple[int, int]) -> tuple[float, tuple[int, int]]:
    height, width = image_hw
    scale = min(side_hw[0] / height, side_hw[1] / width)
    # A picture 1 px high and 1000 px wide still needs one row.
    return scale, (max(round(height * scale), 1), max(round(width * scale), 1))


LETTERBOXES = {"square": letterbox_square, "minimal": letterbox_minimal}
