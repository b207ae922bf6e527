"""The map between picture and model input, and what is drawn: laws, worked examples, OpenCV's resize."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from utils.letterbox import GREY, LETTERBOXES, Letterbox, letterbox_minimal, letterbox_square, place_on

Pixels = npt.NDArray[np.uint8]

lengths = st.integers(1, 5000)
strides = st.sampled_from([32, 64])
names = st.sampled_from(sorted(LETTERBOXES))


@st.composite
def fits(draw: st.DrawFn) -> Letterbox:
    """Any picture on any canvas. The side is a multiple of the stride, as the door makes it."""
    stride = draw(strides)
    side = stride * draw(st.integers(1, 40))
    return LETTERBOXES[draw(names)]((draw(lengths), draw(lengths)), side, stride)


@pytest.mark.parametrize(
    # worked by hand from golden/README.md, "Executor preprocessing": r = 640 / longer side, round(w r) x round(h r),
    # left = round(half of what is missing - 0.1)
    ("image_hw", "resized_hw", "scale", "square_top_left", "minimal_canvas_hw", "minimal_top_left"),
    [
        ((480, 640), (480, 640), 1.0, (80, 0), (480, 640), (0, 0)),
        ((640, 480), (640, 480), 1.0, (0, 80), (640, 480), (0, 0)),
        ((333, 500), (426, 640), 1.28, (107, 0), (448, 640), (11, 0)),
        ((427, 640), (427, 640), 1.0, (106, 0), (448, 640), (10, 0)),  # an odd border: the smaller half on top
        ((640, 427), (640, 427), 1.0, (0, 106), (640, 448), (0, 10)),
        ((1, 1000), (1, 640), 0.64, (319, 0), (32, 640), (15, 0)),
        ((1000, 1), (640, 1), 0.64, (0, 319), (640, 32), (0, 15)),
        ((1, 20000), (1, 640), 0.032, (319, 0), (32, 640), (15, 0)),  # 0.032 rows would be none
        ((100, 200), (320, 640), 3.2, (160, 0), (320, 640), (0, 0)),  # small ones are enlarged
        ((1, 1), (640, 640), 640.0, (0, 0), (640, 640), (0, 0)),
        ((641, 1280), (320, 640), 0.5, (160, 0), (320, 640), (0, 0)),  # 320.5 goes to the even side
        ((643, 1280), (322, 640), 0.5, (159, 0), (352, 640), (15, 0)),  # so does 321.5
    ],
)
def test_worked_examples(
    image_hw: tuple[int, int],
    resized_hw: tuple[int, int],
    scale: float,
    square_top_left: tuple[int, int],
    minimal_canvas_hw: tuple[int, int],
    minimal_top_left: tuple[int, int],
) -> None:
    square, minimal = letterbox_square(image_hw, 640, 32), letterbox_minimal(image_hw, 640, 32)
    for fit in (square, minimal):
        assert (fit.image_hw, fit.resized_hw) == (image_hw, resized_hw)
        assert fit.scale == pytest.approx(scale, rel=1e-12)
    assert (square.canvas_hw, (square.pad_top, square.pad_left)) == ((640, 640), square_top_left)
    assert (minimal.canvas_hw, (minimal.pad_top, minimal.pad_left)) == (minimal_canvas_hw, minimal_top_left)


def test_box_of_a_worked_example() -> None:
    fit = letterbox_square((333, 500), 640, 32)
    boxes_px = np.array([[0, 0, 500, 333], [100, 50, 200, 150]], np.float64)
    boxes_letterbox = [[0, 107, 640, 533.24], [128, 171, 256, 299]]
    assert fit.to_letterbox(boxes_px) == pytest.approx(np.array(boxes_letterbox))
    assert fit.to_px(np.array(boxes_letterbox)) == pytest.approx(boxes_px)


def test_boxes_outside_the_picture_are_clipped_to_it() -> None:
    fit = letterbox_square((480, 640), 640, 32)
    outside = np.array([[-20, 0, 700, 640], [10, 90, 20, 100]], np.float32)
    assert fit.to_px(outside).tolist() == [[0, 0, 640, 480], [10, 10, 20, 20]]
    assert outside.tolist() == [[-20, 0, 700, 640], [10, 90, 20, 100]]  # the argument is left alone


def test_no_boxes_stay_no_boxes() -> None:
    none = np.zeros((0, 4), np.float32)
    fit = letterbox_square((480, 640), 640, 32)
    assert fit.to_px(none).shape == fit.to_letterbox(none).shape == (0, 4)


@settings(deadline=None)
@given(fit=fits(), shares=st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=5))
def test_to_px_undoes_to_letterbox(fit: Letterbox, shares: list[tuple[float, float, float, float]]) -> None:
    height, width = fit.image_hw
    exact = np.array(shares).reshape(-1, 4) * [width, height, width, height]
    both: list[tuple[npt.NDArray[np.floating], float]] = [(exact, 1e-9), (exact.astype(np.float32), 1e-5)]
    for boxes_px, tolerance in both:
        back = fit.to_px(fit.to_letterbox(boxes_px))
        assert back.dtype == boxes_px.dtype
        # the padding eats digits that a tiny scale multiplies
        slack = tolerance * (max(height, width) + max(fit.canvas_hw) / fit.scale)
        assert np.abs(back - boxes_px).max(initial=0) <= slack


@settings(deadline=None)
@given(fit=fits())
def test_canvas_holds_the_resized_picture_in_its_middle(fit: Letterbox) -> None:
    for canvas, resized, before in zip(fit.canvas_hw, fit.resized_hw, (fit.pad_top, fit.pad_left)):
        behind = canvas - resized - before
        assert resized >= 1
        assert before >= 0
        assert behind - before in (0, 1)  # the smaller half comes first


@settings(deadline=None)
@given(fit=fits())
def test_picture_keeps_its_shape_to_half_a_pixel(fit: Letterbox) -> None:
    for full, resized in zip(fit.image_hw, fit.resized_hw):
        assert abs(full * fit.scale - resized) <= 0.5 + 1e-9 or resized == 1


@settings(deadline=None)
@given(image_hw=st.tuples(lengths, lengths), stride=strides, side=st.integers(32, 2000))
@example(image_hw=(1, 5000), stride=64, side=33)
def test_minimal_canvas_is_the_smallest_that_the_stride_allows(
    image_hw: tuple[int, int], stride: int, side: int
) -> None:
    fit = letterbox_minimal(image_hw, side, stride)
    assert max(fit.resized_hw) == side
    for canvas, resized in zip(fit.canvas_hw, fit.resized_hw):
        assert canvas % stride == 0
        assert resized <= canvas < resized + stride
        assert canvas <= math.ceil(side / stride) * stride


@given(image_hw=st.tuples(lengths, lengths), steps=st.integers(1, 40))
def test_square_canvas_is_the_square_and_minimal_never_larger(image_hw: tuple[int, int], steps: int) -> None:
    square, minimal = (fit(image_hw, steps * 32, 32) for fit in (letterbox_square, letterbox_minimal))
    assert square.canvas_hw == (steps * 32, steps * 32)
    assert (square.scale, square.resized_hw) == (minimal.scale, minimal.resized_hw)
    assert all(small <= large for small, large in zip(minimal.canvas_hw, square.canvas_hw))


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(height * 7919 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def check_drawing(fit: Letterbox, rgb: Pixels, interpolation: int) -> None:
    """Every pixel of the canvas: the window is OpenCV's resize of the picture, the rest is grey."""
    batch = np.full((3, *fit.canvas_hw, 3), 7, np.uint8)  # what a canvas held before must not matter
    fit.draw(rgb, batch[1])
    height, width = fit.resized_hw
    window = np.zeros(fit.canvas_hw, bool)
    window[fit.pad_top : fit.pad_top + height, fit.pad_left : fit.pad_left + width] = True
    expected = cv2.resize(rgb, (width, height), interpolation=interpolation)
    assert np.array_equal(batch[1][window].reshape(height, width, 3), expected)
    assert (batch[1][~window] == GREY).all()
    assert (batch[[0, 2]] == 7).all()  # its neighbours in the batch


