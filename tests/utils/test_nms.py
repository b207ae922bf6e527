"""Suppression against a literal one, and its laws."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.nms import select_boxes
from utils.settings import NmsSettings


def make_rows(seed: int, count: int, classes: int) -> torch.Tensor:
    draw = np.random.default_rng(seed)
    rows = draw.random((count, 5 + classes)).astype(np.float32)
    rows[:, :4] = rows[:, :4] * [400, 400, 120, 120] + [0, 0, 5, 5]
    return torch.from_numpy(rows)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(w, 0) * max(h, 0)
    return float(inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter))


def literal(rows: torch.Tensor, s: NmsSettings) -> list[tuple[float, int]]:
    """(score, class) kept, by the definition and nothing else."""
    entries = []
    for row in rows.numpy():
        cx, cy, w, h = row[:4].astype(np.float64)
        box = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
        scores = row[5:] * row[4]
        chosen = range(len(scores)) if s.multi_label else [int(scores.argmax())]
        entries += [(scores[c], c, box) for c in chosen if scores[c] > s.conf_thres and row[4] > s.conf_thres]
    if s.classes is not None:
        entries = [entry for entry in entries if entry[1] in s.classes]
    entries.sort(key=lambda entry: -entry[0])
    kept: list[tuple[float, int, np.ndarray]] = []
    for entry in entries:
        if all(iou(entry[2], other[2]) <= s.iou_thres for other in kept if s.agnostic or other[1] == entry[1]):
            kept.append(entry)
    return [(float(score), c) for score, c, _ in kept[: s.max_det]]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(0, 60),
    classes=st.integers(1, 5),
    conf=st.sampled_from([0.001, 0.25, 0.6]),
    iou_thres=st.sampled_from([0.3, 0.45, 0.6]),
    multi=st.booleans(),
    agnostic=st.booleans(),
    max_det=st.sampled_from([3, 300]),
)
def test_it_keeps_what_the_definition_keeps(
    seed: int, count: int, classes: int, conf: float, iou_thres: float, multi: bool, agnostic: bool, max_det: int
) -> None:
    s = NmsSettings(conf, iou_thres, max_det, multi_label=multi and classes > 1, agnostic=agnostic)
    rows = make_rows(seed, count, classes)
    boxes, scores, class_ids = select_boxes(rows, s)
    assert boxes.shape == (len(scores), 4)
    assert list(zip(scores.tolist(), class_ids.tolist())) == literal(rows, s)


def test_many_boxes_need_more_than_the_first_try() -> None:
    s = NmsSettings(0.001, 0.45, 300, multi_label=True)
    rows = make_rows(1, 900, 3)
    rows[:, :2] = rows[:, :2] % 30  # all in one place: few survive
    _, scores, class_ids = select_boxes(rows, s)
    assert list(zip(scores.tolist(), class_ids.tolist())) == literal(rows, s)


def test_only_the_classes_asked_for() -> None:
    s = NmsSettings(0.1, classes=(1,))
    rows = make_rows(3, 50, 3)
    _, scores, class_ids = select_boxes(rows, s)
    assert set(class_ids.tolist()) == {1}
    assert list(zip(scores.tolist(), class_ids.tolist())) == literal(rows, s)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(0, 60))
def test_suppressing_twice_changes_nothing(seed: int, count: int) -> None:
    s = NmsSettings(0.25, 0.45)
    boxes, scores, _ = select_boxes(make_rows(seed, count, 1), s)
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    again = torch.cat((centre, size, scores[:, None], torch.ones(len(scores), 1)), 1)
    assert torch.equal(select_boxes(again, s)[1], scores)


def test_equal_scores_keep_the_order_of_the_rows() -> None:
    rows = torch.tensor([[10.0, 10, 8, 8, 0.5, 1], [100, 100, 8, 8, 0.5, 1], [50, 50, 8, 8, 0.5, 1]])
    boxes, _, _ = select_boxes(rows, NmsSettings())
    assert boxes[:, 0].tolist() == [6.0, 96.0, 46.0]
