"""Saver: a training's weights files. Each is whole at every instant, and best.pt is never behind what last.pt says."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models.checkpoint_writer import SavedTraining, stripped, write_checkpoint, yaml_of
from models.resume import ResumeState
from models.yolo import DetectionModel
from training.job import BEST, LAST
from utils.errors import ExecutorError

LOGGER = logging.getLogger("train")


@dataclass(frozen=True)
class Snapshot:
    """A training between two batches. epoch: the last one that is done, from 0, or -1."""

    model: DetectionModel
    ema: DetectionModel
    epoch: int
    best_fitness: float
    updates: int
    optimizer: dict[str, Any]
    resume: ResumeState


@dataclass(frozen=True)
class Saver:
    """Writes the weights of one training into a folder. hyp: what the model keeps of the training, plain values."""

    folder: Path
    names: tuple[str, ...]
    hyp: dict[str, Any]

    def save_last(self, snapshot: Snapshot, is_over: bool = False) -> Path:
        """Replace last.pt, which holds what a run goes on from; where it is over, also in a form that is only weights
        to others."""
        content = self._content(snapshot)
        if is_over:
            content = stripped(content)
        return self._write(LAST, replace(content, resume=snapshot.resume))

    def save_best(self, snapshot: Snapshot) -> Path:
        """Replace best.pt by the EMA's weights."""
        return self._write(BEST, stripped(self._content(snapshot)))

    def save_epoch(self, snapshot: Snapshot, name: str) -> Path:
        """Write the EMA's weights under a name below the folder."""
        return self._write(name, stripped(self._content(snapshot)))

    def _content(self, snapshot: Snapshot) -> SavedTraining:
        return SavedTraining(
            model=snapshot.model,
            ema=snapshot.ema,
            names=self.names,
            yaml=yaml_of(snapshot.model.spec),
            epoch=snapshot.epoch,
            best_fitness=snapshot.best_fitness,
            updates=snapshot.updates,
            optimizer=snapshot.optimizer,
            date=time.strftime("%Y-%m-%dT%H:%M:%S"),
            hyp=self.hyp,
        )

    def _write(self, name: str, content: SavedTraining) -> Path:
        path = self.folder / name
        with writing(path):
            write_checkpoint(path, content)
        return path


@contextmanager
def tolerating(path: Path) -> Iterator[None]:
    """Log what the system says of a full or missing disk: what was to be written is only for people to look at."""
    try:
        yield
    except OSError as cause:
        LOGGER.warning("%s: can't be written (%s); training goes on", cause.filename or path, cause.strerror)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says of a full or missing disk into an error that names the file."""
    try:
        yield
    except OSError as cause:
        place = cause.filename or path
        raise ExecutorError(
            f"{place}: can't be written ({cause.strerror}); what was written before stays; make room and start again"
        ) from cause
