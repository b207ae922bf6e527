"""cald's changed copies of a picture, and where its boxes lie in each of them (SPEC 6; facts: mining, CALD).

Every copy is a function of (rgb, boxes_px, random generator) -> (rgb, boxes_px): (h, w, 3) uint8 and (N, 4) fp64 xyxy,
in the pixels of the picture and of the copy. Nothing is changed in place; whatever a copy adds is black. Boxes may
reach beyond the copy, nothing clips them. Only `cut_out` draws random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Callable

import cv2
import numpy as np
import numpy.typing as npt

from utils.boxes import areas

Pixels = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.float64]
Copy = Callable[[Pixels, Boxes, np.random.Generator], tuple[Pixels, Boxes]]

SMALLER = 0.8
DEGREES = 5.0  # counter-clockwise, as the picture is seen
MOST_CANVAS_PX = 256_000_000  # a long thin picture, turned, would need far more than its own memory
MOST_LENGTH_PX = 32_000  # of what is turned and of its canvas: OpenCV 4 refuses 32767 and more

CUTS, TRIES = 2, 50
LEAST_SIDE, MOST_SIDE = 0.05, 0.2  # of a cut-out, as shares of the picture's
LEAST_COVERED, MOST_COVERED = 0.1, 0.4  # share of the box that a cut-out covers most


def flip(rgb: Pixels, boxes_px: Boxes, random: np.random.Generator) -> tuple[Pixels, Boxes]:
    """Mirror left and right."""
    mirrored = boxes_px.copy()
    mirrored[:, [0, 2]] = rgb.shape[1] - boxes_px[:, [2, 0]]
    return cv2.flip(rgb, 1), mirrored


def cut_out(rgb: Pixels, boxes_px: Boxes, random: np.random.Generator) -> tuple[Pixels, Boxes]:
    """Blacken up to two rectangles, each of which hides a part of a box but not most of one.

    The picture itself, not a copy of it, where no try finds a place.
    """
    height, width = rgb.shape[:2]
    cuts: list[tuple[int, int, int, int]] = []
    for _ in range(TRIES):
        cut_h, cut_w = (max(int(random.uniform(LEAST_SIDE, MOST_SIDE) * side), 1) for side in (height, width))
        left, top = int(random.integers(width - cut_w + 1)), int(random.integers(height - cut_h + 1))
        cut = (left, top, left + cut_w, top + cut_h)
        if LEAST_COVERED <= largest_share_covered(boxes_px, cut) <= MOST_COVERED:
            cuts.append(cut)
            if len(cuts) == CUTS:
                break
    if not cuts:
        return rgb, boxes_px.copy()
    copy = rgb.copy()
    for left, top, right, bottom in cuts:
        copy[top:bottom, left:right] = 0
    return copy, boxes_px.copy()


def largest_share_covered(boxes_px: Boxes, cut_px: tuple[int, int, int, int]) -> float:
    """Give the largest share of any box's area that a rectangle covers; of no box, and of empty ones, 0."""
    corners = np.concatenate(
        [np.maximum(boxes_px[:, :2], cut_px[:2]), np.minimum(boxes_px[:, 2:], cut_px[2:])], axis=1
    )  # (N, 4)
    covered, whole = areas(corners), areas(boxes_px)
    shares = np.divide(covered, whole, out=np.zeros_like(covered), where=whole > 0)
    return float(shares.max(initial=0))


def shrink(rgb: Pixels, boxes_px: Boxes, random: np.random.Generator) -> tuple[Pixels, Boxes]:
    """Shrink to 0.8 in the top left corner of a canvas of the old size; a letterbox would undo a plain resize."""
    height, width = rgb.shape[:2]
    small_h, small_w = max(int(SMALLER * height), 1), max(int(SMALLER * width), 1)
    copy = np.zeros_like(rgb)
    copy[:small_h, :small_w] = cv2.resize(rgb, (small_w, small_h), interpolation=cv2.INTER_LINEAR)
    return copy, boxes_px * SMALLER


