"""monitor.txt as the platform's poller sees it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from utils.errors import ConfigError, ExecutorError, WeightsError
from utils.progress import Progress
from ymir.monitor import MOST_TRACE_LINES, Monitor, one_line


class Clock:
    """A clock that the test turns."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def fields(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[0].split("\t")


def percent(path: Path) -> float:
    return float(fields(path)[2])


def test_start_writes_percent_zero_and_state_two(tmp_path: Path) -> None:
    before = int(time.time())
    path = tmp_path / "monitor.txt"
    Monitor(path, "t1").start()
    task_id, at, done, state = fields(path)
    assert (task_id, done, state) == ("t1", "0.0", "2")
    assert before <= float(at) <= time.time()
    assert path.read_bytes().endswith(b"2\n")


def test_anyone_may_read_and_replace_it(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        Monitor(tmp_path / "monitor.txt", "t1").start()
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "monitor.txt").stat().st_mode) == 0o666


def test_percent_never_falls(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "monitor.txt"
    monitor = Monitor(path, "t1", clock)
    monitor.start()
    seen = []
    for fraction in (0.1, 0.5, 0.3, float("nan"), -1.0, 0.6, 0.0):
        clock.now += 1
        monitor.report(fraction)
        seen.append(percent(path))
    assert seen == [0.1, 0.5, 0.5, 0.5, 0.5, 0.6, 0.6]


def test_reports_are_thinned_and_a_late_one_is_written(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "monitor.txt"
    monitor = Monitor(path, "t1", clock)
    monitor.start()
    monitor.report(0.2)
    assert percent(path) == 0.0
    clock.now += 0.31
    monitor.beat()
    assert percent(path) == 0.2


def test_one_comes_only_with_finish(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "monitor.txt"
    monitor = Monitor(path, "t1", clock)
    monitor.start()
    clock.now += 1
    monitor.report(1.0)
    assert 0.99 < percent(path) < 1.0
    monitor.finish()
    assert fields(path)[2:] == ["1.0", "2"]


def test_a_new_run_starts_anew_and_clears_the_scraps_of_a_killed_one(tmp_path: Path) -> None:
    path = tmp_path / "monitor.txt"
    Monitor(path, "t1").finish()
    (tmp_path / ".monitor.txt.123.tmp").write_text("half")
    (tmp_path / ".other.txt.123.tmp").write_text("not ours")
    Monitor(path, "t1").start()
    assert percent(path) == 0.0
    assert sorted(file.name for file in tmp_path.iterdir()) == [".other.txt.123.tmp", "monitor.txt"]


def test_progress_reports_through_it(tmp_path: Path) -> None:
    clock = Clock()
    monitor = Monitor(tmp_path / "monitor.txt", "t1", clock)
    clock.now += 1
    Progress(monitor.report).part(0.5, 1.0).at(0.5)
    assert percent(tmp_path / "monitor.txt") == 0.75


def test_an_error_has_state_four_code_message_and_trace(tmp_path: Path) -> None:
    path = tmp_path / "monitor.txt"
    monitor = Monitor(path, "t1")
    monitor.start()
    monitor.fail(ConfigError("epochs: got 0\tneed\r\n  at least 1"), trace=["File a.py\n    x\ty\n\nend", "last"])
    first, *rest = path.read_text().splitlines()
    assert first.split("\t")[2:] == ["0.0", "4", "300001", "epochs: got 0 need at least 1"]
    assert rest == ["File a.py", "    x    y", "end", "last"]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (WeightsError("best.pt: is cut"), "300004", "best.pt: is cut"),
        (KeyError("x"), "160004", "'x'"),
        (RuntimeError(), "160004", "RuntimeError"),
        (SystemExit("text"), "160004", "text"),
        (300103, "300103", ""),
    ],
)
def test_every_error_has_a_code(tmp_path: Path, error: BaseException | int, code: str, message: str) -> None:
    path = tmp_path / "monitor.txt"
    Monitor(path, "t1").fail(error)
    assert fields(path)[3:] == ["4", code, message]


def test_at_most_99_lines_follow_and_they_are_the_last(tmp_path: Path) -> None:
    path = tmp_path / "monitor.txt"
    Monitor(path, "t1").fail(1, "m", trace=[f"line {i}" for i in range(500)])
    lines = path.read_text().splitlines()
    assert len(lines) == 1 + MOST_TRACE_LINES
    assert lines[-1] == "line 499"


def test_an_error_keeps_the_percent(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "monitor.txt"
    monitor = Monitor(path, "t1", clock)
    monitor.start()
    monitor.report(0.4)
    monitor.fail(160004, "m")
    assert fields(path)[2:4] == ["0.4", "4"]


def test_names_that_are_no_utf8_do_not_spoil_the_file(tmp_path: Path) -> None:
    path = tmp_path / "monitor.txt"
    Monitor(path, "t\udcff").fail(ConfigError("a\udcffb"), trace=["c\udcff"])
    assert path.read_bytes().decode("utf-8").splitlines()[1] == "c\\udcff"


@settings(deadline=None)
@given(text=st.text())
def test_one_line_is_one_line(text: str) -> None:
    line = one_line(text)
    assert len(line.splitlines()) <= 1
    assert "\t" not in line


@settings(max_examples=30, deadline=None)
@given(fractions=st.lists(st.floats(), max_size=20))
def test_whatever_is_reported_it_rises_inside_0_to_1(
    tmp_path_factory: pytest.TempPathFactory, fractions: list[float]
) -> None:
    clock = Clock()
    path = tmp_path_factory.mktemp("m") / "monitor.txt"
    monitor = Monitor(path, "t1", clock)
    last = 0.0
    for fraction in fractions:
        clock.now += 1
        monitor.report(fraction)
        assert last <= percent(path) < 1
        last = percent(path)


def test_out_is_made_when_missing(tmp_path: Path) -> None:
    Monitor(tmp_path / "out/monitor.txt", "t1").start()
    assert (tmp_path / "out/monitor.txt").is_file()


def test_where_out_cannot_be_written_start_says_so_and_fail_goes_on(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file, no folder")
    monitor = Monitor(tmp_path / "out/monitor.txt", "t1")
    with pytest.raises(ExecutorError, match=r"monitor\.txt: can't be written"):
        monitor.start()
    monitor.fail(ConfigError("m"))


def test_a_fault_that_passes_is_a_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    monitor = Monitor(tmp_path / "out/monitor.txt", "t1", clock)
    monitor.start()
    (tmp_path / "out").rename(tmp_path / "gone")
    (tmp_path / "out").write_text("in the way")
    for now in (1.0, 2.0, 3.0):
        clock.now = now
        monitor.report(now / 10)
    assert caplog.text.count("can't be written") == 1  # not one each time
    (tmp_path / "out").unlink()
    clock.now = 20.0
    monitor.report(0.5)
    assert percent(tmp_path / "out/monitor.txt") == 0.5


def test_a_poller_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "monitor.txt"
    monitor = Monitor(path, "t1", Clock())
    monitor.start()
    stop = threading.Event()

    def write() -> None:
        count = 0
        while not stop.is_set():
            count += 1
            monitor.fail(160004, "m" * (count % 500), trace=["x" * 1000] * (count % 99))
            monitor.finish()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        until = time.monotonic() + 1.5
        reads = 0
        while time.monotonic() < until:
            content = path.read_bytes()
            assert content.endswith(b"\n")
            assert content.split(b"\n")[0].split(b"\t")[3] in (b"2", b"4")
            reads += 1
    finally:
        stop.set()
        writer.join()
    assert reads > 100


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "monitor.txt"
    code = (
        "import sys; from pathlib import Path; from ymir.monitor import Monitor\n"
        f"monitor = Monitor(Path({str(path)!r}), 't1')\n"
        "monitor.start(); print('on', flush=True)\n"
        "while True: monitor.fail(160004, 'm' * 900, trace=['x' * 5000] * 99)"
    )
    for _ in range(4):
        with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"on\n"
            time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
        lines = path.read_bytes().split(b"\n")
        assert lines[-1] == b""
        assert lines[0].split(b"\t")[3] in (b"2", b"4")
    Monitor(path, "t1").start()
    assert [file.name for file in tmp_path.iterdir()] == ["monitor.txt"]
