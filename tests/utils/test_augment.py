"""Augmentations: what is drawn and what is labelled move alike; the rules of YOLOv5's warp, by hand."""

from __future__ import annotations

import colorsys
import dataclasses
import math
import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.augment import (
    Canvas,
    Objects,
    Warp,
    boxes_only,
    copy_paste,
    covered,
    draw_warp,
    flip,
    is_kept,
    join,
    mix_up,
    move_points,
    resample,
    shift_colours,
    warp_objects,
    warp_pixels,
)
from utils.hyp import Hyp
from utils.mosaic import Tile, draw_tiles, draw_warped, place_four
from utils.pictures import read_picture
from utils.settings import PictureSettings

SIDE = 96
NO_CHANGE = Hyp(scale=0, translate=0)
seeds = st.integers(0, 2**32 - 1)
degrees_of = st.sampled_from([0.0, 10.0, 90.0, 180.0])
hyps = st.builds(
    Hyp,
    degrees=degrees_of,
    scale=st.floats(0, 0.9),
    translate=st.floats(0, 0.5),
    shear=st.sampled_from([0.0, 10.0]),
    perspective=st.sampled_from([0.0, 0.0, 0.001]),
)


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


class FirstOf(np.random.Generator):
    """A generator whose uniform numbers all lie at one place of their range."""

    def __new__(cls, place: float) -> FirstOf:
        return super().__new__(cls)

    def __init__(self, place: float) -> None:
        super().__init__(np.random.PCG64(0))
        self._place = place

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        return low + self._place * (high - low)


def photo(path: Path, side: int = SIDE) -> Canvas:
    """A real picture, small and without hard edges."""
    rgb = read_picture(path, PictureSettings()).rgb
    small: Canvas = cv2.GaussianBlur(cv2.resize(rgb, (side, side), interpolation=cv2.INTER_AREA), (0, 0), 1.5)
    return small


def with_rectangle(hw: tuple[int, int], box: tuple[int, int, int, int]) -> Canvas:
    """A black canvas with a red rectangle."""
    canvas = np.zeros((*hw, 3), np.uint8)
    left, top, right, bottom = box
    canvas[top:bottom, left:right] = [255, 0, 0]
    return canvas


def hull_of_red(canvas: Canvas) -> list[int]:
    """left, top, right, bottom of the pixels that are more red than not; grey is no red."""
    down, right = np.nonzero(canvas[..., 0].astype(int) - canvas[..., 1] > 127)
    return [right.min(), down.min(), right.max() + 1, down.max() + 1] if len(down) else []


def warped(canvas: Canvas, warp: Warp) -> Canvas:
    out = np.empty((*warp.out_hw, 3), np.uint8)
    draw_warped([Tile(0, canvas.shape[:2], 0, 0)], lambda _: canvas, canvas.shape[:2], warp, out)
    return out


@st.composite
def rectangles(draw: st.DrawFn, hw: tuple[int, int]) -> tuple[int, int, int, int]:
    height, width = hw
    left, top = draw(st.integers(0, width - 20)), draw(st.integers(0, height - 20))
    return left, top, draw(st.integers(left + 16, width)), draw(st.integers(top + 16, height))


# ---- warp ----


@settings(max_examples=120, deadline=None)
@given(seed=seeds, hyp=hyps, box=rectangles((120, 160)))
def test_a_box_moves_with_its_pixels(seed: int, hyp: Hyp, box: tuple[int, int, int, int]) -> None:
    warp = draw_warp(hyp, (120, 160), (SIDE, 128), generator(seed))
    red = hull_of_red(warped(with_rectangle((120, 160), box), warp))
    objects = warp_objects(boxes_only(np.array([3]), np.array([box], np.float64)), warp)
    if not red or not len(objects):
        return
    left, top, right, bottom = objects.boxes[0].tolist()
    assert left - 1 <= red[0] and top - 1 <= red[1] and red[2] <= right + 1 and red[3] <= bottom + 1
    corners = move_points(warp.matrix, np.array([[box[x], box[y]] for x in (0, 2) for y in (1, 3)], np.float64))
    whole = (corners >= 0).all() and (corners <= [128, SIDE]).all()
    # Corners of a turned rectangle are thinner than a pixel.
    slack = 0.6 if warp.is_upright else 4.0 + 2 * warp.scale
    if whole or warp.is_upright:
        np.testing.assert_allclose(red, [left, top, right, bottom], atol=slack)


