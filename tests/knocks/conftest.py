"""What the knocks share: a task of each kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.knocks.few import COUNT, pictures_task, training_task


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory, coco_images: list[Path], yolov5n_pt: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("templates")
    few = coco_images[:COUNT]
    return {
        "infer": pictures_task(few, yolov5n_pt, folder / "infer", "infer"),
        "mining": pictures_task(few, yolov5n_pt, folder / "mining", "mining", mining_algorithm="entropy"),
        "train": training_task(few, yolov5n_pt, folder / "train"),
    }
