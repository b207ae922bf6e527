"""Test-time augmentation: a batch is looked at in three sizes, and what they give is suppressed together.

As YOLOv5 does it (facts/yolov5.md, --augment): at 1, mirrored at 0.83, and at 0.67. Rows that another size covers
better are cut: the coarsest level of the largest size and the finest of the smallest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from models.decode import HeadMaps
from models.detector import Detector, device_errors
from utils.batches import Batch, Canvas, Item
from utils.detections import Detections
from utils.letterbox import GREY, Letterbox
from utils.nms import select_boxes
from utils.settings import NmsSettings


@dataclass(frozen=True)
class View:
    """One way to look at a canvas, and the way back."""

    scale: float  # view px per input px
    is_mirrored: bool = False
    first_level: int = 0  # the levels whose rows count are [first_level:last_level]
    last_level: int = 1_000

    def of(self, batch: Batch[Item], stride: int) -> Batch[Item]:
        """Show a batch's canvases this way, with a grey border on the right and below up to the stride."""
        height, width = batch.canvas_hw
        shown_hw = int(height * self.scale), int(width * self.scale)
        canvas_hw = math.ceil(shown_hw[0] / stride) * stride, math.ceil(shown_hw[1] / stride) * stride
        letterbox = Letterbox((height, width), shown_hw, canvas_hw, self.scale, 0, 0)
        canvases = [self._show(canvas, letterbox) for canvas in batch.canvases]
        return Batch(batch.items, canvases, [letterbox] * len(batch))

    def _show(self, canvas: Canvas, letterbox: Letterbox) -> Canvas:
        upright = np.ascontiguousarray(canvas[:, ::-1]) if self.is_mirrored else canvas
        if letterbox.canvas_hw == canvas.shape[:2] == letterbox.resized_hw:
            return upright
        height, width = letterbox.resized_hw
        shown = np.full((*letterbox.canvas_hw, 3), GREY, np.uint8)
        cv2.resize(upright, (width, height), dst=shown[:height, :width], interpolation=cv2.INTER_LINEAR)
        return shown

    def cut(self, raw: HeadMaps) -> HeadMaps:
        """Leave out the levels that don't count."""
        return raw.cut(slice(self.first_level, self.last_level))

    def to_input(self, rows: Tensor, input_width: int) -> Tensor:
        """Map rows of this view, (K, 5 + nc) with cx, cy, w, h in view px, to input px."""
        boxes_cxcywh = rows[:, :4] / self.scale
        if self.is_mirrored:
            boxes_cxcywh[:, 0] = input_width - boxes_cxcywh[:, 0]
        return torch.cat((boxes_cxcywh, rows[:, 4:]), 1)


def views(levels: int) -> tuple[View, ...]:
    """Give the three views for a head of so many levels; of a single level nothing is cut."""
    spare = 1 if levels > 1 else 0
    return View(1.0, last_level=levels - spare), View(0.83, is_mirrored=True), View(0.67, first_level=spare)


def augmented_rows(detector: Detector, batch: Batch[Item], objectness: float) -> list[Tensor]:
    """Give for each picture of a batch what `Detector.candidates` gives, from all views together, in input px."""
    parts: list[list[Tensor]] = [[] for _ in batch.items]
    for view in views(len(detector.strides)):
        first = 0  # of the pictures in this pass
        for raw in detector.maps(view.of(batch, detector.stride)):
            with device_errors(), torch.inference_mode():
                for place, rows in enumerate(view.cut(raw).rows_above(objectness)):
                    parts[first + place].append(view.to_input(rows, batch.canvas_hw[1]))
            first += len(raw)
    return [torch.cat(rows) for rows in parts]


def detect_augmented(detector: Detector, batch: Batch[Item], settings: NmsSettings) -> list[Detections]:
    """Detect as `Detector.detect` does, from all views together: boxes in picture pixels, best first."""
    found = []
    for letterbox, rows in zip(batch.letterboxes, augmented_rows(detector, batch, settings.conf_thres)):
        with torch.inference_mode():
            boxes, scores, class_ids = select_boxes(rows, settings)
        found.append(Detections(letterbox.to_px(boxes.numpy()), scores.numpy(), class_ids.numpy()))
    return found
