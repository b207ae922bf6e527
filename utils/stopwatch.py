"""Stopwatch: what the parts of a loop take."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Element = TypeVar("Element")


class Stopwatch:
    """Adds up seconds under names."""

    def __init__(self) -> None:
        self._spent_s: dict[str, float] = {}

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Count what is done inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._spent_s[part] = self._spent_s.get(part, 0.0) + time.perf_counter() - start

    def each(self, part: str, elements: Iterable[Element]) -> Iterator[Element]:
        """Give the elements, and count what it takes to get each."""
        iterator = iter(elements)
        finished = object()
        while True:
            with self.timing(part):
                element = next(iterator, finished)
            if element is finished:
                return
            yield element  # type: ignore[misc]  # not `finished`

    def ms_each(self, part: str, count: int) -> float:
        """Give a part's milliseconds for each of `count`."""
        return 1000 * self._spent_s.get(part, 0.0) / max(count, 1)
