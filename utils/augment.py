"""YOLOv5's training augmentations: pure functions of pixels, labelled objects and a random generator. No torch here.

Pixels are (H, W, 3) uint8 RGB. Coordinates are input px, continuous: pixel (0, 0) covers 0..1 on both axes, so that
boxes and pixels move alike. What is drawn, and in which order, is facts/yolov5.md, Data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from utils.hyp import Hyp
from utils.letterbox import GREY

Canvas = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Hw = tuple[int, int]

POLYGON_POINTS = 1000  # that stand for a polygon's outline when it is moved
SMALLEST_SIDE_PX = 2.0
SMALLEST_SHARE = 0.1  # of a box's area that must be left
SMALLEST_SHARE_OF_POLYGON = 0.01
LARGEST_ASPECT = 100.0
MIXUP_BETA = 32.0
MOST_COVERED = 0.3  # of a box, by an object that is pasted


@dataclass(frozen=True)
class Objects:
    """The labelled objects of one canvas.

    class_ids: (n,) int64. boxes: (n, 4) float64 xyxy, input px. points: (P, 2) float64, input px, the corners of
    polygons; row r has the points starts[r]:starts[r + 1], none where it is only a box.
    """

    class_ids: IntArray
    boxes: FloatArray
    points: FloatArray
    starts: IntArray

    def __len__(self) -> int:
        return len(self.class_ids)

    def polygon(self, row: int) -> FloatArray:
        """Give a row's polygon, (K, 2); K = 0 where it is only a box."""
        return self.points[self.starts[row] : self.starts[row + 1]]

    def stretched(self, factor_xy: tuple[float, float], shift_xy: tuple[float, float]) -> Objects:
        """Give the objects with each coordinate times its factor, plus its shift."""
        factor, shift = np.array(factor_xy * 2), np.array(shift_xy * 2)  # (4,) x, y, x, y
        return Objects(self.class_ids, self.boxes * factor + shift, self.points * factor[:2] + shift[:2], self.starts)

    def clipped(self, left: float, top: float, right: float, bottom: float) -> Objects:
        """Cut all off at a rectangle; what lies outside of it is left out."""
        low, high = [left, top], [right, bottom]
        boxes = np.clip(self.boxes, low * 2, high * 2)
        whole = Objects(self.class_ids, boxes, np.clip(self.points, low, high), self.starts)
        return whole.taken(np.asarray((boxes[:, :2] < boxes[:, 2:]).all(axis=1)))

    def taken(self, kept: BoolArray) -> Objects:
        """Give the rows where `kept`, (n,), is true."""
        if kept.all():
            return self
        counts = np.diff(self.starts)
        points = self.points[np.repeat(kept, counts)]
        return Objects(self.class_ids[kept], self.boxes[kept], points, _starts_of(counts[kept]))

    def without_polygons(self) -> Objects:
        """Give the boxes alone."""
        return boxes_only(self.class_ids, self.boxes)


def boxes_only(class_ids: IntArray, boxes: FloatArray) -> Objects:
    """Make objects without polygons: (n,) ids, (n, 4) xyxy."""
    return Objects(class_ids, boxes, np.empty((0, 2)), np.zeros(len(class_ids) + 1, np.int64))


def join(parts: Sequence[Objects]) -> Objects:
    """Put the objects of several canvases together."""
    if not parts:
        return boxes_only(np.empty(0, np.int64), np.empty((0, 4)))
    return Objects(
        np.concatenate([part.class_ids for part in parts]),
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.points for part in parts]),
        _starts_of(np.concatenate([np.diff(part.starts) for part in parts])),
    )


def _starts_of(counts: IntArray) -> IntArray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


# ---- warp ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Warp:
    """A perspective map from one canvas to another.

    matrix: (3, 3) float64 on continuous (x, y, 1). scale: output px per input px, for the rule of kept boxes.
    """

    matrix: FloatArray
    scale: float
    out_hw: Hw

    @property
    def is_upright(self) -> bool:
        """Whether it only enlarges and moves; its window is then one of whole pixels."""
        return not self.matrix[[0, 1, 2, 2], [1, 0, 0, 1]].any()

    def window(self) -> tuple[float, float, float, float]:
        """Give what of the input is seen: the hull (left, top, right, bottom) of the output's corners, input px.

        Where the horizon of a perspective is seen, that is everything.
        """
        height, width = self.out_hw
        corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]])
        seen = corners @ np.linalg.inv(self.matrix).T  # (4, 3)
        if (seen[:, 2] <= 0).any():
            return -math.inf, -math.inf, math.inf, math.inf
        points = seen[:, :2] / seen[:, 2:]
        return (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())


