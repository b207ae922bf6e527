"""A share of 0..1 and its parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.progress import Progress

shares = st.floats(0, 1)


def test_whole_reports_what_it_is_told() -> None:
    seen: list[float] = []
    progress = Progress(seen.append)
    for fraction in (0, 0.25, 1):
        progress.at(fraction)
    assert seen == [0, 0.25, 1]


def test_fractions_outside_are_clipped() -> None:
    seen: list[float] = []
    part = Progress(seen.append).part(0.25, 0.75)
    for fraction in (-1, 2):
        part.at(fraction)
    assert seen == [0.25, 0.75]


def test_part_of_a_part_is_a_share_of_the_share() -> None:
    seen: list[float] = []
    Progress(seen.append).part(0.5, 1).part(0.5, 1).at(0.5)
    assert seen == [0.875]


def test_nobody_has_to_listen() -> None:
    Progress().part(0, 0.5).at(1)


@given(cuts=st.lists(shares, max_size=6).map(sorted), inner=st.lists(shares, max_size=4).map(sorted), data=st.data())
def test_parts_one_after_another_never_run_back_and_end_within_the_whole(
    cuts: list[float], inner: list[float], data: st.DataObject
) -> None:
    seen: list[float] = []
    outer = Progress(seen.append)
    outer_edges, inner_edges = [0.0, *cuts, 1.0], [0.0, *inner, 1.0]
    for start, end in zip(outer_edges, outer_edges[1:]):
        part = outer.part(start, end)
        for inner_start, inner_end in zip(inner_edges, inner_edges[1:]):
            piece = part.part(inner_start, inner_end)
            for fraction in [*sorted(data.draw(st.lists(shares, max_size=3))), 1.0]:
                piece.at(fraction)
    assert seen == sorted(seen)
    assert seen[0] >= 0
    assert seen[-1] == pytest.approx(1)
    assert seen[-1] <= 1


@pytest.mark.parametrize("is_nested", [False, True])
def test_rounding_does_not_push_a_part_beyond_the_next(is_nested: bool) -> None:
    assert 0.03 + (0.29 - 0.03) > 0.29  # in floating point
    seen: list[float] = []
    first = Progress(seen.append).part(0.03, 0.29)
    (first.part(0, 1) if is_nested else first).at(1)
    Progress(seen.append).part(0.29, 1).at(0)
    assert seen == sorted(seen)
