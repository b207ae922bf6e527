"""The order against a naive greedy one that values every picture anew for each place, and what it is good for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Callable, Optional

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mining import ranking
from mining.ranking import Order, OrderOptions, Pool, divergence, order_of, percentiles
from utils.stats import FEATURE_UNIT, MiningStats

CLASSES, CHANNELS = 4, 8


def reader(array: Any) -> Callable[[Sequence[int]], Any]:
    return lambda rows: array[list(rows)]


def unit(vectors: Any) -> Any:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.round(FEATURE_UNIT * vectors / np.maximum(lengths, 1e-9)).astype(np.int16)


class Drawn:
    """A pool of random pictures, some near copies of others, with ties among the scores."""

    def __init__(self, seed: int, count: int) -> None:
        random = np.random.default_rng(seed)
        self.scores = np.round(random.random(count), 1)
        self.features = unit(np.abs(random.normal(size=(count, CHANNELS))))
        for copy in range(0, count - 1, 4):
            self.features[copy] = self.features[copy + 1] + random.integers(-2, 3, CHANNELS)
        self.confidences = random.random((count, CLASSES)).astype(np.float32) ** 3
        self.vectors = (random.random((count, CLASSES)) * random.integers(0, 2, (count, 1))).astype(np.float32)
        self.hashes = random.integers(0, 2**63, count).astype(np.uint64)
        self.ranks = random.permutation(count).astype(np.int64)
        boxes = random.integers(0, 30, CLASSES)
        names = tuple(str(number) for number in range(CLASSES))
        labelled = unit(np.abs(random.normal(size=(3, CHANNELS))))
        ap = np.array([0.2, np.nan, 0.8, 0.0])
        self.stats = MiningStats(names, boxes, boxes, ap, labelled, 0, "d")

    @property
    def pool(self) -> Pool:
        read = (reader(array) for array in (self.features, self.confidences, self.vectors))
        return Pool(self.scores, self.ranks, self.hashes, *read)


def shannon(p: Any, q: Any) -> float:
    """The Jensen-Shannon divergence to base 2, term by term."""
    terms = [(a, b, (a + b) / 2) for a, b in zip(p, q)]
    return sum((a * math.log2(a / m) if a else 0) + (b * math.log2(b / m) if b else 0) for a, b, m in terms) / 2


def naive(
    drawn: Drawn, options: OrderOptions, stats: Optional[MiningStats], head_count: int = 10**9
) -> tuple[list[int], list[float]]:
    """The definitions, word by word: each picture is valued anew for each place. Gives the order and the values."""
    count = len(drawn.scores)
    below = [(drawn.scores < score).sum() + ((drawn.scores == score).sum() - 1) / 2 for score in drawn.scores]
    u = [0.0 if options.diverse else value / count for value in below]
    balance = options.class_balance or (1.0 if options.cald_balance else 0.0)
    weight = 1 + options.diversity + balance
    features = drawn.features.astype(np.int64)
    boxes = stats.boxes_per_class.astype(float) if stats else np.zeros(CLASSES)
    ap = np.nan_to_num(stats.ap_per_class) if stats else np.zeros(CLASSES)
    usual = max(1.0, boxes.mean())
    key: Any = (lambda i: drawn.hashes[i]) if options.diverse else (lambda i: (-drawn.scores[i], drawn.ranks[i]))
    plain = sorted(range(count), key=key)
    head = plain[:head_count]
    placed: list[int] = []
    values: list[float] = []
    sunk: list[int] = []

    def cosine(i: int, other: Any) -> float:
        return int((features[i] * other.astype(np.int64)).sum()) / FEATURE_UNIT**2

    def value(i: int) -> float:
        others = [drawn.features[j] for j in placed] + (list(stats.features) if stats else [])
        d = min(max(1 - max((cosine(i, other) for other in others), default=-math.inf), 0), 1)
        g = 0.0
        if options.cald_balance:
            known = boxes + sum((drawn.vectors[j].astype(float) for j in placed), np.zeros(CLASSES))
            own_sums = drawn.vectors[i].astype(float)
            g = 1.0
            if known.sum() > 0 and own_sums.sum() > 0:
                g = shannon(own_sums / own_sums.sum(), known / known.sum())
        elif options.class_balance:
            done = sum((drawn.confidences[j].astype(float) for j in placed), np.zeros(CLASSES))
            g = float((drawn.confidences[i] * ((1 - ap) * usual / (usual + boxes + done))).max())
        own = d if options.diverse else u[i]
        return (own + options.diversity * d + balance * g) / weight

    while len(placed) + len(sunk) < count:
        number = len(placed) + 1
        open_ones = [i for i in plain if i not in placed and i not in sunk]
        open_head = [i for i in head if i in open_ones]
        if math.floor(number * options.explore) > math.floor((number - 1) * options.explore):
            best = min(open_ones, key=lambda i: drawn.hashes[i])
        elif not open_head:
            best = open_ones[0]
        elif options.diverse and not placed and not (stats and len(stats.features)):
            total = features[head].sum(axis=0)
            best = max(open_head, key=lambda i: int((features[i] * total).sum()))
        else:
            best = max(open_head, key=value)
        is_copy = any(cosine(best, drawn.features[j]) >= options.dedup_threshold for j in placed)
        if options.dedup and is_copy and best in head:
            sunk.append(best)
            continue
        values.append(value(best) if best in head else u[best] / weight)
        placed.append(best)
    behind = [i for i in plain if i in sunk]
    return placed + behind, np.minimum.accumulate(values + [u[i] / weight - 2 for i in behind]).tolist()


OPTIONS = [
    OrderOptions(),
    OrderOptions(diversity=1.0),
    OrderOptions(diversity=0.3, dedup=True),
    OrderOptions(class_balance=2.0),
    OrderOptions(diversity=0.5, class_balance=0.7, dedup=True, dedup_threshold=0.99),
    OrderOptions(cald_balance=True),
    OrderOptions(cald_balance=True, class_balance=0.4, diversity=0.5, dedup=True),
    OrderOptions(diverse=True),
    OrderOptions(diverse=True, dedup=True, class_balance=0.5),
    OrderOptions(explore=0.3),
    OrderOptions(explore=0.25, diversity=1.0, dedup=True),
    OrderOptions(explore=0.4, diversity=1.0, dedup=True, class_balance=1.0),
    OrderOptions(explore=0.2, diverse=True, dedup=True),
    OrderOptions(explore=0.5, cald_balance=True),
    OrderOptions(explore=1.0, dedup=True),
    OrderOptions(dedup=True, dedup_threshold=0.9),
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("knows", [False, True])
@pytest.mark.parametrize("head_count", [14, 40])
def test_the_order_is_the_naive_ones(
    options: OrderOptions, seed: int, knows: bool, head_count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contests and parts are made so small that they matter in a small pool."""
    drawn = Drawn(seed, 40)
    stats = drawn.stats if knows else None
    rows, values = naive(drawn, options, stats, head_count)
    for contest, sweep in ((3, 5), (20, 2)):
        for name, small in (("CONTEST", contest), ("SWEEP", sweep), ("PART", 4), ("LEAST_HEAD", head_count)):
            monkeypatch.setattr(ranking, name, small)
        order = order_of(drawn.pool, options, stats)
        assert order.rows.tolist() == rows
        if options.reorders:
            assert order.values.tolist() == pytest.approx(values, rel=0, abs=1e-12 if options.cald_balance else 0)
        else:
            assert order.values.tolist() == drawn.scores[rows].tolist()
        assert_whole(order, 40)


