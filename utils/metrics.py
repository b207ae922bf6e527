"""YOLOv5's own metric: which detections are right, AP, P and R at the best F1, and the confusion matrix.

Formulas are those of YOLOv5 v6.2 and later (matching anew at each IoU threshold, smoothed F1). Boxes are corners in
any one frame; YOLOv5's validation compares in the model's input pixels. The steps of a validation:

    parts.append(compare(found, truth))     # for each picture
    metrics = compute_metrics(join(parts), names)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from utils.boxes import BoxArray, ious

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

IOU_THRESHOLDS: FloatArray = np.arange(50, 100, 5) / 100  # (10,), each the double nearest to its decimal
CONFIDENCES: FloatArray = np.linspace(0, 1, 1000)  # where P, R and F1 are read
AP_RECALLS: FloatArray = np.linspace(0, 1, 101)  # where AP's precision is read, as COCO does
CURVE_RECALLS: FloatArray = np.linspace(0, 1, 1000)  # where the drawn PR curve is read
SMOOTHED_SHARE = 0.1  # of the confidences: the box that smooths F1 before its maximum is looked for
CONFUSION_CONF = 0.25
CONFUSION_IOU = 0.45
MAP50_WEIGHT, MAP_WEIGHT = 0.1, 0.9  # of YOLOv5's fitness


@dataclass(frozen=True)
class Found:
    """Detections of one picture in the frame that is compared in."""

    boxes: BoxArray  # (N, 4) xyxy
    scores: npt.NDArray[np.floating]  # (N,) in any order
    class_ids: IntArray  # (N,)


@dataclass(frozen=True)
class Truth:
    """Labels of one picture in the frame that is compared in."""

    boxes: BoxArray  # (L, 4) xyxy
    class_ids: IntArray  # (L,)


@dataclass(frozen=True)
class Matches:
    """What comparing one picture, or many, gave: all that the metric needs."""

    correct: BoolArray  # (N, 10): right at each of IOU_THRESHOLDS
    scores: npt.NDArray[np.floating]  # (N,)
    class_ids: IntArray  # (N,) of the detections
    label_class_ids: IntArray  # (L,)
    image_class_ids: IntArray  # each class once for each picture that has a label of it
    images: int = 1


@dataclass(frozen=True)
class ClassMetrics:
    """One class's row of the table; p, r and f1 at the confidence that is best for all classes together."""

    class_id: int
    name: str
    images: int  # with a label of this class
    instances: int
    p: float
    r: float
    f1: float
    ap50: float
    ap: float


@dataclass(frozen=True)
class Curves:
    """What is drawn; row k belongs to the k-th of Metrics.classes."""

    p: FloatArray  # (C, 1000) over CONFIDENCES, at IoU 0.5; so are r and f1
    r: FloatArray  # (C, 1000)
    f1: FloatArray  # (C, 1000)
    precision_at_recall: FloatArray  # (C, 1000) over CURVE_RECALLS, at IoU 0.5
    ap: FloatArray  # (C, 10) at each of IOU_THRESHOLDS


@dataclass(frozen=True)
class Metrics:
    """YOLOv5's figures over a set of pictures; means are over the classes that have labels, 0.0 if there are none."""

    images: int
    instances: int
    p: float
    r: float
    map50: float
    map: float
    confidence: float  # the one with the best mean F1, where p and r are read
    classes: tuple[ClassMetrics, ...]  # those with labels, by class id
    curves: Curves

    @property
    def fitness(self) -> float:
        """YOLOv5's one number to choose the best epoch by."""
        return MAP50_WEIGHT * self.map50 + MAP_WEIGHT * self.map


