"""AutoAnchor: do a model's anchors suit a data set's boxes, and if not, which would (facts/yolov5.md). No torch here.

How well an anchor suits a box is x = the smaller, over both sides, of side / anchor or its inverse: 1 is a perfect fit,
and below 1 / anchor_t the loss doesn't match the two. In logarithms, -ln x = the larger of the sides' distances.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from utils.errors import DatasetError

Floats = npt.NDArray[np.float32]

ENOUGH_RECALL = 0.98
LEAST_SIDE_PX = 2.0  # smaller boxes have no say in where anchors go
SCALES = (0.9, 1.1)  # of each picture, at random
ROUNDS = 30  # of k-means
MUTATIONS = 1000
MUTATED_SHARE, MUTATION_SIGMA, FACTORS = 0.9, 0.1, (0.3, 3.0)
SAMPLE = 25_000  # boxes, at random, that new anchors are made from; recall is of all
CHUNK = 1 << 17  # boxes at a time
TINY = 1e-6


class BoxSizes(NamedTuple):
    """All boxes of a set. sizes_px: (M, 2) float32 width, height at the size of training; picture_ids: (M,)."""

    sizes_px: Floats
    picture_ids: npt.NDArray[np.integer]


class Anchors(NamedTuple):
    """A head's anchors_px (nl, na, 2) float32, width and height; its strides; whether a yaml gave no more than na."""

    anchors_px: Floats
    strides: Sequence[int]
    is_placeholder: bool = False


class AnchorFit(NamedTuple):
    """The anchors to train with, (nl, na, 2) float32 px; best possible recall of the old and of these; why, a line."""

    anchors_px: Floats
    recall_before: float
    recall_after: float
    is_new: bool
    reason: str


def best_recall(sizes_px: Floats, anchors_px: Floats, anchor_t: float) -> float:
    """Give the share of (M, 2) boxes that some anchor matches, the best recall that training can reach; 0 for none."""
    if not len(sizes_px):
        return 0.0
    return float(np.mean(_best_fit(_logs(sizes_px), _logs(anchors_px)) > 1 / anchor_t))


def fit_anchors(boxes: BoxSizes, anchors: Anchors, anchor_t: float, random: np.random.Generator) -> AnchorFit:
    """Keep anchors that suit the boxes; else fit others, and take them where their recall is better.

    Placeholders are always replaced. Equal boxes and an equal generator give equal anchors. From more than 25,000 boxes
    so many are drawn for k-means and mutations. Raises DatasetError for a placeholder and no box to replace it by.
    """
    old = np.asarray(anchors.anchors_px, np.float32)
    pictures = int(boxes.picture_ids.max(initial=-1)) + 1
    scales = random.uniform(*SCALES, pictures).astype(np.float32)
    sizes = np.asarray(boxes.sizes_px, np.float32) * scales[boxes.picture_ids, None]  # (M, 2)
    before = best_recall(sizes, old, anchor_t)
    if before > ENOUGH_RECALL and not anchors.is_placeholder:
        return AnchorFit(old, before, before, False, f"anchors suit the boxes: best possible recall {before:.4f}")
    count = old.shape[0] * old.shape[1]
    usable = sizes[(sizes >= LEAST_SIDE_PX).any(1)]
    if anchors.is_placeholder and not len(usable):
        raise DatasetError("anchors: the model has none of its own, and no label has a box of 2 px to fit them to")
    if not anchors.is_placeholder and len(usable) < count:
        why = f"anchors kept: {len(usable)} boxes of 2 px are too few to fit {count} anchors to"
        return AnchorFit(old, before, before, False, why)
    if len(usable) > SAMPLE:
        usable = usable[np.sort(random.choice(len(usable), SAMPLE, replace=False))]
    fitted = _mutate(_cluster(usable, count, random), usable, anchor_t, random)
    new = _ordered(fitted, old.shape, anchors.strides)
    after = best_recall(sizes, new, anchor_t)
    if after > before or anchors.is_placeholder:
        return AnchorFit(new, before, after, True, f"new anchors: best possible recall {after:.4f}, was {before:.4f}")
    why = f"anchors kept: best possible recall {before:.4f}, fitted ones have {after:.4f}"
    return AnchorFit(old, before, before, False, why)