def assert_whole(order: Order, count: int) -> None:
    """No candidate lost or doubled, values finite and never rising."""
    assert sorted(order.rows.tolist()) == list(range(count))
    assert np.isfinite(order.values).all() and (np.diff(order.values) <= 0).all()


def shuffled(drawn: Drawn, permutation: Any) -> Pool:
    read = (reader(array[permutation]) for array in (drawn.features, drawn.confidences, drawn.vectors))
    return Pool(drawn.scores[permutation], drawn.ranks[permutation], drawn.hashes[permutation], *read)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), place=st.integers(0, len(OPTIONS) - 1), count=st.integers(1, 60))
def test_the_order_of_the_candidates_does_not_matter(seed: int, place: int, count: int) -> None:
    drawn = Drawn(seed, count)
    permutation = np.random.default_rng(seed).permutation(count)
    order = order_of(drawn.pool, OPTIONS[place], drawn.stats)
    other = order_of(shuffled(drawn, permutation), OPTIONS[place], drawn.stats)
    assert permutation[other.rows].tolist() == order.rows.tolist()
    assert other.values.tolist() == order.values.tolist()
    assert_whole(order, count)


def test_a_large_pool_has_a_head_and_a_tail() -> None:
    drawn = Drawn(3, 3000)
    options = OrderOptions(diversity=1.0, dedup=True)
    order = order_of(drawn.pool, options)
    assert_whole(order, 3000)
    plain = np.lexsort((drawn.ranks, -drawn.scores)).tolist()
    assert [row for row in order.rows.tolist() if row in set(plain[1000:])] == plain[1000:]
    copies = [copy for copy, _ in order.duplicates]
    assert len(copies) > 50 and set(order.rows[-len(copies) :].tolist()) == set(copies)


