"""Box algebra on numpy arrays.

Boxes are (N, 4) of one floating dtype, corners (x1, y1, x2, y2) unless a name ends in `_cxcywh`, in any frame: what
comes out is in the frame and dtype of what went in. Coordinates are finite and below 1e6, so that float32 holds areas.
Nothing is changed in place.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BoxArray = npt.NDArray[np.floating]


def to_cxcywh(boxes: BoxArray) -> BoxArray:
    """Give centres and sizes of (N, 4) corner boxes."""
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


def to_xyxy(boxes_cxcywh: BoxArray) -> BoxArray:
    """Give the corners of (N, 4) boxes (centre x, centre y, width, height)."""
    half_sizes = boxes_cxcywh[:, 2:] / 2
    return np.concatenate([boxes_cxcywh[:, :2] - half_sizes, boxes_cxcywh[:, :2] + half_sizes], axis=1)


def clip(boxes: BoxArray, frame_hw: tuple[float, float]) -> BoxArray:
    """Cut (N, 4) boxes off at a frame of (height, width); one that lies wholly outside becomes empty."""
    height, width = frame_hw
    return np.clip(boxes, 0, np.array([width, height] * 2, dtype=boxes.dtype))


def areas(boxes: BoxArray) -> BoxArray:
    """Give (N,) areas; a box without width or height, or turned inside out, has 0."""
    return np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)


def ious(boxes: BoxArray, others: BoxArray) -> BoxArray:
    """Give the (N, M) intersection over union of each of N boxes with each of M others, in 0..1.

    An empty box overlaps nothing, not even itself: 0.
    """
    widths = np.minimum.outer(boxes[:, 2], others[:, 2]) - np.maximum.outer(boxes[:, 0], others[:, 0])  # (N, M)
    heights = np.minimum.outer(boxes[:, 3], others[:, 3]) - np.maximum.outer(boxes[:, 1], others[:, 1])  # (N, M)
    overlaps = np.maximum(widths, 0) * np.maximum(heights, 0)  # (N, M)
    unions = np.add.outer(areas(boxes), areas(others)) - overlaps  # (N, M)
    # A union never is 0 where there is an overlap. Rounding of the union may lift a quotient above 1 by one bit.
    shares: BoxArray = np.divide(overlaps, unions, out=np.zeros_like(overlaps), where=overlaps > 0)
    np.minimum(shares, 1, out=shares)
    return shares
