"""The order of mining: scores, features and predicted classes -> places, so that every prefix is a good batch.

One greedy choice after another (facts: mining, options of ours). What a picture is worth, its score apart, never rises
while others are placed; so an old value is a bound of the true one, and only pictures whose bound could win are valued
anew. Features are whole numbers below 4096, of which 256 to 1280 products add up below 2^24: exact in fp32, whatever
library multiplies them with however many threads. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional

import numpy as np
import numpy.typing as npt

from utils.stats import FEATURE_UNIT, MiningStats

LEAST_HEAD, MOST_HEAD = 1_000, 50_000
HEAD_SHARE, HEAD_BUDGETS = 0.05, 5  # of all candidates; times the budget
ROUNDING = 1e-12  # more than a divergence is ever wrong by
CONTEST = 1024  # rows that compete for the next places, valued anew for each
SWEEP = 256  # of so many placed all rows are told at once
PART = 4096  # rows of one product
SUNK = 2.0  # what a near-duplicate's value is lowered by

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Reader = Callable[[Sequence[int]], Any]  # reads an array for each of some candidates


@dataclass(frozen=True, eq=False)
class Pool:
    """The readable candidates, no line twice; arrays go together. Readers give rows of the candidates asked for.

    scores: (N,) as result.tsv rounds them. line_ranks: (N,) places by the bytes of the lines. hashes: (N,) uint64 of
    (seed, line). features: (K, C) int16. confidences: (K, nc) best of each class, 0..1. class_vectors: (K, nc) sums
    over a picture's boxes.
    """

    scores: Floats
    line_ranks: Rows
    hashes: npt.NDArray[np.uint64]
    features: Optional[Reader] = None
    confidences: Optional[Reader] = None
    class_vectors: Optional[Reader] = None

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class OrderOptions:
    """What the order is made by; without any it is that of the scores."""

    diverse: bool = False  # unlikeness alone counts, not the score
    diversity: float = 0.0
    class_balance: float = 0.0
    cald_balance: bool = False
    dedup: bool = False
    dedup_threshold: float = 0.97
    explore: float = 0.0
    budget: int = 0

    @property
    def reorders(self) -> bool:
        """Say whether more than the score counts."""
        return self.needs_features or self.balance > 0 or self.explore > 0

    @property
    def needs_features(self) -> bool:
        """Say whether features are needed."""
        return self.diverse or self.diversity > 0 or self.dedup

    @property
    def balance(self) -> float:
        """Give the strength of what predicted classes are worth; of cald_balance 1 where none is given."""
        return self.class_balance or (1.0 if self.cald_balance else 0.0)

    @property
    def uses_stats(self) -> bool:
        """Say whether it matters what is labelled already."""
        return self.diverse or self.diversity > 0 or self.balance > 0


@dataclass(frozen=True, eq=False)
class Order:
    """rows: (N,) candidates in their order. values: (N,) never rising. duplicates: (sunk one, the one it is like)."""

    rows: Rows
    values: Floats
    duplicates: tuple[tuple[int, int], ...] = ()


def order_of(pool: Pool, options: OrderOptions, stats: Optional[MiningStats] = None) -> Order:
    """Put all candidates of a pool into one order. stats: of what is labelled; its classes are the pool's."""
    plain = np.lexsort((pool.line_ranks, -pool.scores)).astype(np.int64)
    if not options.reorders or not len(pool):
        return Order(plain, pool.scores[plain])
    if options.diverse:  # the scores say nothing: chance decides who is in the head, and between equal ones
        plain = np.argsort(pool.hashes, kind="stable").astype(np.int64)
    return _Greedy(pool, options, stats, plain).order()


