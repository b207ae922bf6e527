"""YOLOv5's metric: worked by hand, against a literal slow reading of its definition, and by its laws."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from utils.metrics import (
    CONFIDENCES,
    IOU_THRESHOLDS,
    ConfusionMatrix,
    Found,
    Metrics,
    Truth,
    compare,
    compute_metrics,
    join,
    match,
)

# A busy machine is no failure: neither slow examples nor slow making of them.
ANY_SPEED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = ("ant", "bee", "cat")
WHOLE = [0, 0, 10, 10]  # a label; boxes of the same height and a width of 6 or 9 have IoU 0.6 and 0.9 with it
FAR = [500, 500, 510, 510]


def found(*rows: tuple[list[int], float, int]) -> Found:
    boxes = np.array([row[0] for row in rows], np.float32).reshape(-1, 4)
    return Found(boxes, np.array([row[1] for row in rows], np.float32), np.array([row[2] for row in rows], np.int64))


def truth(*rows: tuple[list[int], int]) -> Truth:
    boxes = np.array([row[0] for row in rows], np.float32).reshape(-1, 4)
    return Truth(boxes, np.array([row[1] for row in rows], np.int64))


def metrics_of(*pictures: tuple[Found, Truth]) -> Metrics:
    return compute_metrics(join([compare(*picture) for picture in pictures]), NAMES)


# ---- the definition, read literally and slowly ----------------------------------------------------------------------


def slow_iou(a: Any, b: Any) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    overlap = float(width) * float(height)
    return overlap / (float(a[2] - a[0]) * float(a[3] - a[1]) + float(b[2] - b[0]) * float(b[3] - b[1]) - overlap)


def slow_match(of: Found, labels: Truth) -> Any:
    correct = np.zeros((len(of.scores), 10), bool)
    for column in range(10):
        threshold = float(f"0.{50 + 5 * column}")
        offers: dict[int, list[int]] = {}  # label -> detections that stand for it
        for row in range(len(of.scores)):
            pairs = [
                (slow_iou(of.boxes[row], labels.boxes[label]), label)
                for label in range(len(labels.class_ids))
                if labels.class_ids[label] == of.class_ids[row]
            ]
            pairs = [pair for pair in pairs if pair[0] >= threshold]
            if pairs:
                best = max(share for share, _ in pairs)
                offers.setdefault(next(label for share, label in pairs if share == best), []).append(row)
        for rows in offers.values():
            best_score = max(of.scores[row] for row in rows)
            correct[next(row for row in rows if of.scores[row] == best_score), column] = True
    return correct


def line_through(x: float, xs: list[float], ys: list[float]) -> float:
    """Read the polyline at x; where it jumps, the later value counts."""
    for k in reversed(range(len(xs))):
        if xs[k] <= x:
            if k == len(xs) - 1:
                return ys[k]
            return ys[k] + (ys[k + 1] - ys[k]) * (x - xs[k]) / (xs[k + 1] - xs[k])
    raise ValueError(x)


def slow_ap(recalls: list[float], precisions: list[float]) -> float:
    xs = [0.0, *recalls, 1.0]
    ys = [1.0, *precisions, 0.0]
    ys = [max(ys[k:]) for k in range(len(ys))]
    heights = [line_through(k / 100, xs, ys) for k in range(101)]
    return sum((a + b) / 2 / 100 for a, b in zip(heights, heights[1:]))


def slow_figures(pictures: list[tuple[Found, Truth]]) -> dict[str, float]:
    rows: list[tuple[float, int, Any]] = []
    labels: list[int] = []
    for of, there in pictures:
        rows += zip(of.scores.astype(float), of.class_ids, slow_match(of, there))
        labels += there.class_ids.tolist()
    aps, ap50s, ps, rs = [], [], [], []
    for class_id in sorted(set(labels)):
        count = labels.count(class_id)
        mine = sorted((row for row in rows if row[1] == class_id), key=lambda row: -row[0])
        table = []
        for column in range(10):
            hits = list(itertools.accumulate(int(row[2][column]) for row in mine))
            recalls, precisions = [hit / count for hit in hits], [hit / (k + 1) for k, hit in enumerate(hits)]
            table.append(slow_ap(recalls, precisions) if mine else 0.0)
            if column == 0:
                falling = [-row[0] for row in mine]
                above = [x > mine[0][0] for x in CONFIDENCES] if mine else []
                ps.append([1.0 if a else line_through(-x, falling, precisions) for x, a in zip(CONFIDENCES, above)])
                rs.append([0.0 if a else line_through(-x, falling, recalls) for x, a in zip(CONFIDENCES, above)])
                if not mine:
                    ps[-1], rs[-1] = [0.0] * 1000, [0.0] * 1000
        aps.append(sum(table) / 10)
        ap50s.append(table[0])
    if not aps:
        return {"p": 0, "r": 0, "map50": 0, "map": 0}
    p, r = np.array(ps), np.array(rs)
    f1 = [np.mean([2 * a * b / (a + b) if a + b else 0 for a, b in zip(p[:, k], r[:, k])]) for k in range(1000)]
    smooth = [np.mean([f1[min(max(k + d, 0), 999)] for d in range(-50, 51)]) for k in range(1000)]
    # Sums in another order differ in the last bits: of a plateau the first point counts.
    best = next(k for k in range(1000) if smooth[k] >= max(smooth) - 1e-12)
    return {"p": p[:, best].mean(), "r": r[:, best].mean(), "map50": np.mean(ap50s), "map": np.mean(aps)}


# ---- made-up pictures whose boxes overlap a lot, at IoUs that often are exactly a threshold -------------------------

SIDE = st.sampled_from([5, 6, 7, 8, 9, 10])
BOX = st.tuples(st.sampled_from([0, 1, 20]), st.just(0), SIDE, st.just(10)).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)
CLASS = st.integers(0, 2)
FOUND = st.lists(st.tuples(BOX, st.integers(1, 20).map(lambda k: k / 20), CLASS), max_size=8).map(lambda r: found(*r))
TRUTH = st.lists(st.tuples(BOX, CLASS), max_size=5).map(lambda rows: truth(*rows))
PICTURE = st.tuples(FOUND, TRUTH)


@ANY_SPEED
@given(PICTURE)
def test_matching_is_what_its_definition_says(picture: Any) -> None:
    np.testing.assert_array_equal(match(*picture), slow_match(*picture))


# Without shrinking: the slow reading would take minutes over it.
@settings(ANY_SPEED, max_examples=12, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.lists(PICTURE, max_size=4))
def test_figures_are_what_their_definition_says(pictures: Any) -> None:
    ours, expected = metrics_of(*pictures), slow_figures(pictures)
    assert ours.map50 == pytest.approx(expected["map50"], abs=1e-9)
    assert ours.map == pytest.approx(expected["map"], abs=1e-9)
    # At the best F1 a plateau's first point may differ by rounding; then both points have the same F1 and nearly p, r.
    assert ours.p == pytest.approx(expected["p"], abs=1e-6)
    assert ours.r == pytest.approx(expected["r"], abs=1e-6)


# ---- matching, by hand ----------------------------------------------------------------------------------------------


def test_each_threshold_is_matched_anew() -> None:
    both = found(([0, 0, 6, 10], 0.9, 0), ([0, 0, 9, 10], 0.8, 0))
    correct = match(both, truth((WHOLE, 0)))
    np.testing.assert_array_equal(correct[0], [1, 1, 1, 0, 0, 0, 0, 0, 0, 0])  # 0.5 to 0.6: the better score keeps it
    np.testing.assert_array_equal(correct[1], [0, 0, 0, 1, 1, 1, 1, 1, 1, 0])  # 0.65 to 0.9: only this one reaches it


@pytest.mark.parametrize("percent", range(50, 100, 5))
def test_an_iou_of_exactly_the_threshold_is_enough(percent: int) -> None:
    correct = match(found(([0, 0, percent, 10], 0.9, 0)), truth(([0, 0, 100, 10], 0)))
    np.testing.assert_array_equal(correct[0], percent / 100 >= IOU_THRESHOLDS)


def test_a_detection_whose_best_label_is_taken_does_not_fall_back_on_another() -> None:
    labels = truth((WHOLE, 0), ([0, 0, 8, 10], 0))
    twice = found((WHOLE, 0.9, 0), ([0, 0, 10, 10], 0.8, 0))
    np.testing.assert_array_equal(match(twice, labels)[:, 0], [True, False])


def test_another_class_is_never_right() -> None:
    assert not match(found((WHOLE, 0.9, 1)), truth((WHOLE, 0))).any()


def test_the_order_of_rows_does_not_matter() -> None:
    rows: list[tuple[list[int], float, int]] = [([0, 0, 6, 10], 0.9, 0), ([0, 0, 9, 10], 0.8, 0), (FAR, 0.7, 0)]
    labels = truth((WHOLE, 0))
    np.testing.assert_array_equal(match(found(*rows[::-1]), labels)[::-1], match(found(*rows), labels))


# ---- figures, by hand -----------------------------------------------------------------------------------------------


def test_a_perfect_detector_has_p_and_r_1_and_ap_0_995() -> None:
    # The last of the 101 points lies on the end (1, 0): half a step is lost. YOLOv5's tables say .995 too.
    metrics = metrics_of((found((WHOLE, 0.8, 0)), truth((WHOLE, 0))))
    assert (metrics.p, metrics.r) == (1, 1)
    assert metrics.map50 == pytest.approx(0.995)
    assert metrics.map == pytest.approx(0.995)
    assert metrics.fitness == pytest.approx(0.995)


def test_ap_of_a_right_a_wrong_and_a_right_box_worked_by_hand() -> None:
    # Recall .5 .5 1, precision 1 1/2 2/3: 50 points of 1, 50 of 2/3 and the end 0, less half of the first.
    metrics = metrics_of(
        (found((WHOLE, 0.9, 0), (FAR, 0.8, 0)), truth((WHOLE, 0))), (found((WHOLE, 0.7, 0)), truth((WHOLE, 0)))
    )
    assert metrics.map50 == pytest.approx((50 + 50 * 2 / 3 - 0.5) / 100)
    np.testing.assert_allclose(metrics.curves.r[0][[0, 600, 849, 950]], [1, 1, 0.5, 0], atol=1e-3)
    np.testing.assert_allclose(metrics.curves.p[0][[0, 600, 950]], [2 / 3, 2 / 3, 1], atol=1e-3)
    # Half-way between the wrong box (.8) and the last right one (.7) the curve is half-way, too.
    assert metrics.curves.p[0][749] == pytest.approx((1 / 2 + 2 / 3) / 2, abs=2e-3)


def test_a_class_without_detections_counts_as_0() -> None:
    metrics = metrics_of((found((WHOLE, 0.8, 0)), truth((WHOLE, 0), (FAR, 2))))
    assert metrics.map50 == pytest.approx(0.995 / 2)
    assert (metrics.p, metrics.r) == (0.5, 0.5)
    assert [(row.class_id, row.name, row.ap) for row in metrics.classes] == [
        (0, "ant", pytest.approx(0.995)),
        (2, "cat", 0),
    ]


def test_a_class_without_labels_is_left_out() -> None:
    metrics = metrics_of((found((WHOLE, 0.8, 0), (FAR, 0.9, 1)), truth((WHOLE, 0))))
    assert metrics.map50 == pytest.approx(0.995)
    assert len(metrics.classes) == 1


def test_boxes_found_in_a_picture_without_labels_cost_precision() -> None:
    good = (found((WHOLE, 0.8, 0)), truth((WHOLE, 0)))
    # A wrong box comes first: precision never is above 1/2, at 100 points, less half of the first one.
    assert metrics_of(good, (found((FAR, 0.9, 0)), truth())).map50 == pytest.approx((100 / 2 - 1 / 4) / 100)
    assert metrics_of(good, (found(), truth())).map50 == pytest.approx(0.995)


def test_p_and_r_are_read_where_f1_is_best() -> None:
    # One right box at .9, nine wrong ones at .1: P falls in a straight line from 1 at .9 to 1/2 at the first wrong one.
    rows: list[tuple[list[int], float, int]] = [(WHOLE, 0.9, 0), *[(FAR, 0.1, 0)] * 9]
    metrics = metrics_of((found(*rows), truth((WHOLE, 0))))
    assert metrics.r == 1
    assert 0.8 < metrics.confidence < 0.9  # not .9 itself: F1 is smoothed, and above .9 it is 0
    assert metrics.p == pytest.approx(0.5 + 0.5 * (metrics.confidence - 0.1) / 0.8, abs=1e-6)


def test_f1_is_not_held_to_be_0_below_confidence_0() -> None:
    # Twenty right boxes at .03, .08 … .98: the lower the confidence, the better is F1, down to the very end.
    rows = [(found((WHOLE, 0.03 + k / 20, 0)), truth((WHOLE, 0))) for k in range(20)]
    assert metrics_of(*rows).confidence == 0


def test_no_pictures_no_labels_and_no_boxes_give_zeros() -> None:
    for metrics in (metrics_of(), metrics_of((found(), truth())), metrics_of((found((WHOLE, 0.5, 0)), truth()))):
        assert (metrics.p, metrics.r, metrics.map50, metrics.map, metrics.fitness) == (0, 0, 0, 0, 0)
        assert metrics.classes == ()
        assert metrics.curves.f1.shape == (0, 1000)
    assert metrics_of((found(), truth((WHOLE, 1)))).map == 0


def test_pictures_and_instances_are_counted() -> None:
    metrics = metrics_of(
        (found(), truth((WHOLE, 0), (FAR, 0), (WHOLE, 1))), (found(), truth((WHOLE, 0))), (found(), truth())
    )
    assert (metrics.images, metrics.instances) == (3, 4)
    assert [(row.images, row.instances) for row in metrics.classes] == [(2, 3), (1, 1)]


@settings(ANY_SPEED, max_examples=20)
@given(st.lists(PICTURE, min_size=2, max_size=5))
def test_joining_in_two_steps_equals_joining_at_once(pictures: Any) -> None:
    parts = [compare(*picture) for picture in pictures]
    at_once = compute_metrics(join(parts), NAMES)
    in_steps = compute_metrics(join([join(parts[:2]), join(parts[2:])]), NAMES)
    assert at_once.classes == in_steps.classes
    assert at_once.images == in_steps.images == len(pictures)


@settings(ANY_SPEED, max_examples=20)
@given(st.lists(PICTURE, min_size=1, max_size=4))
def test_figures_stay_in_0_to_1_and_scale_of_scores_does_not_move_ap(pictures: Any) -> None:
    metrics = metrics_of(*pictures)
    for value in (metrics.p, metrics.r, metrics.map50, metrics.map):
        assert 0 <= value <= 1
    assert metrics.map <= metrics.map50 + 1e-12
    halved = [(Found(of.boxes, of.scores / 2, of.class_ids), there) for of, there in pictures]
    assert metrics_of(*halved).map == metrics.map


# ---- confusion ------------------------------------------------------------------------------------------------------


def confusion_of(*pictures: tuple[Found, Truth]) -> Any:
    matrix = ConfusionMatrix(len(NAMES))
    for picture in pictures:
        matrix.add(*picture)
    return matrix.counts


def test_confusion_worked_by_hand() -> None:
    boxes = found(
        ([0, 0, 9, 10], 0.95, 1),  # overlaps an ant less than the next one does: background, for all its score
        (WHOLE, 0.9, 0),  # an ant where an ant is
        ([20, 0, 30, 10], 0.8, 1),  # a bee where a cat is
        (FAR, 0.7, 2),  # a cat where nothing is
        ([40, 0, 50, 10], 0.25, 0),  # not above the confidence: nobody found the last ant
    )
    labels = truth((WHOLE, 0), ([20, 0, 30, 10], 2), ([40, 0, 50, 10], 0))
    expected = [  # ant, bee, cat, background
        [1, 0, 0, 0],
        [0, 0, 1, 1],
        [0, 0, 0, 1],
        [1, 0, 0, 0],
    ]
    np.testing.assert_array_equal(confusion_of((boxes, labels)), expected)


def test_an_overlap_of_exactly_045_is_too_little() -> None:
    labels = truth(([0, 0, 100, 10], 0))
    assert confusion_of((found(([0, 0, 45, 10], 0.9, 0)), labels))[0, 0] == 0
    assert confusion_of((found(([0, 0, 46, 10], 0.9, 0)), labels))[0, 0] == 1


@ANY_SPEED
@given(st.lists(PICTURE, max_size=4))
def test_every_label_and_every_sure_box_is_counted_once(pictures: Any) -> None:
    counts = confusion_of(*pictures)
    for class_id in range(len(NAMES)):
        assert counts[:, class_id].sum() == sum(int((there.class_ids == class_id).sum()) for _, there in pictures)
        assert counts[class_id].sum() == sum(
            int(((of.class_ids == class_id) & (of.scores > 0.25)).sum()) for of, _ in pictures
        )
    assert counts[-1, -1] == 0
