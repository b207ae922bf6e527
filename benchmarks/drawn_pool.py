"""The drawn world of the experiment on mining: a pool in which some classes are rare, and a test in which none is.

Eight classes; two pairs look alike; a quarter of the pictures is empty, a fifth shows another one's scene once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import cv2
import numpy as np

from utils.files import write_whole
from utils.plots import write_jpeg
from utils.shapes import Drawing, Scenery, draw_picture, label_text, regular, star

SIDE = 160  # px
SEEDS = MappingProxyType({"base": 100, "pool": 101, "test": 102, "val": 103})
REPEATED = 0.2  # of the pool: the scene of the picture before, jittered
MOST_SHIFT = 4  # px, of such a one

POOL_SCENERY = Scenery(
    outlines={
        "square": lambda: (regular(4),),
        "disc": lambda: (regular(72),),
        "star": lambda: (star(5),),
        "hexagon": lambda: (regular(6),),
        "ring": lambda: (regular(72), regular(72, 0.55)),
        "triangle": lambda: (regular(3),),
        "star of six": lambda: (star(6, 0.55),),  # looks like the star
        "pentagon": lambda: (regular(5),),  # looks like the hexagon
    },
    class_shares=(1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16, 1 / 32, 1 / 32),
    empty_share=0.25,
    radius_shares=(0.09, 0.22),
    least_radius=10.0,
    least_box_side=14,
)
NAMES = tuple(POOL_SCENERY.outlines)
TAIL = (4, 5, 6, 7)  # the classes that are rare
BALANCED = replace(POOL_SCENERY, class_shares=(), empty_share=0.1)
COMMON = replace(POOL_SCENERY, class_shares=(1, 1, 1, 1, 0, 0, 0, 0), empty_share=0.1)  # what the first model knows


@dataclass(frozen=True)
class Shown:
    """A picture on the disk, and the class of each of its objects."""

    image: Path
    label: Path
    class_ids: tuple[int, ...]


def draw_set(folder: Path, split: str, count: int, scenery: Scenery, repeated: float = 0.0) -> list[Shown]:
    """Draw a split below images/ and labels/; the same arguments give the same bytes."""
    shown = []
    drawing = None
    for index in range(count):
        rng = np.random.default_rng([SEEDS[split], index, 1])
        if drawing is not None and rng.random() < repeated:
            drawing = jittered(drawing, rng)
        else:
            drawing = draw_picture(SEEDS[split], index, (SIDE, SIDE), scenery)
        image = folder / "images" / split / f"{index:05d}.jpg"
        label = folder / "labels" / split / f"{index:05d}.txt"
        write_jpeg(image, drawing.picture)
        write_whole(label, label_text(drawing).encode())
        shown.append(Shown(image, label, tuple(drawing.class_ids.tolist())))
    return shown


def jittered(drawing: Drawing, rng: np.random.Generator) -> Drawing:
    """Show a scene once more, as the next moment of a film: shifted a little, in other light, with other grain."""
    shift = rng.integers(-MOST_SHIFT, MOST_SHIFT + 1, 2)  # x, y
    matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float64)
    height, width = drawing.picture.shape[:2]
    moved = cv2.warpAffine(drawing.picture, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
    lit = moved * rng.uniform(0.92, 1.08) + rng.normal(0, 3, moved.shape)
    boxes_px = np.clip(drawing.boxes_px + np.tile(shift, 2), 0, [width, height, width, height])
    return replace(drawing, picture=np.clip(np.round(lit), 0, 255).astype(np.uint8), boxes_px=boxes_px)


def boxes_of(shown: Sequence[Shown]) -> int:
    """Count the objects of some pictures: what a person would have to draw."""
    return sum(len(one.class_ids) for one in shown)
