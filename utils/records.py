"""RecordFile: checksummed records appended to one file, so that work interrupted at any moment goes on where it was.

A record that was cut off by a kill, and all behind it, is left out and written again. No torch.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Optional, cast

import numpy as np
import numpy.typing as npt

from utils.errors import BusyError, DatasetError, ExecutorError

LOGGER = logging.getLogger(__name__)

MAGIC = b"records 1\n"
HEAD = struct.Struct("<II")  # bytes of what follows, its CRC-32
MOST_BYTES = 64 << 20  # of a record: more can only be damage


class RecordFile:
    """A file of records, open for one process: it reads what is there, then appends.

    Use as a context. `append` keeps a record in memory until `flush`.
    """

    def __init__(self, path: Path, digest: str, *, anew: bool = False, to_read: bool = False) -> None:
        """Open or begin a file. digest: of all that its records depend on; a file of another one is begun anew.

        to_read: it must be there and of this digest, and is left as it is. Raises BusyError where another process has
        it, ExecutorError where it can't be opened or written, DatasetError where it can't be read as asked.
        """
        self.path = path
        self._is_ours = not to_read
        self._waiting = bytearray()
        self._file = self._opened()
        header = MAGIC + _framed(digest.encode())
        found = self._file.read(len(header))
        if found and found != header and to_read:
            self._file.close()
            raise DatasetError(
                f"{path}: its records are of other weights or settings than the task has now; give it those that they "
                "were made with, or make them anew (start.py without --merge)"
            )
        if found and (found != header or anew):
            if not anew:
                LOGGER.warning("%s: is of other weights, settings or pictures, and is begun anew", path)
            found = b""
        self._begin = self._end = len(header)
        if not self._is_ours:
            return
        if found:
            self._end = self._whole_end()
        else:
            self._cut_off(0)
            self._write(header)

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self._file.close()

    def _opened(self) -> BinaryIO:
        """Open the file, for this process alone or, to read, for those that read."""
        flags, mode, lock = (os.O_RDWR | os.O_CREAT, "r+b", fcntl.LOCK_EX)
        if not self._is_ours:
            flags, mode, lock = (os.O_RDONLY, "rb", fcntl.LOCK_SH)
        try:
            if self._is_ours:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as cause:
            if self._is_ours:
                words = f"can't be written ({cause.strerror}); make room in /out"
            else:
                words = f"can't be read ({cause.strerror})"
            raise ExecutorError(f"{self.path}: {words}") from cause
        file = cast(BinaryIO, os.fdopen(handle, mode))
        try:
            fcntl.flock(file, lock | fcntl.LOCK_NB)
        except OSError as cause:
            file.close()
            raise BusyError(f"{self.path}: another process works on this part; wait for it, or stop it") from cause
        return file

    def _whole_end(self) -> int:
        """Find where the last whole record ends, and cut off what is behind."""
        end = self._begin
        for place, record in self._walk():
            end = place + HEAD.size + len(record)
        if end < os.fstat(self._file.fileno()).st_size:
            LOGGER.warning("%s: its last record was cut off, and is made anew", self.path)
            self._cut_off(end)
        return end

    def _cut_off(self, end: int) -> None:
        """Shorten the file, and be there."""
        with self._telling():
            self._file.seek(end)
            self._file.truncate()

    def _walk(self) -> Iterator[tuple[int, bytes]]:
        self._file.seek(self._begin)
        place = self._begin
        while True:
            head = self._file.read(HEAD.size)
            if len(head) < HEAD.size:
                return
            length, checksum = HEAD.unpack(head)
            record = self._file.read(length) if length <= MOST_BYTES else b""
            if len(record) != length or zlib.crc32(record) != checksum:
                return
            yield place, record
            place += HEAD.size + length

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Give the place and the content of each record, in the order of writing. Don't append meanwhile."""
        self.flush()
        return self._walk()

    def read(self, place: int) -> bytes:
        """Give the record at a place that iterating gave."""
        self._file.seek(place)
        length, _ = HEAD.unpack(self._file.read(HEAD.size))
        return self._file.read(length)

    def append(self, record: bytes) -> None:
        """Add a record."""
        self._waiting += _framed(record)

    def flush(self) -> None:
        """Hand the system all that was added: from now on a kill of this process loses none of it."""
        if self._waiting:
            self._file.seek(self._end)
            self._write(bytes(self._waiting))
            self._end += len(self._waiting)
            self._waiting.clear()

    def _write(self, content: bytes) -> None:
        with self._telling():
            self._file.write(content)
            self._file.flush()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Turn the system's error into one line that says what to do, and close the file."""
        try:
            yield
        except OSError as cause:
            with suppress(OSError):
                self._file.close()
            raise ExecutorError(f"{self.path}: can't be written ({cause.strerror}); make room in /out") from cause


def digest_of(**settings: object) -> str:
    """Give one text of all that records depend on."""
    return json.dumps(settings, sort_keys=True, default=str)


def line_hash(line: str) -> int:
    """Give 64 bits that tell index lines apart."""
    return int.from_bytes(blake2b(line.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def line_hashes(lines: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Give the hash of each line."""
    return np.fromiter(map(line_hash, lines), np.uint64)


def _framed(content: bytes) -> bytes:
    return HEAD.pack(len(content), zlib.crc32(content)) + content
