"""Each write, fsync, rename, ... of a task fails, or kills it, in turn: what is left is whole, the next succeeds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.knocks.syscalls import Fault, is_possible, run
from tests.knocks.tasks import KINDS, tiny_task

pytestmark = pytest.mark.skipif(not is_possible(), reason="needs Linux's seccomp notification (5.5 and later)")
HOWS = ("eio", "enospc", "full", "kill")


def go_through(task: Path, kind: str, how: str, first: int, step: int, last: int = 1 << 30) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.knocks.faults", str(task), kind, how, str(first), str(step), str(last)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outcomes) > 1, done.stderr
    wrong = [outcome for outcome in outcomes[1:] if outcome["wrong"]]
    assert not wrong, wrong
    assert done.returncode == 0, done.stderr
    return outcomes[1:]


@pytest.mark.parametrize(("how", "first"), [("eio", 7), ("full", 11), ("kill", 16)])
def test_a_sample_of_inference(how: str, first: int, coco_images: list[Path], yolov5n_pt: Path, tmp_path: Path) -> None:
    task = tiny_task("infer", coco_images, yolov5n_pt, tmp_path)
    assert [one for one in go_through(task.folder, "infer", how, first, 1, first) if one["hit"]]


@pytest.mark.slow
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_call(kind: str, how: str, coco_images: list[Path], yolov5n_pt: Path, tmp_path: Path) -> None:
    task = tiny_task(kind, coco_images, yolov5n_pt, tmp_path)
    outcomes = go_through(task.folder, kind, how, 1, 1)
    assert not outcomes[-1]["hit"], "stopped before the last call"


def test_the_injector_sees_what_is_below_python(tmp_path: Path) -> None:
    """A file that C code writes, and a process that the child starts."""
    import cv2
    import numpy as np

    def work() -> int:
        is_written = cv2.imwrite(str(tmp_path / "x.bmp"), np.zeros((4, 4, 3), np.uint8))
        code = subprocess.run(
            ["sh", "-c", f"echo word > {tmp_path}/y 2>/dev/null"], stderr=subprocess.DEVNULL
        ).returncode
        return 10 * int(is_written) + int(code != 0)

    seen = run(work, Fault(tmp_path, "count"))
    assert seen.status == 10 and {"write x.bmp", "write y"} <= set(seen.calls)
    assert run(work, Fault(tmp_path, "eio", seen.calls.index("write y") + 1)).status == 11
    killed = run(work, Fault(tmp_path, "kill", 2))
    assert killed.status == -9 and killed.hit == seen.calls[1]
