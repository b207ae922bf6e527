"""cald's copies: boxes go where their pixels go, sizes are as defined, draws repeat."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mining.data_augment import COPIES, ORIGINAL_COPIES, Copy, largest_share_covered, reduce, turn, turns_in_steps, warp

SIN, COS = math.sin(math.radians(5)), math.cos(math.radians(5))
ALL = [*((f"paper {name}", copy) for name, copy in COPIES.items())]
ALL += [(f"ymir {name}", ORIGINAL_COPIES[name]) for name in ("resize", "rotate")]
BACKGROUND, COLOUR = 60, 255


def marked(width: int, height: int, box: tuple[int, int, int, int]) -> Any:
    """A dark picture with one bright rectangle; black is only what a copy adds."""
    rgb = np.full((height, width, 3), BACKGROUND, np.uint8)
    rgb[box[1] : box[3], box[0] : box[2]] = COLOUR
    return rgb


def bounds(mask: Any) -> Any:
    """The box around all pixels of a mask, as edges."""
    ys, xs = mask.nonzero()
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], float)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


sides = st.integers(60, 260)


@settings(max_examples=60, deadline=None)
@given(width=sides, height=sides, data=st.data())
def test_boxes_go_where_their_pixels_go(width: int, height: int, data: st.DataObject) -> None:
    # Inside the circle that turning in place keeps on the canvas, so that all of it can be seen again.
    left, top = data.draw(st.integers(width // 4, width // 2)), data.draw(st.integers(height // 4, height // 2))
    box = (left, top, left + data.draw(st.integers(8, width // 4)), top + data.draw(st.integers(8, height // 4)))
    rgb, boxes = marked(width, height, box), np.array([box], float)
    for name, copy in ALL:
        if name == "paper cutout":
            continue
        changed, moved = copy(rgb, boxes, generator())
        seen = bounds(changed[..., 0] > (BACKGROUND + COLOUR) / 2)
        np.testing.assert_allclose(seen, moved[0], atol=2.0, err_msg=name)


@settings(max_examples=40, deadline=None)
@given(width=sides, height=sides)
def test_canvas_sizes(width: int, height: int) -> None:
    rgb, none = marked(width, height, (0, 0, 1, 1)), np.zeros((0, 4))
    shapes = {name: copy(rgb, none, generator())[0].shape for name, copy in ALL}
    grown = math.ceil(width * SIN + height * COS), math.ceil(width * COS + height * SIN)
    assert shapes.pop("paper rotate") == (*grown, 3)
    assert set(shapes.values()) == {(height, width, 3)}


@settings(max_examples=40, deadline=None)
@given(width=sides, height=sides)
def test_a_turned_picture_is_all_there(width: int, height: int) -> None:
    rgb = np.full((height, width, 3), 200, np.uint8)
    whole = np.array([[0, 0, width, height]], float)
    turned, boxes = turn(rgb, whole, generator())
    assert turned.astype(float).sum() == pytest.approx(rgb.astype(float).sum(), rel=5e-3)
    canvas = np.array([0, 0, turned.shape[1], turned.shape[0]])
    np.testing.assert_allclose(boxes[0], canvas, atol=0.5 + 1e-9)  # centred: half of what was rounded up on each side


def test_it_turns_counter_clockwise() -> None:
    right = np.array([[290, 95, 300, 105]], float)  # in the middle of the right edge
    for name in ("paper rotate", "ymir rotate"):
        rgb = marked(300, 200, (290, 95, 300, 105))
        turned, boxes = dict(ALL)[name](rgb, right, generator())
        assert (boxes[0, 1] + boxes[0, 3]) / 2 < turned.shape[0] / 2 - 10  # went up


@settings(max_examples=30, deadline=None)
@given(width=sides, height=sides, seed=st.integers(0, 99))
def test_flipping_twice_changes_nothing(width: int, height: int, seed: int) -> None:
    rgb = generator(seed).integers(0, 256, (height, width, 3), np.uint8)
    boxes = np.array([[3.25, 4.5, 20.75, 30.0], [0, 0, width, height]], float)
    once = COPIES["flip"](rgb, boxes, generator())
    twice = COPIES["flip"](*once, generator())
    assert (once[0][:, 0] == rgb[:, -1]).all() and once[1][0, 0] == width - 20.75
    assert (twice[0] == rgb).all() and (twice[1] == boxes).all()


def test_resize_leaves_a_black_border() -> None:
    rgb, boxes = np.full((101, 203, 3), 90, np.uint8), np.array([[11, 21, 33.5, 47]])
    for table, expected in ((COPIES, [8.8, 16.8, 26.8, 37.6]), (ORIGINAL_COPIES, [8, 16, 26, 37])):
        copy, moved = table["resize"](rgb, boxes, generator())
        assert bounds(copy[..., 0] > 0).tolist() == [0, 0, 162, 80]
        np.testing.assert_allclose(moved[0], expected)


def test_the_original_scales_an_upright_picture() -> None:
    corners = np.array([[0, 0, 100, 200]], float)
    _, boxes = ORIGINAL_COPIES["rotate"](marked(100, 200, (0, 0, 1, 1)), corners, generator())
    width, height = (100 * COS + 200 * SIN) / 2, (200 * COS + 100 * SIN) / 2
    around = [50 - width / 2, 100 - height / 2, 50 + width / 2, 100 + height / 2]
    assert boxes[0].tolist() == [math.trunc(edge) for edge in around]
    _, boxes = ORIGINAL_COPIES["rotate"](marked(200, 100, (0, 0, 1, 1)), corners[:, [1, 0, 3, 2]], generator())
    assert boxes[0, 0] == math.trunc(100 - (200 * COS + 100 * SIN) / 2) and boxes[0, 0] == -3  # towards 0, not clipped


# ---- cut-outs --------------------------------------------------------------------------------------------------------


def cuts_of(rgb: Any, boxes: Any, seed: int) -> Any:
    """Where a cut-out copy is black."""
    copy, moved = COPIES["cutout"](rgb, boxes, generator(seed))
    assert (moved == boxes).all()
    black = (copy == 0).all(2)
    assert (copy[~black] == rgb[~black]).all()
    return black


@settings(max_examples=60, deadline=None)
@given(width=sides, height=sides, seed=st.integers(0, 10_000))
def test_a_cut_out_is_within_its_limits(width: int, height: int, seed: int) -> None:
    rgb = marked(width, height, (0, 0, 1, 1))
    box = np.array([[0.3 * width, 0.3 * height, 0.6 * width, 0.55 * height]])
    black = cuts_of(rgb, box, seed)
    if not black.any():
        return
    assert black.sum() <= 2 * (0.2 * width) * (0.2 * height)
    assert black.sum() >= int(0.05 * width) * int(0.05 * height)
    ys, xs = black.nonzero()
    inside = (xs + 1 > box[0, 0]) & (xs < box[0, 2]) & (ys + 1 > box[0, 1]) & (ys < box[0, 3])
    area = (box[0, 2] - box[0, 0]) * (box[0, 3] - box[0, 1])
    assert inside.sum() >= 0.1 * area * 0.999  # an overlapped pixel counts as whole here
    assert inside.sum() <= 2 * 0.4 * area * 1.2


def test_sides_are_drawn_one_by_one_from_all_that_is_allowed() -> None:
    rgb = marked(400, 300, (0, 0, 1, 1))
    spots = []
    for seed in range(300):
        box = np.array([[150, 100, 210, 160]], float)
        black = cuts_of(rgb, box, seed)
        if black.any() and black.sum() == np.prod(np.subtract(bounds(black)[2:], bounds(black)[:2])):  # just one
            spots.append(bounds(black))
            assert 0.1 <= black[100:160, 150:210].mean() <= 0.4
    found = np.array(spots)
    widths, heights = found[:, 2] - found[:, 0], found[:, 3] - found[:, 1]
    assert widths.min() >= 20 and widths.max() <= 80 and heights.min() >= 15 and heights.max() <= 60
    assert abs(np.corrcoef(widths, heights)[0, 1]) < 0.9


def test_draws_repeat() -> None:
    rgb, box = marked(300, 200, (0, 0, 1, 1)), np.array([[100, 60, 180, 140]], float)
    first, again, other = (cuts_of(rgb, box, seed) for seed in (5, 5, 6))
    assert (first == again).all() and (first != other).any() and first.any()


def test_no_place_no_cut() -> None:
    rgb = marked(300, 200, (0, 0, 1, 1))
    all_of_it = [[0.0, 0, 300, 200]]  # no cut-out has a tenth of the picture
    for boxes in (np.zeros((0, 4)), np.array([[5.0, 5, 6, 6]]), np.array([[7.0, 7, 7, 90]]), np.array(all_of_it)):
        assert COPIES["cutout"](rgb, boxes, generator())[0] is rgb


def test_shares_by_hand() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 5, 25, 15], [3, 3, 3, 9]], float)
    assert largest_share_covered(boxes, (8, 8, 20, 20)) == pytest.approx(84 / 200)
    assert largest_share_covered(boxes, (0, 0, 5, 5)) == 0.25
    assert largest_share_covered(boxes, (30, 30, 40, 40)) == 0
    assert largest_share_covered(np.zeros((0, 4)), (0, 0, 5, 5)) == 0


# ---- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "copy"), ALL)
def test_inputs_stay_as_they_are(name: str, copy: Copy) -> None:
    rgb = generator().integers(1, 256, (90, 120, 3), np.uint8)
    boxes = np.array([[20.5, 20, 60, 55], [1, 1, 9, 9]])
    before = rgb.copy(), boxes.copy()
    rgb.setflags(write=False)
    boxes.setflags(write=False)
    copy(rgb, boxes, generator(3))
    assert (rgb == before[0]).all() and (boxes == before[1]).all()


@pytest.mark.parametrize(("name", "copy"), ALL)
@pytest.mark.parametrize("hw", [(1, 1), (1, 700), (700, 1)])
def test_the_thinnest_pictures(name: str, copy: Copy, hw: tuple[int, int]) -> None:
    rgb = np.full((*hw, 3), 99, np.uint8)
    changed, boxes = copy(rgb, np.array([[0, 0, hw[1], hw[0]]], float), generator())
    assert changed.dtype == np.uint8 and changed.size and np.isfinite(boxes).all()


def test_a_thin_picture_needs_no_huge_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mining.data_augment.MOST_CANVAS_PX", 20_000)
    rgb, boxes = marked(2000, 40, (1500, 10, 1700, 30)), np.array([[1500, 10, 1700, 30]], float)
    copy, moved = turn(rgb, boxes, generator())
    assert 15_000 < copy.shape[0] * copy.shape[1] <= 21_000
    np.testing.assert_allclose(bounds(copy[..., 0] > 110), moved[0], atol=2.0)


def test_which_opencv_turns_in_steps() -> None:
    halves = np.repeat(np.where(np.arange(52) < 26, 0, 255).astype(np.uint8)[None, :, None], 20, 0).repeat(3, 2)
    edge = int(warp(halves, np.array([[1, 0, -0.4 / 32], [0, 1, 0]]), (52, 20))[10, 25, 0])
    assert edge == (0 if turns_in_steps() else round(255 * 0.4 / 32))


@pytest.mark.parametrize("hw", [(40, 33_000), (65_000, 8)])
@pytest.mark.parametrize("name", ["paper rotate", "ymir rotate"])
def test_a_picture_longer_than_opencv_4_turns(name: str, hw: tuple[int, int]) -> None:
    whole = np.array([[0, 0, hw[1], hw[0]]], float)
    turned, boxes = dict(ALL)[name](np.full((*hw, 3), 200, np.uint8), whole, generator())
    assert 31_000 < max(turned.shape) <= 32_000
    middle = np.array([turned.shape[1], turned.shape[0]]) / 2
    np.testing.assert_allclose((boxes[0, :2] + boxes[0, 2:]) / 2, middle, atol=1.5)  # one turns about it


def test_reducing_moves_boxes_with_the_picture() -> None:
    small, boxes = reduce(np.zeros((50, 100, 3), np.uint8), np.array([[10, 10, 90, 40]], float), 0.333)
    assert small.shape == (16, 33, 3)
    np.testing.assert_allclose(boxes, [[3.3, 3.2, 29.7, 12.8]])
