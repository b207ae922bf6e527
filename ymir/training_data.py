"""A training task's index files -> TrainingData, with the labels of whatever format the annotations are in."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Optional

from utils.batches import Shot
from utils.errors import DatasetError, ImageError
from utils.labelled import LabelledSet
from utils.labels import READERS, Labels, LabelSource, PictureFile, detect_format, yolo_label_path
from utils.training_data import TrainingData
from ymir.config import TaskConfig
from ymir.index import Pair, PairIndex, training_index, validation_index

LOGGER = logging.getLogger(__name__)

LOOKED_AT = 100  # annotations that may tell their format, where export_format isn't given


def ymir_training_data(task: TaskConfig) -> TrainingData:
    """Read a task's training and validation index. Raises DatasetError, ConfigError (export_format)."""
    names = task.params.class_names
    given = task.params.export_format if "export_format" in task.params.model_fields_set else ""
    train, val = training_index(task), validation_index(task)
    sets = [_labelled(index, given, names) for index in (train, val)]
    if not sets[0].shots:
        raise DatasetError(f"{train.file}: is empty, need at least one line IMAGE<TAB>ANNOTATION")
    return TrainingData(names, sets[0], sets[1])


def annotation_format(export_format: str, pairs: Sequence[Pair]) -> str:
    """Give the name of the reader that a set's annotations want."""
    there = (pair.annotation for pair in pairs if pair.annotation is not None and not pair.refused)
    return detect_format(export_format, islice((path for path in there if path.is_file()), LOOKED_AT))


def _labelled(index: PairIndex, export_format: str, names: tuple[str, ...]) -> LabelledSet:
    pairs = list(index)
    kind = annotation_format(export_format, pairs)
    read, source, is_shared = READERS[kind], LabelSource(names), kind == "coco"
    annotations = [_annotation_of(pair, kind) for pair in pairs]
    if is_shared:
        for path in sorted({annotation for annotation in annotations if annotation is not None}):
            source.coco_index(path)
        for fault in source.shared_faults():  # of no picture, so no picture's labels tell of them
            LOGGER.info("%s: %d; first: %s", fault.kind, fault.count, fault.example)

    def annotation_of(shot: Shot) -> Path:
        return annotations[shot.index] or shot.path

    def labels_of(shot: Shot, image_hw: tuple[int, int]) -> Labels:
        annotation = annotations[shot.index]
        if annotation is None:
            raise ImageError(f"{shot.path}: its line in {index.file} names no annotation")
        picture = PictureFile(shot.path, image_hw)
        if is_shared:
            return read(annotation, picture, source)
        try:
            return read(annotation, picture, source)
        except DatasetError as error:
            raise ImageError(str(error)) from error  # this one picture is left out, the others stay

    shots = tuple(Shot(pair.index, pair.image, pair.refused) for pair in pairs)
    return LabelledSet(names, shots, labels_of, annotation_of, kind)


def _annotation_of(pair: Pair, kind: str) -> Optional[Path]:
    if pair.annotation is None and kind == "yolo":
        return yolo_label_path(pair.image)
    return pair.annotation
