"""The loss, against YOLOv5's own figures (golden/training_loss.json), and against plain arithmetic."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from models.checkpoint import read_checkpoint
from models.detector import build_model
from models.yolo import DetectionModel
from utils.hyp import Hyp
from utils.loss import DetectionLoss, HeadShape, LossSettings, complete_iou, make_loss, match

ANCHORS = torch.tensor(
    [[[1.25, 1.625], [2.0, 3.75], [4.125, 2.875]], [[1.875, 3.8125], [3.875, 2.8125], [3.6875, 7.4375]]]
)  # cells
STRIDES = (8, 16)


def picture_on_square(path: Path, side: int) -> Any:
    """YOLOv5's way: long side to `side`, grey 114 around; (3, side, side) RGB in 0..1."""
    bgr: Any = cv2.imread(str(path))
    height, width = bgr.shape[:2]
    ratio = side / max(height, width)
    if ratio != 1:
        bgr = cv2.resize(bgr, (round(width * ratio), round(height * ratio)), interpolation=cv2.INTER_LINEAR)
    canvas = np.full((side, side, 3), 114, np.uint8)
    top, left = (side - bgr.shape[0]) // 2, (side - bgr.shape[1]) // 2
    canvas[top : top + bgr.shape[0], left : left + bgr.shape[1]] = bgr
    return canvas[:, :, ::-1].transpose(2, 0, 1) / 255


def head_of(model: DetectionModel) -> HeadShape:
    return HeadShape(model.detect.nc, model.detect.anchors, model.stride)


def loss_of(nc: int = 4, **settings: Any) -> DetectionLoss:
    chosen = {"hyp": Hyp(), "img_size": 640, **settings}
    return make_loss(LossSettings(**chosen), HeadShape(nc, ANCHORS, STRIDES))


def random_maps(nc: int = 4, batch: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, 3 * (nc + 5), side, side + 2) for side in (12, 6)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def random_rows(count: int, nc: int = 4, batch: int = 2, seed: int = 0) -> Tensor:
    random = np.random.default_rng(seed)
    places, classes = random.integers(batch, size=count), random.integers(nc, size=count)
    boxes = np.concatenate([random.uniform(0, 1, (count, 2)), random.uniform(0.02, 0.5, (count, 2))], 1)
    return torch.tensor(np.column_stack([places, classes, boxes]), dtype=torch.float32)


@pytest.mark.parametrize("mode", ["eval_statistics", "train_mode"])
def test_loss_matches_and_gradients_are_the_golden_ones(
    mode: str, golden: Callable[[str], Any], shared: Path, yolov5n_pt: Path
) -> None:
    figures = golden("training_loss.json")
    expected = figures["modes"][mode]
    dtype = torch.float32 if mode == "eval_statistics" else torch.float64
    folder = shared / "data/coco128/images/train2017"
    images = torch.tensor(np.stack([picture_on_square(folder / row["image"], 640) for row in figures["images"]]))
    assert images.sum().item() == pytest.approx(figures["input_sum"], rel=1e-6)
    model = build_model(read_checkpoint(yolov5n_pt)).requires_grad_(True).train(mode == "train_mode").to(dtype)
    loss = make_loss(LossSettings(Hyp(), 640), head_of(model))
    rows = torch.tensor(figures["targets_rows"])
    maps = model(images.to(dtype))

    total, parts = loss(maps, rows)
    total.backward()  # type: ignore[no-untyped-call]

    assert [len(matches.cells) for matches in loss.match(maps, rows)] == expected["matched_anchors_per_level"]
    assert parts.tolist() == pytest.approx([expected[key] for key in ("lbox", "lobj", "lcls")], rel=1e-4)
    assert total.item() == pytest.approx(expected["total_times_batch"], rel=1e-4)
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    for name, norm in expected["grad_norm_of"].items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-3), name
    whole = math.sqrt(sum(gradient.double().square().sum().item() for gradient in gradients.values()))
    assert whole == pytest.approx(expected["grad_l2_norm"], rel=1e-3)


def cross_entropy(logit: Tensor, wanted: Tensor) -> Tensor:
    said = logit.sigmoid()
    return -(wanted * said.log() + (1 - wanted) * (1 - said).log())


