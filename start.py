"""The YMIR door: reads a task in /in, runs it, writes its results to /out, and turns any failure into a code.

    python start.py                       # inside the image: /in and /out
    python start.py --in DIR --out DIR    # anywhere

Modules that cost time are imported where they are needed, not here: a wrong configuration is told before torch is
imported, and pictures are decoded while it is.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from utils.class_names import name_differences
from utils.console import Console
from utils.errors import ConfigError, DeviceMemoryError, ExecutorError, ImageError, StoppedError, WeightsError
from utils.passes import CPU_PASS, cpu_pass, whole_passes
from utils.process import handling, leave, prepare_process, stoppable
from utils.progress import Progress
from ymir.config import Env, TaskConfig, infer_config, mining_config, read_env, read_task
from ymir.monitor import Monitor, one_line
from ymir.params import OTHER_SPELLINGS, SHOWN

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint
    from utils.batches import BatchReader, Placing
    from utils.settings import LoaderSettings
    from ymir.index import Candidate

LOGGER = logging.getLogger("start")

HEARTBEAT_S = 2.0
BACKENDS_HERE = ("auto", "torch")
MOST_KEYS_TOLD = 10


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one task; gives the exit code. The last thing written, on a failure, is its cause."""
    parser = argparse.ArgumentParser(
        description="Run a YMIR task: training, mining, inference, or the last two at once."
    )
    parser.add_argument("--in", dest="in_dir", type=Path, default=Path("/in"), help="stands for /in (default: /in)")
    parser.add_argument(
        "--out", dest="out_dir", type=Path, default=Path("/out"), help="stands for /out (default: /out)"
    )
    arguments = parser.parse_args(argv)
    prepare_process()
    monitor = Monitor(arguments.out_dir / "monitor.txt", "default-task")
    try:
        env = read_env(arguments.in_dir, arguments.out_dir)
        monitor = Monitor(env.output.monitor_file, env.task_id)
        monitor.start()
        remove_old_results(env)
        task = read_task(arguments.in_dir, arguments.out_dir, env)
        with beating(monitor), Console("task") as console:

            def report(fraction: float) -> None:
                monitor.report(fraction)
                console.report(fraction)

            run_task(task, Progress(report))
        monitor.finish()
    except ExecutorError as error:
        return fail(monitor, error)
    except MemoryError:
        return fail(monitor, DeviceMemoryError("memory ran out; use a smaller batch_size_per_gpu or img_size"))
    except KeyboardInterrupt:
        return fail(monitor, StoppedError("the task was interrupted"))
    except Exception as error:  # noqa: BLE001  # the one place: whatever it is, the platform must be told
        words = f"{type(error).__name__}: {error}; this is a defect of the executor, please report it"
        return fail(monitor, ExecutorError(words), traceback.format_exc())
    return 0


def remove_old_results(env: Env) -> None:
    """Take away what an earlier run left, so that nobody takes it for this run's."""
    for wanted, path in (
        (env.run_mining, env.output.mining_result_file),
        (env.run_infer, env.output.infer_result_file),
    ):
        if wanted:
            path.unlink(missing_ok=True)


def fail(monitor: Monitor, error: ExecutorError, trace: str = "") -> int:
    """Tell the platform and the person why the task ends; gives the exit code."""
    sys.stdout.flush()
    if trace:
        sys.stderr.write(trace)
    monitor.fail(error, trace=trace.splitlines())
    sys.stderr.write(f"error {error.code}: {one_line(str(error))}\n")
    sys.stderr.flush()
    return 1


