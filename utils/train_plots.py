"""Pictures of what a network is trained on: batches as they are fed, and how the labels are spread. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from utils.boxes import to_xyxy
from utils.detections import Detections
from utils.plots import (
    MAX_TICK_NAMES,
    MAX_TILES,
    Picture,
    Tile,
    class_colour,
    draw_mosaic,
    figure_names,
    new_figure,
    plain_text,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Boxes = npt.NDArray[np.floating]  # (M, 4) cx, cy, w, h as shares of the picture
ClassIds = npt.NDArray[np.integer]  # (M,)

MAX_DRAWN_BOXES = 1000  # more of them make a black square
DRAWN_SIDE = 1000  # px of the square that they are drawn in
BINS = 50  # of 0..1
MAX_NAMED = 40  # classes up to which the histogram has room for names
AXES = ("x", "y", "width", "height")
COLOURS = "Blues"


def draw_train_batch(
    pixels: npt.NDArray[np.uint8], rows: npt.NDArray[np.floating], names: Sequence[str], captions: Sequence[str] = ()
) -> Picture:
    """Draw the first 16 pictures of a training batch with their boxes.

    pixels: (B, H, W, 3) RGB. rows: (n, 6) place in the batch, class id, cx, cy, w, h as shares of the picture.
    captions: what stands below each picture, such as the file's name; fewer than pictures leave the others bare.
    """
    height, width = pixels.shape[1:3]
    tiles = []
    for place, picture in enumerate(pixels[:MAX_TILES]):
        own = rows[rows[:, 0] == place]  # (k, 6)
        boxes_px = to_xyxy(own[:, 2:6].astype(np.float32)) * np.array([width, height] * 2, np.float32)
        detections = Detections(boxes_px, np.ones(len(own), np.float32), own[:, 1].astype(np.int64))
        tiles.append(Tile(picture, detections, captions[place] if place < len(captions) else ""))
    return draw_mosaic(tiles, names, hide_conf=True)


def write_labels(class_ids: ClassIds, boxes: Boxes, names: Sequence[str], folder: Path) -> tuple[Path, Path]:
    """Write labels.jpg (how many of each class, boxes, places, sizes) and labels_correlogram.jpg into a folder."""
    boxes = np.clip(np.asarray(boxes, np.float64).reshape(-1, 4), 0, 1)
    return _write_overview(class_ids, boxes, names, folder / "labels.jpg"), _write_pairs(
        boxes, folder / "labels_correlogram.jpg"
    )


def _write_overview(class_ids: ClassIds, boxes: Boxes, names: Sequence[str], path: Path) -> Path:
    figure = new_figure(10, 10)
    grid = figure.subplots(2, 2)
    figure.subplots_adjust(0.08, 0.06, 0.98, 0.98, wspace=0.2, hspace=0.2)
    counts = np.bincount(class_ids, minlength=len(names))
    _draw_counts(grid[0, 0], counts, names)
    grid[0, 1].imshow(_draw_outlines(class_ids, boxes))
    grid[0, 1].set_axis_off()
    _draw_pair(grid[1, 0], boxes, (0, 1))
    _draw_pair(grid[1, 1], boxes, (2, 3))
    return save_figure(figure, path)


def _draw_counts(axes: Axes, counts: npt.NDArray[np.integer], names: Sequence[str]) -> None:
    """Draw how many boxes each class has: bars with names, or, of many classes, one outline."""
    axes.set(ylabel=f"boxes ({counts.sum():,} of {len(counts):,} classes)", xlim=(-0.5, max(len(counts), 1) - 0.5))
    if len(counts) > MAX_TICK_NAMES:
        axes.stairs(counts, np.arange(len(counts) + 1) - 0.5, fill=True, color="#1f77b4")
        axes.set_xlabel("class")
        return
    colours = [tuple(part / 255 for part in class_colour(class_id)) for class_id in range(len(counts))]
    axes.bar(range(len(counts)), counts, color=colours)
    if not 0 < len(counts) <= MAX_NAMED:
        axes.set_xlabel("class")
        return
    axes.set_xticks([])
    shown = figure_names([(class_id, name) for class_id, name in enumerate([*names][: len(counts)])])
    style = plain_text(9 if len(counts) <= 20 else 6.5)
    for class_id, name in enumerate(shown):
        place = (class_id, int(counts[class_id]))
        axes.annotate(name, place, (0, 3), textcoords="offset points", rotation=90, ha="center", va="bottom", **style)
    axes.set_ylim(0, max(int(counts.max()), 1) * 1.6)  # room for the names above the bars


def _draw_outlines(class_ids: ClassIds, boxes: Boxes) -> Picture:
    """Draw up to 1000 boxes around one centre: their sizes and shapes at one look."""
    canvas = np.full((DRAWN_SIDE, DRAWN_SIDE, 3), 255, np.uint8)
    chosen = np.linspace(0, len(boxes) - 1, min(len(boxes), MAX_DRAWN_BOXES)).astype(np.int64)  # evenly, no chance
    halves_px = np.round(boxes[chosen, 2:] * DRAWN_SIDE / 2).astype(int)
    centre = DRAWN_SIDE // 2
    for class_id, (half_w, half_h) in zip(class_ids[chosen].tolist(), halves_px.tolist()):
        corners = (centre - half_w, centre - half_h), (centre + half_w, centre + half_h)
        cv2.rectangle(canvas, *corners, class_colour(class_id), 1)
    return canvas


def _draw_pair(axes: Axes, boxes: Boxes, columns: tuple[int, int]) -> None:
    """Draw how often two of x, y, width and height go together; y runs downwards, as in a picture."""
    across, up = columns
    counts, _, _ = np.histogram2d(boxes[:, up], boxes[:, across], bins=BINS, range=((0, 1), (0, 1)))
    shade = np.sqrt(counts)  # or the few crowded cells outshine all others
    axes.imshow(shade, cmap=COLOURS, origin="lower", extent=(0, 1, 0, 1), aspect="auto", interpolation="nearest")
    axes.set(xlim=(0, 1), ylim=(1, 0) if AXES[up] == "y" else (0, 1), xlabel=AXES[across], ylabel=AXES[up])


def _write_pairs(boxes: Boxes, path: Path) -> Path:
    """Draw each of x, y, width and height against each other, and its own spread on the diagonal."""
    figure = new_figure(10, 10)
    grid = figure.subplots(len(AXES), len(AXES))
    figure.subplots_adjust(0.06, 0.06, 0.99, 0.99, wspace=0.1, hspace=0.1)
    for row, column in np.ndindex(grid.shape):
        axes = grid[row, column]
        if column > row:
            axes.set_axis_off()
            continue
        if column == row:
            counts, edges = np.histogram(boxes[:, row], bins=BINS, range=(0, 1))
            axes.stairs(counts, edges, fill=True, color="#1f77b4")
            axes.set(xlim=(0, 1), yticks=[], xlabel=AXES[row], ylabel="boxes")
        else:
            _draw_pair(axes, boxes, (column, row))
        axes.set_xticks((0.2, 0.5, 0.8))  # those of neighbours don't touch
        axes.label_outer()
        axes.tick_params(labelsize=8)
    return save_figure(figure, path)
