"""--evolve: many short trainings, each with hyperparameters that descend from the best ones so far."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

from training.job import BEST, PICTURES, Checkpointed, FitResult, Hooks, TrainJob
from training.ranks import train
from training.saver import tolerating, writing
from utils.errors import NotFiniteError
from utils.evolve import EvolveLog, Generation, best_place, next_hyp
from utils.hyp import Hyp
from utils.train_settings import TrainFolders

LOGGER = logging.getLogger("train")

WORK = "generation"  # folder of the training under way


def evolve(job: TrainJob, generations: int, hooks: Hooks) -> None:
    """Train once for each generation that evolve.csv in the job's logs doesn't have yet; keep the best one's weights.

    Each generation is validated after its last epoch only. One whose loss becomes NaN has no figures and no children.
    """
    with writing(job.folders.logs):
        log = EvolveLog(job.folders.logs)
    work = job.folders.root / WORK
    first = len(log.table)
    if first:
        LOGGER.info("going on after %d generations of %s", first, job.folders.logs)
    elif job.on_begin is not None:
        with writing(job.folders.weights):
            job.on_begin()
    for number in range(first, generations):
        hyp = next_hyp(log.table, job.config.hyp, job.config.seed)
        part = hooks.progress.part(number / generations, (number + 1) / generations)
        result = _train_generation(job, hyp, work, Hooks(part, hooks.should_stop))
        figures = Generation(hyp, result.precision, result.recall, result.map50, result.mean_ap, *result.losses)
        with writing(job.folders.logs):
            log.record(figures)
        is_best = best_place(log.table) == number
        LOGGER.info(
            "generation %d of %d: mAP50 %.4f, mAP %.4f%s",
            number + 1,
            generations,
            result.map50,
            result.mean_ap,
            ", the best so far" if is_best else "",
        )
        if is_best:
            with writing(job.folders.weights):
                _keep(job, work, result, is_over=number + 1 == generations)
        if is_best or number + 1 == generations:
            with tolerating(job.folders.logs):
                log.draw()
        shutil.rmtree(work, ignore_errors=True)
        part.at(1)
    shutil.rmtree(job.folders.root / PICTURES, ignore_errors=True)


def _train_generation(job: TrainJob, hyp: Hyp, work: Path, hooks: Hooks) -> FitResult:
    """Train once, in a folder of its own."""
    shutil.rmtree(work, ignore_errors=True)
    config = replace(job.config, hyp=hyp, validate=False, save=False, resume="never", save_period=-1)
    folders = TrainFolders(job.folders.root, work, work)
    one = replace(job, config=config, folders=folders, draws=False, on_begin=None, on_checkpoint=None, on_file=None)
    one = replace(one, resume_from=None, keeps_pictures=True)
    try:
        return train(one, hooks)
    except NotFiniteError as error:
        LOGGER.warning("%s; this generation counts nothing", error)
        return FitResult(0)


def _keep(job: TrainJob, work: Path, result: FitResult, is_over: bool) -> None:
    """Make a generation's weights the result."""
    found = work / BEST
    if not found.is_file():
        return
    job.folders.weights.mkdir(parents=True, exist_ok=True)
    found.replace(job.folders.weights / BEST)
    if job.on_checkpoint is not None:
        epoch = max(result.epochs - 1, 0)
        job.on_checkpoint(Checkpointed(epoch, result.mean_ap, result.map50, True, None, result.mean_ap, is_over))
