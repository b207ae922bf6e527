"""TrainingSet: one training sample, a function of (seed, epoch, index) and of nothing else. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import numpy.typing as npt

from utils.augment import (
    Canvas,
    Objects,
    copy_paste,
    draw_warp,
    flip,
    join,
    mix_up,
    shift_colours,
    warp_objects,
)
from utils.hyp import Hyp
from utils.label_table import LabelTable
from utils.letterbox import GREY
from utils.mosaic import TILES, Tile, draw_tiles, draw_warped, place_four, place_nine
from utils.picture_store import PictureStore
from utils.rect import plan_canvases
from utils.settings import check_at_least

Hw = tuple[int, int]


@dataclass(frozen=True)
class SampleSettings:
    """side: of the input, px, a multiple of the stride; the store's side. seed: of the whole training.

    augment: False gives the letterboxed pictures alone. rect: no mosaic; pictures of like shape share a canvas, of
    batch_size pictures each. mosaic_tiles: 4 or 9.
    """

    side: int
    seed: int = 0
    augment: bool = True
    rect: bool = False
    batch_size: int = 16
    stride: int = 32
    mosaic_tiles: int = 4

    def __post_init__(self) -> None:
        check_at_least("img_size", self.side, 1)
        check_at_least("batch_size", self.batch_size, 1)
        if self.mosaic_tiles not in TILES:
            raise ValueError(f"a mosaic has {TILES} pictures, not {self.mosaic_tiles}")


@dataclass(frozen=True)
class Sample:
    """canvas: (H, W, 3) uint8 RGB. rows: (n, 5) float32 class, cx, cy, w, h, boxes in 0..1 of the canvas."""

    canvas: Canvas
    rows: npt.NDArray[np.float32]


class TrainingSet:
    """Makes samples of a table's pictures. Threads may share it."""

    def __init__(self, table: LabelTable, store: PictureStore, hyp: Hyp, settings: SampleSettings) -> None:
        self.table = table
        self.seed = settings.seed
        self._store = store
        self._hyp = hyp
        self._settings = settings
        count, side = len(table), settings.side
        self.base_order: npt.NDArray[np.int64] = np.arange(count)
        self._canvases_hw = np.full((count, 2), side, np.int32)
        if settings.rect and count:
            self.base_order = _order_by_shape(table)
            sizes_hw = [(height, width) for height, width in table.sizes_hw[self.base_order].tolist()]
            planned = plan_canvases(sizes_hw, settings.batch_size, side, settings.stride, border=0)
            self._canvases_hw[self.base_order] = planned

    def __len__(self) -> int:
        return len(self.table)

    def canvas_hw(self, index: int) -> Hw:
        """Give the (height, width) of a picture's sample: the square, or with `rect` that of its batch."""
        height, width = self._canvases_hw[index].tolist()
        return height, width

    def sample(self, index: int, epoch: int, out: Optional[Canvas] = None) -> Sample:
        """Make the sample of a picture in an epoch; out: (*canvas_hw, 3) uint8 to draw it into.

        A picture that can't be read is grey and has no objects; the store tells of it.
        """
        canvas = np.empty((*self.canvas_hw(index), 3), np.uint8) if out is None else out
        hyp, settings = self._hyp, self._settings
        random = generator(settings.seed, epoch, index)
        if not settings.augment:
            objects = self._draw_plain(index, canvas)
        elif not settings.rect and random.random() < hyp.mosaic:
            objects = self._draw_mosaic(index, random, canvas)
            if random.random() < hyp.mixup:
                other = np.empty_like(canvas)
                more = self._draw_mosaic(int(random.integers(len(self))), random, other)
                mix_up(canvas, other, random)
                objects = join([objects, more])
        else:
            objects = self._draw_single(index, random, canvas)
        if settings.augment:
            shift_colours(canvas, hyp, random)
            for axis, probability in ((0, hyp.flipud), (1, hyp.fliplr)):
                if random.random() < probability:
                    objects = flip(canvas, objects, axis)
        return Sample(canvas, _to_rows(objects, canvas.shape[:2]))

    # ---- drawing ----

    def _draw_mosaic(self, index: int, random: np.random.Generator, canvas: Canvas) -> Objects:
        """Draw a mosaic around a picture and a random part of it; four or nine times as large as the input."""
        side, count = self._settings.side, self._settings.mosaic_tiles
        indices = np.append(random.integers(len(self), size=count - 1), index)
        place = place_four if count == 4 else place_nine
        tiles = place(random.permutation(indices).tolist(), self._store.hw, side, random)
        mosaic_hw = 2 * side, 2 * side
        warp = draw_warp(self._hyp, mosaic_hw, (side, side), random)
        reader = _Reader(self._store)
        if self._hyp.copy_paste and len(self.table.points_px):
            mosaic = np.empty((*mosaic_hw, 3), np.uint8)
            draw_tiles(tiles, reader, mosaic_hw, mosaic, (0, 0))
            objects = self._objects_on(tiles, reader, mosaic_hw)
            objects = copy_paste(mosaic, objects, self._hyp.copy_paste, random)
            draw_warped([Tile(0, mosaic_hw, 0, 0)], lambda _: mosaic, mosaic_hw, warp, canvas)
        else:
            draw_warped(tiles, reader, mosaic_hw, warp, canvas)
            objects = self._objects_on(tiles, reader, mosaic_hw)
        return warp_objects(objects, warp)

    def _draw_single(self, index: int, random: np.random.Generator, canvas: Canvas) -> Objects:
        """Draw a letterboxed picture, warped."""
        canvas_hw = self.canvas_hw(index)
        tile, reader = self._centred(index, canvas_hw), _Reader(self._store)
        warp = draw_warp(self._hyp, canvas_hw, canvas_hw, random)
        draw_warped([tile], reader, canvas_hw, warp, canvas)
        return warp_objects(self._letterboxed_objects(tile, reader, canvas_hw), warp)

    def _draw_plain(self, index: int, canvas: Canvas) -> Objects:
        """Draw a letterboxed picture as it is."""
        canvas_hw = self.canvas_hw(index)
        tile, reader = self._centred(index, canvas_hw), _Reader(self._store)
        draw_tiles([tile], reader, canvas_hw, canvas, (0, 0))
        return self._letterboxed_objects(tile, reader, canvas_hw)

    def _centred(self, index: int, canvas_hw: Hw) -> Tile:
        """Put a picture in the middle; of an odd border the smaller half goes left and on top."""
        height, width = self._store.hw(index)
        return Tile(index, (height, width), (canvas_hw[1] - width) // 2, (canvas_hw[0] - height) // 2)

    def _objects_on(self, tiles: Sequence[Tile], reader: _Reader, canvas_hw: Hw) -> Objects:
        """Give the pictures' objects where their tiles lie, cut off at the canvas; none of those that weren't read."""
        parts = []
        for tile in tiles:
            if tile.index not in reader.lost:
                height, width = self.table.sizes_hw[tile.index].tolist()
                factor_xy = tile.hw[1] / width, tile.hw[0] / height
                parts.append(objects_of(self.table, tile.index).stretched(factor_xy, (tile.left, tile.top)))
        return join(parts).clipped(0, 0, canvas_hw[1], canvas_hw[0])

    def _letterboxed_objects(self, tile: Tile, reader: _Reader, canvas_hw: Hw) -> Objects:
        """Give a centred picture's objects in validation's frame: shifted by the exact half of the border.

        Of an odd border whole pixels are drawn, half a pixel less (utils.rect.labels_to_input; golden's target rows).
        """
        half_border_xy = (canvas_hw[1] - tile.hw[1]) % 2 / 2, (canvas_hw[0] - tile.hw[0]) % 2 / 2
        return self._objects_on([tile], reader, canvas_hw).stretched((1, 1), half_border_xy)


class _Reader:
    """Reads the pictures of one sample; one that can't be read is grey, and `lost`."""

    def __init__(self, store: PictureStore) -> None:
        self._store = store
        self.lost: set[int] = set()

    def __call__(self, index: int) -> Canvas:
        pixels = self._store.read(index)
        if pixels is None:
            self.lost.add(index)
            return np.full((*self._store.hw(index), 3), GREY, np.uint8)
        return pixels


def generator(*words: int) -> np.random.Generator:
    """Give a random generator that is a function of these whole numbers."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([word % (1 << 64) for word in words])))


def objects_of(table: LabelTable, index: int) -> Objects:
    """Give a picture's objects in its own pixels."""
    rows = table.rows_of(index)
    class_ids, boxes_px = table.labels(index)
    starts = table.point_starts[rows.start : rows.stop + 1]
    points = table.points_px[starts[0] : starts[-1]].astype(np.float64)
    return Objects(class_ids.astype(np.int64), boxes_px.astype(np.float64), points, starts - starts[0])


def _to_rows(objects: Objects, canvas_hw: Hw) -> npt.NDArray[np.float32]:
    ends = np.array([canvas_hw[1], canvas_hw[0]], np.float64)
    first, last = objects.boxes[:, :2] / ends, objects.boxes[:, 2:] / ends
    rows = np.concatenate([objects.class_ids[:, None], (first + last) / 2, last - first], axis=1)
    return rows.astype(np.float32)  # (n, 5)


def _order_by_shape(table: LabelTable) -> npt.NDArray[np.int64]:
    """Sort pictures by height / width, equal ones by path, as a validation does."""
    ratios = (table.sizes_hw[:, 0] / table.sizes_hw[:, 1]).tolist()
    order = sorted(range(len(table)), key=lambda index: (ratios[index], table.shots[index].path))
    return np.array(order, np.int64)
