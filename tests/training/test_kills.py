"""kill -9 at any moment: what stands in /out is whole, and the next start ends as if nothing had happened."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.training.started import Task, assert_done, assert_equal, assert_whole, task_of, wait_until

KILLS = 20


@pytest.fixture(scope="module")
def template(few_pictures: Path, yolov5n_pt: Path, tmp_path_factory: pytest.TempPathFactory) -> Task:
    return task_of(few_pictures, yolov5n_pt, tmp_path_factory.mktemp("task") / "t", save_best_only=False, save_period=1)


@pytest.fixture(scope="module")
def undisturbed(template: Task, tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, float]:
    """A run that nobody disturbed, and its seconds from the first percent on."""
    task = template.copy(tmp_path_factory.mktemp("undisturbed"))
    process = task.start()
    wait_until(lambda: has_begun(task), process)
    begun_s = time.monotonic()
    process.communicate()
    seconds = time.monotonic() - begun_s
    assert process.returncode == 0
    return task, seconds


def has_begun(task: Task) -> bool:
    return (task.out / "monitor.txt").exists() and float(task.monitor()[2]) > 0


def kill_and_go_on(task: Task, after_s: float, undisturbed: Task) -> None:
    process = task.start()
    wait_until(lambda: has_begun(task), process)
    time.sleep(after_s)
    process.kill()
    process.communicate()
    assert_whole(task)
    assert_done(task, task.run())
    assert_equal(task.last(), undisturbed.last())
    best, other = ((each.out / "models/best.pt").read_bytes() for each in (task, undisturbed))
    assert len(best) == len(other)


@pytest.mark.parametrize("share", [0.35, 0.75])
def test_a_killed_training_goes_on(
    template: Task, undisturbed: tuple[Task, float], tmp_path: Path, share: float
) -> None:
    kill_and_go_on(template.copy(tmp_path), share * undisturbed[1], undisturbed[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(KILLS))
def test_a_training_may_be_killed_at_any_moment(
    template: Task, undisturbed: tuple[Task, float], tmp_path: Path, seed: int
) -> None:
    share = random.Random(seed).uniform(0, 1)
    kill_and_go_on(template.copy(tmp_path), share * undisturbed[1], undisturbed[0])
