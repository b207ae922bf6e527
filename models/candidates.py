"""Candidates: the rows of each picture that NMS chooses from, as a validation asks for them.

A row is cx, cy, w, h in input px, objectness, and class probabilities: (5 + nc) fp32 on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.augment import augmented_rows
from models.decode import HeadMaps
from models.detector import Detector
from utils.boxes import to_cxcywh
from utils.labelled import LabelledBatch
from utils.rect import labels_to_input

# A batch and a least objectness -> (K, 5 + nc) for each of its pictures, in their order.
CandidatesOf = Callable[[LabelledBatch, float], Iterator[Tensor]]


def detector_candidates(detector: Detector) -> CandidatesOf:
    """Let a detector give the candidates that it sees."""
    return lambda batch, least_objectness: detector.candidates(batch.pictures, least_objectness)


def augmented_candidates(detector: Detector) -> CandidatesOf:
    """Let a detector give the candidates of three views of each picture (models/augment.py)."""
    return lambda batch, least_objectness: iter(augmented_rows(detector, batch.pictures, least_objectness))


def merge_classes(candidates_of: CandidatesOf) -> CandidatesOf:
    """Make every class the same: a row keeps the probability of its likeliest class, as (K, 6)."""

    def candidates(batch: LabelledBatch, least_objectness: float) -> Iterator[Tensor]:
        for rows in candidates_of(batch, least_objectness):
            yield torch.cat((rows[:, :5], rows[:, 5:].amax(1, keepdim=True)), 1)

    return candidates


def join_labels(candidates_of: CandidatesOf) -> CandidatesOf:
    """Add each picture's labels to its candidates, as rows of certainty."""

    def candidates(batch: LabelledBatch, least_objectness: float) -> Iterator[Tensor]:
        each = zip(candidates_of(batch, least_objectness), batch.labels, batch.pictures.letterboxes)
        for rows, labels, letterbox in each:
            boxes = torch.from_numpy(to_cxcywh(labels_to_input(labels.boxes_px, letterbox))).to(rows)  # (L, 4)
            classes = F.one_hot(torch.from_numpy(labels.class_ids), rows.shape[1] - 5).to(rows)  # (L, nc)
            yield torch.cat((rows, torch.cat((boxes, torch.ones_like(boxes[:, :1]), classes), 1)))

    return candidates


class LossTally:
    """Adds up a training's losses while a validation looks at its pictures.

    loss: of a head's raw maps, (B, na (5 + nc), H, W) each, and target rows (n, 6); gives (3,): box, objectness, class.
    """

    def __init__(self, loss: Callable[[list[Tensor], Tensor], Tensor]) -> None:
        self._loss = loss
        self._sum = torch.zeros(3, dtype=torch.float64)
        self._pictures = 0

    def candidates(self, detector: Detector) -> CandidatesOf:
        """Let a detector give the candidates that it sees, and count the losses of each pass."""

        def candidates(batch: LabelledBatch, least_objectness: float) -> Iterator[Tensor]:
            first = 0
            for raw in detector.maps(batch.pictures):
                rows = target_rows(batch, first, len(raw))
                with torch.inference_mode():
                    parts = self._loss(head_maps(raw), rows.to(detector.device))
                    self._sum += parts.double().cpu() * len(raw)
                    self._pictures += len(raw)
                    found = raw.rows_above(least_objectness)
                first += len(raw)
                yield from found

        return candidates

    def sums(self) -> tuple[list[float], int]:
        """Give the sums over pictures, and their number: what several ranks add up."""
        return self._sum.tolist(), self._pictures


def head_maps(raw: HeadMaps) -> list[Tensor]:
    """Give raw maps in the head's own form: for each level (B, na (5 + nc), H, W)."""
    return [level.permute(0, 3, 4, 1, 2).flatten(1, 2) for level in raw.levels]


def target_rows(batch: LabelledBatch, first: int, count: int) -> Tensor:
    """Give the labels of some pictures of a batch as a loss wants them: (n, 6) place, class, cx, cy, w, h in 0..1."""
    rows = []
    for place in range(count):
        labels, letterbox = batch.labels[first + place], batch.pictures.letterboxes[first + place]
        height, width = letterbox.canvas_hw
        shares = to_cxcywh(labels_to_input(labels.boxes_px, letterbox)) / [width, height, width, height]  # (L, 4)
        rows.append(np.column_stack((np.full(len(labels), place), labels.class_ids, shares)))
    return torch.from_numpy(np.concatenate(rows).astype(np.float32))