def _logs(sizes: Floats) -> Floats:
    """Give (2, n) logarithms of widths and heights, one row after the other in memory."""
    logs: Floats = np.log(np.maximum(sizes.reshape(-1, 2).T.astype(np.float32, order="C"), TINY))
    return logs


def _best_fit(logs: Floats, anchor_logs: Floats) -> Floats:
    """Give the (M,) x of each box with the anchor that suits it best; a piece at a time, which stays in the cache."""
    fits = [_fit_piece(logs[:, start : start + CHUNK], anchor_logs) for start in range(0, logs.shape[1], CHUNK)]
    return np.concatenate(fits)


def _fit_piece(logs: Floats, anchor_logs: Floats) -> Floats:
    best = np.full(logs.shape[1], np.inf, np.float32)
    for width, height in anchor_logs.T:
        np.minimum(best, np.maximum(np.abs(logs[0] - width), np.abs(logs[1] - height)), out=best)
    fit: Floats = np.exp(-best)
    return fit


def _cluster(sizes: Floats, count: int, random: np.random.Generator) -> Floats:
    """Give the (count, 2) means that Lloyd's k-means finds, with sides in units of their deviation.

    Starts are drawn as k-means++ does (Arthur & Vassilvitskii, 2007). A mean that has lost its boxes stays.
    """
    deviation = sizes.std(0)
    deviation[deviation < TINY] = 1.0  # all boxes are equally wide, or high
    points = sizes / deviation  # (n, 2)
    means = points[random.integers(len(points), size=1)]
    while len(means) < count:
        away = _distances(points, means).min(1).astype(np.float64)
        # With fewer different boxes than anchors some are drawn twice; mutation then moves them apart.
        share = away / away.sum() if away.sum() > 0 else None
        means = np.concatenate([means, points[random.choice(len(points), 1, p=share)]])
    for _ in range(ROUNDS):
        nearest = _distances(points, means).argmin(1)
        members = np.bincount(nearest, minlength=count)
        sums = np.stack([np.bincount(nearest, points[:, axis], count) for axis in (0, 1)], 1)
        means = np.where(members[:, None] > 0, sums / np.maximum(members, 1)[:, None], means).astype(np.float32)
    clusters: Floats = means * deviation
    return clusters


def _distances(points: Floats, means: Floats) -> Floats:
    distances: Floats = np.square(points[:, None] - means[None]).sum(2)  # (n, k)
    return distances


def _mutate(anchors: Floats, sizes: Floats, anchor_t: float, random: np.random.Generator) -> Floats:
    """Change (k, 2) anchors at random again and again; keep what lets boxes fit better, misfits counting 0."""
    logs = _logs(sizes)

    def fitness(candidate: Floats) -> float:
        fit = _best_fit(logs, _logs(candidate))
        return float(np.mean(fit * (fit > 1 / anchor_t)))

    best = fitness(anchors)
    for _ in range(MUTATIONS):
        is_moved = random.random(anchors.shape) < MUTATED_SHARE
        factors = np.clip(1 + is_moved * random.normal(0, MUTATION_SIGMA, anchors.shape), *FACTORS)
        candidate = np.maximum(anchors * factors, LEAST_SIDE_PX).astype(np.float32)
        reached = fitness(candidate)
        if reached > best:
            anchors, best = candidate, reached
    return anchors


def _ordered(anchors: Floats, shape: tuple[int, ...], strides: Sequence[int]) -> Floats:
    """Deal (k, 2) anchors out to levels, (nl, na, 2): the larger ones to the larger strides."""
    levels = anchors[np.argsort(anchors.prod(1), kind="stable")].reshape(shape)
    ordered: Floats = np.empty_like(levels)
    ordered[np.argsort(strides, kind="stable")] = levels
    return ordered
