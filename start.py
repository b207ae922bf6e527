"""The YMIR door: reads a task in /in, runs it, writes its results to /out, and turns any failure into a code.

    python start.py                       # inside the image: /in and /out
    python start.py --in DIR --out DIR    # anywhere
    python start.py --check --in DIR      # what would fail, before it does

Modules that cost time are imported where they are needed, not here: a wrong configuration is told before torch is
imported, and pictures are decoded while it is.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

from utils.console import Console
from utils.errors import BusyError, ConfigError, DatasetError, DeviceMemoryError, ExecutorError, StoppedError
from utils.files import remove_scraps
from utils.process import handling, leave, prepare_process, stoppable
from utils.progress import Progress
from utils.shards import (
    INFERENCE,
    MINING,
    MOST_SHARDS,
    Shard,
    all_shards,
    alone_in,
    one_at_a_time,
    parse_shard,
    remove_records,
    shard_of_environment,
)
from ymir.config import DEFAULT_TASK, Env, TaskConfig, read_env, read_task, read_task_id
from ymir.monitor import Monitor, one_line
from ymir.params import OTHER_SPELLINGS, SHOWN

LOGGER = logging.getLogger("start")

HEARTBEAT_S = 2.0
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
    sharing = parser.add_mutually_exclusive_group()
    sharing.add_argument("--shard", metavar="I/N", help="mine or infer only every N-th picture, from number I (0..N-1)")
    sharing.add_argument("--merge", metavar="N", help="write the results of N shards, which have all ended")
    sharing.add_argument(
        "--check", action="store_true", help="only say what would fail or be slow, and what to do; writes nothing"
    )
    arguments = parser.parse_args(argv)
    prepare_process()
    if arguments.check:
        import check

        return check.main(arguments.in_dir, arguments.out_dir)
    # Shards and ranks share a folder; nobody else's monitor.txt is overwritten.
    shares = arguments.shard is not None or bool(os.environ.get("RANK"))
    try:
        with nullcontext() if shares else alone_in(arguments.out_dir):
            return run_in(arguments.in_dir, arguments.out_dir, arguments.shard, arguments.merge)
    except BusyError as error:
        sys.stderr.write(f"error {error.code}: {one_line(str(error))}\n")
        return 1


def run_in(in_dir: Path, out_dir: Path, shard: Optional[str], merge: Optional[str]) -> int:
    """Run the task of in_dir, or the part of it that the options say; gives the exit code."""
    monitor = Monitor(out_dir / "monitor.txt", DEFAULT_TASK)
    try:
        monitor = Monitor(out_dir / "monitor.txt", read_task_id(in_dir))
        asked = read_part(shard, merge)
        env = read_env(in_dir, out_dir)
        part, is_rank = part_of(asked, env)
        place = env.output.monitor_file
        monitor = Monitor(part.shard.monitor(place) if part.shard else place, env.task_id)
        monitor.start()
        if not part.shard:  # another machine's shards may be writing, whose processes aren't seen here
            remove_scraps(env.output.root_dir, *(step.result.parent for step in steps(env)))
        if not part.merge:
            remove_old_results(env)
        task = read_task(in_dir, out_dir, env)
        run_reporting(task, monitor, part)
        if part.shard and is_rank and merge_what_is_there(task, part.shard.count):
            Monitor(place, env.task_id).finish()
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


@dataclass(frozen=True)
class Part:
    """What of a task this process does: all of it, a shard's pictures, or joining what `merge` shards found."""

    shard: Optional[Shard] = None
    merge: int = 0


@dataclass(frozen=True)
class Step:
    """One of what a task does that doesn't train. kind: as its record files are named."""

    kind: str
    run: Callable[[TaskConfig, Progress, Part], None]
    result: Path


def read_part(shard: Optional[str], merge: Optional[str]) -> Part:
    """Read the options. Raises ConfigError."""
    if merge is not None and not (merge.isdecimal() and 1 <= int(merge) <= MOST_SHARDS):
        raise ConfigError(f"--merge: got {merge[:40]!r}, need the number of shards")
    return Part(parse_shard(shard) if shard is not None else None, int(merge or 0))


def part_of(asked: Part, env: Env) -> tuple[Part, bool]:
    """Give what this process does of a task, and whether it is one of torchrun's ranks that share its pictures.

    Raises ConfigError: a training isn't shared this way.
    """
    if asked != Part():
        if env.run_training:
            raise ConfigError("--shard, --merge: are for mining and inference; to train on several GPUs: gpu_id '0,1'")
        return asked, False
    own = None if env.run_training else shard_of_environment(os.environ)
    return Part(own), own is not None


def run_reporting(task: TaskConfig, monitor: Monitor, part: Part) -> None:
    """Run a task, telling how far it is."""
    with beating(monitor), Console("task") as console:

        def report(fraction: float) -> None:
            monitor.report(fraction)
            console.report(fraction)

        run_task(task, Progress(report), part)
    monitor.finish()


def remove_old_results(env: Env) -> None:
    """Take away what an earlier run left, so that nobody takes it for this run's. Raises ExecutorError."""
    for result in (step.result for step in steps(env)):
        try:
            result.unlink(missing_ok=True)
        except OSError as cause:
            raise ExecutorError(
                f"{result}: the result of an earlier run can't be removed ({cause.strerror}); remove it and start again"
            ) from cause


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


