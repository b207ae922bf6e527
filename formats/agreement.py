"""A file that was handed over, held against torch on pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from formats.runners import Images, Run
from utils.errors import ExecutorError
from utils.letterbox import letterbox_onto
from utils.pictures import read_picture
from utils.settings import PictureSettings
from utils.shapes import draw_picture

TOLERANCE = 1e-4  # of probabilities; of boxes, as a share of the input's longer side
HALF_TOLERANCE = 2e-2  # for fp16
SAMPLES = 4
DRAWN_HW = (240, 320)


@dataclass(frozen=True)
class Agreement:
    """The largest differences between two engines' rows."""

    boxes_px: float
    probabilities: float

    def __str__(self) -> str:
        return f"boxes within {self.boxes_px:.1e} px, probabilities within {self.probabilities:.1e} of torch"


def sample_images(paths: Sequence[Path], input_hw: tuple[int, int], count: int = SAMPLES) -> Images:
    """Give pictures on their canvases as a network's input; drawn ones where there are no paths. Raises ImageError."""
    canvases = []
    for place in range(count):
        if paths:
            rgb = read_picture(paths[place % len(paths)], PictureSettings(turn=True)).rgb
        else:
            rgb = draw_picture(0, place, DRAWN_HW).picture
        canvas = np.empty((*input_hw, 3), np.uint8)
        letterbox_onto(input_hw, (rgb.shape[0], rgb.shape[1])).draw(rgb, canvas)
        canvases.append(canvas)
    return np.ascontiguousarray(np.stack(canvases).transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)


def batches(images: Images, size: int) -> list[Images]:
    """Cut pictures into batches of one size, repeating some to fill the last."""
    count = -(-len(images) // size) * size
    filled = images[np.arange(count) % len(images)]
    return [filled[start : start + size] for start in range(0, count, size)]


def compare(name: str, expected: Run, found: Run, images: Images, tolerance: float = TOLERANCE) -> Agreement:
    """Let both look at pictures. Raises ExecutorError where they differ by more than the tolerance."""
    wanted, got = expected(images), found(images)
    if wanted.shape != got.shape:
        raise ExecutorError(f"{name}: gives {got.shape}, torch {wanted.shape}")
    if not np.isfinite(got).all():
        raise ExecutorError(f"{name}: gives NaN or infinite values")
    difference = np.abs(wanted - got)
    boxes_px = float(difference[..., :4].max())
    probabilities = float(difference[..., 4:].max())
    agreement = Agreement(boxes_px, probabilities)
    if boxes_px > tolerance * max(images.shape[2:]) or probabilities > tolerance:
        raise ExecutorError(f"{name}: differs too much: {agreement}")
    return agreement