@contextmanager
def beating(monitor: Monitor) -> Iterator[None]:
    """Write the monitor every few seconds, also while a library is loading or one batch takes long."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_S):
            monitor.beat()

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def stopping_politely() -> Iterator[None]:
    """Turn SIGTERM (docker stop) and SIGHUP (a closed terminal) into an error like any other."""

    def stop(number: int, frame: object) -> None:
        raise StoppedError(f"the task was stopped by {signal.Signals(number).name}")

    with handling({signal.SIGTERM: stop, signal.SIGHUP: stop}):
        yield


def run_task(task: TaskConfig, progress: Progress) -> None:
    """Run what the task's flags ask for. Raises ExecutorError."""
    env = task.env
    check_backend(task)
    tell_of_unknown_keys(task)
    if env.run_training:
        run_training(task, progress)
        return
    halves = (
        (progress.part(0, 0.5), progress.part(0.5, 1)) if env.run_mining and env.run_infer else (progress, progress)
    )
    with stopping_politely():
        if env.run_mining:
            run_mining(task, halves[0])
        if env.run_infer:
            run_infer(task, halves[1])


def run_training(task: TaskConfig, progress: Progress) -> None:
    """Train; a stop that is asked for comes between two batches, so that nothing is lost. Raises ExecutorError."""
    from training import task as training_task
    from training.job import Hooks

    if task.env.run_mining or task.env.run_infer:
        LOGGER.warning("run_training: is true, so the task only trains; mine and infer in a task of its own (env.yaml)")
    with stoppable() as should_stop:
        training_task.run_training(task, Hooks(progress, should_stop))


def check_backend(task: TaskConfig) -> None:
    """Refuse an engine that isn't here, before torch is imported. Raises ConfigError."""
    backend = task.params.backend
    if (task.env.run_mining or task.env.run_infer) and backend not in BACKENDS_HERE:
        raise ConfigError(f"backend: {backend} is not in this version, use {' or '.join(BACKENDS_HERE)} (config.yaml)")


def tell_of_unknown_keys(task: TaskConfig) -> None:
    """Log keys of config.yaml that nobody reads: one of them may be a slip."""
    unknown = [key for key in task.params.model_extra or {} if key not in OTHER_SPELLINGS]
    if unknown:
        shown = one_line(", ".join(key[:SHOWN] for key in unknown[:MOST_KEYS_TOLD]))
        LOGGER.info("config.yaml: %d unknown keys are ignored: %s", len(unknown), shown)


def run_mining(task: TaskConfig, progress: Progress) -> None:
    """Score every candidate and write result.tsv. Raises ExecutorError."""
    from mining import MINERS
    from mining.runner import ScoreTable, score_all
    from utils.batches import BatchReader, check, load
    from ymir.index import candidate_index
    from ymir.results import write_mining_result

    config = mining_config(task)
    if config.algorithm not in MINERS:
        raise ConfigError(
            f"mining_algorithm: {config.algorithm} is not in this version, use {' or '.join(MINERS)} (config.yaml)"
        )
    miner = MINERS[config.algorithm]
    candidates = candidate_index(task)
    checkpoint = read_weights(task) if miner.needs_model else None
    table = ScoreTable()
    loading = load if checkpoint else check
    count = candidates.count()
    loader, placing = whole_passes(config.loader, config.engine, CPU_PASS), placing_of(config.loader, checkpoint)
    reader = BatchReader(candidates, placing, loader, table.set_aside, progress.part(0, 0.95), count, loading)
    detector = None
    if checkpoint and count:
        from models.detector import make_detector

        detector = make_detector(checkpoint, config.engine, loader.batch_size, CPU_PASS)
    score_all(reader, table, miner, detector, config)
    tell_of(reader, table.readable, len(table))
    summary = write_mining_result(task.env.output.mining_result_file, table.of(candidates))
    if summary.repeated_lines:
        LOGGER.warning("%d lines of the index repeat an earlier one and stand once", summary.repeated_lines)
    if summary.same_name.count:
        LOGGER.warning(
            "%d candidates share their name without suffix with another, the platform can't tell them apart: %s",
            summary.same_name.count,
            one_line(summary.same_name.first),
        )
    LOGGER.info(
        "mining by %s: %d candidates in %s", config.algorithm, summary.lines, task.env.output.mining_result_file
    )
    progress.at(1)


