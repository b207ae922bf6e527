"""Several processes train one model: who is who, how they are started, and how the death of one ends them all.

`launch` is our own starter, for one machine: a parent that trains nothing and sees its ranks' ends. torchrun is
another; its ranks come in by `World.from_environment`. Both then do their work inside `joined`.
"""

from __future__ import annotations

import contextlib
import inspect
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Literal, NamedTuple, Optional, TypeVar

import torch.distributed as dist
from torch import Tensor

from utils import errors
from utils.errors import ConfigError, DeviceError, DeviceMemoryError, ExecutorError
from utils.machine import usable_cpus

Value = TypeVar("Value")
Send = Callable[[Any], None]

BY_ENVIRONMENT = "env://"
# One rank may validate or fit anchors for long while the others wait; deaths are seen by the parent, not by the clock.
LONGEST_WAIT = timedelta(hours=24)
GRACE_S = 10.0  # between asking a rank to end and ending it, where another has failed
STOP_S = 25.0  # likewise where a stop was asked for, and ranks finish a batch and save; Kubernetes grants 30 in all
ECHO_S = 2.0  # for a first cause to arrive behind what it caused in other ranks
POLL_S = 0.2
FAILED = 1
# What a rank says when its peer is gone, in gloo's, NCCL's and the store's words.
ECHOES = (
    "gloo", "nccl", "connection closed", "connection reset", "broken pipe", "connection refused", "socket",
    "timed out", "timeout", "store", "barrier", "process group",
)  # fmt: skip
NAMED_ERRORS = {
    name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ExecutorError)
}


@dataclass(frozen=True)
class World:
    """Which process this is, of how many; where they meet, as torch names it.

    local_rank, local_size: which on this machine, of how many here.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    meeting: str = BY_ENVIRONMENT
    local_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size or self.local_rank < 0 or self.local_size < 1:
            got = f"{self.rank}, {self.local_rank}, {self.size}, {self.local_size}"
            raise ConfigError(f"RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE: got {got}")

    @property
    def is_main(self) -> bool:
        """Tell whether this is rank 0, which alone writes and reports."""
        return self.rank == 0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], local_rank: int = -1) -> World:
        """Read what torchrun, or another launcher, has set; alone where it has set nothing.

        Without LOCAL_WORLD_SIZE all are taken to be on this machine: too few threads each, rather than too many.
        local_rank: the option that old launchers give instead of LOCAL_RANK; -1: not given. Raises ConfigError.
        """
        numbers = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": max(local_rank, 0), "LOCAL_WORLD_SIZE": 0}
        for name in numbers:
            text = environ.get(name, "")
            if text:
                try:
                    numbers[name] = int(text)
                except ValueError:
                    raise ConfigError(f"{name}: got {text[:40]!r}, need a whole number (environment)") from None
        local_size = numbers["LOCAL_WORLD_SIZE"] or numbers["WORLD_SIZE"]
        return cls(numbers["RANK"], numbers["LOCAL_RANK"], numbers["WORLD_SIZE"], local_size=local_size)


@contextlib.contextmanager
def joined(world: World, backend: Literal["gloo", "nccl"]) -> Iterator[None]:
    """Be part of the process group; alone, there is none and every reduction gives back what it gets.

    Left in peace, ranks wait for each other, so that none takes its sockets away from one that still reads. Left by an
    error, nothing is waited for: the others learn of it by losing this one.
    """
    if world.size == 1:
        yield
        return
    with _lost_peers():
        dist.init_process_group(backend, world.meeting, LONGEST_WAIT, world.size, world.rank)
    try:
        yield
        with _lost_peers():
            dist.barrier()
    finally:
        # After an error NCCL would wait here for the operations that the error has cut off; the process ends instead.
        if backend == "gloo" or sys.exc_info()[0] is None:
            dist.destroy_process_group()


@contextlib.contextmanager
def _lost_peers() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as cause:
        raise DeviceError(f"process group: {str(cause).splitlines()[0][:200]}") from cause


def is_joined() -> bool:
    """Tell whether there are other ranks to speak with."""
    return bool(dist.is_available() and dist.is_initialized())


def all_sum(values: Tensor) -> Tensor:
    """Give the sum of a tensor over all ranks, on its device; each rank must ask."""
    if not is_joined():
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


def gather_objects(value: Value) -> list[Value]:
    """Give all ranks' plain values, in the order of ranks, to each of them; each rank must ask."""
    if not is_joined():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(value: Value) -> Value:
    """Give rank 0's plain value to all; the others' is not looked at."""
    if not is_joined():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


