"""TrainingData: the pictures to train on and those to validate on, whatever form they came in. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from utils.datasets import read_data_yaml, read_names, read_yolo_dataset
from utils.labelled import LabelledSet, yolo_set


@dataclass(frozen=True)
class TrainingData:
    """names: of the classes, by class id. val: may hold no picture, then nothing is validated."""

    names: tuple[str, ...]
    train: LabelledSet
    val: LabelledSet


def yolo_training_data(data_yaml: Path) -> TrainingData:
    """Read YOLOv5's own form: a data.yaml with train and val, labels beside the pictures.

    A val that is missing or empty holds no picture. Raises DatasetError, naming file and key.
    """
    content = read_data_yaml(data_yaml)
    names = read_names(content, data_yaml)
    train = read_yolo_dataset(data_yaml, "train").images
    val = read_yolo_dataset(data_yaml, "val").images if content.get("val") else ()
    return TrainingData(names, yolo_set(names, train), yolo_set(names, val))