def match(found: Found, truth: Truth) -> BoolArray:
    """Tell which of one picture's detections are right at each IoU threshold: (N, 10).

    Each detection stands for the label of its class that it overlaps best. Of those that reach a threshold, the label
    keeps the one with the highest score; the others are wrong. This is done for every threshold on its own.
    """
    correct = np.zeros((len(found.scores), len(IOU_THRESHOLDS)), bool)
    if not len(found.scores) or not len(truth.class_ids):
        return correct
    # float64, or an IoU of exactly 0.7 would fall below 0.7.
    shares = ious(found.boxes.astype(np.float64), truth.boxes.astype(np.float64))  # (N, L)
    shares[found.class_ids[:, None] != truth.class_ids] = 0
    labels = shares.argmax(axis=1)  # (N,)
    best = shares[np.arange(len(labels)), labels]  # (N,)
    rows = np.flatnonzero(best >= IOU_THRESHOLDS[0])
    rows = rows[np.argsort(-found.scores[rows], kind="stable")]  # (K,) best score first
    labels, best = labels[rows], best[rows]
    # A label is taken at a threshold once an earlier detection reached it: remember the highest IoU offered so far.
    offers = np.zeros((len(rows) + 1, len(truth.class_ids)))  # (K + 1, L)
    offers[np.arange(len(rows)) + 1, labels] = best
    taken = np.maximum.accumulate(offers, axis=0)[np.arange(len(rows)), labels]  # (K,) before this detection
    correct[rows] = (taken[:, None] < IOU_THRESHOLDS) & (best[:, None] >= IOU_THRESHOLDS)
    return correct


def compare(found: Found, truth: Truth) -> Matches:
    """Match one picture's detections with its labels."""
    label_class_ids = np.asarray(truth.class_ids, np.int64)
    class_ids = np.asarray(found.class_ids, np.int64)
    return Matches(match(found, truth), found.scores, class_ids, label_class_ids, np.unique(label_class_ids))


def join(parts: Sequence[Matches]) -> Matches:
    """Put the matches of several sets of pictures together; of none, nothing."""
    if not parts:
        no_class = np.zeros(0, np.int64)
        return Matches(np.zeros((0, len(IOU_THRESHOLDS)), bool), np.zeros(0), no_class, no_class, no_class, 0)
    return Matches(
        np.concatenate([part.correct for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.class_ids for part in parts]),
        np.concatenate([part.label_class_ids for part in parts]),
        np.concatenate([part.image_class_ids for part in parts]),
        sum(part.images for part in parts),
    )


def compute_metrics(matches: Matches, names: Sequence[str]) -> Metrics:
    """Compute YOLOv5's figures over all pictures; `names` by class id."""
    class_ids, instances = np.unique(matches.label_class_ids, return_counts=True)  # (C,)
    curves = _class_curves(matches, class_ids, instances)
    if not len(class_ids):
        return Metrics(matches.images, 0, 0.0, 0.0, 0.0, 0.0, 0.0, (), curves)
    best = int(_smooth(curves.f1.mean(axis=0)).argmax())
    images = np.bincount(matches.image_class_ids, minlength=class_ids[-1] + 1)[class_ids]  # (C,)
    classes = tuple(
        ClassMetrics(
            class_id=int(class_id),
            name=names[class_id],
            images=int(images[row]),
            instances=int(instances[row]),
            p=float(curves.p[row, best]),
            r=float(curves.r[row, best]),
            f1=float(curves.f1[row, best]),
            ap50=float(curves.ap[row, 0]),
            ap=float(curves.ap[row].mean()),
        )
        for row, class_id in enumerate(class_ids)
    )
    return Metrics(
        images=matches.images,
        instances=int(instances.sum()),
        p=float(curves.p[:, best].mean()),
        r=float(curves.r[:, best].mean()),
        map50=float(curves.ap[:, 0].mean()),
        map=float(curves.ap.mean()),
        confidence=float(CONFIDENCES[best]),
        classes=classes,
        curves=curves,
    )


