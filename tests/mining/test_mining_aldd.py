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
from models.decode import RawMaps
from tests.mining.looking import scores_of
from utils.settings import MiningConfig

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


def literal(raw: RawMaps, input_hw: tuple[int, int]) -> Any:
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


def test_an_input_below_a_block_is_one_block() -> None:
    raw = maps((16, 64), 2, (8, 16), seed=3)
    assert class_figures(raw, (16, 64), np.ones(2)) == pytest.approx(list(literal(raw, (16, 64))), rel=1e-5)


def test_aldd_is_goldens(shared: Path, coco_images: list[Path], yolov5n_pt: Path) -> None:
    lines = (shared / "golden/aldd.tsv").read_text().splitlines()
    golden = {name: float(score) for name, score in (line.split("\t") for line in lines)}
    config = MiningConfig(tuple(str(number) for number in range(80)))
    found = scores_of(MINERS["aldd"], coco_images[:6], yolov5n_pt, config)
    assert sorted(found, key=lambda name: -found[name].score) == list(golden)
    for name, score in golden.items():
        assert found[name].score == pytest.approx(score, rel=2e-4)
        assert sum(found[name].parts) == pytest.approx(found[name].score) and len(found[name].parts) == 80


def test_the_batch_does_not_matter(coco_images: list[Path], yolov5n_pt: Path) -> None:
    config = MiningConfig(tuple(str(number) for number in range(80)))
    alone = scores_of(MINERS["aldd"], coco_images[:5], yolov5n_pt, config, 160, 1)
    together = scores_of(MINERS["aldd"], coco_images[:5], yolov5n_pt, config, 160, 5)
    for name, scored in alone.items():
        assert together[name].score == pytest.approx(scored.score, rel=2e-4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.floats(0.1, 12), shift=st.floats(-9, 3))
def test_no_gap_is_above_its_bound_and_pruning_stays_within_the_law(seed: int, spread: float, shift: float) -> None:
    raw = maps((64, 96), 3, (8, 16, 32), seed, spread)
    raw = RawMaps([level + shift for level in raw.levels], raw.strides, raw.anchors_px)
    sums = UnitSums(raw, (64, 96), np.arange(3))
    least, largest, reach = sums.extremes()
    units = np.array([[c, y, x] for c in range(3) for y in range(2) for x in range(3)])
    flat = largest.reshape(len(units), -1)
    limits = bounds(least, largest, reach).reshape(flat.shape)
    for column in range(flat.shape[1]):
        keep = np.zeros(flat.shape, np.bool_)
        keep[:, column] = True
        assert (sums.run(units, flat, keep) <= limits[:, column] * (1 + 1e-5) + 2e-6).all()
    whole, pruned = sums.figures(np.ones(3), prunes=False).sum(), sums.figures(np.ones(3)).sum()
    assert abs(pruned - whole) <= max(2e-4 * whole, 1e-7)


def test_pruning_leaves_something_out_of_a_real_picture(coco_images: list[Path], yolov5n_pt: Path) -> None:
    kept: list[float] = []

    class Counting(UnitSums):
        def run(self, units: Any, largest: Any, keep: Any) -> Any:
            kept.append(float(keep.sum()) / 9)
            return super().run(units, largest, keep)

    from mining.runner import looks
    from models.checkpoint import read_checkpoint
    from models.detector import make_detector
    from utils.batches import BatchReader, Placing
    from utils.settings import EngineSettings, LoaderSettings
    from ymir.index import Candidate

    engine = EngineSettings(precision="fp32", backend="torch")
    detector = make_detector(read_checkpoint(yolov5n_pt), engine, 1, 1)
    items = [Candidate(0, "a", coco_images[0])]
    reader = BatchReader(
        items, Placing("square", 320, 32), LoaderSettings(320, "square", 1, 0), lambda item, error: None
    )
    for batch in reader:
        for look in looks(batch, detector):
            assert look.raw is not None
            Counting(look.raw, (320, 320), np.arange(80)).figures(np.ones(80))
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
