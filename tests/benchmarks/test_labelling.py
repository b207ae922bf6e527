"""The experiment's figures by hand, and its drawn world."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.drawn_pool import COMMON, NAMES, POOL_SCENERY, SIDE, TAIL, draw_set, jittered
from benchmarks.labelling import ALL, START, START_AGAIN, Result, curves_of, interval, mean_height, report
from utils.shapes import draw_picture


def test_the_mean_height_of_a_curve() -> None:
    assert mean_height([0, 10], [0, 1], 10) == pytest.approx(0.5)
    assert mean_height([0, 10, 20], [0, 1, 1], 20) == pytest.approx(0.75)
    assert mean_height([0, 10, 20], [0, 1, 1], 15) == pytest.approx((0.5 * 10 + 5) / 15)
    assert mean_height([5, 10], [0.25, 1], 5) == 0.25


def test_the_interval_of_paired_differences() -> None:
    assert interval([0.1, 0.1, 0.1]) == pytest.approx((0.1, 0.1, 0.1))
    mean, low, high = interval([-0.1, 0.0, 0.4])
    assert mean == pytest.approx(0.1) and low == pytest.approx(-0.1) and high == pytest.approx(0.4)


def result(method: str, number: int, boxes: int, map50: float, seed: int = 0) -> Result:
    return Result(seed, method, number, tuple(range(4 + 2 * number)), boxes, map50, map50 / 2, map50 / 4, ())


def test_methods_are_compared_over_what_both_have_paid_for() -> None:
    results = [
        result(START, 0, 10, 0.2), result(f"{START_AGAIN} 1", 0, 10, 0.4), result(ALL, 1, 99, 0.9),
        result("random", 1, 20, 0.4), result("other", 1, 40, 0.8),
    ]  # fmt: skip
    curves = curves_of(results, ("random", "other"), 1)
    differences = curves.differences("other", "random")
    assert differences["mAP50"] == pytest.approx([0.4]) and differences["mAP"] == pytest.approx([0.2])
    assert differences["mean mAP50 over pictures"] == pytest.approx([0.5 - 0.3])
    assert differences["mean mAP50 over boxes"] == pytest.approx([0.0])  # at 20 boxes both have 0.4
    text = report(curves)
    assert "| other | 40 | 0.800 | 0.400 | 0.200 |" in text and "| all 6 | 99 | 0.900 |" in text
    assert "+0.000 (+0.000 to +0.000, not distinguishable)" in text
    assert "trained 2 times" in text and "0.200 to 0.400, standard deviation 0.141" in text


def test_the_drawn_world(tmp_path: Path) -> None:
    shown = draw_set(tmp_path, "pool", 120, POOL_SCENERY, 0.2)
    counts = Counter(class_id for one in shown for class_id in one.class_ids)
    assert counts[0] > counts[1] > counts[3] > max(counts[one] for one in TAIL[2:])
    assert 15 <= sum(not one.class_ids for one in shown) <= 50
    assert all(len(one.label.read_text().splitlines()) == len(one.class_ids) for one in shown)
    assert {class_id for one in draw_set(tmp_path, "base", 30, COMMON) for class_id in one.class_ids} == {0, 1, 2, 3}
    assert len(NAMES) == 8


def test_boxes_of_a_scene_that_is_shown_again_move_with_it() -> None:
    drawing = draw_picture(101, 0, (SIDE, SIDE), POOL_SCENERY)
    again = jittered(drawing, np.random.default_rng(3))
    shift = (again.boxes_px - drawing.boxes_px)[0, :2].astype(int)
    assert np.abs(shift).max() <= 4 and shift.any()
    x1, y1, x2, y2 = drawing.boxes_px[0].astype(int)
    before = drawing.picture[y1:y2, x1:x2].astype(float)
    after = again.picture[y1 + shift[1] : y2 + shift[1], x1 + shift[0] : x2 + shift[0]].astype(float)
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.95
