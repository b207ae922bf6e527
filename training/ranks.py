"""One training on one rank, or on several that this process starts and watches."""

from __future__ import annotations

import logging
import os
import signal
import threading
from dataclasses import replace
from typing import Any, Callable

from training.data import scan_sets
from training.job import FitResult, Hooks, TrainJob
from utils.errors import ConfigError, StoppedError
from utils.process import prepare_process
from utils.progress import Progress

SCANNED = 0.02  # share of the progress


def train(job: TrainJob, hooks: Hooks) -> FitResult:
    """Train: on this rank alone, as one of torchrun's, or on a rank for each GPU of the job's, started here.

    Raises ExecutorError, whatever rank it comes from.
    """
    ids = [part for part in job.config.device.split(",") if part.strip()]
    if "RANK" in os.environ or len(ids) < 2:
        from training.loop import fit
        from utils.distributed import World

        return fit(job, World.from_environment(os.environ), hooks)
    return train_on(len(ids), job, hooks)


def train_on(size: int, job: TrainJob, hooks: Hooks) -> FitResult:
    """Train on several ranks of this machine, each with a process of its own; this one watches them."""
    if job.config.batch_size % size:
        raise ConfigError(f"--batch-size: got {job.config.batch_size}, need a multiple of the {size} GPUs")
    scan_sets(job, hooks.progress.part(0, SCANNED))  # the ranks find it in the caches, and none waits for another
    from utils.distributed import launch

    results: list[FitResult] = []
    progress = hooks.progress.part(SCANNED, 1)

    def on_message(rank: int, message: Any) -> None:
        if rank:
            return
        if isinstance(message, FitResult):
            results.append(message)
        else:
            progress.at(message)

    finished = launch(train_as_rank, job, size, on_message, hooks.should_stop)
    if not finished or not results:
        raise StoppedError("training was stopped; what was saved before is kept")
    return results[0]


def train_as_rank(job: TrainJob, world: Any, send: Callable[[Any], None]) -> None:
    """Train as one of several ranks, in a process of its own."""
    from training.loop import fit

    prepare_process()
    logging.getLogger().setLevel(logging.INFO if world.is_main else logging.WARNING)
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    progress = Progress(send) if world.is_main else Progress()
    result = fit(replace(job), world, Hooks(progress, asked.is_set))
    send(result)