def ciou_of(box: Tensor, other: Tensor) -> Tensor:
    """The paper's formulas, one pair, corners worked out by hand."""
    (x, y, w, h), (p, q, v, u) = box, other
    wide = (torch.min(x + w / 2, p + v / 2) - torch.max(x - w / 2, p - v / 2)).clamp(min=0)
    high = (torch.min(y + h / 2, q + u / 2) - torch.max(y - h / 2, q - u / 2)).clamp(min=0)
    iou = wide * high / (w * h + v * u - wide * high)
    c_w = torch.max(x + w / 2, p + v / 2) - torch.min(x - w / 2, p - v / 2)
    c_h = torch.max(y + h / 2, q + u / 2) - torch.min(y - h / 2, q - u / 2)
    aspect = 4 / math.pi**2 * (torch.atan(v / u) - torch.atan(w / h)) ** 2
    alpha = (aspect / (1 - iou + aspect)).detach()
    whole: Tensor = iou - ((x - p) ** 2 + (y - q) ** 2) / (c_w**2 + c_h**2) - alpha * aspect
    return whole


def plain_loss(maps: list[Tensor], rows: Tensor, nc: int, hyp: Hyp) -> Tensor:
    """The same loss, a match at a time, in the stated order: offset, anchor, target. Gives box, objectness, classes."""
    parts = []
    for level, anchors, weight in zip(maps, ANCHORS.to(maps[0].dtype), (4.0, 1.0)):
        batch, _, height, width = level.shape
        seen = level.view(batch, 3, nc + 5, height, width)
        wanted, boxes, classes = torch.zeros(batch, 3, height, width).to(level), [], []
        for shift_x, shift_y in ((0, 0), (-1, 0), (0, -1), (1, 0), (0, 1)):
            for anchor_id, anchor in enumerate(anchors):
                for place, class_id, cx, cy, w, h in rows.tolist():
                    x, y, w, h = cx * width, cy * height, w * width, h * height
                    ratios = [w / float(anchor[0]), h / float(anchor[1])]
                    if max(*ratios, *(1 / ratio for ratio in ratios)) >= hyp.anchor_t:
                        continue
                    i, j = math.floor(x) + shift_x, math.floor(y) + shift_y
                    if (shift_x < 0 and x % 1 >= 0.5) or (shift_x > 0 and x % 1 <= 0.5):
                        continue
                    if (shift_y < 0 and y % 1 >= 0.5) or (shift_y > 0 and y % 1 <= 0.5):
                        continue
                    if not (0 <= i < width and 0 <= j < height):
                        continue
                    row = seen[int(place), anchor_id, :, j, i]
                    said = row[:4].sigmoid()
                    box = torch.cat([2 * said[:2] - 0.5, (2 * said[2:]) ** 2 * anchor])
                    iou = ciou_of(box, torch.tensor([x - i, y - j, w, h]).to(level))
                    wanted[int(place), anchor_id, j, i] = iou.detach().clamp(min=0)
                    boxes.append(1 - iou)
                    one_hot = torch.zeros(nc).to(level)
                    one_hot[int(class_id)] = 1
                    classes.append(cross_entropy(row[5:], one_hot).mean())
        objectness = cross_entropy(seen[:, :, 4], wanted).mean() * weight
        parts.append(torch.stack([torch.stack(boxes).mean(), objectness, torch.stack(classes).mean()]))
    return torch.stack(parts).sum(0) * torch.tensor([hyp.box, hyp.obj, hyp.cls * nc / 80]).to(maps[0]) * 3 / 2


def gradients_of(total: Tensor, maps: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(total, maps))


def test_crowded_boxes_give_what_plain_arithmetic_gives() -> None:
    maps, rows = random_maps(dtype=torch.float64), random_rows(25)  # many share cells and anchors
    total, parts = loss_of()(maps, rows)
    expected = plain_loss(maps, rows, 4, Hyp())
    torch.testing.assert_close(parts, expected.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(total, expected.sum() * 2, rtol=1e-5, atol=0)
    for gradient, other in zip(gradients_of(total, maps), gradients_of(expected.sum() * 2, maps)):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-8)


