"""Real processes: how they are told apart, how they speak, and how they end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
import torch.distributed as dist

from utils.distributed import World, all_sum, from_main, gather_objects, joined, launch
from utils.errors import ConfigError, DatasetError, DeviceError, ExecutorError

Send = Callable[[Any], None]


def test_nothing_in_the_environment_is_one_process_alone() -> None:
    assert World.from_environment({}) == World(0, 0, 1)
    assert World.from_environment({}).is_main


def test_torchrun_and_older_launchers_are_understood() -> None:
    set_by_both = {"RANK": "5", "WORLD_SIZE": "8"}
    assert World.from_environment({**set_by_both, "LOCAL_RANK": "1"}) == World(5, 1, 8, local_size=8)
    assert World.from_environment(set_by_both, local_rank=1) == World(5, 1, 8, local_size=8)
    here = {**set_by_both, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert World.from_environment(here) == World(5, 1, 8, local_size=4)
    assert not World(5, 1, 8).is_main


@pytest.mark.parametrize(
    "environ",
    [{"RANK": "x"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "0"}, {"RANK": "-1"}, {"LOCAL_WORLD_SIZE": "-1"}],
)
def test_nonsense_in_the_environment_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"RANK|WORLD_SIZE"):
        World.from_environment(environ)


def test_alone_every_reduction_gives_what_it_gets() -> None:
    with joined(World(), "gloo"):
        assert all_sum(torch.tensor([3.0])).item() == 3
        assert gather_objects("a") == ["a"] and from_main("b") == "b"


def speak(argument: str, world: World, send: Send) -> None:
    with joined(world, "gloo"):
        total = all_sum(torch.tensor([world.rank + 1.0]))
        send(("sum", total.item(), gather_objects({"rank": world.rank}), from_main(f"{argument}{world.rank}")))
    send(("threads", os.environ["OMP_NUM_THREADS"], torch.get_num_threads(), dist.is_initialized()))


def test_ranks_speak_with_each_other_and_with_the_parent() -> None:
    said: dict[int, list[Any]] = {0: [], 1: []}
    before = dict(os.environ)
    assert launch(speak, "x", 2, lambda rank, message: said[rank].append(message))
    threads = max((os.cpu_count() or 1) // 2, 1)
    expected = [("sum", 3.0, [{"rank": 0}, {"rank": 1}], "x0"), ("threads", str(threads), threads, False)]
    assert said == {0: expected, 1: expected}
    assert dict(os.environ) == before


class OwnError(DatasetError):
    """Of a file that the parent may not know."""


def fail_while_the_other_waits(text: str, world: World, send: Send) -> None:
    with joined(world, "gloo"):
        if world.rank == 1:
            raise OwnError(text)
        all_sum(torch.zeros(1))


def test_an_error_arrives_with_its_class_and_text_and_no_echo_hides_it() -> None:
    with pytest.raises(DatasetError, match=r"^a\.txt line 3: 4 fields$") as caught:
        launch(fail_while_the_other_waits, "a.txt line 3: 4 fields", 2, lambda rank, message: None)
    assert type(caught.value) is DatasetError


def notice_before_the_cause_is_told(is_told: bool, world: World, send: Send) -> None:
    with joined(world, "gloo"):  # on a busy machine one rank starts long after the other
        pass
    if world.rank == 0:
        raise RuntimeError("gloo/transport/tcp/pair.cc: Connection closed by peer")
    time.sleep(0.5)
    if is_told:
        raise DatasetError("b.txt is missing")


def test_who_only_lost_a_peer_waits_for_the_cause() -> None:
    with pytest.raises(DatasetError, match=r"b\.txt is missing"):
        launch(notice_before_the_cause_is_told, True, 2, lambda rank, message: None)


def test_a_lost_peer_without_another_cause_is_the_cause() -> None:
    with pytest.raises(ExecutorError, match="Connection closed by peer"):
        launch(notice_before_the_cause_is_told, False, 2, lambda rank, message: None)


def break_down(argument: Any, world: World, send: Send) -> None:
    raise ZeroDivisionError("division by zero\nand more")


def test_any_other_exception_is_told_too(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExecutorError, match=r"^ZeroDivisionError: division by zero$"):
        launch(break_down, None, 1, lambda rank, message: None)
    assert "break_down" in capfd.readouterr().err  # the trace, for who has to mend it


def die(how: str, world: World, send: Send) -> None:
    with joined(world, "gloo"):
        send(os.getpid())
        if world.rank == 1:
            os._exit(7) if how == "exit" else os.kill(os.getpid(), getattr(signal, how))
        while True:  # the other rank trains on, and is in no collective
            time.sleep(0.05)


@contextlib.contextmanager
def no_process_left(pids: list[int]) -> Iterator[None]:
    yield
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    ("how", "words"),
    [("SIGKILL", "rank 1 was ended by SIGKILL; perhaps memory ran out"), ("exit", "rank 1 ended with exit code 7")],
)
def test_the_death_of_a_rank_ends_all_and_is_told(how: str, words: str) -> None:
    pids: list[int] = []
    with no_process_left(pids), pytest.raises(DeviceError, match=words):
        launch(die, how, 2, lambda rank, pid: pids.append(pid))


def train_until_stopped(folder: Path, world: World, send: Send) -> None:
    def stop(number: int, frame: object) -> None:
        (folder / f"{world.rank}.saved").touch()
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    send("ready")
    while True:
        time.sleep(0.05)


def test_a_stop_reaches_each_rank_which_may_save_first(tmp_path: Path) -> None:
    ready: list[int] = []
    ended = launch(train_until_stopped, tmp_path, 2, lambda rank, _: ready.append(rank), lambda: len(ready) == 2)
    assert not ended
    assert {path.name for path in tmp_path.iterdir()} == {"0.saved", "1.saved"}


def refuse_to_end(argument: Any, world: World, send: Send) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    send(os.getpid())
    while True:
        ctypes.CDLL(None).pause()


def test_an_error_in_the_parent_ends_ranks_even_deaf_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.distributed.GRACE_S", 0.5)
    pids: list[int] = []

    def cannot_write(rank: int, pid: int) -> None:
        pids.append(pid)
        raise OSError("no space left")

    with no_process_left(pids), pytest.raises(OSError, match="no space left"):
        launch(refuse_to_end, None, 1, cannot_write)
