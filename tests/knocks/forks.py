"""A process that has imported all that tasks need, and runs each in a child of its own: a fork costs milliseconds.

    python -m tests.knocks.forks

It reads an Order a line (JSON) on stdin and answers each with a line. It starts no thread and runs nothing itself, so
that a fork of it is whole; torch has one thread from its beginning.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Optional

from tests.knocks.injector import Fault, Injector, Place, read_report

ROOT = Path(__file__).resolve().parents[2]
LONGEST_S = 120
READY = "ready"
# What tasks import while they run: forks then find it there.
WANTED = (
    *(
        "start",
        "infer",
        "mine",
        "mining.report",
        "training.task",
        "training.ranks",
        "training.loop",
        "training.finishing",
    ),
    *("training.handing_over", "training.statistics", "models.detector", "models.resume", "formats.engines"),
    *("torch", "onnx", "onnxruntime", "onnxslim", "cv2", "numpy", "safetensors.numpy", "tensorboard.compat.proto"),
    *(
        "torch.onnx",
        "torch._dynamo",
        "torch.distributed.nn",
        "torch.onnx.symbolic_opset11",
        "torch.onnx.utils",
        "numpy.ma",
    ),
    *("tensorboard.summary.writer.record_writer", "torch.distributed", "faster_coco_eval"),
)


@dataclass(frozen=True)
class Order:
    """One run of start.py. folder: with in and out."""

    folder: str
    fault: Fault
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ran:
    """How a run ended. operations: each that was begun below /out, in turn."""

    code: int
    output: str
    operations: list[Place]
    peak_kb: int = 0

    @property
    def last(self) -> str:
        """The last line printed."""
        return self.output.rstrip().rpartition("\n")[2]


class Forks:
    """Use as a context: `run` runs start.py in a fork."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.knocks.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        assert self._line() == READY

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def run(self, folder: Path, fault: Fault = Fault(), *more: str) -> Ran:  # noqa: B008  # frozen
        """Run start.py on folder/in and folder/out, with a fault."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(Order(str(folder), fault, more))) + "\n")
        self._process.stdin.flush()
        code, peak_kb = json.loads(self._line())
        output = (folder / "output.txt").read_text(errors="replace")
        return Ran(code, output, read_report((folder / "report.txt").read_text()), peak_kb)

    def __enter__(self) -> Forks:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._process.kill()
        self._process.wait()


def run_alone(folder: str) -> None:
    """Be one run, without a fork before it: for strace to look at."""
    become(Order(folder, Fault()))


def serve() -> None:
    """Answer orders until stdin ends."""
    import importlib

    import torch

    torch.set_num_threads(1)
    for name in WANTED:
        importlib.import_module(name)
    print(READY, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        place, mode = order["fault"]["place"], order["fault"]["mode"]
        fault = Fault(mode, Place(**place) if place else None)
        print(json.dumps(forked(Order(order["folder"], fault, tuple(order["more"])))), flush=True)


def forked(order: Order) -> tuple[int, int]:
    """Run an order in a child; gives its exit code, and the most memory that it had (KB)."""
    child = os.fork()
    if child == 0:
        try:
            become(order)
        finally:
            os._exit(99)
    deadline = time.monotonic() + LONGEST_S
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss
        if time.monotonic() > deadline:
            os.kill(child, 9)
        time.sleep(0.002)


def become(order: Order) -> None:
    """Be the order's process, to its end."""
    import start
    from utils.process import leave

    folder = Path(order.folder)
    writing = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    output = os.open(folder / "output.txt", writing)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    Injector(folder / "out", order.fault, os.open(folder / "report.txt", writing)).install()
    leave(start.main(["--in", str(folder / "in"), "--out", str(folder / "out"), *order.more]))


if __name__ == "__main__":
    serve()
