"""Batches that go through in parts, and a process that has no more memory: the work is done all the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from models.checkpoint import read_checkpoint
from tests.training.conftest import Making
from tests.training.started import ROOT, ended, start
from training.building import build_network, build_training, choose_machine
from training.data import Scans, scan_sets
from training.state import Training
from training.step import Pixels, Rows
from utils.distributed import World
from utils.hyp import Hyp
from utils.progress import Progress

BATCH = 4


def training_of(making: Making, folder: Path, hyp: Hyp) -> tuple[Training, Scans]:
    job = making.job(folder, batch_size=BATCH, hyp=hyp)
    scans, machine = scan_sets(job, Progress()), choose_machine(job.config, World())
    network = build_network(job, scans.train.table, None, tells=False)
    return build_training(network, job.config, machine, 3)[0], scans


def batch(seed: int, count: int) -> tuple[Pixels, Rows]:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (count, 96, 96, 3), np.uint8)
    centres, sizes = random.uniform(0.3, 0.7, (count, 2)), random.uniform(0.2, 0.5, (count, 2))
    rows = np.column_stack((np.arange(count), random.integers(0, 80, count), centres, sizes)).astype(np.float32)
    return pixels, rows


def gradients(training: Training, pixels: Pixels, rows: Rows, at_once: int) -> dict[str, torch.Tensor]:
    training.stepper.most_at_once = at_once
    training.optimizer.zero_grad(set_to_none=True)
    training.stepper.backward(pixels, rows)
    return {name: one.grad.clone() for name, one in training.model.named_parameters() if one.grad is not None}


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    for name, gradient in wanted.items():
        scale = float(gradient.abs().max()) + 1e-6
        assert float((found[name] - gradient).abs().max()) <= 2e-3 * scale, name


def test_halves_that_are_alike_add_up_to_the_whole_batch(making: Making, tmp_path: Path) -> None:
    training, _ = training_of(making, tmp_path, Hyp())
    (pixels, rows), half = batch(0, 2), len(batch(0, 2)[1])
    again = rows + np.array([2, 0, 0, 0, 0, 0], np.float32)
    twice = (np.concatenate([pixels, pixels]), np.concatenate([rows, again]))
    assert half == 2
    assert_close(gradients(training, *twice, at_once=2), gradients(training, *twice, at_once=BATCH))


def test_any_parts_add_up_for_what_is_a_mean_over_cells_where_norms_stand_still(making: Making, tmp_path: Path) -> None:
    training, _ = training_of(making, tmp_path, Hyp(box=0.0, cls=0.0))
    for module in training.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    pixels, rows = batch(1, BATCH)
    whole = gradients(training, pixels, rows, at_once=BATCH)
    assert_close(gradients(training, pixels, rows, at_once=1), whole)
    assert_close(gradients(training, pixels, rows, at_once=3), whole)


def test_a_state_can_not_ask_for_passes_of_nothing(making: Making, tmp_path: Path) -> None:
    training, _ = training_of(making, tmp_path, Hyp())
    training.stepper.load({}, {"most_at_once": 0})
    assert training.stepper.most_at_once == 1


# ---- no more memory --------------------------------------------------------------------------------------------------


def starved(data: Path, weights: Path, folder: Path, more_mb: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.training.starving", str(data), str(weights), str(folder), str(more_mb)]
    return start([*command, "12", "320"], PYTHONPATH=str(ROOT))


@pytest.mark.slow
def test_a_batch_that_does_not_fit_goes_through_in_halves(few_pictures: Path, yolov5n_pt: Path, tmp_path: Path) -> None:
    free = ended(starved(few_pictures, yolov5n_pt, tmp_path / "free", 0))
    assert free.code == 0, free.lines[-5:]
    begins, needed = (int(re.findall(rf"{words} (\d+) MB", "\n".join(free.lines))[0]) for words in ("with", "up to"))
    end = ended(starved(few_pictures, yolov5n_pt, tmp_path / "less", (needed - begins) * 3 // 4))
    assert end.code == 0, end.lines[-5:]
    assert any("6 go through the network at once from now on" in line for line in end.lines)
    assert read_checkpoint(tmp_path / "less/weights/best.pt").nc == 80


@pytest.mark.slow
def test_a_picture_that_does_not_fit_is_told(few_pictures: Path, yolov5n_pt: Path, tmp_path: Path) -> None:
    end = ended(starved(few_pictures, yolov5n_pt, tmp_path / "least", 12))
    assert end.code == 1
    assert "memory ran out" in end.last and "smaller" in end.last
