"""Box algebra: laws for any boxes, and values worked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from utils import boxes as B

# A busy machine is no failure: neither slow examples nor slow making of them.
ANY_SPEED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
COORDINATE = st.floats(-1000, 5000, width=32)
QUARTER_PIXEL = st.integers(-4000, 20000).map(lambda quarters: quarters / 4)
PIXEL = st.integers(-40, 40)


def sorted_corners(corners: Any) -> Any:
    """Turn any four numbers a row into boxes whose second corner is right of and below the first."""
    return np.concatenate([np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], 1)


def some_boxes(element: Any = COORDINATE, dtype: Any = np.float64) -> Any:
    counts = st.integers(0, 6).map(lambda count: (count, 4))
    return hnp.arrays(dtype, counts, elements=element).map(sorted_corners)


@ANY_SPEED
@given(some_boxes())
def test_centre_form_and_back_changes_nothing(boxes: Any) -> None:
    np.testing.assert_allclose(B.to_xyxy(B.to_cxcywh(boxes)), boxes, atol=1e-9)


def test_centre_form_of_a_box_worked_by_hand() -> None:
    np.testing.assert_array_equal(B.to_cxcywh(np.array([[10.0, 20.0, 40.0, 80.0]])), [[25, 50, 30, 60]])


@ANY_SPEED
@given(some_boxes())
def test_clipping_keeps_boxes_inside_and_clipping_again_changes_nothing(boxes: Any) -> None:
    once = B.clip(boxes, (480, 640))
    assert np.all(once >= 0)
    assert np.all(once[:, [0, 2]] <= 640)
    assert np.all(once[:, [1, 3]] <= 480)
    np.testing.assert_array_equal(B.clip(once, (480, 640)), once)
    assert np.all(B.areas(once) <= B.areas(boxes))


def test_clipping_leaves_its_argument_alone() -> None:
    boxes = np.array([[-5.0, -5.0, 700.0, 500.0]])
    np.testing.assert_array_equal(B.clip(boxes, (480, 640)), [[0, 0, 640, 480]])
    np.testing.assert_array_equal(boxes, [[-5, -5, 700, 500]])


def test_a_box_wholly_outside_is_empty_after_clipping() -> None:
    assert B.areas(B.clip(np.array([[650.0, 10.0, 700.0, 50.0]]), (480, 640))) == 0


def test_a_box_turned_inside_out_has_no_area_even_when_both_sides_are_negative() -> None:
    np.testing.assert_array_equal(B.areas(np.array([[9.0, 9.0, 1.0, 1.0], [1.0, 1.0, 9.0, 4.0]])), [0, 24])


@ANY_SPEED
@given(some_boxes(dtype=np.float32), some_boxes(dtype=np.float32))
def test_iou_is_symmetric_and_in_0_to_1(boxes: Any, others: Any) -> None:
    shares = B.ious(boxes, others)
    assert shares.dtype == np.float32
    assert shares.shape == (len(boxes), len(others))
    assert np.all((shares >= 0) & (shares <= 1))
    np.testing.assert_array_equal(shares, B.ious(others, boxes).T)


@ANY_SPEED
@given(some_boxes())
def test_a_box_has_iou_1_with_itself_unless_it_is_empty(boxes: Any) -> None:
    expected = np.where(B.areas(boxes) > 0, 1.0, 0.0)
    np.testing.assert_allclose(np.diag(B.ious(boxes, boxes)), expected, rtol=1e-12)


@ANY_SPEED
@given(some_boxes(PIXEL), some_boxes(PIXEL))
def test_iou_of_whole_pixel_boxes_is_the_share_of_counted_pixels(boxes: Any, others: Any) -> None:
    def mask(box: Any) -> Any:
        grid = np.zeros((80, 80), bool)
        x1, y1, x2, y2 = (box + 40).astype(int)
        grid[y1:y2, x1:x2] = True
        return grid

    shares = B.ious(boxes, others)
    for row, box in enumerate(boxes):
        for column, other in enumerate(others):
            either = (mask(box) | mask(other)).sum()
            expected = (mask(box) & mask(other)).sum() / either if either else 0
            assert shares[row, column] == pytest.approx(expected, abs=1e-12)


@ANY_SPEED
@given(some_boxes(QUARTER_PIXEL), some_boxes(QUARTER_PIXEL), st.integers(-500, 500), st.integers(1, 8))
def test_iou_does_not_depend_on_place_or_scale(boxes: Any, others: Any, shift: int, scale: int) -> None:
    np.testing.assert_array_equal(B.ious(boxes * scale + shift, others * scale + shift), B.ious(boxes, others))


@pytest.mark.parametrize(("count", "other_count"), [(0, 0), (0, 3), (3, 0)])
def test_no_boxes_give_an_empty_table(count: int, other_count: int) -> None:
    assert B.ious(np.zeros((count, 4)), np.zeros((other_count, 4))).shape == (count, other_count)
