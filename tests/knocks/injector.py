"""Injector: makes one operation of this process on files below a folder fail, or kills the process there.

What it covers: Python's own calls. A file that is opened for writing by open(), io.open, Path.open, os.fdopen or
tempfile has a raw layer of ours below Python's buffer, so that a `write` here is one write(2) of the real file; of the
os module: open (for writing), fsync, rename, replace, mkdir, rmdir, unlink, chmod, truncate. What it doesn't: a library
that writes by C calls of its own, and processes that are started. None does below /out in the tasks that are tried:
test_injected.py compares with what strace counts, where that is installed.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

KILLED = 137
TAKES_SPACE = {"write", "open", "mkdir", "fsync"}
MODES = ("error", "full", "kill")
# What differs from run to run in names.
CHANGING = {r"\.\d+\.tmp$": ".tmp", r"events\.out\.tfevents\..*": "events", r"^#\d+.*": "(unnamed)"}


@dataclass(frozen=True)
class Place:
    """The number-th operation of a kind, from 1, on a file below the folder.

    name: in the folder, without process numbers and times.
    """

    kind: str
    name: str
    number: int


@dataclass(frozen=True)
class Fault:
    """What is to happen, and at which operation; nothing without a place.

    mode: error: it fails once, as on a full disk (ENOSPC: write) or a broken one (EIO: all others); full: from it on
    nothing that takes space succeeds; kill: the process ends there as by SIGKILL, a write being half done.
    """

    mode: str = "error"
    place: Optional[Place] = None


def opened_path(handle: int) -> str:
    """Give the path that a descriptor was opened by. Raises OSError."""
    return str(Path("/proc/self/fd", str(handle)).readlink())


class Injector:
    """Counts the operations below a folder, and lets the fault happen at its place."""

    def __init__(self, folder: Path, fault: Fault, report: int) -> None:
        """report: a descriptor outside of the folder, for a line `NUMBER KIND NAME`, of a Place, for each operation."""
        self._folder, self._fault, self._report = f"{folder}/", fault, report
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._is_full = False
        self._write = os.write

    def is_below(self, path: Any, at: Optional[int] = None) -> bool:
        """Tell whether a path or a descriptor is one of the folder's."""
        try:
            if isinstance(path, int):
                path = opened_path(path)
            elif at is not None:  # a name in an open folder
                path = f"{opened_path(at)}/{os.fsdecode(path)}"
        except OSError:
            return False
        return (os.fsdecode(path) + "/").startswith(self._folder)

    def reach(self, kind: str, name: Any, half_done: Callable[[], object] = lambda: None) -> None:
        """Be told of an operation that comes now. half_done: does a part of it. Raises OSError where it is to fail."""
        path = opened_path(name) if isinstance(name, int) else os.fsdecode(name)
        place = self._place(kind, path)
        self._write(self._report, f"{place.number} {kind} {place.name}\n".encode())
        if place == self._fault.place:
            if self._fault.mode == "kill":
                half_done()
                os._exit(KILLED)
            self._is_full = self._fault.mode == "full"
            if not self._is_full:
                code = errno.ENOSPC if kind == "write" else errno.EIO
                raise OSError(code, os.strerror(code), path)
        if self._is_full and kind in TAKES_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def _place(self, kind: str, path: str) -> Place:
        name = path[len(self._folder) :]
        for pattern, known in CHANGING.items():
            name = re.sub(pattern, known, name)
        with self._lock:
            self._counts[kind, name] += 1
            return Place(kind, name, self._counts[kind, name])

    def install(self) -> None:
        """Stand between this process and its files, for good: the process is one to be thrown away."""
        injector, real_open = self, io.open

        class Raw(io.FileIO):
            """A file whose every write is counted."""

            def write(self, content: Any) -> Any:
                def half() -> None:
                    injector._write(self.fileno(), bytes(content)[: len(bytes(content)) // 2])

                injector.reach("write", self.fileno(), half)
                return super().write(content)

            def truncate(self, size: Optional[int] = None) -> Any:
                injector.reach("truncate", self.fileno())
                return super().truncate(size)

        def opened(
            file: Any,
            mode: str = "r",
            buffering: int = -1,
            encoding: Optional[str] = None,
            errors: Optional[str] = None,
            newline: Optional[str] = None,
            closefd: bool = True,
            opener: Any = None,
        ) -> Any:
            if not set(mode) & set("wax+") or not injector.is_below(file):
                return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
            if opener is None and not isinstance(file, int):
                injector.reach("open", file)
            raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
            if buffering == 0:
                return raw
            size = buffering if buffering > 1 else os.fstat(raw.fileno()).st_blksize
            buffered: Any = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw, size)
            if "b" in mode:
                return buffered
            return io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)

        # One by one, for mypy would have each be what it replaces.
        for module in (builtins, io):
            setattr(module, "open", opened)  # noqa: B010
        for kind in (
            "fsync",
            "mkdir",
            "rmdir",
            "unlink",
            "remove",
            "chmod",
            "rename",
            "replace",
            "truncate",
            "ftruncate",
        ):
            setattr(os, kind, self._counted(kind, getattr(os, kind)))
        real_os_open = os.open

        def os_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: Optional[int] = None) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR) and injector.is_below(path, dir_fd):
                injector.reach("open", path)
            return real_os_open(path, flags, mode, dir_fd=dir_fd)

        setattr(os, "open", os_open)  # noqa: B010

    def _counted(self, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        told = {"replace": "rename", "remove": "unlink", "ftruncate": "truncate"}.get(kind, kind)

        def call(path: Any, *arguments: Any, **more: Any) -> Any:
            if self.is_below(path, more.get("dir_fd")):
                self.reach(told, path)
            return real(path, *arguments, **more)

        return call


def read_report(text: str) -> list[Place]:
    """Give each operation that was reported, in turn."""
    return [Place(kind, name, int(number)) for number, kind, name in (line.split(" ", 2) for line in text.splitlines())]
