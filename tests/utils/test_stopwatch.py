"""Seconds by name; the clock itself isn't tested."""

from __future__ import annotations

import pytest

from utils.stopwatch import Stopwatch


def test_elements_pass_through_unchanged() -> None:
    assert list(Stopwatch().each("reading", [1, None, 2])) == [1, None, 2]


def test_parts_are_kept_apart() -> None:
    clock = Stopwatch()
    with clock.timing("a"):
        list(clock.each("b", range(1000)))
    assert clock.ms_each("a", 1) >= clock.ms_each("b", 1) > 0
    assert clock.ms_each("a", 10) == pytest.approx(clock.ms_each("a", 1) / 10)


def test_what_was_never_timed_took_nothing() -> None:
    assert Stopwatch().ms_each("a", 0) == 0


def test_a_failure_is_timed_too() -> None:
    clock = Stopwatch()
    with pytest.raises(ZeroDivisionError), clock.timing("a"):
        _ = 1 / 0
    assert clock.ms_each("a", 1) > 0
