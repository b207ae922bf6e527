"""AutoAnchor on coco128's own boxes and on sets that plain anchors can't suit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from utils.anchors import AnchorFit, Anchors, BoxSizes, best_recall, fit_anchors
from utils.errors import DatasetError

ROOT = Path(__file__).resolve().parents[2]
STRIDES = (8, 16, 32)
COCO = np.array(
    [
        [[10, 13], [16, 30], [33, 23]],
        [[30, 61], [62, 45], [59, 119]],
        [[116, 90], [156, 198], [373, 326]],
    ],
    np.float32,
)
PLACEHOLDER = np.tile(np.arange(6, dtype=np.float32).reshape(1, 3, 2), (3, 1, 1))


@pytest.fixture(scope="module")
def coco128(shared: Path) -> BoxSizes:
    """All boxes of coco128, as if every picture were 640 px square: what counts here is that they are real ones."""
    files = sorted((shared / "data/coco128/labels/train2017").glob("*.txt"))
    tables = [np.loadtxt(file, ndmin=2, dtype=np.float32)[:, 3:5] * 640 for file in files if file.stat().st_size]
    ids = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    return BoxSizes(np.concatenate(tables), ids)


def drawn(boxes: BoxSizes, anchors: Anchors, seed: int = 0, anchor_t: float = 4.0) -> AnchorFit:
    return fit_anchors(boxes, anchors, anchor_t, np.random.default_rng(seed))


def recall_by_hand(sizes: Any, anchors: Any, limit: float) -> float:
    matched = 0
    for width, height in sizes.tolist():
        worst = [max(width / a, a / width, height / b, b / height) for a, b in anchors.reshape(-1, 2).tolist()]
        matched += min(worst) < limit
    return matched / len(sizes)


@pytest.mark.parametrize("limit", [1.5, 4.0])
def test_recall_is_the_share_of_boxes_that_an_anchor_matches(coco128: BoxSizes, limit: float) -> None:
    expected = recall_by_hand(coco128.sizes_px, COCO, limit)
    assert best_recall(coco128.sizes_px, COCO, limit) == pytest.approx(expected, abs=1 / len(coco128.sizes_px))


def test_cocos_own_anchors_suit_coco128(coco128: BoxSizes) -> None:
    fit = drawn(coco128, Anchors(COCO, STRIDES))
    assert not fit.is_new and fit.recall_before == fit.recall_after > 0.98
    np.testing.assert_array_equal(fit.anchors_px, COCO)


def test_boxes_of_another_shape_get_anchors_of_their_own(coco128: BoxSizes) -> None:
    flat = BoxSizes(
        np.maximum(coco128.sizes_px * np.array([1.0, 0.1], np.float32), np.float32(2.5)), coco128.picture_ids
    )
    fit = drawn(flat, Anchors(COCO, STRIDES))
    assert fit.is_new and fit.recall_after > 0.97 > 0.9 > fit.recall_before
    areas = fit.anchors_px.prod(2).ravel()
    assert (np.diff(areas) >= 0).all()


def test_mutations_make_the_fit_better_than_clusters_alone(coco128: BoxSizes, monkeypatch: pytest.MonkeyPatch) -> None:
    small = BoxSizes(coco128.sizes_px / np.float32(8), coco128.picture_ids)
    fitted = drawn(small, Anchors(PLACEHOLDER, STRIDES, True)).recall_after
    monkeypatch.setattr("utils.anchors.MUTATIONS", 0)
    assert fitted > drawn(small, Anchors(PLACEHOLDER, STRIDES, True)).recall_after


def test_placeholders_are_replaced_whatever_their_recall(coco128: BoxSizes) -> None:
    fit = drawn(coco128, Anchors(PLACEHOLDER, STRIDES, True))
    assert fit.is_new and fit.recall_after > 0.98 and fit.anchors_px.dtype == np.float32
    assert fit.anchors_px.shape == (3, 3, 2) and (fit.anchors_px >= 2).all()
    assert drawn(coco128, Anchors(COCO, STRIDES, True)).is_new


@pytest.mark.parametrize("strides", [(32, 16, 8), (16, 32, 8)])
def test_larger_anchors_go_to_larger_strides(coco128: BoxSizes, strides: tuple[int, ...]) -> None:
    fit = drawn(coco128, Anchors(PLACEHOLDER, strides, True))
    areas = fit.anchors_px.prod(2).mean(1)
    assert np.argsort(areas).tolist() == np.argsort(strides).tolist()


def test_equal_generators_give_equal_anchors_and_others_do_not(coco128: BoxSizes) -> None:
    placeholder = Anchors(PLACEHOLDER, STRIDES, True)
    first, again, other = (drawn(coco128, placeholder, seed).anchors_px for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_many_boxes_are_sampled_and_still_suited(coco128: BoxSizes) -> None:
    random = np.random.default_rng(0)
    picks = random.integers(len(coco128.sizes_px), size=300_000)
    jitter = random.uniform(0.8, 1.25, (len(picks), 2)).astype(np.float32)
    many = BoxSizes(coco128.sizes_px[picks] * jitter / np.float32(6), coco128.picture_ids[picks])
    fit = drawn(many, Anchors(COCO, STRIDES))
    assert fit.is_new and fit.recall_after > fit.recall_before


@pytest.mark.parametrize("count", [0, 1, 5])
def test_too_few_boxes_keep_the_anchors(count: int) -> None:
    boxes = BoxSizes(np.full((count, 2), 600, np.float32) * np.array([1, 0.01], np.float32), np.arange(count))
    fit = drawn(boxes, Anchors(COCO, STRIDES))
    assert not fit.is_new and "too few" in fit.reason
    np.testing.assert_array_equal(fit.anchors_px, COCO)


@pytest.mark.parametrize("count", [1, 5, 40])
def test_a_placeholder_gets_anchors_from_however_few_boxes(count: int) -> None:
    boxes = BoxSizes(np.full((count, 2), 50, np.float32), np.zeros(count, np.int64))
    fit = drawn(boxes, Anchors(PLACEHOLDER, STRIDES, True))
    assert fit.recall_after == 1 and np.isfinite(fit.anchors_px).all()


@pytest.mark.parametrize("sizes", [[], [[1.0, 1.5], [0.0, 0.0]]])
def test_a_placeholder_without_a_box_is_an_error(sizes: list[list[float]]) -> None:
    boxes = BoxSizes(np.array(sizes, np.float32).reshape(-1, 2), np.zeros(len(sizes), np.int64))
    with pytest.raises(DatasetError, match="none of its own"):
        drawn(boxes, Anchors(PLACEHOLDER, STRIDES, True))


def test_no_torch_is_loaded() -> None:
    code = "import sys, utils.anchors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