def test_layout_in_memory_changes_nothing() -> None:
    maps, rows = random_maps(), random_rows(40)
    turned = [level.detach().to(memory_format=torch.channels_last).requires_grad_() for level in maps]
    total, parts = loss_of()(maps, rows)
    other_total, other_parts = loss_of()(turned, rows)
    torch.testing.assert_close(parts, other_parts, rtol=1e-6, atol=0)
    for gradient, other in zip(gradients_of(total, maps), gradients_of(other_total, turned)):
        assert other.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(gradient, other)


def test_a_map_that_is_a_view_of_something_larger_works() -> None:
    maps, rows = random_maps(), random_rows(20)
    views = [torch.cat([level, level], 3)[..., : level.shape[3]] for level in maps]
    torch.testing.assert_close(loss_of()(views, rows).parts, loss_of()(maps, rows).parts)


def test_equal_calls_give_equal_bytes_on_two_threads() -> None:
    maps, rows = random_maps(batch=8), random_rows(400, batch=8)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runs = [gradients_of(loss_of()(maps, rows).total, maps) for _ in range(5)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_maps_are_computed_in_fp32(dtype: torch.dtype) -> None:
    low, rows = random_maps(dtype=dtype), random_rows(30)
    exact = [level.detach().float().requires_grad_() for level in low]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, parts = loss_of()(low, rows)
    other_total, other_parts = loss_of()(exact, rows)
    assert parts.dtype == torch.float32
    torch.testing.assert_close(parts, other_parts, rtol=1e-6, atol=0)
    for gradient, other in zip(gradients_of(total, low), gradients_of(other_total, exact)):
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient.float(), other, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("rows", [torch.zeros(0, 6), torch.tensor([[0, 0, 0.5, 0.5, 0.0, 0.0]])])
def test_without_a_match_only_objectness_counts_and_gradients_are_finite(rows: Tensor) -> None:
    maps = random_maps()
    total, parts = loss_of()(maps, rows)
    assert parts[0] == 0 and parts[2] == 0 and parts[1] > 0
    for level, gradient in zip(maps, gradients_of(total, maps)):
        seen = gradient.view(2, 3, 9, *level.shape[2:])
        assert (seen[:, :, 4] > 0).all()
        assert (seen[:, :, :4] == 0).all() and (seen[:, :, 5:] == 0).all()


def test_one_class_has_no_class_loss() -> None:
    maps = random_maps(nc=1)
    total, parts = loss_of(nc=1)(maps, random_rows(10, nc=1))
    assert parts[2] == 0 and parts[0] > 0
    assert all(gradient.isfinite().all() for gradient in gradients_of(total, maps))


@pytest.mark.parametrize("gamma", [0.5, 1.5])
def test_extreme_logits_give_finite_gradients(gamma: float) -> None:
    hyp = Hyp(fl_gamma=gamma, cls_pw=2.0, obj_pw=0.5)
    maps = [(level.detach() * 200).requires_grad_() for level in random_maps()]
    total, _ = loss_of(hyp=hyp)(maps, random_rows(30))
    assert total.isfinite() and all(gradient.isfinite().all() for gradient in gradients_of(total, maps))


def test_a_centre_matches_its_nearest_neighbours_but_none_outside_of_the_map() -> None:
    anchors = torch.tensor([[2.0, 2.0]])

    def cells_of(x: float, y: float) -> set[tuple[int, int]]:  # x, y on a map of 8 x 8
        row = torch.tensor([[0, 0, x / 8, y / 8, 0.25, 0.25]])
        return {(int(column), int(line)) for _, _, line, column in match(row, anchors, (8, 8), 4.0).cells}

    assert cells_of(3.25, 3.75) == {(3, 3), (2, 3), (3, 4)}
    assert cells_of(3.5, 3.5) == {(3, 3)}
    assert cells_of(0.25, 7.75) == {(0, 7)}
    assert cells_of(8.0, 8.0) == {(7, 7)}


@pytest.mark.parametrize(("width", "count"), [(7.99, 1), (8.0, 0), (0.51, 1), (0.5, 0)])
def test_an_anchor_fits_up_to_the_ratio(width: float, count: int) -> None:
    row = torch.tensor([[0, 0, 3.5 / 8, 3.5 / 8, width / 8, 2 / 8]])
    assert len(match(row, torch.tensor([[2.0, 2.0]]), (8, 8), 4.0).cells) == count


def test_complete_iou_of_equal_boxes_is_one_and_of_distant_ones_negative() -> None:
    boxes = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 1.0, 1.0]])
    others = torch.tensor([[1.0, 2.0, 3.0, 4.0], [9.0, 0.0, 1.0, 1.0]])
    # Hull 10 x 1, centres 9 apart: -81 / 101.
    torch.testing.assert_close(complete_iou(boxes, others), torch.tensor([1.0, -81 / 101]))


