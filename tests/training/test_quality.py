"""Training learns what it is shown: minutes of work, so these run with `make test-all`."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml

from models.checkpoint import read_checkpoint
from training.job import Hooks, TrainJob
from training.ranks import train
from utils.hyp import HYPS, Hyp, read_hyp
from utils.settings import PictureSettings
from utils.train_settings import TrainConfig, TrainFolders
from utils.training_data import yolo_training_data

ROOT = Path(__file__).resolve().parent.parent.parent


def coco_data(folder: Path, images: list[Path], weights: Path) -> Path:
    """Copy pictures with their labels; give the data.yaml to train and to validate on them."""
    for image in images:
        label = image.parents[2] / "labels/train2017" / f"{image.stem}.txt"
        for path, kind in ((image, "images"), (label, "labels")):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            if path.exists():
                shutil.copy(path, folder / kind)
    content = {"train": "images", "val": "images", "names": list(read_checkpoint(weights).names)}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return folder / "data.yaml"


def has_large_boxes_only(image: Path) -> bool:
    """Tell whether each side of each box is at least 0.12 of the picture's: 20 px at 160."""
    label = image.parents[2] / "labels/train2017" / f"{image.stem}.txt"
    rows = [line.split() for line in label.read_text().splitlines()] if label.exists() else []
    return bool(rows) and all(min(float(row[3]), float(row[4])) >= 0.12 for row in rows)


def job_of(config: TrainConfig, data: Path, folder: Path) -> TrainJob:
    folders = TrainFolders(folder, folder / "weights", folder)
    return TrainJob(config, partial(yolo_training_data, data), folders, draws=False)


@pytest.mark.slow
def test_a_network_from_scratch_learns_eight_pictures_by_heart(
    tmp_path: Path, coco_images: list[Path], yolov5n_pt: Path
) -> None:
    eight = [image for image in coco_images if has_large_boxes_only(image)][:8]
    data = coco_data(tmp_path / "data", eight, yolov5n_pt)
    # Validation places pictures otherwise than training does, with another border: a network that saw each of them at
    # one place only knows it nowhere else. So slow at the end that the norms' statistics catch up with the weights.
    plain = read_hyp(HYPS / "hyp.no-augmentation.yaml")
    hyp = replace(plain, lr0=0.004, lrf=0.001, warmup_bias_lr=0.004, translate=0.1, scale=0.2, fliplr=0.5)
    config = TrainConfig(
        cfg=ROOT / "models/yolov5n.yaml",
        hyp=hyp,
        epochs=500,
        batch_size=8,
        nominal_batch=8,
        img_size=160,
        optimizer="AdamW",
        cos_lr=True,
        cache="ram",
        validate=False,
        save=False,
        workers=1,
        device="cpu",
        precision="fp32",
        pictures=PictureSettings(turn=True),
    )
    assert train(job_of(config, data, tmp_path / "run"), Hooks()).map50 >= 0.9


@pytest.mark.slow
def test_fine_tuning_at_the_defaults_of_yolov5_does_not_lose_what_was_known(
    tmp_path: Path, coco_images: list[Path], yolov5n_pt: Path
) -> None:
    data = coco_data(tmp_path / "data", coco_images, yolov5n_pt)
    config = TrainConfig(
        weights=yolov5n_pt,
        hyp=Hyp(),
        epochs=3,
        workers=2,
        device="cpu",
        precision="fp32",
        pictures=PictureSettings(turn=True),
    )
    assert train(job_of(config, data, tmp_path / "run"), Hooks()).mean_ap >= 0.36
