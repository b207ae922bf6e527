"""`start.py --check`: reads a task as it would be run, and says what would fail or be slow, and what to do about it.

Nothing is written, nothing is trained or detected. torch is imported only where a GPU or fp16 is asked for, and for a
training, whose network is built. Large sets are looked at in samples. What would end the task ends with the same error
code here.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Optional

from utils.batches import Shot
from utils.errors import DatasetError, DeviceMemoryError, ExecutorError, ImageError
from utils.machine import count_cpus
from utils.picture_store import free_memory_bytes
from utils.pictures import read_picture_hw
from utils.process import one_line
from utils.progress import Progress
from utils.settings import EngineSettings, PictureSettings
from ymir.config import TaskConfig, infer_config, mining_config, read_env, read_task
from ymir.index import Candidate, candidate_index
from ymir.params import OTHER_SPELLINGS, SHOWN, nearest_key

if TYPE_CHECKING:
    from ymir.train_config import TrainTask

SAMPLE = 200  # pictures that are looked at, of any number
MOST_SHOWN = 5  # names in one finding
RECORD_BYTES = 1024  # of a candidate in /out, features and boxes included, rather too many
TRAINING_BYTES = 2 << 30  # weights, a resumable state and plots of the largest models
RANKS_SHM_BYTES = 1 << 30  # what several GPUs exchange through /dev/shm
TRAINING = "training set"
NETWORK_BYTES, NO_NETWORK_BYTES = 1 << 30, 256 << 20  # of the libraries that a task loads, and what they need
PICTURE_BYTES = 36 << 20  # of a photograph of 12 megapixels, decoded


class Level(Enum):
    """How much a finding matters."""

    OK = "ok"
    LOOK = "look"  # may be meant so
    SLOW = "slow"
    FAILS = "fails"


@dataclass(frozen=True)
class Finding:
    """One line of the answer. code: the error with which the task would end."""

    level: Level
    about: str
    says: str
    code: int = 0

    def __str__(self) -> str:
        return f"{self.level.value:<6} {self.about}: {f'error {self.code}: ' if self.code else ''}{one_line(self.says)}"


def main(in_dir: Path, out_dir: Path) -> int:
    """Print what is found; gives the exit code: 1 where something would fail."""
    findings = []
    for finding in check(in_dir, out_dir):
        say(str(finding))
        findings.append(finding)
    counts = Counter(finding.level for finding in findings)
    would_fail = counts[Level.FAILS]
    verdict = "this task would fail" if would_fail else "nothing stands in this task's way"
    say(f"{verdict}: {', '.join(f'{counts[level]} {level.value}' for level in Level)}")
    return 1 if would_fail else 0


def say(line: str) -> None:
    """Print a line at once: a sample of a slow network drive takes a while."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def check(in_dir: Path, out_dir: Path) -> Iterator[Finding]:
    """Give all that is found, as it is found."""
    with telling() as told:
        try:
            task = read_task(in_dir, out_dir, read_env(in_dir, out_dir))
        except ExecutorError as error:
            yield failing("env.yaml, config.yaml", error)
            return
        yield Finding(Level.OK, "task", f"{task.env.task_id}: {kind_of(task)}, {len(task.params.class_names)} classes")
        errors = set()
        for about, look in CHECKS.items():
            try:
                yield from look(task)
            except ExecutorError as error:  # several look at the same file: what is wrong with it is said once
                if (error.code, str(error)) not in errors:
                    yield failing("pictures" if is_of_pictures(task, error) else about, error)
                errors.add((error.code, str(error)))
            yield from (Finding(Level.LOOK, about, message) for message in dict.fromkeys(told))
            told.clear()


def failing(about: str, error: ExecutorError) -> Finding:
    """Give what an error of the run itself comes to."""
    return Finding(Level.FAILS, about, str(error), error.code)


def is_of_pictures(task: TaskConfig, error: ExecutorError) -> bool:
    """Say whether an error is of the candidates, whoever came upon it: steps open their index with their weights."""
    return isinstance(error, (DatasetError, ImageError)) and not task.env.run_training


@contextmanager
def telling() -> Iterator[list[str]]:
    """Collect the warnings that the run itself would log, in place of logging them."""
    told: list[str] = []

    class Collecting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    root, handler = logging.getLogger(), Collecting(logging.WARNING)
    before = root.handlers[:]
    root.handlers[:] = [handler]
    try:
        yield told
    finally:
        root.handlers[:] = before


def kind_of(task: TaskConfig) -> str:
    """Name what the task does."""
    env = task.env
    known = ((env.run_training, "training"), (env.run_mining, "mining"), (env.run_infer, "inference"))
    return " and ".join(name for is_wanted, name in known if is_wanted) or "nothing: env.yaml asks for no step"