def draw_warp(hyp: Hyp, in_hw: Hw, out_hw: Hw, random: np.random.Generator) -> Warp:
    """Draw a warp: centre, perspective, rotation with scale, shear, translation, in this order.

    One that only enlarges and moves is rounded to whole input px (its window to a whole number of them, so that the
    scale changes by less than half a pixel in a side): it can then be drawn by cutting out and resizing, several times
    faster than pixel by pixel.
    """

    def uniform(middle: float, reach: float) -> float:
        return float(random.uniform(middle - reach, middle + reach))

    persp_x, persp_y = uniform(0, hyp.perspective), uniform(0, hyp.perspective)
    angle, scale = math.radians(uniform(0, hyp.degrees)), max(uniform(1, hyp.scale), 1e-3)
    shear_x, shear_y = (math.tan(math.radians(uniform(0, hyp.shear))) for _ in range(2))
    share_x, share_y = uniform(0.5, hyp.translate), uniform(0.5, hyp.translate)
    (in_height, in_width), (out_height, out_width) = in_hw, out_hw
    if not (hyp.perspective or hyp.degrees or hyp.shear):
        return _upright(in_hw, out_hw, scale, (share_x * out_width, share_y * out_height))
    centre = np.array([[1, 0, -in_width / 2], [0, 1, -in_height / 2], [0, 0, 1]])
    perspective = np.array([[1, 0, 0], [0, 1, 0], [persp_x, persp_y, 1]])
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    rotation = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    shear = np.array([[1, shear_x, 0], [shear_y, 1, 0], [0, 0, 1]])
    translation = np.array([[1, 0, share_x * out_width], [0, 1, share_y * out_height], [0, 0, 1]])
    return Warp(translation @ shear @ rotation @ perspective @ centre, scale, out_hw)


def _upright(in_hw: Hw, out_hw: Hw, scale: float, centre_xy: tuple[float, float]) -> Warp:
    """Give the map that enlarges by about `scale` and puts the input's centre near centre_xy, in whole input px."""
    matrix = np.eye(3)
    for axis in (0, 1):  # x, y
        out_side, in_side = out_hw[1 - axis], in_hw[1 - axis]
        axis_scale = out_side / max(round(out_side / scale), 1)
        first = round(in_side / 2 - centre_xy[axis] / axis_scale)  # of the window
        matrix[axis, axis], matrix[axis, 2] = axis_scale, -first * axis_scale
    return Warp(matrix, scale, out_hw)


def warp_pixels(canvas: Canvas, warp: Warp, out: Canvas, origin_xy: tuple[int, int] = (0, 0)) -> None:
    """Draw the warped canvas over the whole of `out`, bilinear; what is not on the canvas is grey.

    origin_xy: where on the warp's input the canvas's first pixel lies.
    """
    shift = np.array([[1, 0, origin_xy[0]], [0, 1, origin_xy[1]], [0, 0, 1]])
    # OpenCV's coordinates are those of pixel centres, half a pixel off ours.
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    matrix = np.linalg.inv(half) @ warp.matrix @ shift @ half
    size = (out.shape[1], out.shape[0])
    grey = (GREY,) * 3
    if warp.matrix[2, :2].any():
        cv2.warpPerspective(canvas, matrix, size, dst=out, flags=cv2.INTER_LINEAR, borderValue=grey)
    else:
        cv2.warpAffine(canvas, matrix[:2], size, dst=out, flags=cv2.INTER_LINEAR, borderValue=grey)


def warp_objects(objects: Objects, warp: Warp) -> Objects:
    """Move objects with the pixels and keep those of which enough is left; boxes only.

    A box becomes the hull of its moved corners, a polygon that of those of its 1000 points that are still inside.
    """
    if not len(objects):
        return objects.without_polygons()
    height, width = warp.out_hw
    corners = objects.boxes[:, [0, 1, 2, 3, 0, 3, 2, 1]].reshape(-1, 2)
    moved = move_points(warp.matrix, corners).reshape(-1, 4, 2)  # (n, 4 corners, xy)
    boxes = np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)
    has_polygon = np.diff(objects.starts) > 0
    for row in np.flatnonzero(has_polygon).tolist():
        boxes[row] = _hull_inside(move_points(warp.matrix, resample(objects.polygon(row))), warp.out_hw)
    boxes = np.clip(boxes, 0, [width, height, width, height])
    least = np.where(has_polygon, SMALLEST_SHARE_OF_POLYGON, SMALLEST_SHARE)
    kept = is_kept(objects.boxes * warp.scale, boxes, least)
    return boxes_only(objects.class_ids[kept], boxes[kept])


def move_points(matrix: npt.NDArray[np.floating], points: npt.NDArray[np.floating]) -> FloatArray:
    """Map (K, 2) points by a (3, 3) matrix, with the division of a perspective."""
    moved: FloatArray = points @ matrix[:, :2].T + matrix[:, 2]  # (K, 3)
    return moved[:, :2] / moved[:, 2:]