def test_percentiles_average_ties() -> None:
    assert percentiles(np.array([1.0, 3.0, 1.0, 2.0])).tolist() == [0.125, 0.75, 0.125, 0.5]


def test_planted_copies_sink_and_a_rare_class_rises(capsys: pytest.CaptureFixture[str]) -> None:
    """400 pictures: 100 scenes of high score with three near copies each; a tenth, of low score, hold a rare class."""
    random = np.random.default_rng(5)
    scenes = unit(np.abs(random.normal(size=(100, 64))))
    features = np.repeat(scenes, 4, axis=0) + random.integers(-40, 41, (400, 64)).astype(np.int16)
    scores = np.repeat(random.random(100), 4) + random.random(400) * 0.01
    is_rare = random.random(400) < 0.1
    scores[is_rare] *= 0.5
    confidences = np.zeros((400, 2), np.float32)
    confidences[:, 0], confidences[is_rare, 1] = 0.8, 0.6
    stats = MiningStats(("a", "b"), np.array([500, 5]), np.array([500, 5]), np.array([0.7, 0.1]), features[:0], 0, "")
    hashes, ranks = random.integers(0, 2**63, 400).astype(np.uint64), np.arange(400)
    pool = Pool(scores, ranks, hashes, reader(features), reader(confidences))
    plain = order_of(pool, OrderOptions()).rows
    better = order_of(pool, OrderOptions(diversity=0.5, dedup=True, class_balance=1.0), stats).rows
    figures = []
    for first in (10, 50, 200):
        copies, rare = zip(
            *((first - len(set((rows[:first] // 4).tolist())), is_rare[rows[:first]].sum()) for rows in (plain, better))
        )
        figures.append(f"first {first}: near copies {copies[0]} -> {copies[1]}, rare class {rare[0]} -> {rare[1]}")
        assert copies[1] < copies[0] or copies[0] == 0
        assert rare[1] > rare[0]
    with capsys.disabled():
        print("\n" + "\n".join(figures))


def test_divergence_by_hand() -> None:
    one_hot, other = np.array([[1.0, 0.0]]), np.array([0.0, 1.0])
    assert divergence(one_hot, other).tolist() == [1.0]
    assert divergence(one_hot, one_hot[0]).tolist() == [0.0]
    assert replace(OrderOptions(), cald_balance=True).balance == 1.0
