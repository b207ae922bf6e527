"""A data set that is drawn: discs, squares, triangles, stars and rings on noise, gradients and stripes.

Small enough to be made in seconds wherever a training is to be shown, and free of anybody's rights. A picture is a
function of (seed, index, size).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable

import cv2
import numpy as np
import numpy.typing as npt
import yaml

from utils.boxes import to_cxcywh
from utils.errors import ConfigError
from utils.files import write_whole
from utils.plots import Picture, write_jpeg

FloatPixels = npt.NDArray[np.float32]  # (H, W) or (H, W, 3)
Window = tuple[slice, slice]  # rows, columns
Contours = tuple[npt.NDArray[np.float64], ...]  # each (K, 2) x, y; what lies in an even number of them is outside

LEAST_SIDE = 64  # px, of a picture
LEAST_LONGER_SIDE = 86  # px, of a data set, whose pictures are up to 3:4
LEAST_BOX_SIDE = 24  # px
RADIUS_SHARES = (0.1, 0.24)  # of the picture's shorter side
LEAST_RADIUS = 16.5  # px; a triangle's box is at least 1.5 of them high and wide
MAX_OBJECTS = 6
EMPTY_SHARE = 0.06
TRIES = 15  # to find an object a place
MAX_COVERED = 0.15  # of an object's pixels, by others that lie above it
LEAST_CONTRAST = 110.0  # between the colours of an object and of what lies below it, as a distance in RGB
SUPERSAMPLING = 4
SPLITS = (("val", 0.15), ("pool", 0.15))  # shares; the rest is train. pool: pictures without labels, to mine in
SHAPES_OF_PICTURES = ((1.0, 1.0), (0.75, 1.0), (1.0, 0.75))  # height, width of the longer side, in turn


def regular(corners: int, radius: float = 1.0) -> npt.NDArray[np.float64]:
    """Give the corners of a regular polygon within a circle, the first one at its top."""
    angles = np.arange(corners) * 2 * np.pi / corners
    return radius * np.stack([np.sin(angles), -np.cos(angles)], axis=1)


def star(points: int, inner: float = 0.45) -> npt.NDArray[np.float64]:
    """Give the corners of a star; inner: how far from its middle it goes in between two points."""
    corners = regular(2 * points)
    corners[1::2] *= inner
    return corners


# Class name -> its outline within a circle of radius 1; the order is the class ids'.
OUTLINES = MappingProxyType[str, Callable[[], Contours]](
    {
        "disc": lambda: (regular(72),),
        "square": lambda: (regular(4),),
        "triangle": lambda: (regular(3),),
        "star": lambda: (star(5),),
        "ring": lambda: (regular(72), regular(72, 0.55)),
    }
)
NAMES = tuple(OUTLINES)


@dataclass(frozen=True)
class Scenery:
    """What a data set's pictures are drawn of. class_shares: how often each class is drawn; empty: all alike."""

    outlines: Mapping[str, Callable[[], Contours]]
    class_shares: tuple[float, ...] = ()
    empty_share: float = EMPTY_SHARE
    radius_shares: tuple[float, float] = RADIUS_SHARES
    least_radius: float = LEAST_RADIUS
    least_box_side: int = LEAST_BOX_SIDE

    def draw_classes(self, rng: np.random.Generator, count: int) -> list[int]:
        """Draw the classes of a picture's objects."""
        classes = len(self.outlines)
        if not self.class_shares:
            return list(map(int, rng.integers(0, classes, count)))
        return list(map(int, rng.choice(classes, count, p=np.divide(self.class_shares, sum(self.class_shares)))))


SHAPES = Scenery(OUTLINES)


@dataclass(frozen=True, eq=False)
class Drawing:
    """A picture and what is drawn on it."""

    picture: Picture  # (H, W, 3) uint8 RGB
    owners: npt.NDArray[np.int16]  # (H, W): which object a pixel belongs to by at least half, -1 for the ground
    class_ids: npt.NDArray[np.int64]  # (N,)
    boxes_px: npt.NDArray[np.float64]  # (N, 4) xyxy, whole numbers: the hull of the object's pixels


