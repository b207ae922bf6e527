"""The end of a training: its best weights validated once more, with everything that people like to look at."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Optional

from models.checkpoint import read_checkpoint
from models.detector import build_model
from training.handing_over import hand_over
from training.job import BEST, PICTURES
from training.run import Run
from training.saver import tolerating
from training.statistics import write_mining_stats
from training.validation import Validated, Validator
from utils.plots import write_confusion, write_curves
from utils.progress import Progress
from utils.watchers import BatchPictures
from val import table

LOGGER = logging.getLogger("train")


def finish(run: Run, progress: Progress) -> Optional[Validated]:
    """Validate best.pt, and write its curves, its confusion matrix, its drawn batches and results.png.

    Done on one rank, while the others may already have ended. Gives None where there is nothing to validate on.
    """
    if not run.job.keeps_pictures:
        shutil.rmtree(run.job.folders.root / PICTURES, ignore_errors=True)
    logs = run.job.folders.logs
    validated = None
    best = run.job.folders.weights / BEST
    if run.validator is not None and best.is_file():
        with tolerating(logs):
            validated = _validate(run, run.validator, best, progress.part(0, 0.5))
        if validated is not None and run.job.draws:
            with tolerating(logs):
                write_curves(validated.evaluation.metrics, logs)
                write_confusion(validated.evaluation.confusion, run.training_set.table.names, logs)
    if run.job.on_file is not None and best.is_file():
        metrics = None if validated is None else validated.evaluation.metrics
        with tolerating(run.job.folders.weights):
            run.job.on_file(write_mining_stats(run, metrics, progress.part(0.5, 0.8)))
        if run.job.onnx_opset is not None:
            with tolerating(run.job.folders.weights):
                hand_over(run, run.job.onnx_opset, run.job.on_file)
    if run.log is not None:
        with tolerating(logs):
            if run.job.draws:
                run.log.add_pictures(sorted(logs.glob("val_batch*.jpg")), run.training.position.epoch)
            run.log.close(draws=run.job.draws)
    progress.at(1)
    return validated


def _validate(run: Run, validator: Validator, best: Path, progress: Progress) -> Validated:
    logs, names = run.job.folders.logs, run.training_set.table.names
    drawing = [BatchPictures(logs, names)] if run.job.draws else []
    validated = validator.alone()(build_model(read_checkpoint(best)), progress, drawing)
    for line in table(validated.evaluation.metrics).splitlines():
        LOGGER.info("%s", line)
    return validated
