"""COCO's figures on cases whose AP can be worked by hand, and the rows of its result file."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any, Callable

import numpy as np
import pytest

from utils.coco_metrics import COCO_NAMES, CocoFigures, category_ids, coco_figures, coco_json_rows
from utils.metrics import Found, Truth

SMALL, MEDIUM, LARGE = [0, 0, 10, 10], [100, 100, 150, 150], [200, 200, 400, 400]
FAR = [500, 500, 510, 510]


def found(*rows: tuple[Sequence[float], float, int]) -> Found:
    boxes = np.array([row[0] for row in rows], np.float32).reshape(-1, 4)
    return Found(boxes, np.array([row[1] for row in rows], np.float32), np.array([row[2] for row in rows], np.int64))


def truth(*rows: tuple[list[int], int]) -> Truth:
    boxes = np.array([row[0] for row in rows], np.float32).reshape(-1, 4)
    return Truth(boxes, np.array([row[1] for row in rows], np.int64))


def figures(labels: Truth, boxes: Found, class_count: int = 1) -> CocoFigures:
    return coco_figures([labels], [boxes], class_count)


def test_a_perfect_detector_has_1_everywhere() -> None:
    three = figures(
        truth((SMALL, 0), (MEDIUM, 0), (LARGE, 0)), found((SMALL, 0.9, 0), (MEDIUM, 0.8, 0), (LARGE, 0.7, 0))
    )
    assert (three.map, three.map50, three.map75) == (1, 1, 1)
    assert (three.map_small, three.map_medium, three.map_large) == (1, 1, 1)
    assert (three.ar_small, three.ar_medium, three.ar_large) == (1, 1, 1)
    assert three.ar1 == pytest.approx(1 / 3)  # one box a picture and class can't find three
    assert (three.ar10, three.ar100) == (1, 1)
    assert three.class_ap == (1,)


def test_ap_of_a_right_a_wrong_and_a_right_box_worked_by_hand() -> None:
    # Precision 1 up to recall .5 (51 of 101 points), 2/3 beyond.
    ours = figures(truth((SMALL, 0), (LARGE, 0)), found((SMALL, 0.9, 0), (FAR, 0.8, 0), (LARGE, 0.7, 0)))
    assert ours.map50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert ours.map == pytest.approx(ours.map50)


def test_an_iou_of_072_counts_at_five_of_ten_thresholds() -> None:
    ours = figures(truth(([0, 0, 100, 10], 0)), found(([0, 0, 72, 10], 0.9, 0)))
    assert (ours.map50, ours.map75) == (1, 0)
    assert ours.map == pytest.approx(0.5)
    assert ours.ar100 == pytest.approx(0.5)


def test_sizes_are_told_apart_at_32_and_96_squared() -> None:
    # The 50 x 50 box is missed: small and large are perfect, medium is 0, all together recall 2/3 (67 of 101 points).
    ours = figures(truth((SMALL, 0), (MEDIUM, 0), (LARGE, 0)), found((SMALL, 0.9, 0), (LARGE, 0.8, 0)))
    assert (ours.map_small, ours.map_medium, ours.map_large) == (1, 0, 1)
    assert ours.map == pytest.approx(67 / 101)
    for side, field in ((31, "map_small"), (33, "map_medium"), (95, "map_medium"), (97, "map_large")):
        box = [0, 0, side, side]
        one = figures(truth((box, 0)), found((box, 0.9, 0)))
        sizes = {name: getattr(one, name) for name in ("map_small", "map_medium", "map_large")}
        assert sizes == {name: 1 if name == field else None for name in sizes}


def test_a_class_without_labels_is_left_out_and_one_without_boxes_counts_as_0() -> None:
    ours = figures(truth((SMALL, 0), (LARGE, 2)), found((SMALL, 0.9, 0), (MEDIUM, 0.9, 1)), class_count=3)
    assert ours.map == 0.5
    assert ours.class_ap == (1, None, 0)


def test_a_box_of_another_picture_is_wrong() -> None:
    ours = coco_figures([truth((SMALL, 0)), truth()], [found(), found((SMALL, 0.9, 0))], 1)
    assert ours.map50 == 0


def test_only_the_best_100_boxes_of_a_class_in_a_picture_count() -> None:
    wrong, right = [(FAR, 0.9, 0)] * 99, (SMALL, 0.5, 0)
    assert figures(truth((SMALL, 0)), found(*wrong, right)).ar100 == 1
    assert figures(truth((SMALL, 0)), found(wrong[0], *wrong, right)).ar100 == 0
    # ... of a class: another one's boxes don't push it out.
    other = [(box, score, 1) for box, score, _ in wrong]
    assert figures(truth((SMALL, 0)), found(other[0], *other, right), class_count=2).ar100 == 1


def test_boxes_on_a_crowd_are_neither_right_nor_wrong() -> None:
    labels, boxes = truth((LARGE, 0), (SMALL, 0)), found(([210, 210, 230, 230], 0.95, 0), (SMALL, 0.9, 0))
    ignored = coco_figures([labels], [boxes], 1, crowds=[np.array([True, False])])
    assert (ignored.map, ignored.map_large) == (1, None)
    assert coco_figures([labels], [boxes], 1).map < 0.5


def test_no_pictures_no_labels_and_no_boxes_give_figures_all_the_same() -> None:
    nothing = coco_figures([], [], 2)
    assert (nothing.map, nothing.ar100, nothing.map_small, nothing.class_ap) == (0, 0, None, (None, None))
    assert coco_figures([truth()], [found((SMALL, 0.9, 0))], 1).map == 0
    assert coco_figures([truth((SMALL, 0))], [found()], 1).map == 0
    assert coco_figures([truth()], [found()], 0).class_ap == ()


def test_the_library_says_nothing(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    caplog.set_level(logging.DEBUG)
    figures(truth((SMALL, 0)), found((SMALL, 0.9, 0)))
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")
    assert caplog.records == []
    assert len(recwarn) == 0


# ---- rows of the result file -----------------------------------------------------------------------------------------


def test_cocos_80_classes_get_its_91_numbers(golden: Callable[[str], Any]) -> None:
    ids = category_ids(COCO_NAMES)
    assert len(COCO_NAMES) == len(ids) == len(set(ids)) == 80
    by_name = dict(zip(COCO_NAMES, ids))
    # COCO's own numbers around each gap.
    assert [by_name[name] for name in ("person", "fire hydrant", "stop sign", "cow", "backpack")] == [1, 11, 13, 21, 27]
    assert [by_name[name] for name in ("umbrella", "handbag", "wine glass", "dining table")] == [28, 31, 46, 67]
    assert [by_name[name] for name in ("toilet", "tv", "refrigerator", "book", "toothbrush")] == [70, 72, 82, 84, 90]
    named = {row["cls"]: row["name"] for row in golden("upstream_val.json")["modes"]["rect"]["per_class"]}
    assert {class_id: COCO_NAMES[class_id] for class_id in named} == named


def test_other_classes_keep_their_own_numbers() -> None:
    assert category_ids(("person", "bicycle")) == (0, 1)
    assert category_ids(COCO_NAMES[::-1]) == tuple(range(80))


def test_rows_are_rounded_and_numbered_as_coco_asks() -> None:
    boxes = found(([10.12345, 20.5, 30.0, 40.25], 0.123456, 1))
    (row,) = coco_json_rows("000000000139", boxes, (1, 13))
    assert json.loads(json.dumps(row)) == {
        "image_id": 139,
        "category_id": 13,
        "bbox": [10.123, 20.5, 19.877, 19.75],
        "score": 0.12346,
    }


@pytest.mark.parametrize("stem", ["cat 1", "12a", "１２", "²", "-3", ""])  # noqa: RUF001
def test_a_name_that_is_no_number_stays_a_name(stem: str) -> None:
    (row,) = coco_json_rows(stem, found(([0, 0, 1, 1], 0.5, 0)), (0,))
    assert row["image_id"] == stem


def test_a_picture_without_boxes_has_no_rows() -> None:
    assert coco_json_rows("1", found(), (0,)) == []
