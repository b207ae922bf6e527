"""Entropy against golden figures and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mining import MINERS
from mining.mining_entropy import entropy_bits
from tests.mining.looking import scores_of
from utils.settings import EngineSettings, MiningConfig


def scores(images: list[Path], weights: Path, config: MiningConfig, side: int = 640) -> dict[str, float]:
    found = scores_of(MINERS["entropy"], images, weights, config, side)
    return {name: scored.score for name, scored in found.items()}


def test_entropy_is_goldens(shared: Path, coco_images: list[Path], yolov5n_pt: Path) -> None:
    lines = (shared / "golden/entropy.tsv").read_text().splitlines()
    golden = {name: float(score) for name, score in (line.split("\t") for line in lines)}
    config = MiningConfig(("x",), algorithm="entropy", engine=EngineSettings(precision="fp32", backend="torch"))
    found = scores(coco_images[:24], yolov5n_pt, config)
    assert sorted(found, key=lambda name: -found[name]) == list(golden)
    for name, score in golden.items():
        assert found[name] == pytest.approx(score, rel=1e-3)


def test_class_entropy_adds_up_over_classes(coco_images: list[Path], yolov5n_pt: Path) -> None:
    config = MiningConfig(("x",), algorithm="entropy", entropy_of="class")
    found = scores(coco_images[:3], yolov5n_pt, config, side=160)
    assert all(score > 0 for score in found.values())


def test_entropy_by_hand() -> None:
    assert entropy_bits(np.array([0.5], np.float32)) == 0.5
    assert entropy_bits(np.array([0.25, 0.5], np.float32)) == 1.0
    assert entropy_bits(np.array([0.0, 1.0], np.float32)) == 0.0
    assert np.isfinite(entropy_bits(np.array([0.0, 1e-45], np.float32)))
