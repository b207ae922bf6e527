"""Everything that a task can get wrong, through the built image: the tables that start.py is tested with, case by case.

Run as the platform runs it (tests/images/engine.py); /tmp is a folder here, so that one can see what an attack left.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests import test_start, test_start_training
from tests.images.engine import run_task
from tests.test_start import BROKEN, Change, detections, lines, monitor, ranking, set_lines, template  # noqa: F401
from tests.test_start_training import spoil_boxes_and_pictures, training_template  # noqa: F401

pytestmark = [pytest.mark.image, pytest.mark.slow]


@pytest.fixture
def task(template: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A folder with a task that mines and infers as `in`."""
    shutil.copytree(template, tmp_path / "in")
    return tmp_path


@pytest.fixture
def training(training_template: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A folder with a training task as `in`."""
    shutil.copytree(training_template, tmp_path / "in")
    return tmp_path


def assert_told(image: str, task: Path, wrong: tuple[Change, int, str]) -> None:
    """Run a task that must fail: the last line and monitor.txt say why, and nothing else happened."""
    change, code, named = wrong
    change(task / "in")
    done = run_task(image, task / "in", task / "out", tmp_dir=task / "tmp")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1, done.stderr
    assert last.startswith(f"error {code}: ") and named in last and len(last) < 1200
    assert "Traceback" not in done.stderr + done.stdout
    fields = monitor(task)
    assert fields[3:5] == ["4", str(code)] and named in fields[5]
    marks = [path for folder in ("in", "out", "tmp") for path in (task / folder).rglob("*was-here*")]
    assert not marks and not (task / "out/models/result.yaml").exists()


@pytest.mark.parametrize("case", test_start.WRONG)
def test_a_wrong_task(image: str, case: str, task: Path) -> None:
    assert_told(image, task, test_start.WRONG[case])


@pytest.mark.parametrize("case", test_start_training.WRONG)
def test_a_wrong_training(image: str, case: str, training: Path) -> None:
    assert_told(image, training, test_start_training.WRONG[case])


def test_broken_pictures_lose_nothing(image: str, task: Path) -> None:
    good = lines(task)
    broken = [make(task / "in") for make in BROKEN.values()]
    set_lines(task / "in", [*broken[:4], *good, *broken[4:]])
    done = run_task(image, task / "in", task / "out")
    assert done.returncode == 0, done.stderr
    ranked = list(ranking(task))
    assert set(ranked[: len(good)]) == set(good) and set(ranked[len(good) :]) == set(broken)
    found = detections(task)
    assert all(found[Path(line).name] == {"boxes": []} for line in broken)
    assert any(found[Path(line).name]["boxes"] for line in good)
    assert f"{len(broken)} pictures can't be read" in done.stderr and "not-there.jpg" in done.stderr


def test_bad_boxes_are_counted_and_named(image: str, training: Path) -> None:
    expected = spoil_boxes_and_pictures(training / "in")
    done = run_task(image, training / "in", training / "out")
    assert done.returncode == 0, done.stderr
    for words in expected:
        assert re.search(words, done.stderr), f"{words}\n{done.stderr}"
    assert yaml.safe_load((training / "out/models/result.yaml").read_text())["mAP"] >= 0