def test_label_smoothing_moves_both_targets_by_half() -> None:
    row = torch.tensor([[0, 1, 0.5, 0.5, 0.15, 0.2]])
    maps = [torch.zeros(1, 27, side, side) for side in (12, 6)]
    for level in maps:
        level[:, [5, 14, 23]] = 2.0  # class 0's logit
    loss = loss_of(label_smoothing=0.2)
    per_level = [cross_entropy(torch.tensor([2.0, 0, 0, 0]), torch.tensor([0.1, 0.9, 0.1, 0.1])).mean()] * 2
    torch.testing.assert_close(loss(maps, row).parts[2], torch.stack(per_level).sum() * 0.5 * 4 / 80 * 3 / 2)


def test_focal_form_is_the_papers() -> None:
    maps = [torch.full((1, 27, side, side), -1.0) for side in (12, 6)]
    said = torch.tensor(-1.0).sigmoid()
    each = 0.75 * said**1.5 * -(1 - said).log()  # eq. 5 for a negative
    expected = each * (4.0 + 1.0) * 3 / 2
    torch.testing.assert_close(loss_of(hyp=Hyp(fl_gamma=1.5))(maps, torch.zeros(0, 6)).parts[1], expected)


def test_autobalance_follows_its_formula_and_goes_on_from_its_state() -> None:
    maps, rows = random_maps(), torch.zeros(0, 6)
    loss = loss_of(is_autobalanced=True)
    loss(maps, rows)
    losses = [cross_entropy(level.view(2, 3, 9, -1)[:, :, 4], torch.zeros(())).mean().item() for level in maps]
    moved = [0.9999 * weight + 0.0001 / value for weight, value in zip((4.0, 1.0), losses)]
    assert loss.state()["level_weights"] == pytest.approx([moved[0] / moved[1], 1.0], rel=1e-6)
    other = loss_of(is_autobalanced=True)
    other.load(loss.state())
    assert torch.equal(loss(maps, rows).parts, other(maps, rows).parts)
    assert loss.state() == other.state()


def test_without_gradients_the_levels_keep_their_weights() -> None:
    loss = loss_of(is_autobalanced=True)
    with torch.no_grad():
        loss(random_maps(), random_rows(5))
    assert loss.state() == {"level_weights": [4.0, 1.0]}


def test_quad_counts_four_times() -> None:
    maps, rows = random_maps(), random_rows(10)
    torch.testing.assert_close(loss_of(is_quad=True)(maps, rows).total, 4 * loss_of()(maps, rows).total)


@pytest.mark.parametrize("cut", [1, 4])
def test_ranks_with_unequal_parts_give_the_gradients_of_the_whole(cut: int) -> None:
    maps, rows = random_maps(batch=6, dtype=torch.float64), random_rows(40, batch=6)
    whole = loss_of()(maps, rows)
    halves = [
        ([level[:cut] for level in maps], rows[rows[:, 0] < cut]),
        ([level[cut:] for level in maps], rows[rows[:, 0] >= cut] - torch.tensor([cut, 0, 0, 0, 0, 0])),
    ]
    sent: list[Tensor] = []
    for part, own in halves:
        loss = loss_of()
        loss.reduce_counts = lambda counts: sent.append(counts) or counts  # type: ignore[func-returns-value]
        loss(part, own)
    results = []
    for part, own in halves:
        loss = loss_of()
        loss.reduce_counts = lambda _: sent[0] + sent[1]
        results.append(loss(part, own))
    torch.testing.assert_close((results[0].parts + results[1].parts) / 2, whole.parts)
    for ours, theirs in zip(
        gradients_of((results[0].total + results[1].total) / 2, maps), gradients_of(whole.total, maps)
    ):
        torch.testing.assert_close(ours, theirs)
