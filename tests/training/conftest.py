"""A few real pictures, and trainings of them that take seconds."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.checkpoint import read_checkpoint
from training.job import TrainJob
from utils.hyp import Hyp
from utils.settings import PictureSettings
from utils.train_settings import TrainConfig, TrainFolders
from utils.training_data import yolo_training_data

PICTURES = 12
SIDE = 96


@pytest.fixture(scope="session")
def few_pictures(tmp_path_factory: pytest.TempPathFactory, coco_images: list[Path], yolov5n_pt: Path) -> Path:
    """Give the data.yaml of twelve real pictures with their labels, to train and to validate on."""
    folder = tmp_path_factory.mktemp("few")
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for image in coco_images[:PICTURES]:
        shutil.copy(image, folder / "images")
        label = image.parents[2] / "labels/train2017" / f"{image.stem}.txt"
        shutil.copy(label, folder / "labels")
    names = list(read_checkpoint(yolov5n_pt).names)
    content = {"train": "images", "val": "images", "names": names}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return folder / "data.yaml"


@dataclass(frozen=True)
class Making:
    """Makes jobs that train yolov5n on the few pictures."""

    data: Path
    config: TrainConfig

    def job(self, folder: Path, **changes: Any) -> TrainJob:
        """Give a job in a folder; changes: of its config."""
        return TrainJob(
            config=replace(self.config, **changes),
            open_data=partial(yolo_training_data, self.data),
            folders=TrainFolders(folder, folder / "weights", folder),
            draws=False,
        )


@pytest.fixture(scope="session")
def making(few_pictures: Path, yolov5n_pt: Path) -> Making:
    """Give a maker of jobs: two epochs of three batches, a step a batch, without new anchors."""
    config = TrainConfig(
        weights=yolov5n_pt,
        hyp=Hyp(lr0=0.002, warmup_bias_lr=0.01),
        epochs=2,
        batch_size=4,
        nominal_batch=8,
        img_size=SIDE,
        workers=2,
        device="cpu",
        precision="fp32",
        autoanchor=False,
        pictures=PictureSettings(turn=True),
    )
    return Making(few_pictures, config)
