"""What a training leaves for other engines: an ONNX file beside the weights of each stage (SPEC section 4)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

from formats.agreement import sample_images
from formats.options import ExportOptions
from formats.runners import Images
from formats.writers import handed, write_onnx
from models.checkpoint import read_checkpoint
from training.building import training_side
from training.job import BEST
from training.run import Run
from utils.errors import ExecutorError, ImageError
from utils.letterbox import input_stride

LOGGER = logging.getLogger("train")

SAMPLES = 2  # pictures that each file is held against torch on


def hand_over(run: Run, opset: int, on_file: Callable[[str], None]) -> None:
    """Write STEM.onnx beside each .pt of the run, at the size it was trained at; what fails is a warning.

    on_file: told of each whole file, by its path in the weights' folder. Raises OSError where it can't be written.
    """
    weights = run.job.folders.weights
    side = training_side(run.config.img_size, input_stride(run.training.model.stride))
    options = ExportOptions(input_hw=(side, side), opset=opset, simplify=True)
    images = _samples(run, (side, side))
    for path in checkpoints(weights, run.job.epoch_file):
        try:
            for file in write_onnx(handed(read_checkpoint(path), images, options), path.with_suffix("")):
                on_file(file.relative_to(weights).as_posix())
        except ExecutorError as error:
            LOGGER.warning("%s: no ONNX file beside it, the weights are kept: %s", path, error)


def checkpoints(weights: Path, epoch_file: str) -> Iterator[Path]:
    """Give the .pt files to hand over: the best, and those of epochs that have a stage of their own."""
    yield weights / BEST
    if "/" in epoch_file:
        yield from sorted(weights.glob(epoch_file.format(epoch="*")))


def _samples(run: Run, input_hw: tuple[int, int]) -> Images:
    paths = [shot.path for shot in run.training_set.table.shots[:SAMPLES]]
    try:
        return sample_images(paths, input_hw, SAMPLES)
    except ImageError:
        return sample_images([], input_hw, SAMPLES)
