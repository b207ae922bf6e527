"""What the knocks share: a task of each kind, and a process that runs tasks in forks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.knocks.few import COUNT, pictures_task, training_task
from tests.knocks.forks import Forks


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory, coco_images: list[Path], yolov5n_pt: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("templates")
    few = coco_images[:COUNT]
    return {
        "infer": pictures_task(few, yolov5n_pt, folder / "infer", "infer"),
        "mining": pictures_task(few, yolov5n_pt, folder / "mining", "mining", mining_algorithm="entropy"),
        "train": training_task(few, yolov5n_pt, folder / "train"),
    }


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as running:
        yield running