@settings(max_examples=50, deadline=None)
@given(seed=seeds, scale=st.floats(0, 0.9), translate=st.floats(0, 0.5))
def test_an_upright_warp_is_cut_out_and_resized_as_if_warped_pixel_by_pixel(
    coco_images: list[Path], seed: int, scale: float, translate: float
) -> None:
    canvas = photo(coco_images[0])
    warp = draw_warp(Hyp(scale=scale, translate=translate), (SIDE, SIDE), (80, 80), generator(seed))
    assert warp.is_upright and np.allclose(warp.window(), np.round(warp.window()), rtol=0, atol=1e-6)
    expected, inside = np.empty((80, 80, 3), np.uint8), np.empty((80, 80, 3), np.uint8)
    warp_pixels(canvas, warp, expected)
    # At the edge of the window one looks a pixel farther than the other, at that of the canvas grey begins.
    warp_pixels(np.full_like(canvas, 255), dataclasses.replace(warp), inside)
    core = cv2.erode((inside[..., 0] == 255).astype(np.uint8), np.ones((5, 5)), borderValue=0) > 0
    difference = np.abs(warped(canvas, warp).astype(int) - expected)[core]
    # An enlargement in 1/32 px steps and an exact one; a reduction to half averages.
    assert difference.size == 0 or (difference.mean() < 3 and difference.max() < 40)


@settings(max_examples=50, deadline=None)
@given(seed=seeds, hyp=hyps)
def test_drawing_only_what_is_seen_equals_drawing_all(coco_images: list[Path], seed: int, hyp: Hyp) -> None:
    random = generator(seed)
    pictures = [photo(path) for path in coco_images[:4]]
    tiles = place_four(range(4), lambda index: pictures[index].shape[:2], SIDE, random)
    warp = draw_warp(hyp, (2 * SIDE, 2 * SIDE), (SIDE, SIDE), random)
    mosaic, expected = np.empty((2 * SIDE, 2 * SIDE, 3), np.uint8), np.empty((SIDE, SIDE, 3), np.uint8)
    draw_tiles(tiles, pictures.__getitem__, mosaic.shape[:2], mosaic, (0, 0))
    out = np.empty_like(expected)
    draw_warped(tiles, pictures.__getitem__, mosaic.shape[:2], warp, out)
    if warp.is_upright:
        np.testing.assert_array_equal(out, warped(mosaic, warp))
    else:
        warp_pixels(mosaic, warp, expected)
        # OpenCV rounds places to 1/32 px, and differently with another origin.
        difference = np.abs(out.astype(int) - expected)
        assert np.quantile(difference, 0.99) <= 8 and difference.mean() < 0.5


def test_a_warp_that_changes_nothing_changes_nothing(coco_images: list[Path]) -> None:
    canvas = photo(coco_images[0])
    warp = draw_warp(NO_CHANGE, (SIDE, SIDE), (SIDE, SIDE), generator(0))
    np.testing.assert_array_equal(warp.matrix, np.eye(3))
    np.testing.assert_array_equal(warped(canvas, warp), canvas)
    out = np.empty_like(canvas)
    warp_pixels(canvas, warp, out)
    np.testing.assert_array_equal(out, canvas)


def test_a_mosaics_middle_is_shown() -> None:
    """The border of minus half a side: of a canvas of 2 s the middle s is seen."""
    warp = draw_warp(NO_CHANGE, (2 * SIDE, 2 * SIDE), (SIDE, SIDE), generator(0))
    assert warp.window() == (SIDE / 2, SIDE / 2, 3 * SIDE / 2, 3 * SIDE / 2)


def test_the_rest_is_grey() -> None:
    for hyp in (Hyp(scale=0, translate=1), Hyp(scale=0, translate=1, degrees=1)):
        for seed in range(20):
            warp = draw_warp(hyp, (SIDE, SIDE), (SIDE, SIDE), generator(seed))
            out = warped(np.zeros((SIDE, SIDE, 3), np.uint8), warp)
            assert set(np.unique(out)) <= set(range(115))
            corners = move_points(np.linalg.inv(warp.matrix), np.array([[0.5, 0.5], [SIDE - 0.5, SIDE - 0.5]]))
            for (x, y), pixel in zip(corners.tolist(), (out[0, 0], out[-1, -1])):
                is_far = min(x, y) < -1 or max(x, y) > SIDE + 1
                assert not is_far or pixel.tolist() == [114] * 3


def test_scale_and_shift_keep_to_their_ranges() -> None:
    hyp = Hyp(scale=0.5, translate=0.1)
    warps = [draw_warp(hyp, (1280, 1280), (640, 640), generator(seed)) for seed in range(500)]
    scales = np.array([warp.matrix[0, 0] for warp in warps])
    middles = np.array([move_points(warp.matrix, np.array([[640.0, 640.0]]))[0] for warp in warps])
    assert 0.499 < scales.min() < 0.52 and 1.48 < scales.max() < 1.502
    assert 0.4 * 640 - 1 < middles.min() < 0.41 * 640 and 0.59 * 640 < middles.max() < 0.6 * 640 + 1
    assert abs(np.corrcoef(middles.T)[0, 1]) < 0.2


