"""Rectangles: which canvas each picture of a validation lies on, and the frame in which boxes are compared there.

YOLOv5's validation shows pictures of like shape together on a canvas no taller or wider than they need, and resizes
and pads by its own rules (facts/yolov5.md, Validation); detection's letterboxes are in utils/letterbox.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from utils.letterbox import BoxArray, Letterbox, place_on

VALIDATION_BORDER = 0.5  # in strides: what YOLOv5's validation adds to a canvas before it is rounded up


def plan_canvases(
    sizes_hw: Sequence[tuple[int, int]], batch_size: int, side: int, stride: int, border: float = VALIDATION_BORDER
) -> list[tuple[int, int]]:
    """Give each picture's canvas (height, width), one shape a batch.

    sizes_hw: the pictures' (height, width), sorted by height / width. side: the longer side, in input px. border: in
    strides; 0 for training with rectangles.
    """
    canvases: list[tuple[int, int]] = []
    for start in range(0, len(sizes_hw), batch_size):
        ratios = [height / width for height, width in sizes_hw[start : start + batch_size]]
        height, width = 1.0, 1.0  # of the longer side
        if max(ratios) < 1:
            height = max(ratios)
        elif min(ratios) > 1:
            width = 1 / min(ratios)
        shape = tuple(math.ceil(share * side / stride + border) * stride for share in (height, width))
        canvases += [(shape[0], shape[1])] * len(ratios)
    return canvases


def letterbox_validation(image_hw: tuple[int, int], side: int, canvas_hw: tuple[int, int]) -> Letterbox:
    """Fit a picture's longer side to `side`, rounded up, and centre it on a canvas that holds it."""
    longer = max(image_hw)
    # In whole numbers: YOLOv5's floats lift a product above the whole number that it is, as 533 x (640 / 533).
    height, width = (-(-length * side // longer) for length in image_hw)
    return place_on(canvas_hw, image_hw, (height, width), side / longer, shrink_by_area=True)


def labels_to_input(boxes_px: BoxArray, letterbox: Letterbox) -> BoxArray:
    """Map (N, 4) labels from picture pixels to where YOLOv5's validation looks for them, in input pixels.

    It stretches them to the resized picture and adds the exact half of the border, of which whole pixels were drawn.
    """
    stretch = np.array(letterbox.resized_hw[::-1]) / np.array(letterbox.image_hw[::-1])  # (2,) x, y
    stretched: BoxArray = boxes_px * np.tile(stretch, 2) + np.tile(_half_border(letterbox), 2)
    return stretched


def clip_to_picture(boxes_letterbox: BoxArray, letterbox: Letterbox) -> BoxArray:
    """Cut (N, 4) boxes in input pixels off at the picture's edges, as they are in the frame of `labels_to_input`."""
    first = _half_border(letterbox)  # (2,) x, y
    last = first + letterbox.resized_hw[::-1]
    return np.clip(boxes_letterbox, np.tile(first, 2), np.tile(last, 2))


def _half_border(letterbox: Letterbox) -> BoxArray:
    """Give half of what the canvas has more than the picture: (2,) x, y."""
    half: BoxArray = (np.array(letterbox.canvas_hw[::-1]) - np.array(letterbox.resized_hw[::-1])) / 2
    return half
