"""A small or full /out, a tiny /dev/shm, a root that can't be written, no network, and two tasks at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.knocks.tasks import Task, faults_of, missing_of, result_of, tiny_task

MAY_MOUNT = (
    bool(shutil.which("unshare"))
    and not subprocess.run(
        ["unshare", "--mount", "--net", "sh", "-c", "mount -t tmpfs -o size=1m none /dev/shm"], capture_output=True
    ).returncode
)
needs_mounts = pytest.mark.skipif(not MAY_MOUNT, reason="this machine lets nobody mount")

Make = Callable[..., Task]


@pytest.fixture
def make(coco_images: list[Path], yolov5n_pt: Path, tmp_path: Path) -> Make:
    return lambda kind, **settings: tiny_task(kind, coco_images, yolov5n_pt, tmp_path / kind, **settings)


def start(task: Task, before: str = "true", **environment: str) -> subprocess.Popen[str]:
    """Start a task in a world of its own, after a line of shell."""
    line = f'{before} && exec "$@"'
    world = ["unshare", "--mount", "--net", "sh", "-c", line, "sh"] if before != "true" else []
    return subprocess.Popen(
        [*world, sys.executable, str(ROOT / "start.py"), *task.arguments], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    text, _ = process.communicate(timeout=240)
    return process.returncode, text.splitlines()


@needs_mounts
@pytest.mark.parametrize("kind", ["infer", pytest.param("train", marks=pytest.mark.slow)])
def test_a_full_out_is_told_and_leaves_nothing_torn(make: Make, kind: str) -> None:
    task = make(kind)
    task.out.mkdir(exist_ok=True)
    kept = task.folder / "kept"
    size, fill = ("64k", "60") if kind == "infer" else ("12m", "0")
    before = f"mount -t tmpfs -o size={size} none {task.out} && head -c {fill}k /dev/zero > {task.out}/filler"
    world = [
        "unshare",
        "--mount",
        "--net",
        "sh",
        "-c",
        f'{before}; "$@"; code=$?; cp -r {task.out} {kept}; exit $code',
        "sh",
    ]
    done = subprocess.run(
        [*world, sys.executable, str(ROOT / "start.py"), *task.arguments], capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error 160004: ") and "No space left" in last and "Traceback" not in done.stderr
    kept.rename(task.folder / "left")
    (task.folder / "left").joinpath("filler").unlink()
    task.out.rmdir()
    (task.folder / "left").rename(task.out)
    assert faults_of(task, kind) == []
    assert end(start(task))[0] == 0 and missing_of(task, kind) == []


@needs_mounts
@pytest.mark.parametrize("kind", ["mining", pytest.param("train", marks=pytest.mark.slow)])
def test_a_tiny_shm_no_network_and_a_root_that_cannot_be_written(make: Make, kind: str) -> None:
    task = make(kind)
    task.out.mkdir(exist_ok=True)
    before = (
        "mount -t tmpfs -o size=1m none /dev/shm && "
        f"mount --bind {task.out} {task.out} && mount --bind {task.folder}/in {task.folder}/in && "
        f"mount -o remount,ro,bind {task.folder}/in && mkdir -p {task.folder}/t && "
        f"mount -t tmpfs none {task.folder}/t && "
        f"mount -o remount,ro,bind / && ! touch {task.folder}/x {ROOT}/x 2>/dev/null"
    )
    code, lines = end(start(task, before, TMPDIR=str(task.folder / "t"), HOME="/"))
    assert code == 0, lines[-5:]
    assert missing_of(task, kind) == [] and faults_of(task, kind) == []


@pytest.mark.slow
def test_two_tasks_at_once_in_folders_of_their_own(make: Make) -> None:
    tasks = {kind: make(kind) for kind in ("infer", "mining")}
    processes = {kind: start(task) for kind, task in tasks.items()}
    for kind, task in tasks.items():
        code, lines = end(processes[kind])
        assert code == 0, lines[-5:]
        assert missing_of(task, kind) == []


@pytest.mark.parametrize("kind", ["infer", pytest.param("mining", marks=pytest.mark.slow)])
def test_one_task_twice_at_once_in_one_folder_leaves_a_whole_result(make: Make, kind: str) -> None:
    """Whichever writes last: both give the same. A second mining may be refused, as the records are taken."""
    task = make(kind)
    ends = [end(process) for process in [start(task), start(task)]]
    assert 0 in [code for code, _ in ends], ends
    for code, lines in ends:
        assert code == 0 or lines[-1].startswith("error 160004: "), lines[-5:]
        assert not any("Traceback" in line or "defect" in line for line in lines), lines[-5:]
    assert faults_of(task, kind) == []
    assert end(start(task))[0] == 0 and missing_of(task, kind) == []
    assert result_of(task, kind)
