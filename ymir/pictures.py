"""What inference and mining of a task share: its weights, where pictures go, and what is told of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Optional

from models.checkpoint import Checkpoint, read_checkpoint
from utils.batches import BatchReader, Placing, input_side
from utils.class_names import name_differences
from utils.errors import ImageError, WeightsError
from utils.letterbox import input_stride
from utils.pictures import read_picture
from utils.process import one_line
from utils.settings import LoaderSettings, PictureSettings
from ymir.config import TaskConfig
from ymir.index import Candidate
from ymir.weights import task_weights

LOGGER = logging.getLogger("start")


def read_weights(task: TaskConfig, *, same_classes: bool = True) -> Checkpoint:
    """Read the weights that the task names. Raises WeightsError.

    same_classes: they must know as many classes as the task.
    """
    path = task_weights(task)
    if path is None:
        named = ", ".join(task.params.model_params_path) or "nothing"
        raise WeightsError(
            f"model_params_path: names {named[:200]}, need a weights file (.pt) that is there (config.yaml)"
        )
    if path.suffix.lower() != ".pt":
        raise WeightsError(f"{path}: only .pt weights can be used in this version")
    checkpoint = read_checkpoint(path)
    names = task.params.class_names
    if len(names) != checkpoint.nc:
        if not same_classes:
            LOGGER.info("%s: has %d classes, the task %d; no class is needed here", path, checkpoint.nc, len(names))
            return checkpoint
        raise WeightsError(
            f"{path}: has {checkpoint.nc} classes, the task has {len(names)}; give weights that were trained for the "
            "task's class_names (config.yaml)"
        )
    differences = name_differences(checkpoint.names, names, "task", "written")
    if differences:
        LOGGER.warning("%s", one_line(differences))
    return checkpoint


def placing_of(loader: LoaderSettings, checkpoint: Optional[Checkpoint]) -> Placing:
    """Give how pictures are placed on a model's input; without a model any size will do."""
    stride = input_stride(checkpoint.strides) if checkpoint else 1
    return Placing(loader.letterbox, input_side(loader.img_size, stride), stride)


def tell_of_pictures(reader: BatchReader[Candidate]) -> None:
    """Log what was remarkable about the pictures that were read."""
    if reader.unreadable.count:
        LOGGER.warning("%s", one_line(reader.unreadable.summary("pictures can't be read and are set aside")))
    if reader.damaged.count:
        LOGGER.warning("%s", one_line(reader.damaged.summary("pictures are damaged and used as far as they go")))


def tell_of(total: int, readable: int, candidates: Iterable[Candidate], pictures: PictureSettings) -> None:
    """Log where there was nothing to do. Raises ImageError, with a reason, where not one picture could be read."""
    if total == 0:
        LOGGER.warning("the candidate index is empty: there is nothing to do, and the results are empty")
    elif not readable:
        first = next(iter(candidates))
        reason = first.refused or first.line
        try:  # records don't say why
            if first.refused is None:
                read_picture(first.path, pictures)
        except ImageError as error:
            reason = str(error)
        raise ImageError(f"not one of {total} pictures can be read, such as {one_line(reason)}")