# ---- configuration, weights ------------------------------------------------------------------------------------------


def check_keys(task: TaskConfig) -> Iterator[Finding]:
    """Look for keys that nobody reads, which may be slips."""
    for key in (task.params.model_extra or {}).keys() - set(OTHER_SPELLINGS):
        near = nearest_key(key[:SHOWN])
        if near:
            yield Finding(Level.LOOK, "config.yaml", f"{key[:SHOWN]}: is read by nobody; {near} is a key")


def check_reading(task: TaskConfig) -> Iterator[Finding]:
    """Read options and weights as the run will."""
    env = task.env
    if env.run_training:
        from ymir.train_config import train_config

        told = train_config(task)
        config = told.config
        yield Finding(
            Level.OK, "options", f"{config.epochs} epochs of batches of {config.batch_size} at {config.img_size} px"
        )
        if config.weights is not None:
            yield Finding(Level.OK, "weights", f"training starts from {config.weights}")
        else:
            yield Finding(
                Level.LOOK, "weights", f"training starts from scratch with {config.cfg}: takes many more epochs"
            )
        yield from check_network(task, told)
        return
    if env.run_mining:
        from mine import read_mining

        mining = read_mining(task)
        yield Finding(Level.OK, "mining", f"by {mining.config.algorithm} at {mining.config.loader.img_size} px")
        if mining.checkpoint is not None:
            yield Finding(Level.OK, "weights", f"{mining.checkpoint.path}, {mining.checkpoint.nc} classes")
    if env.run_infer:
        from infer import read_inference

        inference = read_inference(task)
        yield Finding(
            Level.OK, "inference", f"{inference.checkpoint.path}, boxes from {inference.config.nms.conf_thres} on"
        )


def check_network(task: TaskConfig, told: TrainTask) -> Iterator[Finding]:
    """Build the network that training starts from, and look for what an earlier run left."""
    from models.checkpoint import read_checkpoint
    from training.initial import initial_model, starting_spec
    from training.resuming import state_to_resume
    from training.task import make_job
    from utils.optim import freeze_layers

    config, names = told.config, told.class_names
    if state_to_resume(make_job(task, told), names) is not None:
        yield Finding(Level.OK, "weights", "an earlier run of this task was cut off; training goes on from its last.pt")
    checkpoint = None if config.weights is None else read_checkpoint(config.weights)
    spec = starting_spec(config.cfg, checkpoint, len(names), config.activation, config.hyp.anchors)
    model, taken = initial_model(spec, checkpoint, config.seed, keeps_anchors=True)
    freeze_layers(model, config.freeze)
    size = sum(parameter.numel() for parameter in model.parameters())
    says = f"; {taken.taken} of {taken.total} entries are taken from the weights" if checkpoint else ""
    yield Finding(Level.OK, "network", f"{len(spec.rows)} layers, {size} parameters, {spec.classes} classes{says}")


# ---- pictures, labels ------------------------------------------------------------------------------------------------


def check_pictures(task: TaskConfig) -> Iterator[Finding]:
    """Read the whole candidate index, and the heads of some pictures."""
    if task.env.run_training:
        return
    candidates = candidate_index(task)
    total = candidates.count()
    repeats, seen = 0, set()
    chosen: list[Candidate] = []
    for item in candidates:
        key = hash(item.name)
        repeats += key in seen
        seen.add(key)
        if is_next(item.index, chosen, total):
            chosen.append(item)
    if not total:
        yield Finding(Level.LOOK, "pictures", f"{candidates.file}: is empty, there is nothing to do")
        return
    if repeats and task.env.run_infer:
        yield Finding(
            Level.LOOK,
            "pictures",
            f"{repeats} share their base name with an earlier one; infer-result.json holds the first of each",
        )
    yield from of_pictures(chosen, total, PictureSettings(max_pixels=task.params.max_pixels))


def is_next(place: int, chosen: Sequence[object], total: int) -> bool:
    """Say whether an item belongs into a sample that lies evenly over all."""
    return place >= len(chosen) * max(total / SAMPLE, 1)


def of_all(looked_at: int, total: int) -> str:
    """Say how many of them were looked at."""
    return str(total) if looked_at == total else f"{looked_at} of {total}"


def of_pictures(chosen: Sequence[Candidate], total: int, settings: PictureSettings) -> Iterator[Finding]:
    """Read the heads of pictures. Raises ImageError where all were looked at and none can be read."""
    faults = [fault for item in chosen for fault in [picture_fault(item, settings)] if fault]
    words = of_all(len(chosen), total)
    if not faults:
        yield Finding(Level.OK, "pictures", f"{words} looked at, all can be read")
    elif len(faults) < len(chosen):
        shown = "; ".join(faults[:MOST_SHOWN])
        yield Finding(Level.LOOK, "pictures", f"of {words} {len(faults)} can't be read and are set aside: {shown}")
    elif len(faults) == total:
        raise ImageError(f"not one of {total} pictures can be read, such as {faults[0]}")
    else:
        says = f"not one of {words} looked at can be read, such as {faults[0]}"
        yield Finding(Level.FAILS, "pictures", says, ImageError.code)


