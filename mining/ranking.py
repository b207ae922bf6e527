"""The order of mining: scores, features and predicted classes -> places, so that every prefix is a good batch.

One greedy choice after another (facts: mining, options of ours). What a picture is worth, its score apart, never rises
while others are placed; so an old value is a bound of the true one, and only pictures whose bound could win are valued
anew. Features are whole numbers below 4096, of which 256 to 1280 products add up below 2^24: exact in fp32, whatever
library multiplies them with however many threads. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional

import numpy as np
import numpy.typing as npt

from utils.stats import FEATURE_UNIT, MiningStats

LEAST_HEAD, MOST_HEAD = 1_000, 50_000
HEAD_SHARE, HEAD_BUDGETS = 0.05, 5  # of all candidates; times the budget
MOST_SCANNED_HEAD = 10_000  # where each place needs a look at the whole head (cald_balance)
BLOCK = 256  # pictures that are valued anew at once
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
    wanted = max(HEAD_BUDGETS * options.budget, int(HEAD_SHARE * count), LEAST_HEAD)
    return min(wanted, MOST_SCANNED_HEAD if options.cald_balance else MOST_HEAD, count)


class _Likeness:
    """How like the head's pictures are to labelled ones and to those placed: cosines, brought up to date when asked."""

    def __init__(self, features: npt.NDArray[np.int16], labelled: npt.NDArray[np.int16], read: Reader) -> None:
        count, channels = features.shape
        self._features = features.astype(np.float32)  # (H, C)
        self._read = read
        self._placed = np.zeros((LEAST_HEAD, channels), np.float32)
        self._who: list[int] = []
        self._seen = np.zeros(count, np.int64)  # so many of those placed are in to_placed
        self.to_placed: Floats = np.full(count, -np.inf)
        self.like = np.full(count, -1, np.int64)  # which of those placed is most like it
        self.to_labelled: Floats = np.full(count, -np.inf)
        if len(labelled) and labelled.shape[1] == channels:
            for first in range(0, count, 4096):
                part = slice(first, first + 4096)
                dots = self._features[part] @ labelled.T.astype(np.float32)
                self.to_labelled[part] = dots.max(axis=1) / FEATURE_UNIT**2

    def most_usual(self) -> int:
        """Give the row with the largest cosine to the sum of all features. Whole numbers below 2^53: exact in fp64."""
        total = self._features.sum(axis=0, dtype=np.float64)
        parts = np.array_split(self._features, max(len(self._features) // 4096, 1))
        return int(np.concatenate([part.astype(np.float64) @ total for part in parts]).argmax())

    def place(self, candidate: int, row: Optional[int]) -> None:
        """Take a picture in; row: its place in the head, None for one from beyond it."""
        count = len(self._who)
        if count == len(self._placed):
            self._placed = np.concatenate([self._placed, np.zeros_like(self._placed)])
        own = self._features[row] if row is not None else np.asarray(self._read([candidate]), np.float32)[0]
        self._placed[count] = own
        self._who.append(candidate)

    def is_stale(self, row: int) -> bool:
        """Say whether one was placed since this row was brought up to date."""
        return bool(self._seen[row] < len(self._who))

    def update(self, rows: Rows) -> None:
        """Bring some rows up to date."""
        first, count = int(self._seen[rows].min()), len(self._who)
        if first == count:
            return
        dots = self._features[rows] @ self._placed[first:count].T  # (K, placed), whole numbers
        best = dots.argmax(axis=1)
        cosines = dots[np.arange(len(rows)), best].astype(np.float64) / FEATURE_UNIT**2
        is_closer = cosines > self.to_placed[rows]
        closer = rows[is_closer]
        self.to_placed[closer] = cosines[is_closer]
        self.like[closer] = np.array(self._who)[first + best[is_closer]]
        self._seen[rows] = count

    def novelty(self, rows: Rows) -> Floats:
        """Give 1 - the largest cosine, within 0..1; 1 where there is none to be like."""
        unlike: Floats = np.clip(1 - np.maximum(self.to_placed[rows], self.to_labelled[rows]), 0, 1)
        return unlike


class _Need:
    """What the classes that a picture is predicted to hold are worth: more of those of which little is there."""

    def __init__(self, confidences: Floats, stats: Optional[MiningStats], read: Reader) -> None:
        self._confidences, self._read = confidences, read  # (H, nc)
        classes = confidences.shape[1]
        known = stats is not None and len(stats.names) == classes
        self._labelled = stats.boxes_per_class.astype(np.float64) if known and stats else np.zeros(classes)
        ap = np.nan_to_num(stats.ap_per_class) if known and stats else np.zeros(classes)
        self._usual = max(1.0, float(self._labelled.mean()))
        self._lack = 1 - ap
        self._placed = np.zeros(classes)

    def place(self, candidate: int, row: Optional[int]) -> None:
        self._placed += self._confidences[row] if row is not None else np.asarray(self._read([candidate]))[0]

    def worth(self, rows: Rows) -> Floats:
        need = self._lack * self._usual / (self._usual + self._labelled + self._placed)
        worth: Floats = (self._confidences[rows] * need).max(axis=1)
        return worth


class _Difference:
    """How far a picture's classes are from those labelled and placed: Jensen-Shannon divergence to base 2.

    It may rise as others are placed, so the whole head is looked at for each place.
    """

    def __init__(self, vectors: Floats, stats: Optional[MiningStats], read: Reader) -> None:
        self._sums, self._read = vectors, read  # (H, nc)
        totals = vectors.sum(axis=1)
        self._is_empty = totals <= 0
        self._shares = vectors / np.where(self._is_empty, 1, totals)[:, None]
        known = stats is not None and len(stats.names) == vectors.shape[1]
        self._known = stats.boxes_per_class.astype(np.float64) if known and stats else np.zeros(vectors.shape[1])

    def place(self, candidate: int, row: Optional[int]) -> None:
        self._known = self._known + (self._sums[row] if row is not None else np.asarray(self._read([candidate]))[0])

    def worth(self, rows: Rows) -> Floats:
        total = self._known.sum()
        if total <= 0:
            return np.ones(len(rows))
        worth = divergence(self._shares[rows], self._known / total)
        return np.where(self._is_empty[rows], 1.0, worth)


def divergence(shares: Floats, other: Floats) -> Floats:
    """Give the Jensen-Shannon divergence to base 2 of (K, nc) distributions from one of (nc,): (K,) in 0..1."""
    middle = (shares + other) / 2

    def relative(p: Floats) -> Floats:
        terms = np.zeros_like(middle)
        np.log2(np.divide(p, middle, out=np.ones_like(middle), where=middle > 0), out=terms, where=p > 0)
        entropy: Floats = (p * terms).sum(axis=1)
        return entropy

    both: Floats = np.clip((relative(shares) + relative(np.broadcast_to(other, shares.shape))) / 2, 0, 1)
    return both


class _Greedy:
    """Makes one order. A row is a place in the head, which lies in plain order: of equal values the first wins."""

    def __init__(self, pool: Pool, options: OrderOptions, stats: Optional[MiningStats], plain: Rows) -> None:
        self._pool, self._options, self._plain = pool, options, plain
        size = head_size(len(pool), options)
        self._head = plain[:size]
        self._u = np.zeros(len(pool)) if options.diverse else percentiles(pool.scores)
        self._like: Optional[_Likeness] = None
        if options.needs_features:
            assert pool.features is not None
            labelled = stats.features if stats is not None else np.zeros((0, 1), np.int16)
            self._like = _Likeness(np.asarray(pool.features(self._head.tolist())), labelled, pool.features)
        self._classes: Any = None
        if options.balance:
            kind: Any = _Difference if options.cald_balance else _Need
            read = pool.class_vectors if options.cald_balance else pool.confidences
            assert read is not None
            self._classes = kind(np.asarray(read(self._head.tolist()), np.float64), stats, read)
        self._weight = 1 + options.diversity + options.balance
        self._rows: list[int] = []
        self._values: list[float] = []
        self._is_placed = np.zeros(len(pool), np.bool_)
        self._by_hash = iter(np.argsort(pool.hashes, kind="stable").tolist())
        self._duplicates: list[tuple[int, int]] = []

    def order(self) -> Order:
        """Place all."""
        self._place_head()
        sunk = {copy for copy, _ in self._duplicates}
        for candidate in self._plain[len(self._head) :].tolist():
            self._explore(sunk)
            if not self._is_placed[candidate]:
                self._place(candidate, None, float(self._u[candidate] / self._weight), follows=False)
        behind = [candidate for candidate in self._plain.tolist() if candidate in sunk] if sunk else []
        values = [*self._values, *(float(self._u[candidate] / self._weight) - SUNK for candidate in behind)]
        falling = np.minimum.accumulate(np.array(values))
        return Order(np.array([*self._rows, *behind], np.int64), falling, tuple(self._duplicates))

    def _place(self, candidate: int, row: Optional[int], value: float, follows: bool = True) -> None:
        self._rows.append(candidate)
        self._values.append(value)
        self._is_placed[candidate] = True
        for part in (self._like, self._classes) if follows else ():
            if part is not None:
                part.place(candidate, row)

    def _explore(self, sunk: set[int]) -> None:
        """Give the next places to chance, as long as they are its."""
        share = self._options.explore
        while int((len(self._rows) + 1) * share) > int(len(self._rows) * share):
            candidate = next((one for one in self._by_hash if not self._is_placed[one] and one not in sunk), None)
            if candidate is None:
                return
            self._place(candidate, self._row_of.get(candidate), float(self._u[candidate] / self._weight))

    def _place_head(self) -> None:
        head, options = self._head, self._options
        self._row_of = {candidate: row for row, candidate in enumerate(head.tolist())} if options.explore else {}
        bounds = self._value(np.arange(len(head)))
        if options.diverse and self._like is not None and not (self._like.to_labelled > -np.inf).any():
            bounds[self._like.most_usual()] = np.inf
        sunk: set[int] = set()
        left = len(head)
        while left:
            before = len(self._rows)
            self._explore(sunk)
            for candidate in self._rows[before:]:
                if candidate in self._row_of:
                    bounds[self._row_of[candidate]] = -np.inf
                    left -= 1
            if not left:
                return
            row = self._best(bounds)
            candidate = int(head[row])
            value, bounds[row] = float(bounds[row]), -np.inf
            left -= 1
            if options.dedup and self._like is not None and self._like.to_placed[row] >= options.dedup_threshold:
                self._duplicates.append((candidate, int(self._like.like[row])))
                sunk.add(candidate)
            else:
                self._place(candidate, row, value if np.isfinite(value) else float(self._value(np.array([row]))[0]))

    def _best(self, bounds: Floats) -> int:
        """Give the row of the largest true value; bounds: (H,) at least as large as that, brought up to date here."""
        if self._options.cald_balance:  # no bounds hold
            open_rows = np.flatnonzero(bounds > -np.inf)
            if self._like is not None:
                self._like.update(open_rows)
            bounds[open_rows] = self._value(open_rows)
            return int(bounds.argmax())
        placed, is_true = len(self._rows), np.zeros(len(bounds), np.bool_)
        while True:
            row = int(bounds.argmax())
            if is_true[row] or not placed or np.isposinf(bounds[row]):
                return row
            count = min(BLOCK, len(bounds))
            block = np.argpartition(-bounds, count - 1)[:count]
            block = np.append(block[(bounds[block] > -np.inf) & ~is_true[block]], row)
            block = np.unique(block)
            if self._like is not None:
                self._like.update(block)
            bounds[block] = self._value(block)
            is_true[block] = True

    def _value(self, rows: Rows) -> Floats:
        """Give (u + D d + B g) / (1 + D + B) of rows that are up to date."""
        options = self._options
        value = self._u[self._head[rows]]
        if self._like is not None and (options.diverse or options.diversity):
            novelty = self._like.novelty(rows)
            value = (novelty if options.diverse else value) + options.diversity * novelty
        if self._classes is not None:
            value = value + options.balance * self._classes.worth(rows)
        weighted: Floats = value / self._weight
        return weighted
