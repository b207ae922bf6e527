"""One picture's boxes, scores and classes keep together."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from utils.detections import Detections


@pytest.fixture
def three() -> Detections:
    boxes_px = np.arange(12, dtype=np.float32).reshape(3, 4)
    return Detections(boxes_px, np.array([0.9, 0.5, 0.25], np.float32), np.array([2, 0, 7]))


def test_length_is_the_number_of_boxes(three: Detections) -> None:
    assert len(three) == 3


@pytest.mark.parametrize("rows", [[2, 0], np.array([2, 0])])
def test_picked_rows_keep_box_score_and_class_together(three: Detections, rows: object) -> None:
    picked = three.pick(rows)
    assert picked.boxes_px.tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
    assert picked.scores.tolist() == [0.25, pytest.approx(0.9)]
    assert picked.class_ids.tolist() == [7, 2]


def test_mask_and_slice_pick_too(three: Detections) -> None:
    assert three.pick(three.scores > 0.4).class_ids.tolist() == [2, 0]
    assert three.pick(slice(1)).class_ids.tolist() == [2]
    assert len(three.pick(np.zeros(3, bool))) == 0


def test_empty_has_the_shapes_and_types_of_any_other(three: Detections) -> None:
    empty = Detections.empty()
    assert len(empty) == 0
    for field in dataclasses.fields(Detections):
        none, some = getattr(empty, field.name), getattr(three, field.name)
        assert (none.shape[1:], none.dtype) == (some.shape[1:], some.dtype)


@pytest.mark.parametrize(
    ("boxes", "scores", "classes"),
    [((3, 4), 3, (2,)), ((2, 4), 3, (3,)), ((3, 5), 3, (3,)), ((3, 4), 3, (3, 1)), ((12,), 3, (3,))],
)
def test_shapes_that_do_not_fit_are_refused(boxes: tuple[int, ...], scores: int, classes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected 3 boxes of 4"):
        Detections(np.zeros(boxes, np.float32), np.zeros(scores, np.float32), np.zeros(classes, np.int64))


def test_detections_are_frozen(three: Detections) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        three.scores = np.zeros(3, np.float32)  # type: ignore[misc]  # that it can't be done is the test
