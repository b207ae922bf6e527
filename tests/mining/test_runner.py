"""The one mining loop: places, scores and what stands in for unreadable pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from mining.runner import ScoreTable
from utils.errors import ImageError
from ymir.index import Candidate


def candidates(count: int) -> list[Candidate]:
    return [Candidate(index, f"/in/{index}.jpg", Path(f"/in/{index}.jpg")) for index in range(count)]


def test_scores_go_to_their_places_whatever_the_order() -> None:
    table = ScoreTable()
    for index in (3, 0, 2, 1):
        table.set(index, index / 10)
    assert list(table.of(candidates(4))) == [(f"/in/{k}.jpg", k / 10) for k in range(4)]
    assert table.readable == len(table) == 4


@pytest.mark.parametrize("scores", [[0.5, 0.25], [-3.0, -4.0], [0.0, 0.0]])
def test_unreadable_pictures_get_the_lowest_score_minus_one(scores: list[float]) -> None:
    table, items = ScoreTable(), candidates(4)
    table.set_aside(items[0], ImageError("x"))
    table.set(1, scores[0])
    table.set(2, scores[1])
    table.set_aside(items[3], ImageError("x"))
    ranked = dict(table.of(items))
    assert ranked["/in/0.jpg"] == ranked["/in/3.jpg"] == min(scores) - 1
    assert table.readable == 2 and len(table) == 4
