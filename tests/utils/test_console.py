"""What a person sees: plain lines where there is no terminal, a bar where there is one."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from utils.console import Console

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
from utils.console import Console
with Console("task") as shown:
    for k in range(101):
        shown.report(k / 100)
"""


def test_lines_come_now_and_then(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 2))
    monkeypatch.setattr("utils.console.time.monotonic", lambda: float(next(clock)))
    with caplog.at_level("INFO"), Console("task") as shown:
        for percent in range(101):
            shown.report(percent / 100)
    messages = [record.getMessage() for record in caplog.records]
    assert 10 <= len(messages) <= 21 and messages[-1] in ("task: 100 %", "task: 99 %", "task: 98 %", "task: 96 %")


def test_no_bar_and_no_control_characters_without_a_terminal() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "\r" not in done.stderr and "\x1b" not in done.stderr


def test_a_bar_on_a_terminal() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # a new one has no columns
    done = subprocess.run([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=theirs, cwd=ROOT)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert done.returncode == 0 and "task" in shown and "100 %" in shown