def resample(polygon: FloatArray, count: int = POLYGON_POINTS) -> FloatArray:
    """Give `count` points that follow a closed polygon (K, 2), as many on each of its sides, with both ends."""
    closed = np.concatenate([polygon, polygon[:1]])
    at = np.linspace(0, len(closed) - 1, count)
    known = np.arange(len(closed))
    return np.stack([np.interp(at, known, closed[:, axis]) for axis in (0, 1)], axis=1)


def _hull_inside(points: FloatArray, out_hw: Hw) -> FloatArray:
    """Give the hull (4,) of those points that are on the canvas; without any, an empty box."""
    inside = points[((points >= 0) & (points <= [out_hw[1], out_hw[0]])).all(axis=1)]
    return np.concatenate([inside.min(axis=0), inside.max(axis=0)]) if len(inside) else np.zeros(4)


def is_kept(before: FloatArray, after: FloatArray, least_share: npt.NDArray[np.float64]) -> BoolArray:
    """Tell which boxes (n, 4) are still worth a label: > 2 px, enough of the area `before`, not too long."""
    size_before, size = before[:, 2:] - before[:, :2], after[:, 2:] - after[:, :2]
    shorter, longer = size.min(axis=1), size.max(axis=1)
    share_holds = size.prod(axis=1) >= least_share * size_before.prod(axis=1)
    kept: BoolArray = (shorter > SMALLEST_SIDE_PX) & share_holds & (longer < LARGEST_ASPECT * shorter)
    return kept


# ---- the others ------------------------------------------------------------------------------------------------------


def shift_colours(canvas: Canvas, hyp: Hyp, random: np.random.Generator) -> None:
    """Turn hue and scale saturation and value by one factor each, 1 ± the gain, in place, by lookup tables."""
    gains = np.array([hyp.hsv_h, hyp.hsv_s, hyp.hsv_v])
    if not gains.any():
        return
    hue, saturation, value = (1 + random.uniform(-1, 1, 3) * gains).tolist()
    levels = np.arange(256)
    tables = [levels * hue % 180, np.clip(levels * saturation, 0, 255), np.clip(levels * value, 0, 255)]
    table = np.stack(tables, axis=1).astype(np.uint8).reshape(1, 256, 3)
    hsv = cv2.cvtColor(canvas, cv2.COLOR_RGB2HSV)
    cv2.LUT(hsv, table, dst=hsv)
    cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=canvas)


def flip(canvas: Canvas, objects: Objects, axis: int) -> Objects:
    """Mirror pixels in place and objects, top to bottom (axis 0) or left to right (axis 1); boxes only."""
    cv2.flip(canvas, axis, dst=canvas)
    end = canvas.shape[axis]
    boxes = objects.boxes.copy()
    place = 1 - axis  # of x or y in a box
    boxes[:, [place, place + 2]] = end - objects.boxes[:, [place + 2, place]]
    return boxes_only(objects.class_ids, boxes)


def mix_up(canvas: Canvas, other: Canvas, random: np.random.Generator) -> None:
    """Blend another picture of the same shape in, in place; both pictures' labels hold (arXiv 1710.09412)."""
    share = float(random.beta(MIXUP_BETA, MIXUP_BETA))
    cv2.addWeighted(canvas, share, other, 1 - share, 0, dst=canvas)


def copy_paste(canvas: Canvas, objects: Objects, share: float, random: np.random.Generator) -> Objects:
    """Paste a share of the objects that have polygons once more, mirrored left to right, in place (arXiv 2012.07177).

    One that would cover 0.30 or more of any box is left out. Gives all objects, the pasted ones last.
    """
    outlined = np.flatnonzero(np.diff(objects.starts))
    chosen = random.permutation(outlined)[: round(share * len(outlined))]
    if not len(chosen):
        return objects
    width = canvas.shape[1]
    mask = np.zeros(canvas.shape[:2], np.uint8)
    for row in chosen.tolist():
        left, top, right, bottom = objects.boxes[row].tolist()
        box = np.array([[width - right, top, width - left, bottom]])
        if (covered(objects.boxes, box[0]) < MOST_COVERED).all():
            polygon = objects.polygon(row) * [-1, 1] + [width, 0]
            pasted = Objects(objects.class_ids[[row]], box, polygon, np.array([0, len(polygon)]))
            objects = join([objects, pasted])
            # Of whole pixels, those whose centres are inside.
            cv2.fillPoly(mask, [np.floor(polygon).astype(np.int32)], 1)
    cv2.copyTo(cv2.flip(canvas, 1), mask, canvas)
    return objects


def covered(boxes: FloatArray, by: FloatArray) -> FloatArray:
    """Give the share of each box (n, 4) that the box `by` (4,) covers."""
    overlap = np.minimum(boxes[:, 2:], by[2:]) - np.maximum(boxes[:, :2], by[:2])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    shares: FloatArray = np.clip(overlap, 0, None).prod(axis=1) / np.maximum(area, 1e-9)
    return shares
