"""Mosaics: where four or nine pictures lie, and how what is seen of them is put together. No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable

import cv2
import numpy as np

from utils.augment import Canvas, Hw, Warp, warp_pixels
from utils.letterbox import GREY

TILES = (4, 9)
MOST_WINDOW = 4  # a window this many times as large as the output is cut out and resized, a larger one warped


@dataclass(frozen=True)
class Tile:
    """A picture on a canvas. index: in the data set. hw: its size. left, top: its first pixel's place, may be < 0."""

    index: int
    hw: Hw
    left: int
    top: int


SizeOf = Callable[[int], Hw]


def place_four(indices: Sequence[int], size_of: SizeOf, side: int, random: np.random.Generator) -> list[Tile]:
    """Lay four pictures, in the order top left, top right, bottom left, bottom right, around a random centre.

    The canvas has a side of 2 x side; the centre is U(side / 2, 3 side / 2) each way, in whole px.
    """
    centre_x, centre_y = random.integers(side // 2, side + math.ceil(side / 2), 2, endpoint=True).tolist()
    tiles = []
    for place, index in enumerate(indices):
        height, width = size_of(index)
        left = centre_x if place % 2 else centre_x - width
        tiles.append(Tile(index, (height, width), left, centre_y if place // 2 else centre_y - height))
    return tiles


def place_nine(indices: Sequence[int], size_of: SizeOf, side: int, random: np.random.Generator) -> list[Tile]:
    """Lay nine pictures on three rows of three cells, close to the middle one, of which a random part is the canvas.

    Cells have that side, so no picture hides another; the canvas, 2 x side, begins at U(0, side) each way.
    """
    shift_x, shift_y = random.integers(0, side, 2, endpoint=True).tolist()

    def begin(cell: int, length: int) -> int:
        return cell * side + (side - length) * (2 - cell) // 2

    tiles = []
    for place, index in enumerate(indices):
        height, width = size_of(index)
        tiles.append(
            Tile(index, (height, width), begin(place % 3, width) - shift_x, begin(place // 3, height) - shift_y)
        )
    return tiles


def draw_tiles(
    tiles: Sequence[Tile], read: Callable[[int], Canvas], canvas_hw: Hw, part: Canvas, origin_xy: tuple[int, int]
) -> None:
    """Draw a part of a canvas with the tiles that lie on it; the rest becomes grey, and all beyond the canvas.

    read: gives a picture, (*tile.hw, 3); it is asked only for those that are seen. part: written in place; origin_xy:
    where its first pixel lies on the canvas, may be < 0.
    """
    part[:] = GREY
    origin_x, origin_y = origin_xy
    seen_left, seen_top = max(origin_x, 0), max(origin_y, 0)
    seen_right, seen_bottom = min(origin_x + part.shape[1], canvas_hw[1]), min(origin_y + part.shape[0], canvas_hw[0])
    for tile in tiles:
        left, right = max(tile.left, seen_left), min(tile.left + tile.hw[1], seen_right)
        top, bottom = max(tile.top, seen_top), min(tile.top + tile.hw[0], seen_bottom)
        if left < right and top < bottom:
            pixels = read(tile.index)[top - tile.top : bottom - tile.top, left - tile.left : right - tile.left]
            part[top - origin_y : bottom - origin_y, left - origin_x : right - origin_x] = pixels


def draw_warped(tiles: Sequence[Tile], read: Callable[[int], Canvas], canvas_hw: Hw, warp: Warp, out: Canvas) -> None:
    """Draw what a warp shows of tiles on a canvas: as if all of it were drawn first, in less time.

    Of the canvas only the window that is seen is drawn, and of the tiles only those that are seen are read. A warp that
    only enlarges and moves has a window of whole pixels (utils.augment.draw_warp): that is resized.
    """
    left, top, right, bottom = warp.window()
    if warp.is_upright and (right - left) * (bottom - top) < (MOST_WINDOW + 0.5) * out.shape[0] * out.shape[1]:
        origin_xy = round(left), round(top)
        part_hw = round(bottom) - origin_xy[1], round(right) - origin_xy[0]
        part = out if part_hw == out.shape[:2] else np.empty((*part_hw, 3), np.uint8)
        draw_tiles(tiles, read, canvas_hw, part, origin_xy)
        if part is not out:
            cv2.resize(part, (out.shape[1], out.shape[0]), dst=out, interpolation=cv2.INTER_LINEAR)
        return
    # Two more pixels each way, for what is between pixels; warps can see beyond the canvas, where all is grey.
    origin_xy = math.floor(max(left - 2, 0)), math.floor(max(top - 2, 0))
    part_hw = (
        math.ceil(min(bottom + 2, canvas_hw[0])) - origin_xy[1],
        math.ceil(min(right + 2, canvas_hw[1])) - origin_xy[0],
    )
    if min(part_hw) < 1:
        out[:] = GREY
        return
    part = np.empty((*part_hw, 3), np.uint8)
    draw_tiles(tiles, read, canvas_hw, part, origin_xy)
    warp_pixels(part, warp, out, origin_xy)
