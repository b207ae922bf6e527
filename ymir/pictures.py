"""What inference and mining of a task share: its weights, where pictures go, and what is told of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Optional, Union

from formats.exported import Exported, Weights, choose_backend, only_size, open_weights, refuse_other_size
from utils.batches import BatchReader, Onto, Placing, input_side
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


def read_weights(task: TaskConfig, *, same_classes: bool = True) -> Weights:
    """Read the weights that the task names. Raises WeightsError.

    same_classes: they must know as many classes as the task.
    """
    path = task_weights(task)
    if path is None:
        named = ", ".join(task.params.model_params_path) or "nothing"
        raise WeightsError(
            f"model_params_path: names {named[:200]}, need a weights file (.pt, .onnx, or an OpenVINO folder) that is "
            "there (config.yaml)"
        )
    checkpoint = open_weights(path)
    choose_backend(checkpoint, task.params.backend)
    names = task.params.class_names
    if len(names) != checkpoint.nc:
        if not same_classes:
            LOGGER.info("%s: has %d classes, the task %d; no class is needed here", path, checkpoint.nc, len(names))
            return checkpoint
        raise WeightsError(
            f"{path}: has {checkpoint.nc} classes, the task has {len(names)}; give weights that were trained for the "
            "task's class_names (config.yaml)"
        )
    if isinstance(checkpoint, Exported) and not checkpoint.are_names_told:
        return checkpoint
    differences = name_differences(checkpoint.names, names, "task", "written")
    if differences:
        LOGGER.warning("%s", one_line(differences))
    return checkpoint


def side_of(loader: LoaderSettings, weights: Optional[Weights]) -> int:
    """Give the longer side of a model's input; without a model any size will do."""
    return input_side(loader.img_size, input_stride(weights.strides) if weights else 1)


def placing_of(loader: LoaderSettings, weights: Optional[Weights]) -> Union[Placing, Onto]:
    """Give how pictures are placed on a model's input. Raises ConfigError for a size that a file wasn't made for."""
    side = side_of(loader, weights)
    fixed_hw = only_size(weights)
    if weights and fixed_hw:
        if side != max(fixed_hw):
            refuse_other_size(weights, (side, side))
        return Onto(fixed_hw)
    return Placing(loader.letterbox, side, input_stride(weights.strides) if weights else 1)


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
