"""What a person sees of a running task: a bar on a terminal, now and then a line in a container's log."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Any, Optional

LOGGER = logging.getLogger(__name__)

EVERY_S = 10.0
EVERY_SHARE = 0.1


class Console:
    """Shows a fraction of 0..1; `report` has the form that utils.progress.Progress wants."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Any = None
        self._last_s = time.monotonic()
        self._last_share = 0.0

    def __enter__(self) -> Console:
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=100, desc=self._what, bar_format="{desc}: {percentage:3.0f} %|{bar}| {elapsed}<{remaining}"
            )
        return self

    def report(self, fraction: float) -> None:
        """Show how much is done; called as often as one likes."""
        if self._bar is not None:
            self._bar.update(100 * fraction - self._bar.n)
            return
        now_s = time.monotonic()
        if now_s - self._last_s >= EVERY_S or (fraction - self._last_share >= EVERY_SHARE and now_s - self._last_s > 1):
            LOGGER.info("%s: %d %%", self._what, 100 * fraction)
            self._last_s, self._last_share = now_s, fraction

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if self._bar is not None:
            self._bar.close()