def draw_picture(seed: int, index: int, side_hw: tuple[int, int], scenery: Scenery = SHAPES) -> Drawing:
    """Draw a picture of 0 to 6 objects. seed, index: 0 or more. Raises ConfigError for sides below 64 px."""
    if min(side_hw) < LEAST_SIDE:
        raise ConfigError(f"side: got {min(side_hw)}, need at least {LEAST_SIDE} px")
    rng = np.random.default_rng([seed, index])
    canvas = _draw_ground(rng, side_hw)
    owners = np.full(side_hw, -1, np.int16)
    class_ids: list[int] = []
    count = 0 if rng.random() < scenery.empty_share else int(rng.integers(1, MAX_OBJECTS + 1))
    outlines = tuple(scenery.outlines.values())
    for class_id in scenery.draw_classes(rng, count):
        for _ in range(TRIES):
            window, cover = _draw_cover(rng, outlines[class_id](), scenery, side_hw)
            is_own = np.zeros(side_hw, np.bool_)
            is_own[window] = cover >= 0.5
            if _fits(is_own, owners, scenery.least_box_side):
                _paint(rng, canvas[window], cover)
                owners[is_own] = len(class_ids)
                class_ids.append(class_id)
                break
    boxes_px = np.array([hull_px(owners == place) for place in range(len(class_ids))], np.float64).reshape(-1, 4)
    picture = np.clip(np.round(canvas), 0, 255).astype(np.uint8)
    return Drawing(picture, owners, np.array(class_ids, np.int64), boxes_px)


