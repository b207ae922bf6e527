"""Files as a hostile /in and a polled /out need them: only regular ones are read, whole ones are written."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Union

from utils.errors import ExecutorError

PathLike = Union[str, Path]


def open_regular(path: PathLike, error: type[ExecutorError]) -> IO[bytes]:
    """Open a regular file for reading bytes; a pipe, a device or a folder raises `error` and is never waited for."""
    try:
        # O_NONBLOCK: opening a pipe that nobody writes would otherwise wait for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as cause:
        reason = cause.strerror if isinstance(cause, OSError) else str(cause)
        raise error(f"{path}: {reason}") from cause
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise error(f"{path}: is not a regular file")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_bytes(path: PathLike, limit: int, error: type[ExecutorError]) -> bytes:
    """Read a regular file of at most `limit` bytes; a larger one raises `error`."""
    try:
        with open_regular(path, error) as file:
            size = min(os.fstat(file.fileno()).st_size, limit)
            content = file.read(size + 1)  # not limit + 1: Python takes that much memory first
            if size < len(content) <= limit:  # it grew
                content += file.read(limit + 1 - len(content))
    except (OSError, MemoryError) as cause:  # a damaged disk, a server that went away
        raise error(f"{path}: can't be read ({type(cause).__name__})") from cause
    if len(content) > limit:
        raise error(f"{path}: is larger than {limit} bytes")
    return content


@contextmanager
def replacing(path: PathLike, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """Give a file to write; on leaving it takes the place of `path` in one step, or, on an error, vanishes.

    A reader of `path` sees the old content or the new, never a part. mode: the rights of the new file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.chmod(mode)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def remove_scraps(*folders: Path) -> None:
    """Take away what `replacing` left in folders when its process was killed; what a living one writes stays."""
    for folder in folders:
        for scrap in folder.glob(".*.tmp"):
            pid = scrap.name.split(".")[-2]
            if pid.isdecimal() and not Path("/proc", pid).is_dir():
                with suppress(OSError):
                    scrap.unlink()


def write_whole(path: PathLike, content: bytes, mode: int = 0o666) -> None:
    """Replace `path` by `content` in one step."""
    with replacing(path, mode) as file:
        file.write(content)