def percentiles(scores: Floats) -> Floats:
    """Give the share of scores that each is above, equal ones averaged: (N,) in 0..1."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts
    shares: Floats = ((below + (counts - 1) / 2) / len(scores))[places.reshape(-1)]
    return shares


def head_size(count: int, options: OrderOptions) -> int:
    """Give how many of the best are put in order with care."""
    return min(max(HEAD_BUDGETS * options.budget, int(HEAD_SHARE * count), LEAST_HEAD), MOST_HEAD, count)


class _Likeness:
    """How like the head's pictures are to labelled ones and to those placed: the largest cosines.

    Rows near the next place (`focus`) follow each one placed at once; the others catch up with many in one product.
    """

    def __init__(self, features: npt.NDArray[np.int16], labelled: npt.NDArray[np.int16]) -> None:
        count = len(features)
        self._features = features  # (H, C)
        self._who: list[int] = []
        self._recent: list[Any] = []  # (C,) float32 of those placed last; rows have seen all others
        self._seen = np.zeros(count, np.int64)  # so many of those placed are in to_placed
        self.to_placed: Floats = np.full(count, -np.inf)
        self.like = np.full(count, -1, np.int64)  # which of those placed is most like it, the first of equals
        self._near: Rows = np.zeros(0, np.int64)
        self._near_features = np.zeros((0, features.shape[1]), np.float32)
        self.to_labelled: Floats = np.full(count, -np.inf)
        self.has_labelled = bool(len(labelled)) and labelled.shape[1] == features.shape[1]
        if self.has_labelled:
            for rows in _parts(np.arange(count)):
                dots = self._floats(rows) @ labelled.T.astype(np.float32)
                self.to_labelled[rows] = dots.max(axis=1).astype(np.float64) / FEATURE_UNIT**2

    def _floats(self, rows: Rows) -> npt.NDArray[np.float32]:
        return self._features[rows].astype(np.float32)

    def most_usual(self) -> int:
        """Give the row with the largest cosine to the sum of all features. Whole numbers below 2^53: exact in fp64."""
        total = self._features.sum(axis=0, dtype=np.int64).astype(np.float64)
        rows = np.arange(len(self._features))
        return int(np.concatenate([self._features[part].astype(np.float64) @ total for part in _parts(rows)]).argmax())

    def place(self, candidate: int, feature: Any) -> None:
        """Take a picture in. feature: (C,)."""
        feature = np.asarray(feature, np.float32)
        self._recent.append(feature)
        self._who.append(candidate)
        self._raise(self._near, self._near_features @ feature, np.array(candidate))
        self._seen[self._near] = len(self._who)

    def place_row(self, candidate: int, row: int) -> None:
        """Take one of the head in."""
        self.place(candidate, self._features[row])

    @property
    def is_far_behind(self) -> bool:
        """Say whether so many were placed that all rows should catch up."""
        return len(self._recent) >= SWEEP

    def focus(self, rows: Rows) -> None:
        """From now on keep these rows up to date, and no others."""
        self.catch_up(rows)
        self._near, self._near_features = rows, self._floats(rows)

    def sweep(self, rows: Rows) -> None:
        """Bring all rows that will ever be asked for up to date, and forget what was placed."""
        self.focus(np.zeros(0, np.int64))
        self.catch_up(rows)
        self._recent = []

    def catch_up(self, rows: Rows) -> None:
        """Bring some rows up to date."""
        late = rows[self._seen[rows] < len(self._who)]
        if not len(late):
            return
        recent, start = np.stack(self._recent), len(self._who) - len(self._recent)
        who = np.array(self._who[start:])
        for part in _parts(late):
            first = int(self._seen[part].min()) - start
            dots = self._floats(part) @ recent[first:].T  # (K, placed), whole numbers
            best = dots.argmax(axis=1)
            self._raise(part, dots[np.arange(len(part)), best], who[first + best])
        self._seen[late] = len(self._who)

    def _raise(self, rows: Rows, dots: Any, who: Any) -> None:
        cosines = dots.astype(np.float64) / FEATURE_UNIT**2
        is_closer = cosines > self.to_placed[rows]
        closer = rows[is_closer]
        self.to_placed[closer] = cosines[is_closer]
        self.like[closer] = who[is_closer] if who.ndim else who

    def novelty(self, rows: Rows) -> Floats:
        """Give 1 - the largest cosine, within 0..1; 1 where there is none to be like."""
        unlike: Floats = np.clip(1 - np.maximum(self.to_placed[rows], self.to_labelled[rows]), 0, 1)
        return unlike


def _parts(rows: Rows) -> list[Rows]:
    """Cut rows into parts whose products stay small."""
    return [rows[first : first + PART] for first in range(0, len(rows), PART)]


class _Need:
    """What the classes that a picture is predicted to hold are worth: more of those of which little is there."""

    def __init__(self, confidences: Any, stats: Optional[MiningStats]) -> None:
        self._confidences = confidences  # (H, nc)
        classes = confidences.shape[1]
        known = stats is not None and len(stats.names) == classes
        self._labelled = stats.boxes_per_class.astype(np.float64) if known and stats else np.zeros(classes)
        ap = np.nan_to_num(stats.ap_per_class) if known and stats else np.zeros(classes)
        self._usual = max(1.0, float(self._labelled.mean()))
        self._lack = 1 - ap
        self._placed = np.zeros(classes)

    def place(self, confidences: Any) -> None:
        """Take a picture in. confidences: (nc,)."""
        self._placed += confidences

    def place_row(self, candidate: int, row: int) -> None:
        """Take one of the head in."""
        self.place(self._confidences[row])

    def settle(self) -> None:
        """Count rises from here: there are none."""

    def rise(self) -> float:
        """Give by how much a worth may have risen."""
        return 0.0

    def worth(self, rows: Rows) -> Floats:
        """Give the largest confidence x need of some rows."""
        need = self._lack * self._usual / (self._usual + self._labelled + self._placed)
        parts = [(self._confidences[part] * need).max(axis=1) for part in _parts(rows)]
        return np.concatenate([np.zeros(0), *parts])


class _Difference:
    """How far a picture's classes are from those labelled and placed: Jensen-Shannon divergence to base 2.

    It may rise as others are placed, but its root is a metric (Endres and Schindelin 2003), of 1 at most: where the
    known classes have moved by r, no worth has risen by more than (s + r)^2 - s^2 with s + r <= 1, so by less than 2 r.
    """

    def __init__(self, sums: Any, stats: Optional[MiningStats]) -> None:
        self._sums = sums  # (H, nc)
        totals = sums.sum(axis=1, dtype=np.float64)
        self._is_empty = totals <= 0
        self._shares = sums / np.where(self._is_empty, 1, totals)[:, None]
        self._halves = negative_entropy(self._shares) / 2
        known = stats is not None and len(stats.names) == sums.shape[1]
        self._known = stats.boxes_per_class.astype(np.float64) if known and stats else np.zeros(sums.shape[1])
        self._settled = self._known

    def place(self, sums: Any) -> None:
        """Take a picture in. sums: (nc,) over its boxes."""
        self._known = self._known + sums

    def place_row(self, candidate: int, row: int) -> None:
        """Take one of the head in."""
        self.place(self._sums[row])

    def settle(self) -> None:
        """Count rises from here."""
        self._settled = self._known

    def rise(self) -> float:
        """Give by how much a worth may have risen, and a little more, since none is exact."""
        if self._settled is self._known or self._settled.sum() <= 0:  # all was worth 1, the most there is
            return 0.0
        before, now = (known / known.sum() for known in (self._settled, self._known))
        moved = math.sqrt(float(divergence(before[None], now)[0]) + ROUNDING)
        return min(2 * moved, 1.0)

    def worth(self, rows: Rows) -> Floats:
        """Give the divergence of some rows."""
        total = self._known.sum()
        if total <= 0:
            return np.ones(len(rows))
        other = self._known / total
        parts = [divergence(self._shares[part], other, self._halves[part]) for part in _parts(rows)]
        return np.where(self._is_empty[rows], 1.0, np.concatenate([np.zeros(0), *parts]))


def negative_entropy(shares: Floats) -> Floats:
    """Give the sum of p log2 p over the last axis, with 0 log2 0 = 0."""
    logs = np.log2(np.where(shares > 0, shares, 1))
    logs *= shares
    total: Floats = logs.sum(axis=-1)
    return total


def divergence(shares: Floats, other: Floats, halves: Optional[Floats] = None) -> Floats:
    """Give the Jensen-Shannon divergence to base 2 of (K, nc) distributions from one of (nc,): (K,) in 0..1.

    H(middle) - (H(share) + H(other)) / 2: one logarithm a number. halves: negative_entropy(shares) / 2, where known.
    """
    halves = negative_entropy(shares) / 2 if halves is None else halves
    apart: Floats = halves + negative_entropy(other) / 2 - negative_entropy((shares + other) / 2)
    return np.clip(apart, 0, 1)


class _Greedy:
    """Makes one order. A row is a place in the head, which lies in plain order: of equal values the first wins.

    `_bounds` are at least the true values. The rows with the largest ones compete for the next places by their true
    values (`_contest`), until one of the others (`_rival`) could be worth more; then they are drawn anew.
    """

    def __init__(self, pool: Pool, options: OrderOptions, stats: Optional[MiningStats], plain: Rows) -> None:
        self._pool, self._options, self._plain = pool, options, plain
        self._head = plain[: head_size(len(pool), options)]
        self._u = np.zeros(len(pool)) if options.diverse else percentiles(pool.scores)
        self._head_u = self._u[self._head]
        self._weight = 1 + options.diversity + options.balance
        self._like: Optional[_Likeness] = None
        if options.needs_features:
            labelled = stats.features if stats is not None else np.zeros((0, 1), np.int16)
            self._like = _Likeness(_read(pool.features, self._head), labelled)
        self._classes: Any = None
        self._classes_of = pool.class_vectors if options.cald_balance else pool.confidences
        if options.balance:
            kind: Any = _Difference if options.cald_balance else _Need
            self._classes = kind(_read(self._classes_of, self._head), stats)
        self._rows: list[int] = []
        self._values: list[float] = []
        self._duplicates: list[tuple[int, int]] = []
        self._is_taken = np.zeros(len(pool), np.bool_)  # placed, or put behind all
        by_hash = np.argsort(pool.hashes, kind="stable") if options.explore else np.zeros(0, np.int64)
        self._by_hash: Iterator[Any] = iter(by_hash)
        self._row_of = {candidate: row for row, candidate in enumerate(self._head.tolist())} if options.explore else {}
        self._is_open = np.ones(len(self._head), np.bool_)  # of the rows
        self._bounds = self._value(np.arange(len(self._head)))
        self._contest: Rows = np.zeros(0, np.int64)
        self._rival = (np.inf, 0)  # the best bound of the others, and minus its row

    def order(self) -> Order:
        """Place all."""
        self._place_head()
        tail = self._plain[len(self._head) :]
        if self._options.explore:
            for candidate in tail.tolist():
                self._explore(self._place_blindly)
                if not self._is_taken[candidate]:
                    self._place_blindly(candidate)
            tail = tail[:0]
        copies = np.array([copy for copy, _ in self._duplicates], np.int64)
        behind = self._plain[np.isin(self._plain, copies)] if len(copies) else copies
        values = [np.array(self._values), self._u[tail] / self._weight, self._u[behind] / self._weight - SUNK]
        rows = np.concatenate([np.array(self._rows, np.int64), tail, behind])
        return Order(rows, np.minimum.accumulate(np.concatenate(values)), tuple(self._duplicates))

    def _place_head(self) -> None:
        first = None  # to be as far as possible from nothing says nothing
        if self._options.diverse and self._like is not None and not self._like.has_labelled:
            first = self._like.most_usual()
        while True:
            self._explore(self._place_candidate)
            if not self._is_open.any():
                return
            if first is not None and not self._rows:
                self._place(first, float(self._bounds[first]))
            else:
                self._place(*self._best())

    def _explore(self, place: Callable[[int], None]) -> None:
        """Give the next places to chance, as long as they are its."""
        share = self._options.explore
        while share and int((len(self._rows) + 1) * share) > int(len(self._rows) * share):
            candidate = next((int(one) for one in self._by_hash if not self._is_taken[one]), None)
            if candidate is None:
                return
            place(candidate)

    def _place_candidate(self, candidate: int) -> None:
        """Place one that chance names, while what is placed matters to the head."""
        row = self._row_of.get(candidate)
        if row is None:
            self._place_blindly(candidate)
            if self._like is not None:
                self._like.place(candidate, _read(self._pool.features, np.array([candidate]))[0])
            if self._classes is not None:
                self._classes.place(_read(self._classes_of, np.array([candidate]))[0])
            return
        rows = np.array([row])
        if self._like is not None:
            if self._like.is_far_behind:  # chance may name all, with no draw between
                self._sweep()
            self._like.catch_up(rows)
        self._place(row, float(self._value(rows)[0]))

    def _place_blindly(self, candidate: int) -> None:
        """Place one of beyond the head: no other picture matters to its value."""
        self._rows.append(candidate)
        self._values.append(float(self._u[candidate] / self._weight))
        self._is_taken[candidate] = True

    def _place(self, row: int, value: float) -> None:
        """Place one of the head that is up to date, or find that it is a near-duplicate of one placed."""
        candidate, like = int(self._head[row]), self._like
        self._is_open[row], self._bounds[row], self._is_taken[candidate] = False, -np.inf, True
        if self._options.dedup and like is not None and like.to_placed[row] >= self._options.dedup_threshold:
            self._duplicates.append((candidate, int(like.like[row])))
            return
        self._rows.append(candidate)
        self._values.append(value)
        for part in (like, self._classes):
            if part is not None:
                part.place_row(candidate, row)

    def _best(self) -> tuple[int, float]:
        """Give the open row of the largest true value, and that value."""
        while True:
            rows = self._contest
            is_open = self._is_open[rows]
            values = np.where(is_open, self._value(rows), -np.inf)
            if is_open.any():
                place = int(values.argmax())
                risen = self._options.balance * self._classes.rise() / self._weight if self._classes is not None else 0
                if (values[place] - risen, -rows[place]) > self._rival:
                    return int(rows[place]), float(values[place])
            self._bounds[rows] = values
            self._draw()

    def _draw(self) -> None:
        """Let others compete: those with the largest bounds."""
        is_due = self._like is not None and self._like.is_far_behind
        if is_due or self._options.cald_balance:  # what may rise is valued anew
            self._sweep()
        if self._classes is not None:
            self._classes.settle()
        self._contest = largest(self._bounds, CONTEST)
        if self._like is not None:
            self._like.focus(self._contest)
        others = self._bounds.copy()
        others[self._contest] = -np.inf
        row = int(others.argmax())
        self._rival = (others[row], -row)

    def _sweep(self) -> None:
        """Value all anew; then others must be drawn."""
        rows = np.flatnonzero(self._is_open)
        if self._like is not None:
            self._like.sweep(rows)
        self._bounds[rows] = self._value(rows)
        self._rival = (np.inf, 0)

    def _value(self, rows: Rows) -> Floats:
        """Give (u + D d + B g) / (1 + D + B) of rows that are up to date."""
        options = self._options
        value = self._head_u[rows]
        if self._like is not None and (options.diverse or options.diversity):
            novelty = self._like.novelty(rows)
            value = (novelty if options.diverse else value) + options.diversity * novelty
        if self._classes is not None:
            value = value + options.balance * self._classes.worth(rows)
        weighted: Floats = value / self._weight
        return weighted


def largest(bounds: Floats, count: int) -> Rows:
    """Give the rows of the `count` largest bounds above -inf, in rising order; of equal ones the first."""
    rows = np.flatnonzero(bounds > -np.inf)
    if len(rows) <= count:
        return rows
    finite = bounds[rows]
    least = np.partition(finite, len(rows) - count)[len(rows) - count]
    is_in = finite > least
    is_in[np.flatnonzero(finite == least)[: count - np.count_nonzero(is_in)]] = True
    drawn: Rows = rows[is_in]
    return drawn


def _read(read: Optional[Reader], candidates: Rows) -> Any:
    """Read an array for each candidate, some at a time: a reader may need more memory than what it gives."""
    assert read is not None
    parts = _parts(candidates)
    first = np.asarray(read(parts[0].tolist()))
    arrays = np.empty((len(candidates), *first.shape[1:]), first.dtype)
    arrays[: len(first)] = first
    for number, part in enumerate(parts[1:], start=1):
        arrays[number * PART : number * PART + len(part)] = read(part.tolist())
    return arrays