def run_infer(task: TaskConfig, progress: Progress) -> None:
    """Detect in every candidate and write infer-result.json. Raises ExecutorError."""
    from utils.batches import BatchReader, load
    from utils.detections import Detections
    from ymir.index import candidate_index
    from ymir.results import InferResultWriter

    config = infer_config(task)
    candidates = candidate_index(task)
    checkpoint = read_weights(task)
    env = task.env
    results = InferResultWriter(
        env.output.infer_result_file, config.class_names, old_protocol=env.is_old_protocol, by_stem=env.run_mining
    )
    with results:

        def set_aside(item: Candidate, error: ImageError) -> None:
            results.add(item.index, item.name, Detections.empty(), (1, 1))

        count = candidates.count()
        at_once = cpu_pass(count)
        loader, placing = whole_passes(config.loader, config.engine, at_once), placing_of(config.loader, checkpoint)
        reader = BatchReader(candidates, placing, loader, set_aside, progress.part(0, 0.95), count, load)
        readable = 0
        if count:
            from models.detector import make_detector

            detector = make_detector(checkpoint, config.engine, loader.batch_size, at_once)
            for batch in reader:
                readable += len(batch)
                found = detector.detect(batch, config.nms)
                for item, letterbox, detections in zip(batch.items, batch.letterboxes, found):
                    results.add(item.index, item.name, detections, letterbox.image_hw)
        tell_of(reader, readable, readable + reader.unreadable.count)
        summary = results.finish()
    if summary.repeats.count:
        LOGGER.warning(
            "%d candidates have the name of an earlier one and no entry of their own: %s",
            summary.repeats.count,
            one_line(summary.repeats.first),
        )
    LOGGER.info(
        "inference: %d boxes in %d pictures in %s", summary.boxes, summary.pictures, env.output.infer_result_file
    )
    progress.at(1)


def read_weights(task: TaskConfig) -> Checkpoint:
    """Read the weights that the task names; they must know as many classes as the task. Raises WeightsError."""
    from models.checkpoint import read_checkpoint
    from ymir.weights import task_weights

    path = task_weights(task)
    if path is None:
        named = ", ".join(task.params.model_params_path) or "nothing"
        raise WeightsError(
            f"model_params_path: names {named[:200]}, need a weights file (.pt) that is there (config.yaml)"
        )
    if path.suffix.lower() != ".pt":
        raise WeightsError(f"{path}: only .pt weights can be used in this version")
    checkpoint = read_checkpoint(path)
    names = task.params.class_names
    if len(names) != checkpoint.nc:
        raise WeightsError(
            f"{path}: has {checkpoint.nc} classes, the task has {len(names)}; give weights that were trained for the "
            "task's class_names (config.yaml)"
        )
    differences = name_differences(checkpoint.names, names, "task", "written")
    if differences:
        LOGGER.warning("%s", one_line(differences))
    return checkpoint


def placing_of(loader: LoaderSettings, checkpoint: Optional[Checkpoint]) -> Placing:
    """Give how pictures are placed on a model's input; without a model any size will do."""
    from utils.batches import Placing, input_side
    from utils.letterbox import input_stride

    stride = input_stride(checkpoint.strides) if checkpoint else 1
    return Placing(loader.letterbox, input_side(loader.img_size, stride), stride)


def tell_of(reader: BatchReader[Candidate], readable: int, total: int) -> None:
    """Log what was remarkable about the pictures. Raises ImageError where not one could be read."""
    if total == 0:
        LOGGER.warning("the candidate index is empty: there is nothing to do, and the results are empty")
    if reader.unreadable.count:
        LOGGER.warning("%s", one_line(reader.unreadable.summary("pictures can't be read and are set aside")))
    if reader.damaged.count:
        LOGGER.warning("%s", one_line(reader.damaged.summary("pictures are damaged and used as far as they go")))
    if total and not readable:
        raise ImageError(f"not one of {total} pictures can be read, such as {reader.unreadable.examples[0]}")


if __name__ == "__main__":
    leave(main())
