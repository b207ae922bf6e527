"""Candidates: the rows of each picture that NMS chooses from, as a validation asks for them.

A row is cx, cy, w, h in input px, objectness, and class probabilities: (5 + nc) fp32 on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from models.augment import augmented_rows
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