class _Failure(NamedTuple):
    """A rank's last words. is_echo: it only noticed that another rank is gone."""

    rank: int
    error: ExecutorError
    is_echo: bool


class _Told(NamedTuple):
    """What goes through a pipe: a message, or a failure's class, text and kind."""

    is_failure: bool
    content: Any


class _Rank(NamedTuple):
    number: int
    process: BaseProcess
    pipe: Connection


def launch(
    function: Callable[[Any, World, Send], None],
    argument: Any,
    size: int,
    on_message: Callable[[int, Any], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Run function(argument, world, send) in `size` new processes on this machine, and wait for all.

    function: of a module's top level; argument: what can be pickled. send(message) makes on_message(rank, message) run
    here. Ranks ignore Ctrl-C. Where should_stop gives True, ranks get SIGTERM, and SIGKILL after 25 s. The first
    failure ends all: a rank's ExecutorError is raised here with its class and text, a rank's death as DeviceError.
    returns: True if all ranks came to their end, False if they were stopped.
    """
    with _meeting() as meeting:
        ranks = _start(function, argument, [World(rank, rank, size, meeting, size) for rank in range(size)])
        watch = _Watch(ranks, on_message, should_stop)
        try:
            return watch.run()
        finally:
            _end([rank.process for rank in ranks], watch.last_moment())
            for rank in ranks:
                rank.pipe.close()


@contextlib.contextmanager
def _meeting() -> Iterator[str]:
    """Give a file that does not exist yet, where ranks find each other: no port that a stranger could reach."""
    try:
        folder = tempfile.mkdtemp(prefix="ranks-")
    except FileNotFoundError:  # a read-only root without /tmp
        folder = tempfile.mkdtemp(prefix="ranks-", dir="/dev/shm")
    try:
        yield (Path(folder) / "meeting").as_uri()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(function: Callable[..., None], argument: Any, worlds: Sequence[World]) -> list[_Rank]:
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads half-way
    ranks: list[_Rank] = []
    with _environment_of_ranks(len(worlds)):
        for world in worlds:
            ours, theirs = context.Pipe(duplex=False)
            arguments = (function, argument, world, theirs)
            process = context.Process(target=_run_rank, args=arguments, name=f"rank {world.rank}", daemon=True)
            try:
                process.start()
            except BaseException:
                _end([rank.process for rank in ranks], time.monotonic() + GRACE_S)
                raise
            theirs.close()  # or its end would never be seen here
            ranks.append(_Rank(world.rank, process, ours))
    return ranks


@contextlib.contextmanager
def _environment_of_ranks(size: int) -> Iterator[None]:
    """Settle, while ranks are started, what their torch reads when it loads; afterwards all is as it was."""
    wanted = {
        "OMP_NUM_THREADS": str(max(usable_cpus() // size, 1)),
        # They are all here: what they say to each other needs no network, and no name of this machine.
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _run_rank(function: Callable[[Any, World, Send], None], argument: Any, world: World, pipe: Connection) -> None:
    """What a rank's process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    lock = threading.Lock()

    def send(message: Any) -> None:
        with lock:
            pipe.send(_Told(False, message))

    with _Confession(pipe, lock):
        function(argument, world, send)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(FAILED)


class _Confession:
    """Tells the parent what ended a rank, whatever it was, and ends the process at once.

    No exit handler runs: libraries' own may wait for a peer that is gone.
    """

    def __init__(self, pipe: Connection, lock: threading.Lock) -> None:
        self._pipe, self._lock = pipe, lock

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if kind is None or error is None or isinstance(error, SystemExit):
            return
        if not isinstance(error, ExecutorError):
            sys.excepthook(kind, error, trace)
        with self._lock, contextlib.suppress(OSError):
            self._pipe.send(_Told(True, (*_words(error), _is_echo(error))))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(FAILED)


def _words(error: BaseException) -> tuple[str, str]:
    """Give the class that the parent is to raise, and the text."""
    if isinstance(error, ExecutorError):
        named = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in NAMED_ERRORS)
        return named, str(error)
    if isinstance(error, MemoryError):
        return DeviceMemoryError.__name__, "memory ran out; use a smaller batch size or img_size"
    lines = str(error).splitlines() or [""]
    return ExecutorError.__name__, f"{type(error).__name__}: {lines[0][:300]}"


def _is_echo(error: BaseException) -> bool:
    seen: Optional[BaseException] = error
    while seen is not None:
        text = str(seen).lower()
        if isinstance(seen, (RuntimeError, ConnectionError)) and any(word in text for word in ECHOES):
            return True
        seen = seen.__cause__
    return False


@dataclass
class _Watch:
    """Passes messages on until all ranks have ended; the first cause of a failure is raised."""

    ranks: Sequence[_Rank]
    on_message: Callable[[int, Any], None]
    should_stop: Callable[[], bool]
    _failures: list[_Failure] = field(default_factory=list)
    _stopped_at: Optional[float] = None
    _echoed_at: Optional[float] = None

    def run(self) -> bool:
        """Give True if all came to their end, False if they were stopped. Raises the first failure."""
        pipes = {rank.pipe: rank for rank in self.ranks}
        living = {rank.process.sentinel: rank for rank in self.ranks}
        while living:
            ready: Sequence[Any] = wait([*pipes, *living], POLL_S)
            for pipe in [pipe for pipe in pipes if pipe in ready]:
                if not self._read(pipes[pipe]):
                    del pipes[pipe]
            for sentinel in [sentinel for sentinel in living if sentinel in ready]:
                rank = living.pop(sentinel)
                while pipes.pop(rank.pipe, None) is not None and self._read(rank):
                    pipes[rank.pipe] = rank
                self._note_end(rank)
            self._raise_first_cause(is_over=not living)
            self._stop_if_asked([rank.process for rank in living.values()])
        return self._stopped_at is None

    def _read(self, rank: _Rank) -> bool:
        """Take one message, if the pipe still gives one."""
        try:
            told = rank.pipe.recv()
        except (EOFError, OSError):
            return False
        if told.is_failure:
            name, text, is_echo = told.content
            self._failures.append(_Failure(rank.number, NAMED_ERRORS[name](text), is_echo))
        else:
            self.on_message(rank.number, told.content)
        return True

    def _note_end(self, rank: _Rank) -> None:
        rank.process.join()
        code = rank.process.exitcode or 0
        has_told = any(failure.rank == rank.number for failure in self._failures)
        if code == 0 or has_told or self._stopped_at is not None:
            return
        # NCCL's own watch ends a process whose peer is gone by SIGABRT.
        self._failures.append(_Failure(rank.number, _death(rank.number, code), code == -signal.SIGABRT))

    def _raise_first_cause(self, is_over: bool) -> None:
        causes = [failure for failure in self._failures if not failure.is_echo]
        if causes:
            raise causes[0].error
        if not self._failures or self._stopped_at is not None:
            return
        self._echoed_at = self._echoed_at or time.monotonic()
        if is_over or time.monotonic() - self._echoed_at > ECHO_S:
            raise self._failures[0].error

    def _stop_if_asked(self, processes: Sequence[BaseProcess]) -> None:
        if self._stopped_at is None:
            if self.should_stop():
                self._stopped_at = time.monotonic()
                for process in processes:
                    process.terminate()
        elif time.monotonic() > self.last_moment():
            for process in processes:
                process.kill()

    def last_moment(self) -> float:
        """Give until when, by the monotonic clock, ranks that are asked to end now may take."""
        return time.monotonic() + GRACE_S if self._stopped_at is None else self._stopped_at + STOP_S


def _death(rank: int, code: int) -> ExecutorError:
    if code > 0:
        return DeviceError(f"rank {rank} ended with exit code {code} and no word of why; see its last lines above")
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    advice = "; perhaps memory ran out: use a smaller batch size or fewer workers" if -code == signal.SIGKILL else ""
    return DeviceError(f"rank {rank} was ended by {name}{advice}")


def _end(processes: Sequence[BaseProcess], deadline: float) -> None:
    """End what still runs: by SIGTERM, from the deadline on by SIGKILL."""
    for process in processes:
        if process.is_alive():
            process.terminate()
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0))
        if process.is_alive():
            process.kill()
            process.join()