def turn(rgb: Pixels, boxes_px: Boxes, random: np.random.Generator) -> tuple[Pixels, Boxes]:
    """Turn on a canvas that grows to hold all of the picture; boxes are those around the turned corners.

    A picture for which that canvas would be too large is made smaller first, with its boxes.
    """
    width, height = turned_size(rgb.shape[1], rgb.shape[0])
    longest = max(width, height, *rgb.shape[:2])
    rgb, boxes_px = reduce(rgb, boxes_px, min(math.sqrt(MOST_CANVAS_PX / (width * height)), MOST_LENGTH_PX / longest))
    width, height = turned_size(rgb.shape[1], rgb.shape[0])
    matrix = turning((rgb.shape[1] / 2, rgb.shape[0] / 2), (width / 2, height / 2), 1.0)
    # OpenCV's coordinates are those of pixels' centres; a box's corners lie on pixels' edges, half a pixel off.
    of_centres = matrix.copy()
    of_centres[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    return warp(rgb, of_centres, (width, height)), turned_boxes(boxes_px, matrix)


def turned_size(width: int, height: int) -> tuple[int, int]:
    """Give the width and height of the canvas that holds a turned picture."""
    sin, cos = math.sin(math.radians(DEGREES)), math.cos(math.radians(DEGREES))
    return math.ceil(width * cos + height * sin), math.ceil(width * sin + height * cos)


def reduce(rgb: Pixels, boxes_px: Boxes, share: float) -> tuple[Pixels, Boxes]:
    """Make a picture's sides smaller, to a share of them; of 1 and more it stays as it is."""
    if share >= 1:
        return rgb, boxes_px
    height, width = rgb.shape[:2]
    small_h, small_w = max(int(share * height), 1), max(int(share * width), 1)
    small = cv2.resize(rgb, (small_w, small_h), interpolation=cv2.INTER_AREA)
    return small, boxes_px * np.array([small_w / width, small_h / height] * 2)


def turning(centre: tuple[float, float], target: tuple[float, float], scale: float) -> npt.NDArray[np.float64]:
    """Give the (2, 3) matrix that turns about a centre and brings that to a target, all (x, y)."""
    sin, cos = scale * math.sin(math.radians(DEGREES)), scale * math.cos(math.radians(DEGREES))
    linear = np.array([[cos, sin], [-sin, cos]])  # y points down
    return np.concatenate([linear, (np.array(target) - linear @ centre)[:, None]], axis=1)


def turns_in_steps() -> bool:
    """Say whether this OpenCV takes the places of a turned picture to 1/32 px, as 4 does; 5 draws them as they are."""
    return int(cv2.__version__.split(".", 1)[0]) < 5


def warp(rgb: Pixels, matrix: npt.NDArray[np.float64], size: tuple[int, int]) -> Pixels:
    """Draw a picture through a matrix of pixels' centres onto a black canvas of (width, height)."""
    warped: Any = cv2.warpAffine(rgb, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return np.asarray(warped, np.uint8)


def turned_boxes(boxes_px: Boxes, matrix: npt.NDArray[np.float64]) -> Boxes:
    """Give the boxes around the four corners of each box, taken through a matrix."""
    corners = boxes_px[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)  # (N, 4, 2)
    moved = corners @ matrix[:, :2].T + matrix[:, 2]  # (N, 4, 2)
    return np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)


# ---- as the original executor makes them (golden/README.md), to compare with -----------------------------------------


def shrink_to_whole_px(rgb: Pixels, boxes_px: Boxes, random: np.random.Generator) -> tuple[Pixels, Boxes]:
    """Shrink as `shrink` does; what lies behind the point of a corner is cut off."""
    copy, boxes = shrink(rgb, boxes_px, random)
    return copy, np.trunc(boxes)


def turn_in_place(rgb: Pixels, boxes_px: Boxes, random: np.random.Generator) -> tuple[Pixels, Boxes]:
    """Turn on a canvas of the old size, an upright picture scaled by w / h as well; corners lose their fraction.

    A picture that is too long is made smaller first, with its boxes.
    """
    rgb, boxes_px = reduce(rgb, boxes_px, MOST_LENGTH_PX / max(rgb.shape[:2]))
    height, width = rgb.shape[:2]
    centre = (width / 2, height / 2)  # for pixels' centres and for corners alike: the half pixel is the original's
    matrix = turning(centre, centre, min(width / height, 1.0))
    return warp(rgb, matrix, (width, height)), np.trunc(turned_boxes(boxes_px, matrix))


COPIES: Mapping[str, Copy] = MappingProxyType({"flip": flip, "cutout": cut_out, "resize": shrink, "rotate": turn})
ORIGINAL_COPIES: Mapping[str, Copy] = MappingProxyType(
    {**COPIES, "resize": shrink_to_whole_px, "rotate": turn_in_place}
)
