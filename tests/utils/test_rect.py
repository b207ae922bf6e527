"""Where validation puts pictures, worked by hand from facts/yolov5.md, and where it looks for their labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.letterbox import Letterbox
from utils.rect import clip_to_picture, labels_to_input, letterbox_validation, plan_canvases

Hw = tuple[int, int]


@pytest.mark.parametrize(
    ("sizes_hw", "canvas_hw"),
    [
        ([(480, 640)], (512, 672)),  # .75 x 640 / 32 + .5 = 15.5 -> 16; 20.5 -> 21
        ([(426, 640), (480, 640)], (512, 672)),  # the tallest of flat ones counts
        ([(640, 480), (640, 426)], (672, 512)),  # the widest of upright ones
        ([(480, 640), (640, 640)], (672, 672)),  # one that is neither
        ([(480, 640), (640, 480)], (672, 672)),
        ([(1, 1000)], (32, 672)),  # .02 + .5 -> 1
    ],
)
def test_a_batch_gets_the_smallest_canvas_that_holds_it(sizes_hw: list[Hw], canvas_hw: Hw) -> None:
    assert plan_canvases(sizes_hw, 16, 640, 32) == [canvas_hw] * len(sizes_hw)


def test_each_batch_has_its_own_canvas() -> None:
    sizes_hw = [(240, 640), (480, 640), (640, 640), (640, 480), (640, 320)]
    assert plan_canvases(sizes_hw, 2, 640, 32) == [(512, 672)] * 2 + [(672, 672)] * 2 + [(672, 352)]


def test_training_has_no_extra_border() -> None:
    assert plan_canvases([(480, 640)], 16, 640, 32, border=0) == [(480, 640)]


@given(
    st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=20),
    st.integers(1, 8),
    st.sampled_from([(64, 32), (320, 32), (640, 32), (640, 64), (1280, 64)]),
)
def test_every_picture_fits_its_canvas(sizes_hw: list[Hw], batch_size: int, side_and_stride: Hw) -> None:
    side, stride = side_and_stride
    sizes_hw = sorted(sizes_hw, key=lambda hw: hw[0] / hw[1])
    canvases = plan_canvases(sizes_hw, batch_size, side, stride)
    for image_hw, canvas_hw in zip(sizes_hw, canvases):
        box = letterbox_validation(image_hw, side, canvas_hw)
        assert canvas_hw[0] % stride == canvas_hw[1] % stride == 0
        assert 0 <= box.pad_top <= canvas_hw[0] - box.resized_hw[0]
        assert 0 <= box.pad_left <= canvas_hw[1] - box.resized_hw[1]
        assert max(box.resized_hw) == side


@pytest.mark.parametrize(
    ("image_hw", "resized_hw"),
    [
        ((427, 640), (427, 640)),
        ((333, 500), (427, 640)),  # 426.24 up
        ((500, 333), (640, 427)),
        ((1000, 1500), (427, 640)),  # 426.67 up
        ((3, 3), (640, 640)),
        ((1, 5000), (1, 640)),
    ],
)
def test_sizes_are_rounded_up(image_hw: Hw, resized_hw: Hw) -> None:
    box = letterbox_validation(image_hw, 640, (640, 640))
    assert box.resized_hw == resized_hw
    assert box.shrink_by_area


def test_no_rounding_error_lifts_a_side() -> None:
    lifted = [width for width in range(1, 3000) if width * (640 / width) > 640]
    assert lifted  # there are such widths
    assert all(letterbox_validation((10, width), 640, (640, 672)).resized_hw[1] == 640 for width in lifted)


def test_labels_are_stretched_and_moved_by_the_exact_half() -> None:
    # 427 of 480 rows: 53 are missing, 26 of them drawn on top, and 26.5 added to labels.
    box = Letterbox((333, 500), (427, 640), (480, 640), 1.28, 0, 26)
    found = labels_to_input(np.array([[0.0, 0.0, 500.0, 333.0], [250.0, 111.0, 375.0, 222.0]]), box)
    np.testing.assert_allclose(found[0], [0, 26.5, 640, 453.5])
    np.testing.assert_allclose(found[1], [320, 427 / 3 + 26.5, 480, 854 / 3 + 26.5])


def test_detections_are_cut_off_where_the_picture_ends_for_labels() -> None:
    box = Letterbox((333, 500), (427, 640), (480, 640), 1.28, 0, 26)
    found = clip_to_picture(np.array([[-5.0, 0.0, 700.0, 480.0], [10.0, 30.0, 20.0, 40.0]], np.float32), box)
    np.testing.assert_allclose(found, np.array([[0, 26.5, 640, 453.5], [10, 30, 20, 40]]))
