"""A YMIR training of a few pictures as its own process, and a look at what it left in /out at some moment."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import torch
import yaml

from make_task import TaskOptions, make_task
from models.checkpoint import read_checkpoint
from models.resume import ResumeState, read_resume

ROOT = Path(__file__).resolve().parents[2]
EPOCHS, SIDE = 3, 96
WITHOUT_PICTURES = "--exist-ok --noplots --noautoanchor"
LONGEST_S = 240


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    lines: list[str]  # of stdout and stderr together

    @property
    def last(self) -> str:
        """The last line."""
        return self.lines[-1] if self.lines else ""


@dataclass(frozen=True)
class Task:
    """A task's folder, with in and out."""

    folder: Path

    @property
    def out(self) -> Path:
        """/out."""
        return self.folder / "out"

    def start(self, *before: str) -> subprocess.Popen[str]:
        """Start start.py; before: a command that runs it."""
        command = [*before, sys.executable, str(ROOT / "start.py")]
        return start([*command, "--in", str(self.folder / "in"), "--out", str(self.out)])

    def run(self, *before: str) -> Ended:
        """Run start.py to its end."""
        return ended(self.start(*before))

    def configure(self, **settings: Any) -> None:
        """Change keys of config.yaml."""
        file = self.folder / "in/config.yaml"
        file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **settings}))

    def monitor(self) -> list[str]:
        """Give the fields of monitor.txt's first line; it has to be whole."""
        fields = (self.out / "monitor.txt").read_text().split("\n")[0].split("\t")
        assert len(fields) >= 4 and fields[0] and int(fields[1]) and 0 <= float(fields[2]) <= 1, fields
        return fields

    def last(self) -> ResumeState:
        """Give what last.pt holds to go on from."""
        state = read_resume(self.out / "models/last.pt")
        assert state is not None
        return state

    def epochs(self) -> list[int]:
        """Give the epochs in results.csv."""
        lines = (self.out / "tensorboard/results.csv").read_text().splitlines()[1:]
        return [int(line.split(",")[0]) for line in lines]

    def copy(self, folder: Path) -> Task:
        """Give another task with the same /in and an empty /out."""
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.folder / "in", folder / "in", symlinks=True)
        (folder / "out").mkdir()
        return Task(folder)


def task_of(data: Path, weights: Path, folder: Path, **settings: Any) -> Task:
    """Make a training task of a data set: three epochs of three batches."""
    sizes = {"epochs": EPOCHS, "img_size": SIDE, "batch_size_per_gpu": 4, "num_workers_per_gpu": 2, "nominal_batch": 8}
    options = TaskOptions(
        weights=(weights,),
        settings={**sizes, "args_options": WITHOUT_PICTURES, "precision": "fp32", **settings},
        placing="copy",
    )
    make_task(data, folder, "train", options)
    return Task(folder)


def start(command: list[str], **environment: str) -> subprocess.Popen[str]:
    """Start a process whose stdout and stderr are one text."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **environment}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables, cwd=ROOT
    )


def ended(process: subprocess.Popen[str]) -> Ended:
    """Wait for a process's end."""
    try:
        text, _ = process.communicate(timeout=LONGEST_S)
    finally:
        process.kill()
    return Ended(process.returncode, text.splitlines())


def wait_until(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for something that a process does."""
    latest = time.monotonic() + LONGEST_S
    while not there():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < latest
        time.sleep(0.005)


def assert_whole(task: Task) -> None:
    """Whatever stands in /out can be read, and what result.yaml names is there."""
    models = task.out / "models"
    if (task.out / "monitor.txt").exists():
        task.monitor()
    if (models / "last.pt").exists():
        assert read_resume(models / "last.pt") is not None
        assert read_checkpoint(models / "last.pt").nc == 80
    if (models / "best.pt").exists():
        assert read_checkpoint(models / "best.pt").nc == 80
    if (models / "result.yaml").exists():
        result = yaml.safe_load((models / "result.yaml").read_text())
        assert result["best_stage_name"] in result["model_stages"] and 0 <= result["mAP"] <= 1
        for stage in result["model_stages"].values():
            assert stage["files"]
            assert all(
                (models / stage["stage_name"] / file).exists() or (models / file).exists() for file in stage["files"]
            )


def assert_done(task: Task, end: Ended, epochs: int = EPOCHS) -> None:
    """The training has ended well, and all that it has to leave is there, without scraps."""
    assert end.code == 0, end.lines[-8:]
    assert task.monitor()[2:4] == ["1.0", "2"]
    assert task.epochs() == list(range(epochs))
    assert_whole(task)
    assert (task.out / "models/result.yaml").exists() and (task.out / "models/last.pt").exists()
    assert not [path for path in task.out.rglob("*") if path.name.endswith(".tmp")]


@contextmanager
def watching_lines(look: Callable[[str], None]) -> Iterator[None]:
    """Call `look` with each line that the training logs, while it logs it."""

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            look(record.getMessage())

    watch, logger = Watch(), logging.getLogger("train")
    logger.addHandler(watch)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(watch)
        logger.setLevel(level)


def assert_equal(state: ResumeState, other: ResumeState) -> None:
    """Bit for bit."""
    assert set(state.tensors) == set(other.tensors)
    differing = [name for name, tensor in state.tensors.items() if not torch.equal(tensor, other.tensors[name])]
    assert not differing, differing[:5]
    for part in ("position", "means", "best", "stop", "accumulation", "ema", "loss"):
        assert state.plain[part] == other.plain[part], part