def _class_curves(matches: Matches, class_ids: IntArray, instances: IntArray) -> Curves:
    """Give the curves of every class that has labels; one without detections has 0 everywhere."""
    count = len(class_ids)
    p, r, precision_at_recall = np.zeros((3, count, len(CONFIDENCES)))
    ap = np.zeros((count, len(IOU_THRESHOLDS)))
    order = np.lexsort((-matches.scores, matches.class_ids))  # by class, best score first, equal ones as they came
    correct, scores, found_ids = matches.correct[order], matches.scores[order], matches.class_ids[order]
    starts = np.searchsorted(found_ids, class_ids)
    ends = np.searchsorted(found_ids, class_ids, side="right")
    for row, (start, end) in enumerate(zip(starts, ends)):
        if start == end:
            continue
        hits = correct[start:end].cumsum(axis=0)  # (K, 10)
        recalls = hits / instances[row]
        precisions = hits / np.arange(1, end - start + 1)[:, None]
        falling = -scores[start:end].astype(np.float64)  # rising, as np.interp asks
        r[row] = np.interp(-CONFIDENCES, falling, recalls[:, 0], left=0)
        p[row] = np.interp(-CONFIDENCES, falling, precisions[:, 0], left=1)
        recalls, envelopes = _envelopes(recalls, precisions)
        for column in range(len(IOU_THRESHOLDS)):
            heights = np.interp(AP_RECALLS, recalls[:, column], envelopes[:, column])  # (101,)
            ap[row, column] = (heights.sum() - (heights[0] + heights[-1]) / 2) / (len(heights) - 1)  # trapezoid rule
        precision_at_recall[row] = np.interp(CURVE_RECALLS, recalls[:, 0], envelopes[:, 0])
    f1 = 2 * p * r / np.maximum(p + r, 1e-16)
    return Curves(p, r, f1, precision_at_recall, ap)


def _envelopes(recalls: FloatArray, precisions: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Add the ends (0, 1) and (1, 0) to (K, 10) curves and make the precision non-increasing: (K + 2, 10) each."""
    columns = recalls.shape[1]
    recalls = np.concatenate([np.zeros((1, columns)), recalls, np.ones((1, columns))])
    precisions = np.concatenate([np.ones((1, columns)), precisions, np.zeros((1, columns))])
    return recalls, np.maximum.accumulate(precisions[::-1], axis=0)[::-1]


def _smooth(values: FloatArray) -> FloatArray:
    """Average with a box of an odd number of points, SMOOTHED_SHARE of the length; beyond the ends their own values."""
    half = round(len(values) * SMOOTHED_SHARE) // 2
    return np.convolve(np.pad(values, half, mode="edge"), np.full(2 * half + 1, 1 / (2 * half + 1)), mode="valid")


class ConfusionMatrix:
    """Counts which class was taken for which, over pictures, whatever the classes of the boxes that overlap."""

    def __init__(self, class_count: int) -> None:
        # (C + 1, C + 1): row = class found, column = class labelled, the last of each = background.
        self.counts: IntArray = np.zeros((class_count + 1, class_count + 1), np.int64)

    def add(self, found: Found, truth: Truth) -> None:
        """Count one picture: boxes scored above 0.25 against labels they overlap by more than 0.45.

        Each box stands for the label that it overlaps best, and each label keeps the box that overlaps it best. A
        box left over was found on background, a label left over was taken for background.
        """
        background = len(self.counts) - 1
        sure = found.scores > CONFUSION_CONF
        boxes, found_ids = found.boxes[sure], np.array(found.class_ids[sure], np.int64)
        label_of = np.full(len(truth.class_ids), background)  # (L,) the class each label was taken for
        taken_for = np.full(len(found_ids), background)  # (K,) the label class each box stands on
        if len(found_ids) and len(label_of):
            shares = ious(boxes.astype(np.float64), truth.boxes.astype(np.float64))  # (K, L)
            labels, best = shares.argmax(axis=1), shares.max(axis=1)  # (K,)
            rows = np.argsort(-best, kind="stable")
            rows = rows[best[rows] > CONFUSION_IOU]
            kept_labels, first = np.unique(labels[rows], return_index=True)
            rows = rows[first]
            label_of[kept_labels] = found_ids[rows]
            taken_for[rows] = truth.class_ids[kept_labels]
        missed = label_of == background
        np.add.at(self.counts, (found_ids, taken_for), 1)
        np.add.at(self.counts, (background, np.asarray(truth.class_ids, np.int64)[missed]), 1)