def hull_px(is_own: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Give the corners (x1, y1, x2, y2) of the smallest box around the true pixels of (H, W); of none all 0."""
    columns, rows = np.flatnonzero(is_own.any(axis=0)), np.flatnonzero(is_own.any(axis=1))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _draw_ground(rng: np.random.Generator, side_hw: tuple[int, int]) -> FloatPixels:
    """Draw two colours that pass into one another as clouds, as a gradient or as stripes, with some grain."""
    height, width = side_hw
    angle, kind = rng.uniform(0, 2 * np.pi), rng.integers(3)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    along = (x * np.cos(angle) + y * np.sin(angle)) / max(side_hw)  # (H, W)
    if kind == 0:
        cells = rng.random((int(rng.integers(3, 9)), int(rng.integers(3, 9))), np.float32)
        share = np.clip(cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)
    elif kind == 1:
        share = (along - along.min()) / np.ptp(along)
    else:
        share = np.clip(0.5 + 2 * np.sin(along * 2 * np.pi * rng.uniform(3, 10)), 0, 1)
    first, second = rng.uniform(30, 225, (2, 3)).astype(np.float32)
    difference = (second - first) * np.float32(0.6)  # more, and stripes would hide the objects
    grain = rng.standard_normal((height, width, 1), np.float32) * np.float32(rng.uniform(2, 9))
    ground: FloatPixels = first + share.astype(np.float32)[..., None] * difference + grain  # (H, W, 3)
    return ground


def _draw_cover(
    rng: np.random.Generator, outline: Contours, scenery: Scenery, side_hw: tuple[int, int]
) -> tuple[Window, FloatPixels]:
    """Draw a shape of any size, place and turn: a window of the picture, and the share of each pixel that it covers."""
    least, most = (max(scenery.least_radius, share * min(side_hw)) for share in scenery.radius_shares)
    radius, angle = rng.uniform(least, most), rng.uniform(0, 2 * np.pi)
    centre = rng.uniform(0.6 * radius, np.array(side_hw[::-1]) - 0.6 * radius)  # x, y: up to a fifth may be cut off
    left, top = np.maximum(np.floor(centre - radius), 0).astype(int).tolist()
    right, bottom = np.minimum(np.ceil(centre + radius), side_hw[::-1]).astype(int).tolist()
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    shift = centre - (left, top)
    corners = [(contour @ turn * radius + shift) * SUPERSAMPLING for contour in outline]
    fine = np.zeros(((bottom - top) * SUPERSAMPLING, (right - left) * SUPERSAMPLING), np.uint8)
    cv2.fillPoly(fine, [np.round(contour - 0.5).astype(np.int32) for contour in corners], 255)
    cover = cv2.resize(fine, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    return (slice(top, bottom), slice(left, right)), cover.astype(np.float32) / 255


def _fits(is_own: npt.NDArray[np.bool_], owners: npt.NDArray[np.int16], least_box_side: int) -> bool:
    """Tell whether an object is large enough, and leaves enough of each of the others, and all of their hulls."""
    x1, y1, x2, y2 = hull_px(is_own)
    if min(x2 - x1, y2 - y1) < least_box_side:
        return False
    for place in set(owners[is_own].tolist()) - {-1}:
        other = owners == place
        left = other & ~is_own
        if left.sum() < (1 - MAX_COVERED) * other.sum() or hull_px(left) != hull_px(other):
            return False
    return True


def _paint(rng: np.random.Generator, canvas: FloatPixels, cover: FloatPixels) -> None:
    """Paint an object onto the canvas, in place, in a colour that stands out, a little darker to one side."""
    below = np.average(canvas.reshape(-1, 3), axis=0, weights=cover.ravel())
    colours = rng.uniform(10, 245, (20, 3))
    contrasts = np.linalg.norm(colours - below, axis=1)
    chosen = int(np.argmax(contrasts >= LEAST_CONTRAST)) if contrasts.max() >= LEAST_CONTRAST else contrasts.argmax()
    shade = np.linspace(rng.uniform(0.85, 1), 1, canvas.shape[1], dtype=np.float32)[None, :, None]  # (1, W, 1)
    grain = rng.normal(0, 3, (*canvas.shape[:2], 1))
    canvas += cover[..., None] * (colours[chosen] * shade + grain - canvas)


# ---- a data set of them ----------------------------------------------------------------------------------------------


def write_shapes(folder: Path, count: int, seed: int = 0, side: int = 320) -> Path:
    """Write a data set in YOLO's form into a new or empty folder, and give its data.yaml.

    images/train and images/val with labels beside them, images/pool without; about 6 % of the pictures are empty. side:
    px of the longer one. The same arguments give the same bytes. Raises ConfigError for a folder that holds something,
    a count below 3 and a side below 86, before anything is written.
    """
    if count < len(SPLITS) + 1:
        raise ConfigError(f"count: got {count}, need at least {len(SPLITS) + 1} pictures, one for each split")
    if side < LEAST_LONGER_SIDE:
        raise ConfigError(f"side: got {side}, need at least {LEAST_LONGER_SIDE} px for the longer one")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: holds something; name a new folder, or empty it")
    for index, split in enumerate(_splits(count)):
        shares = SHAPES_OF_PICTURES[index % len(SHAPES_OF_PICTURES)]
        drawing = draw_picture(seed, index, (round(shares[0] * side), round(shares[1] * side)))
        write_jpeg(folder / "images" / split / f"{index:05d}.jpg", drawing.picture)
        if split != "pool":
            write_whole(folder / "labels" / split / f"{index:05d}.txt", label_text(drawing).encode())
    content: dict[str, Any] = {"train": "images/train", "val": "images/val", "nc": len(NAMES), "names": [*NAMES]}
    write_whole(folder / "data.yaml", yaml.safe_dump(content, sort_keys=False).encode())
    return folder / "data.yaml"


def _splits(count: int) -> Iterator[str]:
    """Give the split of each of the pictures: those of train first."""
    parts = [(split, max(int(share * count), 1)) for split, share in SPLITS]
    yield from ["train"] * (count - sum(size for _, size in parts))
    for split, size in parts:
        yield from [split] * size


def label_text(drawing: Drawing) -> str:
    """Give the lines of a label file: class, cx, cy, w, h as shares of the picture."""
    height, width = drawing.picture.shape[:2]
    rows = to_cxcywh(drawing.boxes_px) / [width, height, width, height]
    lines = [[str(class_id), *(f"{share:.6f}" for share in row)] for class_id, row in zip(drawing.class_ids, rows)]
    return "".join(" ".join(line) + "\n" for line in lines)
