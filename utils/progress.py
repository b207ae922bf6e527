"""Progress: one share of a task's 0..1, and where to report it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable


def report_nowhere(fraction: float) -> None:
    """Stand in for a report where nobody listens."""


@dataclass(frozen=True)
class Progress:
    """A share of a task's 0..1. The holder doesn't know what comes before or after it."""

    report: Callable[[float], None] = report_nowhere
    start: float = 0.0
    end: float = 1.0

    def at(self, fraction: float) -> None:
        """Report that `fraction` (clipped to 0..1) of this share is done."""
        inside = min(max(fraction, 0.0), 1.0)
        # Rounded up, the end of one part could lie behind the start of the next.
        self.report(min(self.start + (self.end - self.start) * inside, self.end))

    def part(self, start: float, end: float) -> Progress:
        """Give the share of this share from `start` to `end`, both in 0..1."""
        width = self.end - self.start
        return Progress(self.report, self.start + width * start, min(self.start + width * end, self.end))
