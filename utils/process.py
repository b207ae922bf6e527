"""What every door does with its own process: settle threads, caches and logging, and end with one line and a code."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import logging
import math
import os
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, NoReturn, Optional

from utils.errors import ConfigError, DeviceMemoryError, ExecutorError
from utils.machine import usable_cpus

# Of glibc's mallopt: the numbers in malloc.h, and bytes.
MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD = (-3, 1 << 30), (-1, (1 << 31) - 1), (-2, 1 << 26)
STOPPED_LATEST_S = 20  # after a signal: a batch that takes longer is not waited for
MOST = 2**31 - 1  # of an option that has no limit of its own
INTERRUPTED = 130  # what a shell gives for Ctrl-C


def prepare_process(log_format: str = "%(asctime)s %(levelname)s %(message)s") -> None:
    """Settle, before torch loads, what a process decides once: threads, folders for caches, logging, odd names."""
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cpus()))
    # Threads that wait for work would otherwise burn the core that a decoding thread needs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # else onnxruntime keeps a number for this machine below HOME
    keep_memory()
    for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
        if stream is None:  # closed by who started us: what would go there goes nowhere
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  # open to the end of the process
    # With a read-only root and no /tmp there is no temp folder: then nothing keeps a cache.
    with contextlib.suppress(FileNotFoundError):
        scratch = Path(tempfile.gettempdir())
        for name in ("MPLCONFIGDIR", "TORCH_HOME", "XDG_CACHE_HOME"):
            os.environ.setdefault(name, str(scratch / name.lower()))
        if "NUMBA_CACHE_DIR" not in os.environ:
            own = scratch / f"numba-{os.getuid()}"
            with contextlib.suppress(OSError):  # somebody else's: a new one, for this process and those that it starts
                os.environ["NUMBA_CACHE_DIR"] = str(own) if is_only_ours(own) else tempfile.mkdtemp(prefix="numba-")
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLineFormatter(log_format))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of its font cache


def is_only_ours(folder: Path) -> bool:
    """Make a folder, if it isn't there; tell whether nobody else can write there. Code is read back from it."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def keep_memory() -> None:
    """Let glibc keep what was freed: maps of tens of megabytes would otherwise come from the system, page by page and
    zeroed, at every layer (a twentieth of a forward pass). Elsewhere nothing happens."""
    mallopt: Any = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in (MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD):
            mallopt(parameter, value)


def give_memory_back() -> None:
    """Give the system what glibc keeps (see keep_memory): where memory ran out, others need it, as oneDNN for its code.

    Elsewhere nothing happens.
    """
    malloc_trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        gc.collect()
        malloc_trim(0)


class OneLineFormatter(logging.Formatter):
    """Shows each record as one line, whatever names of files and classes hold."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line."""
        return one_line(super().format(record))


def one_line(text: str) -> str:
    """Give a text with a blank for each line break and other control character."""
    return "".join(mark if mark.isprintable() else " " for mark in text)


class OneLineParser(argparse.ArgumentParser):
    """A parser whose complaint is a ConfigError, like any other wrong setting, and not a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        hint = " (--help lists the options)" if self.add_help else ""
        raise ConfigError(f"{message}{hint}")


def whole(least: int, most: int = MOST, also: Optional[int] = None) -> Callable[[str], int]:
    """Make a reader of whole numbers from `least` to `most`, or `also`, as an option's type."""

    def read(text: str) -> int:
        try:
            number: Optional[int] = int(text)
        except ValueError:
            number = None
        if number is None or (number != also and not least <= number <= most):
            limits = f"of at least {least}" if most == MOST else f"from {least} to {most}"
            extra = "" if also is None else f", or {also}"
            raise argparse.ArgumentTypeError(f"got {text[:40]!r}, need a whole number {limits}{extra}")
        return number

    return read


def share(text: str) -> float:
    """Read a number from 0 to 1, as an option's type."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"got {text[:40]!r}, need a number from 0 to 1")
    return number


def exit_code(run: Callable[[], None]) -> int:
    """Run a command line's work; a failure becomes one line on stderr, the last one, and a code other than 0."""
    try:
        run()
    except ExecutorError as error:
        return _fail(str(error), 1)
    except MemoryError:
        return _fail(str(DeviceMemoryError("memory ran out; use a smaller --batch-size or --imgsz")), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    return 0


@contextmanager
def handling(handlers: Mapping[int, Callable[[int, object], None]]) -> Iterator[None]:
    """Answer signals by these handlers inside; outside of the main thread, which alone may, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Let SIGTERM and SIGHUP ask for a stop; give what tells whether one was asked for.

    Work that doesn't end within 20 s of it is not waited for: then KeyboardInterrupt is raised in it. Ctrl-C is that
    from the start.
    """
    asked = threading.Event()

    def ask(number: int, frame: object) -> None:
        asked.set()
        signal.alarm(STOPPED_LATEST_S)

    def insist(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    with handling({signal.SIGTERM: ask, signal.SIGHUP: ask, signal.SIGALRM: insist}):
        try:
            yield asked.is_set
        finally:
            if asked.is_set():
                signal.alarm(0)


def leave(code: int) -> NoReturn:
    """End the process at once: libraries' exit handlers take time and may print behind the last line."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _fail(reason: str, code: int) -> int:
    sys.stdout.flush()
    sys.stderr.write(f"error: {one_line(reason)}\n")
    sys.stderr.flush()
    return code