def picture_fault(item: Candidate, settings: PictureSettings) -> Optional[str]:
    """Say why a picture can't be read."""
    if item.refused is not None:
        return f"{item.line}: {item.refused}"
    try:
        read_picture_hw(item.path, settings)
    except ImageError as error:
        return str(error)
    return None


def check_labels(task: TaskConfig) -> Iterator[Finding]:
    """Read the indexes of a training and the labels of some pictures."""
    if not task.env.run_training:
        return
    from training.data import refuse_nothing_to_learn
    from utils.label_scan import scan_labels
    from ymir.training_data import ymir_training_data

    data = ymir_training_data(task)
    for name, labelled in ((TRAINING, data.train), ("validation set", data.val)):
        if not labelled.shots:
            yield Finding(Level.LOOK, name, "is empty; without it no epoch is known to be the best one")
            continue
        total = len(labelled.shots)
        chosen: list[Shot] = []
        for place, shot in enumerate(labelled.shots):
            if is_next(place, chosen, total):
                chosen.append(shot)
        pictures = PictureSettings(max_pixels=task.params.max_pixels)
        scan = scan_labels(replace(labelled, shots=tuple(chosen)), pictures, 2, None, "", Progress())
        words = of_all(len(chosen), total)
        if name == TRAINING and len(chosen) == total:
            refuse_nothing_to_learn(scan)
        if not len(scan.table):
            why = scan.unreadable.summary("can't be used")
            yield Finding(Level.FAILS, name, f"not one of {words} pictures can be used: {why}", DatasetError.code)
            continue
        found = Counter(scan.table.class_ids.tolist())
        yield Finding(
            Level.OK if found else Level.LOOK,
            name,
            f"{words} pictures looked at ({labelled.kind}): {sum(found.values())} boxes"
            f"{'' if found else '; a training without boxes learns nothing'}",
        )
        for fault in scan.faults:
            yield Finding(Level.LOOK, name, f"{fault.count} times {fault.kind}; first: {fault.example}")
        if scan.unreadable.count:
            yield Finding(Level.LOOK, name, scan.unreadable.summary("pictures are left out"))
        rare = [names for class_id, names in enumerate(labelled.names) if not found[class_id]]
        if found and rare and name == TRAINING:
            shown = ", ".join(rare[:MOST_SHOWN])
            yield Finding(Level.LOOK, name, f"{len(rare)} classes have no box among those looked at: {shown}")


# ---- the machine -----------------------------------------------------------------------------------------------------


def engine_of(task: TaskConfig) -> EngineSettings:
    """Give on what the task runs."""
    return (mining_config(task) if task.env.run_mining and not task.env.run_training else infer_config(task)).engine


def looks_at_pixels(task: TaskConfig) -> bool:
    """Say whether a network runs at all: not for random mining."""
    if task.env.run_training or task.env.run_infer:
        return True
    from mining import MINERS
    from mining.sight import wants_of

    config = mining_config(task)
    return MINERS[config.algorithm].needs_model or wants_of(config).needs_model


def check_devices(task: TaskConfig) -> Iterator[Finding]:
    """Look for the GPUs that are asked for."""
    engine = engine_of(task)
    devices = engine.devices
    if not looks_at_pixels(task):
        yield Finding(Level.OK, "device", "none is needed")
        return
    if devices or engine.precision == "fp16":
        from models.detector import choose_device, choose_precision

        for device in devices or ("",):
            choose_precision(engine.precision, choose_device(device))
    if not devices:
        level = Level.SLOW if task.env.run_training else Level.OK
        more = "; a training takes some hundred times as long as on a GPU, which gpu_id: '0' asks for"
        yield Finding(level, "device", f"CPU{more if task.env.run_training else ''}")
        return
    yield Finding(Level.OK, "device", f"GPU {', '.join(devices)}")
    shared = Path("/dev/shm")  # noqa: S108  # looked at only
    if len(devices) > 1 and shared.is_dir() and shutil.disk_usage(shared).total < RANKS_SHM_BYTES:
        size = shutil.disk_usage(shared).total >> 20
        yield Finding(
            Level.SLOW, "shared memory", f"{shared} has {size} MB, several GPUs want 1 GB: docker run --shm-size 16g"
        )


