"""Mosaics: where tiles lie. That their pixels and boxes move alike is tested with the warp, in test_augment."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from utils.augment import Canvas, Warp
from utils.mosaic import Tile, draw_warped, place_four, place_nine

SIDE = 96
seeds = st.integers(0, 2**32 - 1)


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(seed=seeds, sizes=st.lists(st.tuples(st.integers(1, SIDE), st.integers(1, SIDE)), min_size=4, max_size=4))
def test_four_tiles_meet_at_a_centre(seed: int, sizes: list[tuple[int, int]]) -> None:
    first, second, third, fourth = place_four(range(4), sizes.__getitem__, SIDE, generator(seed))
    x, y = fourth.left, fourth.top
    assert SIDE / 2 <= x <= 3 * SIDE / 2 and SIDE / 2 <= y <= 3 * SIDE / 2
    assert (first.left + first.hw[1], first.top + first.hw[0]) == (x, y)
    assert (second.left, second.top + second.hw[0]) == (x, y)
    assert (third.left + third.hw[1], third.top) == (x, y)


@given(seed=seeds, sizes=st.lists(st.tuples(st.integers(1, SIDE), st.integers(1, SIDE)), min_size=9, max_size=9))
def test_nine_tiles_hide_nothing_of_each_other(seed: int, sizes: list[tuple[int, int]]) -> None:
    tiles = place_nine(range(9), sizes.__getitem__, SIDE, generator(seed))
    count = np.zeros((5 * SIDE, 5 * SIDE), int)
    for tile in tiles:
        top, left = tile.top + SIDE, tile.left + SIDE
        assert top >= 0 and left >= 0
        count[top : top + tile.hw[0], left : left + tile.hw[1]] += 1
    assert count.max() == 1 and count.sum() == sum(height * width for height, width in sizes)


def test_only_pictures_that_are_seen_are_read() -> None:
    read: list[int] = []

    def give(index: int) -> Canvas:
        read.append(index)
        return np.full((SIDE, SIDE, 3), index, np.uint8)

    tiles = [Tile(1, (SIDE, SIDE), 0, 0), Tile(2, (SIDE, SIDE), SIDE, 0)]
    out = np.empty((10, 10, 3), np.uint8)
    draw_warped(
        tiles, give, (SIDE, 2 * SIDE), Warp(np.array([[1.0, 0, -5], [0, 1, -5], [0, 0, 1]]), 1.0, (10, 10)), out
    )
    assert read == [1] and (out == 1).all()
