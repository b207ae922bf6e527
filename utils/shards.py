"""Shard: which part of a list of pictures a process works on, and where it leaves what it found. No numpy here."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import resource
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Protocol, TypeVar

from utils.errors import BusyError, ConfigError, DatasetError

if TYPE_CHECKING:
    from utils.records import RecordFile

LOGGER = logging.getLogger(__name__)

MOST_SHARDS = 100_000
SPARE_FILES = 200  # that a process has open besides records
MINING, INFERENCE = "mining", "infer"  # kinds of work, as record files are named


class Numbered(Protocol):
    """What knows its place in the list."""

    @property
    def index(self) -> int:
        """From 0."""


Item = TypeVar("Item", bound=Numbered)


@dataclass(frozen=True)
class Shard:
    """Part `number`, from 0, of `count`: every count-th picture (SPEC section 6)."""

    number: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count <= MOST_SHARDS:
            raise ConfigError(f"--shard: got {self.number}/{self.count}, need I/N with I from 0 to N - 1")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, items: Iterable[Item]) -> Iterator[Item]:
        """Give this part of the items."""
        return (item for item in items if item.index % self.count == self.number)

    def file(self, folder: Path, kind: str) -> Path:
        """Give the record file of a kind of work."""
        return folder / f"{kind}.{self.number}-of-{self.count}.records"

    def monitor(self, path: Path) -> Path:
        """Give what stands for monitor.txt: others may write that in the same folder."""
        return path.with_name(f"{path.stem}.{self.number}-of-{self.count}{path.suffix}")


def parse_shard(text: str) -> Shard:
    """Read I/N. Raises ConfigError."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip(), re.ASCII)
    if found is None:
        raise ConfigError(f"--shard: got {text[:40]!r}, need I/N, such as 0/8 for the first of eight parts")
    return Shard(int(found[1]), int(found[2]))


def shard_of_environment(environ: Mapping[str, str]) -> Optional[Shard]:
    """Give the part of one of torchrun's ranks; None where RANK or WORLD_SIZE says nothing. Raises ConfigError."""
    rank, size = environ.get("RANK", ""), environ.get("WORLD_SIZE", "")
    if not rank or size in ("", "1"):
        return None
    if not (rank.isdecimal() and size.isdecimal()):
        raise ConfigError(f"RANK, WORLD_SIZE: got {rank[:20]!r}, {size[:20]!r}, need whole numbers (environment)")
    return Shard(int(rank), int(size))


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process of this folder is inside."""
    with _locked(folder, fcntl.LOCK_EX):
        yield


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Be the only process of this folder, which is made, that is inside. Raises BusyError where another one is."""
    with suppress(OSError):  # who writes there says so
        folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
        yield


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """Hold a lock of the folder itself: a file of its own could not be taken away safely. None where there is no such
    folder, or where its disk knows no such locks (NFS). Raises BusyError where `how` doesn't wait."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        try:
            fcntl.flock(handle, how)
        except BlockingIOError as cause:
            raise BusyError(
                f"{folder}: another start.py works there, whose monitor.txt stays as it is; wait for it, or stop it"
            ) from cause
        except OSError as cause:
            LOGGER.info("%s: can't be locked (%s); start no second task there", folder, cause.strerror)
        yield
    finally:
        os.close(handle)


def all_shards(count: int) -> list[Shard]:
    """Give every part of `count`."""
    return [Shard(number, count) for number in range(count)]


@contextmanager
def joining(folder: Path, kind: str, count: int, digest: str) -> Iterator[list[RecordFile]]:
    """Give the records of all `count` shards, to read. digest: of all that they depend on.

    Raises DatasetError where a shard has left none, or some of another digest; BusyError where one is still at work.
    """
    from utils.records import RecordFile

    for shard in all_shards(count):
        if not shard.file(folder, kind).exists():
            raise DatasetError(f"shard {shard}: has no records in {folder}; run start.py --shard {shard}")
    allow_open_files(count)
    with ExitStack() as stack:
        files = (RecordFile(shard.file(folder, kind), digest, to_read=True) for shard in all_shards(count))
        yield [stack.enter_context(file) for file in files]


def remove_records(folder: Path, kind: str) -> None:
    """Take away all records of a kind, of whatever number of shards: what they were for is done."""
    for path in folder.glob(f"{kind}.*-of-*.records"):
        try:
            path.unlink(missing_ok=True)
        except OSError as cause:  # results are written; a later run goes on from these records, or begins them anew
            LOGGER.warning("%s: can't be removed (%s); remove it", path, cause.strerror)


def allow_open_files(count: int) -> None:
    """Raise this process's own limit so that it can open `count` more files. Raises ConfigError where it mayn't."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + SPARE_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise ConfigError(
            f"--merge: {count} shards are {wanted} open files, this process may have {hard}; "
            f"start the container with --ulimit nofile={wanted}"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_all_done(is_done: Iterable[object], count: int) -> None:
    """Raise DatasetError, naming a shard of `count`, where an item has no record. is_done: true or not, by place."""
    missing = [place for place, one in enumerate(is_done) if not one]
    if missing:
        shard = Shard(missing[0] % count, count)
        raise DatasetError(f"{len(missing)} candidates have no record; run start.py --shard {shard} again")