def check_cpus(task: TaskConfig) -> Iterator[Finding]:
    """Compare threads that are asked for with the processors and the memory there are."""
    cpus = count_cpus()
    ranks = max(len(engine_of(task).devices), 1)
    threads = ranks * task.params.num_workers_per_gpu
    yield Finding(
        Level.OK, "processors", f"{cpus}, {threads} workers are asked for, {min(threads, cpus.usable)} are used"
    )
    if engine_of(task).devices and threads > cpus.usable:
        yield Finding(
            Level.SLOW,
            "processors",
            f"{ranks} GPUs with {cpus.usable} processors: pictures may come too slowly for them",
        )
    pictures = ranks * task.params.batch_size_per_gpu + 2 * min(threads, cpus.usable)
    base = NETWORK_BYTES if looks_at_pixels(task) else NO_NETWORK_BYTES
    yield of_memory(free_memory_bytes(), base + pictures * PICTURE_BYTES // 4)


def of_memory(free: int, wanted: int) -> Finding:
    """Hold the free memory against what may be wanted, in bytes: with less than a third the run would be killed."""
    if free > wanted:
        return Finding(Level.OK, "memory", f"{free >> 20} MB are free")
    says = f"{free >> 20} MB are free, {wanted >> 20} MB may be wanted: make batch_size_per_gpu smaller"
    if 3 * free >= wanted:
        return Finding(Level.LOOK, "memory", says)
    says += ", or give the container more (docker run --memory); a run that is killed ends with 137 and says nothing"
    return Finding(Level.FAILS, "memory", says, DeviceMemoryError.code)


def check_out(task: TaskConfig) -> Iterator[Finding]:
    """Look whether results can be written, and what lies there already."""
    output = task.env.output
    folder = output.root_dir
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        who = f"user {os.getuid()}"
        yield Finding(
            Level.FAILS,
            "results",
            f"{there}: can't be written by {who}; give it to that user (chown), or start the container as its owner",
            ExecutorError.code,
        )
        return
    free = shutil.disk_usage(there).free
    wanted = TRAINING_BYTES if task.env.run_training else 64 << 20
    if not task.env.run_training:
        with suppress(DatasetError):  # told with the pictures
            wanted += RECORD_BYTES * candidate_index(task).count()
    enough = free >= wanted
    advice = "" if enough else f"; up to {wanted >> 20} MB may be wanted: make room"
    made = "" if folder.exists() else "will be made, "
    yield Finding(
        Level.OK if enough else Level.LOOK,
        "results",
        f"{folder}: {made}can be written, {free >> 20} MB are free{advice}",
    )
    yield from check_old_results(task)
    last = output.models_dir / "last.pt"
    if task.env.run_training and last.exists():
        goes_on = task.params.resume != "never"
        says = "if it is this task's, the training goes on from it" if goes_on else "is replaced (resume: never)"
        yield Finding(Level.LOOK, "results", f"{last} is there; {says}")
    records = sorted(folder.glob("*.records")) if folder.is_dir() else []
    if records and not task.env.run_training:
        yield Finding(Level.LOOK, "results", f"{records[0].name} of an earlier run is there; this task goes on from it")


def check_old_results(task: TaskConfig) -> Iterator[Finding]:
    """Look at what stands where this task's results are to be: a file is taken away, a folder stops the run."""
    env = task.env
    training, output = env.run_training, env.output
    known = (
        (True, output.monitor_file),
        (training, output.training_result_file),
        (env.run_mining and not training, output.mining_result_file),
        (env.run_infer and not training, output.infer_result_file),
    )
    places = [path for is_wanted, path in known if is_wanted]
    folders = [path for path in places if path.is_dir() and not path.is_symlink()]
    for path in folders:
        says = f"{path}: is a folder and can't be removed, there is to be a file of this name; remove it"
        yield Finding(Level.FAILS, "results", says, ExecutorError.code)
    old = [path.name for path in places[1:] if os.path.lexists(path) and path not in folders]
    if old and not training:  # a training may go on, which is told with its last.pt
        yield Finding(Level.LOOK, "results", f"{', '.join(old)} of an earlier run is removed or replaced")


def check_rights(task: TaskConfig) -> Iterator[Finding]:
    """Look whether this user may open the folders of /in."""
    places = task.env.input
    for folder in (places.root_dir, places.assets_dir, places.models_dir, places.annotations_dir):
        if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
            yield Finding(
                Level.FAILS,
                "rights",
                f"{folder}: can't be opened by user {os.getuid()}; chmod -R a+rX it, or run the container as its owner",
                ExecutorError.code,
            )


Check = Callable[[TaskConfig], Iterator[Finding]]

# In the order in which they are told; by what they look at.
CHECKS: Mapping[str, Check] = {
    "config.yaml": check_keys,
    "rights": check_rights,
    "options and weights": check_reading,
    "pictures": check_pictures,
    "labels": check_labels,
    "device": check_devices,
    "processors": check_cpus,
    "results": check_out,
}