def test_a_turn_by_a_right_angle_is_as_worked_by_hand() -> None:
    quarter = Warp(np.array([[0, 1, 0], [-1, 0, 100], [0, 0, 1.0]]), 1.0, (100, 100))  # (x, y) -> (y, 100 - x)
    objects = warp_objects(boxes_only(np.array([7]), np.array([[10.0, 20, 30, 60]])), quarter)
    assert objects.boxes.tolist() == [[20, 70, 60, 90]]
    canvas = with_rectangle((100, 100), (10, 20, 30, 60))
    assert hull_of_red(warped(canvas, quarter)) == [20, 70, 60, 90]


def test_a_tiny_scale_needs_no_large_memory() -> None:
    warp = draw_warp(Hyp(scale=1.0, translate=0), (SIDE, SIDE), (SIDE, SIDE), FirstOf(0.0))
    assert warp.matrix[0, 0] < 0.01
    tracemalloc.start()
    out = warped(np.zeros((SIDE, SIDE, 3), np.uint8), warp)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20 and (out == 114).mean() > 0.99


def test_a_horizon_in_sight_shows_no_box_on_the_wrong_side() -> None:
    warp = draw_warp(Hyp(perspective=1.0, scale=0), (SIDE, SIDE), (SIDE, SIDE), generator(1))
    assert warped(np.zeros((SIDE, SIDE, 3), np.uint8), warp).shape == (SIDE, SIDE, 3)
    assert np.isfinite(warp_objects(boxes_only(np.array([0]), np.array([[1.0, 1, 90, 90]])), warp).boxes).all()


@pytest.mark.parametrize(
    ("after", "least", "expected"),
    [
        ([0, 0, 10, 10], 0.1, True),  # exactly a tenth of 1000
        ([0, 0, 10, 9.9], 0.1, False),
        ([0, 0, 10, 9.9], 0.01, True),
        ([0, 0, 2, 90], 0.1, False),  # not more than 2 px
        ([0, 0, 2.1, 90], 0.1, True),
        ([0, 0, 2.1, 211], 0.1, False),  # more than 100 times as long
        ([5, 5, 5, 5], 0.0, False),
    ],
)
def test_boxes_kept_by_the_rule(after: list[float], least: float, expected: bool) -> None:
    before = np.array([[0.0, 0, 10, 100]])
    assert is_kept(before, np.array([after], np.float64), np.array([least])).tolist() == [expected]


# ---- polygons ----


def with_polygon(points: list[list[float]]) -> Objects:
    corners = np.array(points, np.float64)
    hull = np.concatenate([corners.min(axis=0), corners.max(axis=0)])[None]
    return Objects(np.array([1]), hull, corners, np.array([0, len(corners)]))


def test_a_turned_polygon_gets_the_hull_of_its_outline() -> None:
    diamond = with_polygon([[50, 10], [90, 50], [50, 90], [10, 50]])
    angle = math.pi / 4
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, sin, 50 - 50 * (cos + sin)], [-sin, cos, 50 - 50 * (cos - sin)], [0, 0, 1]])
    moved = warp_objects(diamond, Warp(turn, 1.0, (100, 100)))
    half = 40 / math.sqrt(2)  # a diamond's sides become upright
    np.testing.assert_allclose(moved.boxes, [[50 - half, 50 - half, 50 + half, 50 + half]], atol=0.2)
    boxed = warp_objects(diamond.without_polygons(), Warp(turn, 1.0, (100, 100)))
    assert boxed.boxes.tolist() == [[0, 0, 100, 100]]


def test_of_a_polygon_that_leaves_the_canvas_what_is_inside_counts() -> None:
    wedge = with_polygon([[10, 10], [90, 90], [10, 90]])
    shift = Warp(np.array([[1, 0, -50], [0, 1, 0], [0, 0, 1.0]]), 1.0, (100, 100))  # its left half leaves
    np.testing.assert_allclose(warp_objects(wedge, shift).boxes, [[0, 50, 40, 90]], atol=0.5)


def test_resampling_keeps_the_corners() -> None:
    points = resample(np.array([[0.0, 0], [10, 0], [10, 10]]), 7)
    assert points.tolist() == [[0, 0], [5, 0], [10, 0], [10, 5], [10, 10], [5, 5], [0, 0]]


def test_objects_are_taken_and_joined_with_their_polygons() -> None:
    one = with_polygon([[0, 0], [5, 0], [5, 5]])
    two = boxes_only(np.array([2]), np.array([[1.0, 1, 2, 2]]))
    three = with_polygon([[7, 7], [9, 7], [9, 9], [7, 9]])
    together = join([one, two, three])
    assert [len(together.polygon(row)) for row in range(3)] == [3, 0, 4]
    rest = together.taken(np.array([False, True, True]))
    assert len(rest) == 2 and len(rest.polygon(0)) == 0
    np.testing.assert_array_equal(rest.polygon(1), three.points)
    assert len(join([])) == 0 and len(together.taken(np.zeros(3, bool))) == 0
    assert len(together.clipped(6, 6, 8, 8)) == 1


