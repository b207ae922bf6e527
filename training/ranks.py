"""One training on one rank, or on several that this process starts and watches."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from dataclasses import replace
from typing import Any, Callable

from training.data import SCANNED, scan_sets
from training.job import LAST, FitResult, Hooks, TrainJob
from utils.errors import ConfigError, DeviceMemoryError, StoppedError
from utils.process import prepare_process
from utils.progress import Progress
from utils.train_settings import FIND_BATCH_SIZE

LOGGER = logging.getLogger("train")


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
    """Train on several ranks of this machine, each with a process of its own; this one watches them.

    Where memory runs out all begin anew, from what was saved, with half as many pictures in a pass. Raises
    DeviceMemoryError where one alone doesn't fit; any other rank's ExecutorError; DeviceError where one died.
    """
    batch_size = job.config.batch_size
    if batch_size != FIND_BATCH_SIZE and batch_size % size:
        raise ConfigError(f"--batch-size: got {batch_size}, need a multiple of the {size} GPUs")
    check_devices(job)  # ranks would tell too, but after the labels' scan
    # The ranks find it in the caches, and none waits for another.
    scan_sets(job, hooks.stopping(hooks.progress.part(0, SCANNED)))
    started = time.time()
    rest = replace(hooks, progress=hooks.progress.part(SCANNED, 1))
    while True:
        try:
            return launch_once(size, job, rest)
        except DeviceMemoryError as error:
            at_once = min(job.config.most_at_once or batch_size // size, batch_size // size)
            if at_once <= 1:  # also where the ranks were to find the batch size: it's theirs
                raise
            half, why = math.ceil(at_once / 2), str(error).split(";")[0]
        LOGGER.warning("%s: all %d ranks begin anew, pictures that go through the network at once: %d", why, size, half)
        job = going_on(replace(job, config=replace(job.config, most_at_once=half)), started)


def check_devices(job: TrainJob) -> None:
    """See whether each of the job's GPUs is there. Raises NoDeviceError."""
    from models.detector import choose_device

    for one in job.config.device.split(","):
        choose_device(one)


def going_on(job: TrainJob, started: float) -> TrainJob:
    """Let a job go on from the last.pt that it has itself written since `started`, if it has."""
    last = job.folders.weights / LAST
    if not last.is_file() or last.stat().st_mtime < started:
        return job
    return replace(job, config=replace(job.config, resume="must"), resume_from=None)


def launch_once(size: int, job: TrainJob, hooks: Hooks) -> FitResult:
    """Start the ranks, pass on what rank 0 tells, and give its result. Raises what ended the first of them."""
    from utils.distributed import launch

    results: list[FitResult] = []

    def on_message(rank: int, message: Any) -> None:
        if rank:
            return
        if isinstance(message, FitResult):
            results.append(message)
        else:
            hooks.progress.at(message)

    finished = launch(train_as_rank, job, size, on_message, hooks.should_stop)
    if not finished or not results:
        raise StoppedError("training was stopped; what was saved before is kept")
    return results[0]


def train_as_rank(job: TrainJob, world: Any, send: Callable[[Any], None]) -> None:
    """Train as one of several ranks, in a process of its own."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGHUP):  # the latter comes to all of a terminal that is closed
        signal.signal(number, lambda number, frame: asked.set())
    from training.loop import fit

    prepare_process()
    logging.getLogger().setLevel(logging.INFO if world.is_main else logging.WARNING)
    progress = Progress(send) if world.is_main else Progress()
    send(fit(job, world, Hooks(progress, asked.is_set)))