@settings(max_examples=150, deadline=None)
@given(name=names, height=st.integers(1, 150), width=st.integers(1, 150), side=st.sampled_from([32, 64, 96]))
@example(name="minimal", height=1, width=150, side=96)
@example(name="square", height=150, width=1, side=96)
@example(name="square", height=1, width=1, side=32)
@example(name="square", height=48, width=64, side=64)
def test_every_pixel_of_the_canvas_is_drawn(name: str, height: int, width: int, side: int) -> None:
    check_drawing(LETTERBOXES[name]((height, width), side, 32), noise(height, width), cv2.INTER_LINEAR)


@pytest.mark.parametrize("decoded_hw", [(240, 320), (120, 160), (60, 80)])
def test_picture_that_was_decoded_smaller_is_drawn_at_the_same_place(decoded_hw: tuple[int, int]) -> None:
    check_drawing(letterbox_minimal((480, 640), 96, 32), noise(*decoded_hw), cv2.INTER_LINEAR)


def test_picture_of_the_right_size_is_copied_unchanged() -> None:
    fit = letterbox_square((480, 640), 640, 32)
    canvas = np.zeros((640, 640, 3), np.uint8)
    fit.draw(noise(480, 640), canvas)
    assert np.array_equal(canvas[80:560], noise(480, 640))


@pytest.mark.parametrize(("image_hw", "interpolation"), [((90, 120), cv2.INTER_AREA), ((20, 30), cv2.INTER_LINEAR)])
def test_averaging_is_for_shrinking_alone(image_hw: tuple[int, int], interpolation: int) -> None:
    scale = 64 / image_hw[1]
    resized_hw = (round(image_hw[0] * scale), 64)
    check_drawing(place_on((64, 96), image_hw, resized_hw, scale, True), noise(*image_hw), interpolation)