def run_task(task: TaskConfig, progress: Progress, part: Part) -> None:
    """Run what the task's flags ask for. Raises ExecutorError."""
    env = task.env
    tell_of_unknown_keys(task)
    if env.run_training:
        run_training(task, progress)
        return
    wanted = steps(env)
    if part.merge and is_merged(env, part.merge):
        LOGGER.warning("--merge: the results are there, and not all records: they were merged before, and stay")
    else:
        with stopping_politely():
            for number, step in enumerate(wanted):
                step.run(task, progress.part(number / len(wanted), (number + 1) / len(wanted)), part)
    if not part.shard:
        remove_all_records(env)


def steps(env: Env) -> list[Step]:
    """Give what a task that doesn't train does, in turn."""
    known = (
        (env.run_mining, Step(MINING, run_mining, env.output.mining_result_file)),
        (env.run_infer, Step(INFERENCE, run_infer, env.output.infer_result_file)),
    )
    return [step for is_wanted, step in known if is_wanted]


def is_merged(env: Env, count: int) -> bool:
    """Say whether a merge that was asked for is done: shards take old results away before they leave a record, and
    only where all results are written are records taken away."""
    folder, wanted = env.output.root_dir, steps(env)
    has_all = all(shard.file(folder, step.kind).exists() for step in wanted for shard in all_shards(count))
    return all(step.result.exists() for step in wanted) and not has_all


def remove_all_records(env: Env) -> None:
    """Take the records of every step away: the results are all there. Until then a task that ends early goes on."""
    for step in steps(env):
        remove_records(env.output.root_dir, step.kind)


def run_training(task: TaskConfig, progress: Progress) -> None:
    """Train; a stop that is asked for comes between two batches, so that nothing is lost. Raises ExecutorError."""
    from training import task as training_task
    from training.job import Hooks

    if task.env.run_mining or task.env.run_infer:
        LOGGER.warning("run_training: is true, so the task only trains; mine and infer in a task of its own (env.yaml)")
    with stoppable() as should_stop:
        training_task.run_training(task, Hooks(progress, should_stop))


def tell_of_unknown_keys(task: TaskConfig) -> None:
    """Log keys of config.yaml that nobody reads: one of them may be a slip."""
    unknown = [key for key in task.params.model_extra or {} if key not in OTHER_SPELLINGS]
    if unknown:
        shown = one_line(", ".join(key[:SHOWN] for key in unknown[:MOST_KEYS_TOLD]))
        LOGGER.info("config.yaml: %d unknown keys are ignored: %s", len(unknown), shown)


def run_mining(task: TaskConfig, progress: Progress, part: Part) -> None:
    """Score every candidate and write result.tsv, or do a part of it. Raises ExecutorError."""
    import mine

    mining = mine.read_mining(task)
    if part.shard is not None:
        mine.score_shard(mining, part.shard, progress)
        return
    if part.merge:
        mine.merge(mining, part.merge, progress)
        return
    count = max(len(mining.config.engine.devices), 1) if mining.checkpoint else 1
    scoring = progress.part(0, mine.SCORED)
    if count > 1:
        run_ranks(mine.score_as_rank, task, count, scoring)
    else:
        mine.score_shard(mining, Shard(), scoring)
    mine.merge(mining, count, progress.part(mine.SCORED, 1))


def run_infer(task: TaskConfig, progress: Progress, part: Part) -> None:
    """Detect in every candidate and write infer-result.json, or do a part of it. Raises ExecutorError."""
    import infer

    inference = infer.read_inference(task)
    engine = inference.config.engine
    if part.shard is not None:
        infer.detect_shard(inference, part.shard, progress, engine)
        return
    count = len(engine.devices)
    if part.merge:
        infer.merge(inference, part.merge, progress)
    elif count > 1:
        run_ranks(infer.detect_as_rank, task, count, progress.part(0, infer.DETECTED))
        infer.merge(inference, count, progress.part(infer.DETECTED, 1))
    else:
        infer.infer(inference, progress)


def run_ranks(function: Callable[..., None], task: TaskConfig, count: int, progress: Progress) -> None:
    """Share a task's pictures among processes, one for each GPU. Raises what ended the first of them."""
    from utils.distributed import launch

    done = [0.0] * count

    def on_message(rank: int, fraction: float) -> None:
        done[rank] = fraction
        progress.at(sum(done) / count)

    if not launch(function, (task.roots.in_dir, task.roots.out_dir), count, on_message):
        raise StoppedError("the task was stopped")


def merge_what_is_there(task: TaskConfig, count: int) -> bool:
    """Merge, as one of torchrun's ranks that has done its part, each step that all ranks have ended and none merged.

    A rank that is still at work does the rest when it ends. Says whether all is merged.
    """
    with one_at_a_time(task.env.output.root_dir), stopping_politely():
        for step in steps(task.env):
            if step.result.exists():
                continue
            try:
                step.run(task, Progress(), Part(merge=count))
            except (BusyError, DatasetError) as error:
                LOGGER.info("%s isn't merged by this rank: %s", step.result.name, one_line(str(error)))
        is_all_there = all(step.result.exists() for step in steps(task.env))
        if is_all_there:
            remove_all_records(task.env)
        return is_all_there


if __name__ == "__main__":
    leave(main())
