"""Run: a training under way on one rank, with its data, its validation, and what it writes."""

from __future__ import annotations

import logging
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
import torch

from models.resume import ResumeState
from training.building import training_side
from training.job import BEST, Checkpointed, FitResult, Hooks, TrainJob
from training.resuming import about_run
from training.saver import Saver
from training.state import Training
from training.validation import Validated, Validator
from utils.distributed import World, gather_objects
from utils.errors import StoppedError
from utils.hyp import hyp_as_dict
from utils.metrics import Metrics
from utils.picture_store import PictureStore
from utils.plots import write_jpeg
from utils.progress import Progress
from utils.train_log import EpochRow, TrainLog, no_validation
from utils.train_plots import draw_train_batch
from utils.train_settings import TrainConfig
from utils.training_loader import IntArray, TrainBatch, TrainLoader, epoch_order, image_weights
from utils.training_set import TrainingSet, generator
from utils.watchers import Seen, Watcher

LOGGER = logging.getLogger("train")

DRAWN_BATCHES = 3
SCALE_WORD = 3  # beside the seed in the generator of --multi-scale, see utils.training_loader


@dataclass(eq=False)
class Run:
    """What the loop works on.

    config: with a batch size that is known. log: only on the rank that writes. class_maps: AP 0.5:0.95 by class of the
    last validation, for --image-weights.
    """

    job: TrainJob
    config: TrainConfig
    world: World
    device: torch.device
    training: Training
    training_set: TrainingSet
    store: PictureStore
    loader: TrainLoader
    validator: Optional[Validator]  # None: there is no picture to validate on
    log: Optional[TrainLog] = None
    class_maps: Any = None
    drawn: int = 0
    last: FitResult = field(default_factory=lambda: FitResult(0))

    # ---- what the loop asks

    @property
    def batch_count(self) -> int:
        """Batches of an epoch."""
        missing = -len(self.training_set) % self.world.size
        return self.loader.batch_count(len(self.training_set) + missing)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to train."""
        epoch, stop = self.training.position.epoch, self.training.stop
        has_stalled = 0 < stop.patience <= epoch - 1 - stop.best_epoch
        return epoch >= self.config.epochs or (has_stalled and self.config.validate and self.validator is not None)

    def order(self) -> IntArray:
        """Give the order of the epoch under way: positions in the training set."""
        config = self.config
        weights = None
        if config.image_weights:
            table = self.training_set.table
            maps = np.zeros(len(table.names)) if self.class_maps is None else self.class_maps
            weights = image_weights(table, maps)
        positions = epoch_order(
            len(self.training_set),
            config.seed,
            self.training.position.epoch,
            shuffle=not config.rect,
            weights=weights,
            world_size=self.world.size,
        )
        return self.training_set.base_order[positions]

    def side_of(self, number: int) -> Optional[int]:
        """Give the input's side for a batch, by its number since the start; None: as the batch comes."""
        if not self.config.multi_scale:
            return None
        stride = max(self.training.model.stride)
        side = training_side(self.config.img_size, stride)
        drawn = generator(self.config.seed, number, 0, SCALE_WORD).uniform(0.5 * side, 1.5 * side + stride)
        return int(drawn // stride) * stride

    def kept(self) -> str:
        """Say what of the training is on the disk."""
        best = self.job.folders.weights / BEST
        return f"the weights saved before are kept in {best.parent}" if best.is_file() else "no epoch was done before"

    def draw_batch(self, batch: TrainBatch) -> None:
        """Draw the first batches of the training, for people."""
        if self.log is None or not self.job.draws or self.drawn >= DRAWN_BATCHES or self.training.position.epoch:
            return
        table = self.training_set.table
        paths = [table.shots[index].path.name for index in batch.indices.tolist()]
        picture = draw_train_batch(batch.pixels, batch.rows, table.names, paths)
        write_jpeg(self.job.folders.logs / f"train_batch{self.drawn}.jpg", picture)
        self.drawn += 1

    # ---- validation

    def validate(self, hooks: Hooks) -> Optional[Validated]:
        """Validate the average of the weights; None where there is no picture. Every rank takes part."""
        if self.validator is None:
            return None
        return self.validator(self.training.ema.model, Progress(), self._stopping(hooks))

    def _stopping(self, hooks: Hooks) -> list[Watcher]:
        """Give what ends a validation early; several ranks would wait for the one that ends, they finish it."""

        def watch(seen: Sequence[Seen]) -> None:
            if hooks.should_stop():
                self.save_last()
                raise StoppedError(
                    f"training was stopped after epoch {self.training.position.epoch + 1}; {self.kept()}"
                )

        return [watch] if self.world.size == 1 else []

    # ---- what is written

    def finish_epoch(self, validated: Optional[Validated], pictures_per_s: float) -> None:
        """Take in an epoch's figures, write its files, and begin the next: its own file, best.pt, last.pt, in turn."""
        training, epoch = self.training, self.training.position.epoch
        # Each rank knows the mean over its own share.
        losses = mean_of(gather_objects(training.means.values()))
        metrics = None
        is_best = False
        if validated is not None:
            metrics = validated.evaluation.metrics
            self.last = result_of(epoch + 1, validated)
            fitness = metrics.map if self.config.fitness == "map" else metrics.fitness
            is_best = training.best.offer(epoch, fitness, metrics.map, metrics.map50)
            training.stop.update(epoch, fitness)
            self.class_maps = class_maps(metrics, len(self.training_set.table.names))
        elif self.validator is None:
            is_best = training.best.offer(epoch, 0.0, 0.0, 0.0)
        training.means.clear()
        training.position.next_epoch()
        if self.world.rank == 0:
            self._tell(epoch, losses, validated, pictures_per_s)
            self._save(epoch, is_best, metrics)
            self._log(epoch, losses, validated)

    def _save(self, epoch: int, is_best: bool, metrics: Optional[Metrics]) -> None:
        is_over = self.is_over
        if not self.config.save and not is_over:
            return
        saver, snapshot = self.saver(), self.training.snapshot(self._about())
        epoch_file = None
        period = self.config.save_period
        if period > 0 and (epoch + 1) % period == 0:
            epoch_file = saver.save_epoch(snapshot, self.job.epoch_file.format(epoch=epoch + 1))
        if is_best or (is_over and not (self.job.folders.weights / BEST).is_file()):
            saver.save_best(snapshot)
        saver.save_last(snapshot, is_over)
        if self.job.on_checkpoint is not None:
            best = self.training.best
            has_best = (self.job.folders.weights / BEST).is_file()
            mean_ap = metrics.map if metrics is not None else 0.0
            told = Checkpointed(epoch, best.mean_ap, best.map50, has_best, epoch_file, mean_ap, is_over)
            self.job.on_checkpoint(told)

    def save_last(self) -> None:
        """Save where the run is, between two batches."""
        if self.world.rank == 0:
            self.saver().save_last(self.training.snapshot(self._about()))

    def saver(self) -> Saver:
        """Give what writes the weights."""
        names = self.training_set.table.names
        return Saver(self.job.folders.weights, names, dict(hyp_as_dict(self.config.hyp)))

    def _about(self) -> dict[str, Any]:
        about = about_run(self.job, self.training_set.table.names, self.training.model.spec)
        maps = None if self.class_maps is None else [float(value) for value in self.class_maps]
        return {**about, "class_maps": maps}

    def _log(self, epoch: int, losses: tuple[float, float, float], validated: Optional[Validated]) -> None:
        if self.log is None:
            return
        rates = [float(group["lr"]) for group in self.training.optimizer.param_groups]
        figures = no_validation() if validated is None else row_figures(validated)
        row = EpochRow(epoch, *losses, lr0=rates[0], lr1=rates[1], lr2=rates[2], **figures)
        self.log.add(row)
        if epoch == 0 and self.job.draws:
            self.log.add_pictures(sorted(self.job.folders.logs.glob("train_batch*.jpg")), epoch)

    def _tell(
        self, epoch: int, losses: tuple[float, float, float], validated: Optional[Validated], pictures_per_s: float
    ) -> None:
        metrics = validated.evaluation.metrics if validated else None
        figures = f", mAP50 {metrics.map50:.4f}, mAP {metrics.map:.4f}" if metrics is not None else ""
        LOGGER.info(
            "epoch %d of %d: box %.4f, obj %.4f, cls %.4f%s; %.1f pictures/s, %.1f GB",
            epoch + 1,
            self.config.epochs,
            *losses,
            figures,
            pictures_per_s,
            memory_gb(),
        )

    def load(self, state: ResumeState) -> None:
        """Go on where `state` was taken. Raises WeightsError."""
        self.training.load(state)
        maps = state.plain["about"].get("class_maps")
        classes = len(self.training_set.table.names)
        if isinstance(maps, list) and len(maps) == classes:
            self.class_maps = np.array(maps, np.float64)
        epoch, batch = self.training.position.epoch, self.training.position.batch
        LOGGER.info("going on after epoch %d, batch %d of %d", epoch, batch, self.batch_count)


def mean_of(losses: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Give the mean over ranks of box, objectness and class loss."""
    box, objectness, classes = (sum(values) / len(losses) for values in zip(*losses))
    return box, objectness, classes


def class_maps(metrics: Metrics, class_count: int) -> Any:
    """Give each class's AP 0.5:0.95, (classes,); for a class without labels the mean over the others."""
    maps = np.full(class_count, metrics.map)
    for one in metrics.classes:
        maps[one.class_id] = one.ap
    return maps


def row_figures(validated: Validated) -> dict[str, float]:
    """Give a validation's fields of a row of results.csv."""
    metrics, losses = validated.evaluation.metrics, validated.losses
    figures = {"precision": metrics.p, "recall": metrics.r, "map50": metrics.map50, "map": metrics.map}
    return {**figures, "val_box": losses[0], "val_obj": losses[1], "val_cls": losses[2]}


def result_of(epochs: int, validated: Validated) -> FitResult:
    """Give how a training ended."""
    metrics = validated.evaluation.metrics
    return FitResult(epochs, metrics.p, metrics.r, metrics.map50, metrics.map, validated.losses)


def memory_gb() -> float:
    """Give the most memory that this process has had, or on a GPU the most that torch held, in GB."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_reserved()) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
