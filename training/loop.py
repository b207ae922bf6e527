"""The loop: train an epoch, validate, save; and what is made before it. Ends with the best weights on the disk."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Optional

import torch
from torch import Tensor

from models.detector import device_errors
from models.resume import ResumeState
from training.building import (
    Machine,
    build_loader,
    build_network,
    build_training,
    choose_machine,
    tell_of_side,
    training_side,
    with_found_batch_size,
)
from training.data import SCANNED, Scans, scan_sets
from training.finishing import finish
from training.job import PICTURES, FitResult, Hooks, TrainJob
from training.resuming import state_to_resume
from training.run import Run, result_of
from training.saver import tolerating, writing
from training.validation import Validator
from utils.boxes import to_cxcywh
from utils.distributed import World, all_sum, from_main, joined
from utils.errors import NotFiniteError, StoppedError, WeightsError
from utils.files import remove_scraps
from utils.label_table import LabelTable
from utils.letterbox import input_stride
from utils.progress import Progress
from utils.settings import LoaderSettings
from utils.train_log import TrainLog
from utils.train_plots import write_labels
from utils.train_settings import TrainFolders

LOGGER = logging.getLogger("train")

BUILT, TRAINED = 0.03, 0.98  # shares of the progress
EPOCH_TRAINED = 0.9  # of an epoch; the rest is its validation
SAVE_EVERY_S = 600.0  # within an epoch


def fit(job: TrainJob, world: World, hooks: Hooks) -> FitResult:
    """Train. Called on every rank; files are written on rank 0.

    Raises ExecutorError: DatasetError, WeightsError, ConfigError before it begins; NotFiniteError, DeviceMemoryError,
    StoppedError from within. What was saved before stays whole.
    """
    progress = hooks.progress
    scans = scan_sets(job, hooks.stopping(progress.part(0, SCANNED)), tells=world.rank == 0)
    machine = choose_machine(job.config, world)
    with joined(world, "nccl" if machine.device.type == "cuda" else "gloo"), device_errors():
        building = progress.part(SCANNED, BUILT)
        run = make_run(job, scans, machine, building if world.size > 1 else hooks.stopping(building))
        train_epochs(run, replace(hooks, progress=progress.part(BUILT, TRAINED)))
        run.complete()
    run.last = replace(run.last, epochs=run.training.position.epoch)
    if world.rank != 0:
        return run.last
    with device_errors():
        validated = finish(run, progress.part(TRAINED, 1))
    result = run.last if validated is None else result_of(run.training.position.epoch, validated)
    best = run.training.best
    return replace(result, epoch_map50=best.map50, epoch_mean_ap=best.mean_ap)


def make_run(job: TrainJob, scans: Scans, machine: Machine, progress: Progress) -> Run:
    """Build everything that trains, and take up what an earlier run left, if it can be gone on with.

    Raises WeightsError where it must be and can't.
    """
    job = replace(job, folders=from_main(job.folders))  # torchrun's other ranks don't know the number of the run's
    resumed = state_to_resume(job, scans.train.table.names)
    if machine.world.rank == 0:
        remove_scraps_of(job.folders)
    try:
        return _make_run(job, scans, machine, progress, resumed)
    except WeightsError as error:
        if resumed is None or job.config.resume == "must":
            raise
        LOGGER.warning("what is left of a run can't be gone on with, training starts anew: %s", error)
    return _make_run(job, scans, machine, progress, None)


def remove_scraps_of(folders: TrainFolders) -> None:
    """Take away what a killed run was just writing."""
    remove_scraps(folders.root, folders.weights, *folders.weights.glob("*/"), folders.logs)
    remove_scraps(*(folders.root / PICTURES).glob("*/*/"))


def _make_run(job: TrainJob, scans: Scans, machine: Machine, progress: Progress, resumed: Optional[ResumeState]) -> Run:
    world, table = machine.world, scans.train.table
    network = build_network(job, table, resumed, tells=world.rank == 0)
    config = with_found_batch_size(job.config, network, machine, resumed)
    job = replace(job, config=config)
    stride = input_stride(network.stride)
    if world.rank == 0:
        tell_of_side(config, stride)
    loader, training_set, store = build_loader(job, scans, stride, world, progress)
    training, loss = build_training(network, config, machine, loader.epoch_batches)
    validator = None
    if len(scans.val.table):
        settings = LoaderSettings(
            img_size=training_side(config.img_size, stride),
            batch_size=2 * (config.batch_size // world.size),
            workers=config.workers,
            pictures=config.pictures,
        )
        at_once = 2 * config.most_at_once
        validator = Validator(scans.val.table, settings, lambda maps, rows: loss(maps, rows).parts, machine, at_once)
    run = Run(job, config, world, machine.device, training, training_set, store, loader, validator)
    if resumed is not None:
        run.load(resumed)
    elif world.rank == 0 and job.on_begin is not None:
        with writing(job.folders.weights):
            job.on_begin()
    if world.rank == 0:
        with writing(job.folders.logs):
            run.log = TrainLog(job.folders.logs, training.position.epoch)
        if job.draws and not training.position.epoch:
            with tolerating(job.folders.logs):
                draw_labels(table, job)
    progress.at(1)
    return run


def draw_labels(table: LabelTable, job: TrainJob) -> None:
    """Draw what the labels are like: labels.jpg, labels_correlogram.jpg."""
    pictures_hw = table.sizes_hw[table.picture_of_rows()]  # (M, 2)
    shares = to_cxcywh(table.boxes_px) / pictures_hw[:, [1, 0, 1, 0]]  # (M, 4) in 0..1
    write_labels(table.class_ids, shares, table.names, job.folders.logs)


def train_epochs(run: Run, hooks: Hooks) -> None:
    """Train, validate and save, epoch by epoch, until the last one or until nothing gets better."""
    position = run.training.position
    while not run.is_over:
        begun_s, first = time.monotonic(), position.batch
        train_epoch(run, hooks)
        pictures = (run.batch_count - first) * run.config.batch_size
        pictures_per_s = min(pictures, len(run.training_set)) / max(time.monotonic() - begun_s, 1e-3)
        is_last = position.epoch + 1 == run.config.epochs
        validated = run.validate(hooks) if run.config.validate or is_last else None
        run.finish_epoch(validated, pictures_per_s)
        hooks.progress.at(position.epoch / run.config.epochs)


def train_epoch(run: Run, hooks: Hooks) -> None:
    """Train to the end of the epoch under way.

    Raises NotFiniteError, which names epoch and batch; StoppedError, after saving, where a stop was asked for.
    """
    training, position = run.training, run.training.position
    epoch, saved_s = position.epoch, time.monotonic()
    for batch in run.loader.batches(run.order(), epoch, position.batch):
        number = run.batch_number
        try:
            parts = training.learn(batch.pixels, batch.rows, number, run.side_of(number))
        except NotFiniteError as error:
            where = f"epoch {epoch + 1}, batch {position.batch + 1} of {run.batch_count}"
            raise NotFiniteError(f"{error} in {where}; try a lower lr0 in --hyp; {run.kept()}") from error
        parts, must_stop = agree(run, parts, hooks.should_stop())
        training.means.add(parts)
        run.draw_batch(batch)
        position.batch += 1
        hooks.progress.at((epoch + EPOCH_TRAINED * position.batch / run.batch_count) / run.config.epochs)
        if must_stop:
            run.save_to_end()
            raise StoppedError(f"training was stopped in epoch {epoch + 1} of {run.config.epochs}; {run.kept()}")
        if time.monotonic() - saved_s > SAVE_EVERY_S:
            run.save_last()
            saved_s = time.monotonic()


def agree(run: Run, parts: Tensor, is_asked: bool) -> tuple[Tensor, bool]:
    """Give the mean over ranks of a batch's (3,) losses, and whether any of them was asked to stop: one exchange."""
    if run.world.size == 1:
        return parts, is_asked
    told = all_sum(torch.cat([parts.double(), torch.tensor([float(is_asked)], dtype=torch.float64)]).to(run.device))
    told = told.cpu()  # (4,)
    return told[:3] / run.world.size, bool(told[3] > 0)
