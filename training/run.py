"""Run: a training under way on one rank, with its data, its validation, and what it writes."""

from __future__ import annotations

import logging
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch

from models.resume import ResumeState
from training.building import training_side
from training.job import BEST, Checkpointed, FitResult, Hooks, TrainJob
from training.resuming import about_run, stored_settings
from training.run_state import Best
from training.saver import Saver, tolerating, writing
from training.state import Training
from training.validation import Validated, Validator
from utils.distributed import World, gather_objects
from utils.errors import ImageError, NotFiniteError, StoppedError, WeightsError
from utils.hyp import hyp_as_dict
from utils.letterbox import input_stride
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
    drawn: list[Path] = field(default_factory=list)  # batches of the epoch under way
    told_of: int = 0  # pictures that are damaged or can't be read
    last: FitResult = field(default_factory=lambda: FitResult(0))

    # ---- what the loop asks

    @property
    def batch_count(self) -> int:
        """Batches of an epoch."""
        return self.loader.epoch_batches

    @property
    def batch_number(self) -> int:
        """The number of the batch under way, from the start of the training."""
        position = self.training.position
        return position.epoch * self.batch_count + position.batch

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
        stride = input_stride(self.training.model.stride)
        side = training_side(self.config.img_size, stride)
        drawn = generator(self.config.seed, number, 0, SCALE_WORD).uniform(0.5 * side, 1.5 * side + stride)
        return int(drawn // stride) * stride

    def kept(self) -> str:
        """Say what of the training is on the disk."""
        best = self.job.folders.weights / BEST
        return f"the weights saved before are kept in {best.parent}" if best.is_file() else "no epoch was done before"

    def draw_batch(self, batch: TrainBatch) -> None:
        """Draw the first batches of the training, for people."""
        number = self.batch_number
        if self.log is None or not self.job.draws or number >= DRAWN_BATCHES:
            return
        table = self.training_set.table
        paths = [table.shots[index].path.name for index in batch.indices.tolist()]
        picture = draw_train_batch(batch.pixels, batch.rows, table.names, paths)
        with tolerating(self.job.folders.logs):
            write_jpeg(self.job.folders.logs / f"train_batch{number}.jpg", picture)
            self.drawn.append(self.job.folders.logs / f"train_batch{number}.jpg")

    # ---- validation

    def validate(self, hooks: Hooks) -> Optional[Validated]:
        """Validate the average of the weights; None where there is no picture. Every rank takes part.

        Raises StoppedError, after saving, where a stop was asked for; NotFiniteError.
        """
        if self.validator is None:
            return None
        try:
            return self.validator(self.training.ema.model, Progress(), self._stopping(hooks))
        except StoppedError:
            self.save_to_end()
            raise
        except WeightsError as error:  # the loss was finite, the weights that came of it are not
            where = f"after epoch {self.training.position.epoch + 1}"
            raise NotFiniteError(f"{error}, {where}; try a lower lr0 in --hyp; {self.kept()}") from error

    def _stopping(self, hooks: Hooks) -> list[Watcher]:
        """Give what ends a validation early."""

        def watch(seen: Sequence[Seen]) -> None:
            if hooks.should_stop():
                raise StoppedError(
                    f"training was stopped after epoch {self.training.position.epoch + 1}; {self.kept()}"
                )

        return [watch]

    # ---- what is written

    def finish_epoch(self, validated: Optional[Validated], pictures_per_s: float) -> None:
        """Take in an epoch's figures, begin the next, and write: its row, its own file, best.pt, results, last.pt."""
        training, epoch = self.training, self.training.position.epoch
        losses = training.means.values()
        metrics = None
        is_best = False
        if validated is not None:
            metrics = validated.evaluation.metrics
            self.last = result_of(epoch + 1, validated)
            fitness = metrics.map if self.config.fitness == "map" else metrics.fitness
            is_best = training.best.offer(epoch, fitness, metrics.map, metrics.map50)
            training.stop.update(epoch, fitness)
            self.class_maps = class_maps(metrics, len(self.training_set.table.names))
        elif self.validator is None or not self.config.validate:  # the newest weights are the best that is known
            is_best = training.best.offer(epoch, 0.0, 0.0, 0.0)
        training.means.clear()
        training.position.next_epoch()
        self._tell_of_pictures()
        if self.world.rank == 0:
            self._tell(epoch, losses, validated, pictures_per_s)
            # last.pt comes last: whoever is killed before it does the epoch again, and writes all of this again.
            self._log(epoch, losses, validated)
            self._save(epoch, is_best, metrics)

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
        self._tell_of_files(epoch, epoch_file, 0.0 if metrics is None else metrics.map)
        saver.save_last(snapshot, is_over)

    def _tell_of_files(self, epoch: int, epoch_file: Optional[Path] = None, epoch_mean_ap: float = 0.0) -> None:
        if self.job.on_checkpoint is None:
            return
        best = self.training.best
        has_best = (self.job.folders.weights / BEST).is_file()
        told = Checkpointed(epoch, best.mean_ap, best.map50, has_best, epoch_file, epoch_mean_ap, self.is_over)
        with writing(self.job.folders.weights):
            self.job.on_checkpoint(told)

    def complete(self) -> None:
        """Write what a training that is over has to leave, where it was moved here or somebody took it away."""
        if self.world.rank == 0 and not (self.job.folders.weights / BEST).is_file():
            epoch = max(self.training.position.epoch - 1, 0)
            self.training.best.offer(epoch, 0.0, 0.0, 0.0)
            self.saver().save_best(self.training.snapshot(self._about()))
            self._tell_of_files(epoch)

    def save_last(self) -> None:
        """Save where the run is, between two batches. Rank 0 writes."""
        if self.world.rank == 0:
            self.saver().save_last(self.training.snapshot(self._about()))

    def save_to_end(self) -> None:
        """Save where the run is, before it ends early. Every rank takes part: none ends while rank 0 writes."""
        self.save_last()
        gather_objects(None)

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
        with writing(self.job.folders.logs):
            self.log.add(row)
        if self.drawn:
            with tolerating(self.job.folders.logs):
                self.log.add_pictures(self.drawn, epoch)
            self.drawn.clear()

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

    def _tell_of_pictures(self) -> None:
        """Log what was found of pictures since the last time. Raises ImageError where not one can be read."""
        store = self.store
        if store.unreadable.count == len(store):
            raise ImageError(f"not one of {len(store)} pictures can be read, such as {store.unreadable.examples[0]}")
        if self.told_of == store.unreadable.count + store.damaged.count:
            return
        self.told_of = store.unreadable.count + store.damaged.count
        if store.unreadable.count:
            LOGGER.warning("%s", store.unreadable.summary("training pictures can't be read and are grey"))
        if store.damaged.count:
            LOGGER.warning("%s", store.damaged.summary("training pictures are damaged and used as far as they go"))

    def load(self, state: ResumeState) -> None:
        """Go on where `state` was taken. Raises WeightsError."""
        training, about = self.training, state.plain["about"]
        training.load(state)
        maps = about.get("class_maps")
        if is_numbers(maps) and len(maps) == len(self.training_set.table.names):
            self.class_maps = np.array(maps, np.float64)
        if not (self.job.folders.weights / BEST).is_file():
            training.best = Best()  # the best one is elsewhere, or gone: there is to be one here
        position, before = training.position, stored_settings(state).get("batch_size")
        if isinstance(before, int) and before > 0:  # a batch may be of another size by now
            position.batch = position.batch * before // self.config.batch_size
        position.batch = min(position.batch, self.batch_count)
        LOGGER.info("going on after epoch %d, batch %d of %d", position.epoch, position.batch, self.batch_count)


def is_numbers(value: Any) -> bool:
    """Say whether a stranger's value is a list of numbers."""
    return isinstance(value, list) and all(isinstance(one, (int, float)) for one in value)


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
