"""The validation of a network that is being trained: YOLOv5's figures and the losses, shared among the ranks."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Callable, NamedTuple, Optional

import torch.distributed as dist
from torch import Tensor

from models.candidates import LossTally
from models.detector import detector_of, device_errors
from models.yolo import DetectionModel
from training.building import Machine
from utils.distributed import World, from_main, gather_objects
from utils.errors import DeviceMemoryError, StoppedError
from utils.label_table import LabelTable
from utils.labelled import LabelledReader
from utils.passes import CPU_PASS, even_share
from utils.progress import Progress
from utils.settings import LoaderSettings, NmsSettings
from utils.watchers import Watcher
from val import Comparison, Evaluation, compare_all, summarise

LOGGER = logging.getLogger(__name__)

NMS = NmsSettings(0.001, 0.6, multi_label=True)  # YOLOv5's for validation

LossOf = Callable[[list[Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class Validated:
    """A validation's figures, and the mean losses of its pictures: box, objectness, classes."""

    evaluation: Evaluation
    losses: tuple[float, float, float]


class _Share(NamedTuple):
    """What one rank has done. losses: sums over its pictures, and their number. stopped: why it broke off, or None."""

    compared: Optional[Comparison]
    losses: tuple[list[float], int]
    stopped: Optional[str]


class Validator:
    """Validates networks on one set. loss: of raw maps and rows, without any collective.

    settings: their batch_size is a rank's; all ranks' together decides the shapes of the input, so that figures don't
    depend on how many share the work. at_once: the most pictures of one pass, 0: no limit but the batch.
    """

    def __init__(
        self, table: LabelTable, settings: LoaderSettings, loss: LossOf, machine: Machine, at_once: int = 0
    ) -> None:
        self._table = table
        self._settings = settings
        self._loss = loss
        self._machine = machine
        self._device, self._world = machine.device, machine.world
        self._has_told = False
        pictures = min(settings.batch_size, max(len(table), 1))
        chunk = even_share(pictures, CPU_PASS) if self._device.type == "cpu" else settings.batch_size
        self._chunk = min(chunk, at_once or chunk)

    def __call__(self, model: DetectionModel, progress: Progress, watchers: Sequence[Watcher] = ()) -> Validated:
        """Validate a network, which stays as it is. Every rank takes part and is given the same.

        Where memory runs out, fewer pictures go through at once. Raises DeviceMemoryError where one doesn't fit, or
        there are several ranks; StoppedError, on all ranks, where a watcher of one of them raised it.
        """
        while True:
            try:
                with device_errors():
                    return self._validate(model, progress, watchers)
            except DeviceMemoryError:
                if self._chunk == 1 or self._world.size > 1:
                    raise
                self._chunk = (self._chunk + 1) // 2
            LOGGER.warning("memory ran out in validation: %d pictures at once from now on", self._chunk)

    def alone(self) -> Validator:
        """Give the same for one rank, without the others."""
        settings = replace(self._settings, batch_size=self._settings.batch_size * self._world.size)
        other = Validator(self._table, settings, self._loss, replace(self._machine, world=World()), self._chunk)
        other._has_told = self._has_told
        return other

    def _validate(self, model: DetectionModel, progress: Progress, watchers: Sequence[Watcher]) -> Validated:
        if self._world.size > 1:
            for buffer in model.buffers():  # each rank has running statistics of its own; rank 0's are what is saved
                dist.broadcast(buffer, 0)
        precision = "fp16" if self._device.type == "cuda" else "fp32"
        copied = copy.deepcopy(model).eval().requires_grad_(False)
        detector = detector_of(copied, self._table.names, self._device, precision, self._chunk)
        tally = LossTally(self._loss)
        share = (self._world.rank, self._world.size)
        labelled = self._table.labelled_set()
        reader = LabelledReader(labelled, self._settings, detector.stride, progress=progress, share=share)
        compared, stopped = None, None
        with closing(reader):
            try:
                compared = compare_all(tally.candidates(detector), reader, NMS, watchers)
            except StoppedError as error:  # told to the others, who would wait for this rank
                stopped = str(error)
        self._tell_of(reader)
        shares = gather_objects(_Share(compared, tally.sums(), stopped))
        # Computed once: ranks on unlike processors might differ in a last digit, and then in what they do next.
        return from_main(self._summary(shares))

    def _tell_of(self, reader: LabelledReader) -> None:
        """Log what is wrong with the pictures, once: they are the same at every validation."""
        if self._has_told:
            return
        self._has_told = True
        if reader.unreadable.count:
            LOGGER.warning("%s", reader.unreadable.summary("validation pictures can't be read and are left out"))
        if reader.damaged.count:
            LOGGER.warning("%s", reader.damaged.summary("validation pictures are damaged and used as far as they go"))

    def _summary(self, shares: Sequence[_Share]) -> Validated:
        """Put the ranks' work together. Raises StoppedError where one of them broke off."""
        for share in shares:
            if share.stopped is not None:
                raise StoppedError(share.stopped)
        evaluation = summarise([one.compared for one in shares if one.compared is not None], self._table.names)
        pictures = max(sum(one.losses[1] for one in shares), 1)
        box, objectness, classes = (sum(values) / pictures for values in zip(*(one.losses[0] for one in shares)))
        return Validated(evaluation, (box, objectness, classes))
