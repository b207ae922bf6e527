"""SIGTERM and kill -9 while a task infers or mines (tests/training has the same for training)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.knocks.tasks import Task, faults_of, missing_of, tiny_task

COPIES = 150  # of each picture, so that there is a middle


def long_task(kind: str, coco_images: list[Path], weights: Path, folder: Path) -> Task:
    task = tiny_task(kind, coco_images, weights, folder)
    index, lines = task.folder / "in/candidate-index.tsv", task.lines()
    new = []
    for line in lines:
        path = Path(line.replace("/in/", f"{task.folder}/in/", 1))
        for number in range(COPIES):
            copy = path.with_name(f"{path.stem}-{number}{path.suffix}")
            copy.symlink_to(path.name)
            new.append(line.replace(path.name, copy.name))
    index.write_text("\n".join(new) + "\n")
    return task


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("kind", ["infer", "mining"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.6])
def test_a_stopped_task_leaves_nothing_torn_and_starts_again(
    kind: str, number: int, share: float, coco_images: list[Path], yolov5n_pt: Path, tmp_path: Path
) -> None:
    task = long_task(kind, coco_images, yolov5n_pt, tmp_path)
    command = [sys.executable, str(ROOT / "start.py"), *task.arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    while not (task.out / "monitor.txt").exists() or float(task.monitor()[2]) <= share:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=120)
    assert faults_of(task, kind) == []
    if number == signal.SIGKILL:
        assert process.returncode == -9 and task.monitor()[3] == "2"
    else:
        assert process.returncode == 1 and task.monitor()[3:5] == ["4", "160004"]
        assert "SIGTERM" in printed.splitlines()[-1]
    again = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert again.returncode == 0, again.stderr
    assert faults_of(task, kind) == [] and missing_of(task, kind) == []
