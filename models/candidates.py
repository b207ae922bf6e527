"""Candidates: the rows of each picture that NMS chooses from, as a validation asks for them.

A row is cx, cy, w, h in input px, objectness, and class probabilities: (5 + nc) fp32 on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from models.augment import views
from models.detector import Detector, device_errors
from utils.boxes import to_cxcywh
from utils.labelled import LabelledBatch
from utils.rect import labels_to_input

# A batch and a least objectness -> (K, 5 + nc) for each of its pictures, in their order.
CandidatesOf = Callable[[LabelledBatch, float], Iterator[Tensor]]


def detector_candidates(detector: Detector) -> CandidatesOf:
    """Let a detector give the candidates that it sees."""

    def candidates(batch: LabelledBatch, least_objectness: float) -> Iterator[Tensor]:
        for raw in detector.maps(batch.pictures):
            with device_errors(), torch.inference_mode():
                rows, pictures = raw.rows_above(least_objectness)
                counts = torch.bincount(pictures, minlength=len(raw)).tolist()
                # Levels were joined one after another; a stable sort brings each picture's rows together in order.
                rows = rows[pictures.argsort(stable=True)].cpu()
            yield from torch.split(rows, counts)

    return candidates


def augmented_candidates(detector: Detector) -> CandidatesOf:
    """Let a detector give the candidates of three views of each picture (models/augment.py)."""

    def candidates(batch: LabelledBatch, least_objectness: float) -> Iterator[Tensor]:
        found: list[list[Tensor]] = [[] for _ in batch.labels]
        for view in views(len(detector.strides)):
            first = 0  # of the pictures in this pass
            for raw in detector.maps(view.of(batch.pictures, detector.stride)):
                with device_errors(), torch.inference_mode():
                    rows, pictures = view.cut(raw).rows_above(least_objectness)
                    rows = view.to_input(rows, batch.pictures.canvas_hw[1])
                    for place in range(len(raw)):
                        found[first + place].append(rows[pictures == place].cpu())
                first += len(raw)
        yield from (torch.cat(parts) for parts in found)

    return candidates


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
