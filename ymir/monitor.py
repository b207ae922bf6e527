"""monitor.txt: the only writer of a task's percent, state and error code (SPEC section 4)."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Callable, Union

from utils.errors import ExecutorError
from utils.files import write_whole
from utils.process import one_line as without_control_characters

LOGGER = logging.getLogger(__name__)

RUNNING, FAILED = 2, 4  # 3, done, is the platform's to write
EVERY_S = 0.3  # at most so often; the first report after that is always written
AFTER_A_FAULT_S = 10.0  # until it is tried again
MOST_TRACE_LINES = 99
MOST_MESSAGE = 1000  # characters; the platform's database shows no more
BEFORE_THE_END = 0.9999  # 1.0 stands there only once every result does


class Monitor:
    """Writes one task's monitor.txt: whole at every moment, percent never falling.

    `report` has the form that utils.progress.Progress wants. Threads may report at once.
    """

    def __init__(self, path: Path, task_id: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._task_id = one_line(task_id)
        self._clock = clock
        self._lock = threading.Lock()
        self._percent = 0.0
        self._written_at = -math.inf

    def start(self) -> None:
        """Begin the file anew at 0, whatever an earlier run left. Raises ExecutorError where /out can't be written."""
        with self._lock:
            self._percent = 0.0
            for scrap in self._path.parent.glob(f".{self._path.name}.*.tmp"):  # of a run that was killed
                with contextlib.suppress(OSError):
                    scrap.unlink()
            self._write(RUNNING)

    def report(self, fraction: float) -> None:
        """Say how much of the task is done; written unless the last writing is less than 0.3 s ago.

        Where it can't be written the log says so, and the task goes on: a fault may pass; one that doesn't fails the
        results.
        """
        with self._lock:
            if fraction > self._percent:  # NaN is not
                self._percent = min(fraction, BEFORE_THE_END)
            if self._clock() - self._written_at >= EVERY_S:
                try:
                    self._write(RUNNING)
                except ExecutorError as error:
                    LOGGER.warning("%s", one_line(str(error)))
                    self._written_at = self._clock() + AFTER_A_FAULT_S

    def beat(self) -> None:
        """Say that work goes on, though there is no new figure."""
        self.report(0.0)

    def finish(self) -> None:
        """Say that all results are written: percent 1.0, still state 2."""
        with self._lock:
            self._percent = 1.0
            self._write(RUNNING)

    def fail(self, error: Union[BaseException, int], message: str = "", trace: Iterable[str] = ()) -> None:
        """Say why the task ends: the last thing before a non-zero exit.

        error: an ExecutorError has its own code, any other exception is 160004; or the code itself. message: of the
        error when left out. trace: what happened; the last 99 lines are kept. Where the file can't be written any
        more there is only the log left to say so.
        """
        code = error if isinstance(error, int) else getattr(error, "code", ExecutorError.code)
        if not isinstance(code, int):  # SystemExit has a code of its own, of any type
            code = ExecutorError.code
        text = message or ("" if isinstance(error, int) else str(error) or type(error).__name__)
        lines = [line for block in trace for line in block.splitlines() if line.strip()]
        with self._lock:
            try:
                self._write(FAILED, str(code), one_line(text)[:MOST_MESSAGE], trace=lines[-MOST_TRACE_LINES:])
            except ExecutorError as cause:
                LOGGER.error("%s", cause)

    def _write(self, state: int, *fields: str, trace: Iterable[str] = ()) -> None:
        first = "\t".join((self._task_id, str(int(time.time())), _percent_text(self._percent), str(state), *fields))
        lines = [first, *(line.replace("\t", "    ").rstrip() for line in trace)]
        try:
            # backslashreplace: a path that is no UTF-8 must not stop the reader.
            write_whole(self._path, ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))
        except OSError as cause:
            raise ExecutorError(
                f"{self._path}: can't be written ({cause.strerror}); mount a folder there that this user may write to"
            ) from cause
        self._written_at = self._clock()


def one_line(text: str) -> str:
    """Give a text without tabs, line breaks and other control characters: each run of them is one space."""
    return " ".join(without_control_characters(text).split())


def _percent_text(percent: float) -> str:
    """Give 0.0, 0.25, 1.0: at most six decimals, never rounded up."""
    floored = math.floor(percent * 1e6) / 1e6
    text = f"{floored:.6f}".rstrip("0")
    return f"{text}0" if text.endswith(".") else text