def test_a_pasted_object_is_its_mirror_image() -> None:
    canvas = np.zeros((100, 200, 3), np.uint8)
    cv2.fillPoly(canvas, [np.array([[10, 10], [59, 10], [10, 79]])], (255, 0, 0))
    before = canvas.copy()
    wedge = with_polygon([[10, 10], [60, 10], [10, 80]])
    objects = copy_paste(canvas, wedge, 1.0, generator(0))
    assert objects.boxes.tolist() == [[10, 10, 60, 80], [140, 10, 190, 80]]
    np.testing.assert_array_equal(canvas[:, :100], before[:, :100])
    # On the outline a pixel may belong to either side.
    different = (canvas[:, 100:] != before[:, ::-1][:, 100:]).any(axis=2)
    assert different.sum() < 150 and hull_of_red(canvas[:, 100:]) == [40, 10, 90, 80]


@pytest.mark.parametrize(("right", "expected"), [(154, 3), (155, 2)])
def test_nothing_is_pasted_that_covers_three_tenths_of_a_box(right: int, expected: int) -> None:
    canvas = np.zeros((100, 200, 3), np.uint8)
    wedge = with_polygon([[10, 10], [60, 10], [10, 80]])  # would come to x 140 to 190
    other = boxes_only(np.array([5]), np.array([[right - 50.0, 10, right, 80]]))
    assert covered(other.boxes, np.array([140.0, 10, 190, 80])).tolist() == [(right - 140) / 50]
    assert len(copy_paste(canvas, join([wedge, other]), 1.0, generator(0))) == expected


def test_a_share_of_the_polygons_is_pasted() -> None:
    canvas = np.zeros((100, 400, 3), np.uint8)
    wedges = join([with_polygon([[left, 10], [left + 5, 10], [left, 80]]) for left in range(0, 100, 10)])
    assert [len(copy_paste(canvas, wedges, share, generator(0))) for share in (0.0, 0.3, 1.0)] == [10, 13, 20]


# ---- the others ----


@settings(max_examples=50, deadline=None)
@given(seed=seeds, axis=st.sampled_from([0, 1]), box=rectangles((60, 80)))
def test_a_flip_moves_boxes_with_pixels_and_undoes_itself(seed: int, axis: int, box: tuple[int, int, int, int]) -> None:
    canvas = with_rectangle((60, 80), box)
    before = canvas.copy()
    objects = boxes_only(np.array([0]), np.array([box], np.float64))
    once = flip(canvas, objects, axis)
    assert hull_of_red(canvas) == once.boxes[0].tolist()
    np.testing.assert_array_equal(canvas, np.flip(before, axis))
    assert flip(canvas, once, axis).boxes.tolist() == [list(box)]
    np.testing.assert_array_equal(canvas, before)


def test_colours_shift_as_the_formula_says(coco_images: list[Path]) -> None:
    """Against Python's own colorsys, in float."""
    hyp = Hyp(hsv_h=0.1, hsv_s=0.5, hsv_v=0.4)
    for seed in range(5):
        canvas = photo(coco_images[1], 24)
        before = canvas.copy()
        shift_colours(canvas, hyp, generator(seed))
        hue, saturation, value = 1 + generator(seed).uniform(-1, 1, 3) * [0.1, 0.5, 0.4]
        expected = []
        for pixel in before.reshape(-1, 3).tolist():
            h, s, v = colorsys.rgb_to_hsv(*(level / 255 for level in pixel))
            shifted = colorsys.hsv_to_rgb(h * hue % 1, min(s * saturation, 1), min(v * value, 1))
            expected.append([255 * level for level in shifted])
        difference = np.abs(canvas.reshape(-1, 3) - np.array(expected))
        assert difference.mean() < 2 and difference.max() < 12  # hue has 180 levels


def test_no_gains_leave_colours_alone(coco_images: list[Path]) -> None:
    canvas = photo(coco_images[1], 24)
    before = canvas.copy()
    shift_colours(canvas, Hyp(hsv_h=0, hsv_s=0, hsv_v=0), generator(0))
    np.testing.assert_array_equal(canvas, before)


def test_mixup_shares_follow_a_beta_distribution() -> None:
    shares = []
    for seed in range(400):
        canvas = np.full((1, 1, 3), 255, np.uint8)
        mix_up(canvas, np.zeros_like(canvas), generator(seed))
        shares.append(canvas[0, 0, 0] / 255)
    # Beta(32, 32): mean 1/2, variance 1 / (4 x 65).
    assert abs(np.mean(shares) - 0.5) < 0.01 and abs(np.var(shares) * 260 - 1) < 0.25
