"""The labels of a training's pictures, scanned before anything heavy is loaded. No torch here."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from training.job import TrainJob
from utils.errors import DatasetError
from utils.label_scan import Scan, scan_labels
from utils.labelled import LabelledSet
from utils.progress import Progress
from val import ONE_CLASS

LOGGER = logging.getLogger(__name__)

SCANNED = 0.02  # share of a training's progress


@dataclass(frozen=True)
class Scans:
    """The labels of both sets; val may hold no picture."""

    train: Scan
    val: Scan


def scan_sets(job: TrainJob, progress: Progress, tells: bool = True) -> Scans:
    """Read all labels, or take them from train.cache and val.cache in the run's folder.

    tells: log what there is and what was left out; one of several ranks does. Raises DatasetError where there is
    nothing to train on.
    """
    data = job.open_data()
    config = job.config
    sets = {"train": data.train, "val": data.val}
    parts = {"train": progress.part(0, 0.8), "val": progress.part(0.8, 1)}
    scans = {}
    for name, labelled in sets.items():
        cache = job.folders.root / f"{name}.cache" if job.caches else None
        scan = scan_labels(labelled, config.pictures, config.workers, cache, labelled.kind, parts[name])
        scans[name] = replace(scan, table=scan.table.as_one_class(ONE_CLASS)) if config.single_cls else scan
        if tells:
            _tell(name, labelled, scans[name])
    refuse_nothing_to_learn(scans["train"])
    if tells and not len(scans["val"].table):
        LOGGER.warning("there is no picture to validate on: no figure tells how good the model is, mAP is given as 0")
    return Scans(scans["train"], scans["val"])


def _tell(name: str, labelled: LabelledSet, scan: Scan) -> None:
    if labelled.shots:
        for line in scan.lines():
            LOGGER.info("%s: %s", name, line)


def refuse_nothing_to_learn(train: Scan) -> None:
    """Raise DatasetError for a training set without a picture, or without a box."""
    reasons = "; ".join(f"{count} {what}" for count, what in train.rows())
    if not len(train.table):
        raise DatasetError(f"training set: not one picture can be used: {reasons or 'it is empty'}")
    if not len(train.table.class_ids):
        raise DatasetError(
            f"training set: {len(train.table)} pictures without one box, there is nothing to learn; check "
            f"export_format and class_names{': ' if reasons else ''}{reasons}"
        )
