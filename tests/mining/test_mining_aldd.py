"""ALDD against golden figures, against a literal fp64 computation, and its bound against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mining import MINERS
from mining.mining_aldd import (
    UnitSums,
    bounds,
    check_weights,
    class_figures,
    class_weights,
    compiled_figures,
    torch_figures,
)
from mining.runner import looks
from models.checkpoint import read_checkpoint
from models.decode import HeadMaps, RawMaps
from models.detector import make_detector
from tests.mining.looking import refuse, scores_of
from utils.batches import BatchReader, Placing
from utils.settings import EngineSettings, LoaderSettings, MiningConfig
from ymir.index import Candidate

ANCHORS_PX = torch.ones(4, 3, 2)


def maps(
    input_hw: tuple[int, int], classes: int, strides: tuple[int, ...], seed: int = 0, spread: float = 3.0
) -> RawMaps:
    random = torch.Generator().manual_seed(seed)
    levels = [
        spread * torch.randn(1, input_hw[0] // s, input_hw[1] // s, 3, 5 + classes, generator=random) - 2
        for s in strides
    ]
    return RawMaps(levels, strides, ANCHORS_PX)


def entropy(p: Any) -> Any:
    return -torch.xlogy(p, p) - torch.special.xlog1py(1 - p, -p)


def literal(raw: HeadMaps, input_hw: tuple[int, int]) -> Any:
    """SPEC section 6 word by word in fp64: (nc,) figures."""
    total: Any = 0
    for level in raw.levels:
        level = level.double()
        p = (level[..., 4:5].sigmoid() * level[..., 5:].sigmoid())[0].permute(3, 2, 0, 1)  # (nc, na, H, W)
        p = F.interpolate(p, size=input_hw, mode="bilinear", align_corners=False)

        def mean(x: Any) -> Any:
            return F.avg_pool2d(x, 9, stride=1, padding=4, count_include_pad=False)

        total = total + (entropy(mean(p)) - mean(entropy(p))).sum(1)
    return F.max_pool2d(total, tuple(min(32, side) for side in input_hw)).mean(dim=(1, 2)).numpy()


CASES = [
    ((64, 64), 1, (8, 16, 32)),
    ((64, 64), 3, (8, 16)),
    ((48, 80), 2, (8, 16)),  # what doesn't fill a block counts only as surroundings
    ((160, 160), 3, (8, 16, 32)),
    ((96, 160), 20, (8, 16, 32)),
    ((32, 32), 2, (8, 16, 32)),
    ((128, 64), 3, (8, 16, 32, 64)),
    ((64, 96), 2, (4, 8, 16, 32)),
    ((64, 64), 4, (16, 32)),
]


@pytest.mark.parametrize(("input_hw", "classes", "strides"), CASES)
@pytest.mark.parametrize("spread", [1.0, 3.0, 30.0])
def test_both_ways_are_the_literal_one(
    input_hw: tuple[int, int], classes: int, strides: tuple[int, ...], spread: float
) -> None:
    raw = maps(input_hw, classes, strides, spread=spread)
    expected, used, weights = literal(raw, input_hw), np.arange(classes), np.ones(classes)
    assert torch_figures(raw, input_hw, used, weights) == pytest.approx(expected, rel=1e-5)
    compiled = compiled_figures(raw, input_hw, used, weights)
    assert compiled.sum() == pytest.approx(expected.sum(), rel=2e-4)
    assert UnitSums(raw, input_hw, used).figures(weights, prunes=False) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("input_hw", [(16, 64), (64, 16), (16, 24), (24, 16)])
def test_a_side_below_a_block_is_one_block(input_hw: tuple[int, int]) -> None:
    raw = maps(input_hw, 20, (8,), seed=3)
    assert class_figures(raw, input_hw, np.ones(20)) == pytest.approx(list(literal(raw, input_hw)), rel=1e-5)


@pytest.mark.parametrize("logit", [-30.0, 30.0])
def test_extreme_logits_are_finite_and_right(logit: float) -> None:
    """Cells of certainty beside cells of its opposite, and a picture that is all of one kind."""
    raw = maps((64, 96), 3, (8, 16, 32), seed=5)
    mixed = RawMaps([torch.where(level > -2, logit, -logit) for level in raw.levels], raw.strides, ANCHORS_PX)
    flat = RawMaps([torch.full_like(level, logit) for level in raw.levels], raw.strides, ANCHORS_PX)
    for compute in (compiled_figures, torch_figures):
        found = compute(mixed, (64, 96), np.arange(3), np.ones(3))
        assert found == pytest.approx(literal(mixed, (64, 96)), rel=1e-5)
        assert compute(flat, (64, 96), np.arange(3), np.ones(3)) == pytest.approx(np.zeros(3), abs=1e-7)


def test_grey_padding_counts() -> None:
    """The border of a letterbox is part of the input: cells there count like any other."""
    raw = maps((64, 96), 2, (8, 16, 32), seed=8)
    for level, stride in zip(raw.levels, raw.strides):
        level[:, 32 // stride :] = -9.0
    expected = literal(raw, (64, 96))
    assert class_figures(raw, (64, 96), np.ones(2)) == pytest.approx(list(expected), rel=2e-4)
    seen = RawMaps(
        [level[:, : 32 // stride] for level, stride in zip(raw.levels, raw.strides)], raw.strides, ANCHORS_PX
    )
    assert class_figures(seen, (32, 96), np.ones(2)) != pytest.approx(list(expected), rel=1e-2)


def test_maps_stay_as_they_are() -> None:
    """One anchor, in the memory order of the network's last convolution: then no copy is needed to read them."""
    levels = [torch.randn(1, 1, 8, 64 // s, 64 // s).permute(0, 3, 4, 1, 2) for s in (8, 16, 32)]
    before = [level.clone() for level in levels]
    class_figures(RawMaps(levels, (8, 16, 32), ANCHORS_PX), (64, 64), np.ones(3))
    assert all(torch.equal(level, old) for level, old in zip(levels, before))


def test_aldd_is_goldens(shared: Path, coco_images: list[Path], yolov5n_pt: Path) -> None:
    lines = (shared / "golden/aldd.tsv").read_text().splitlines()
    golden = {name: float(score) for name, score in (line.split("\t") for line in lines)}
    config = MiningConfig(tuple(str(number) for number in range(80)))
    found = scores_of(MINERS["aldd"], coco_images[:6], yolov5n_pt, config)
    assert sorted(found, key=lambda name: -found[name].score) == list(golden)
    for name, score in golden.items():
        assert found[name].score == pytest.approx(score, rel=2e-4)
        assert sum(found[name].parts) == pytest.approx(found[name].score) and len(found[name].parts) == 80


def test_maps_in_a_batch_score_bit_for_bit_as_alone() -> None:
    pictures = [maps((64, 96), 5, (8, 16, 32), seed, spread=4.0) for seed in range(4)]
    levels = [torch.cat([raw.levels[number] for raw in pictures]) for number in range(3)]
    together = RawMaps(levels, (8, 16, 32), ANCHORS_PX)
    for place, raw in enumerate(pictures):
        assert class_figures(together[place], (64, 96), np.ones(5)) == class_figures(raw, (64, 96), np.ones(5))


def test_the_batch_does_not_matter(coco_images: list[Path], yolov5n_pt: Path) -> None:
    config = MiningConfig(tuple(str(number) for number in range(80)))
    alone = scores_of(MINERS["aldd"], coco_images[:5], yolov5n_pt, config, 160, 1)
    together = scores_of(MINERS["aldd"], coco_images[:5], yolov5n_pt, config, 160, 5)
    for name, scored in alone.items():
        assert together[name].score == pytest.approx(scored.score, rel=2e-4)


def check_bounds(raw: HeadMaps, input_hw: tuple[int, int], classes: int) -> None:
    """Hold what each map gives to each block against its bound, and the pruned score against the whole one."""
    sums = UnitSums(raw, input_hw, np.arange(classes))
    least, largest, spread = sums.extremes()
    rows, columns = sums.blocks_hw
    units = np.array([[c, y, x] for c in range(classes) for y in range(rows) for x in range(columns)])
    limits = bounds(least, largest, spread)
    highest = entropy(torch.as_tensor(largest).double().clamp(max=0.5)).numpy()
    for column in range(largest.shape[1]):
        keep = np.zeros(largest.shape, np.bool_)
        keep[:, column] = True
        # fp32 is off in proportion to the entropy, which may be far above its gap.
        rounding = 1e-6 * highest[:, column]
        assert (sums.run(units, largest, keep) <= limits[:, column] * (1 + 1e-5) + rounding).all()
    whole, pruned = sums.figures(np.ones(classes), prunes=False).sum(), sums.figures(np.ones(classes)).sum()
    assert abs(pruned - whole) <= max(2e-4 * whole, 1e-7)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.floats(0.1, 12), shift=st.floats(-20, 3))
def test_no_gap_is_above_its_bound_and_pruning_stays_within_the_law(seed: int, spread: float, shift: float) -> None:
    raw = maps((64, 96), 3, (8, 16, 32), seed, spread)
    check_bounds(RawMaps([level + shift for level in raw.levels], raw.strides, raw.anchors_px), (64, 96), 3)


def test_what_many_classes_leave_out_together_stays_within_the_law() -> None:
    """A thousand classes and no p above 1e-9: each map gives next to nothing, all of them more than 1e-7."""
    levels = []
    for stride in (8, 16, 32):
        cells = torch.arange(64 // stride)
        is_even = ((cells[:, None] + cells) % 2 == 0)[None, :, :, None, None]
        level = torch.where(is_even, -11.0, -30.0).repeat(1, 1, 1, 3, 1005)
        level[..., 4] = -10
        levels.append(level)
    raw = RawMaps(levels, (8, 16, 32), ANCHORS_PX)
    expected = 1000 * literal(RawMaps([level[..., :6] for level in levels], raw.strides, ANCHORS_PX), (64, 64)).sum()
    assert expected > 3e-7
    assert sum(class_figures(raw, (64, 64), np.ones(1000))) == pytest.approx(expected, abs=1e-7)


def test_groups_of_classes_are_one_score(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = maps((64, 96), 20, (8, 16, 32), spread=4.0)
    monkeypatch.setattr("mining.mining_aldd.CLASSES_AT_ONCE", 7)
    found = sum(class_figures(raw, (64, 96), np.array([1.0, 0.0, 3.0] + [1.0] * 17)))
    figures = literal(raw, (64, 96))
    assert found == pytest.approx(figures.sum() - figures[1] + 2 * figures[2], rel=2e-4)


def real_maps(picture: Path, weights: Path, side: int) -> HeadMaps:
    """What yolov5n sees in a picture."""
    detector = make_detector(read_checkpoint(weights), EngineSettings(precision="fp32", backend="torch"), 1, 1)
    loader = LoaderSettings(side, "square", 1, 0)
    (batch,) = BatchReader([Candidate(0, "a", picture)], Placing("square", side, 32), loader, refuse)
    (look,) = looks(batch, detector)
    assert look.raw is not None
    return look.raw


def test_real_maps_stay_below_their_bounds_and_both_ways_agree(coco_images: list[Path], yolov5n_pt: Path) -> None:
    for picture in coco_images[:3]:
        raw = real_maps(picture, yolov5n_pt, 160)
        check_bounds(raw, (160, 160), 80)
        compiled = UnitSums(raw, (160, 160), np.arange(80)).figures(np.ones(80), prunes=False).sum()
        other = torch_figures(raw, (160, 160), np.arange(80), np.ones(80)).sum()
        expected = literal(raw, (160, 160)).sum()
        assert compiled == pytest.approx(expected, rel=1e-5) and compiled == pytest.approx(other, rel=1e-5)


def test_pruning_leaves_something_out_of_a_real_picture(coco_images: list[Path], yolov5n_pt: Path) -> None:
    kept: list[float] = []

    class Counting(UnitSums):
        def run(self, units: Any, largest: Any, keep: Any) -> Any:
            kept.append(float(keep.sum()) / 9)
            return super().run(units, largest, keep)

    raw = real_maps(coco_images[0], yolov5n_pt, 320)
    Counting(raw, (320, 320), np.arange(80)).figures(np.ones(80))
    assert sum(kept) < 0.9 * 80 * 100


def test_weights(caplog: pytest.LogCaptureFixture) -> None:
    config = MiningConfig(("a", "b", "c"), class_distribution_scores=(0.5, 0.0))
    assert class_weights(config, 3).tolist() == [0.5, 0.0, 1.0]
    assert class_weights(config, 1).tolist() == [0.5]
    check_weights(config)
    assert "2 weights for 3 classes" in caplog.text
    raw = maps((64, 64), 3, (8, 16, 32))
    plain = class_figures(raw, (64, 64), np.ones(3))
    weighted = class_figures(raw, (64, 64), np.array([0.5, 0.0, 1.0]))
    assert weighted == pytest.approx([plain[0] / 2, 0, plain[2]], rel=3e-4) and weighted[1] == 0


def test_nothing_in_sight_is_nothing() -> None:
    raw = RawMaps([torch.full((1, 64 // s, 64 // s, 3, 7), -40.0) for s in (8, 16, 32)], (8, 16, 32), ANCHORS_PX)
    assert class_figures(raw, (64, 64), np.ones(2)) == pytest.approx([0, 0], abs=1e-12)
