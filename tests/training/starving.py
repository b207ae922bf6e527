"""A training whose process may take only so much more memory, once all is built: python -m tests.training.starving.

Arguments: data.yaml, weights, run folder, MB more than it has by then (0: as much as it likes), batch size, side.
"""

from __future__ import annotations

import ctypes
import resource
import sys
from functools import partial
from pathlib import Path

from training.job import Hooks, TrainJob
from utils.hyp import Hyp
from utils.process import exit_code, leave, prepare_process
from utils.train_settings import TrainConfig, TrainFolders
from utils.training_data import yolo_training_data


def memory_mb(field: str) -> float:
    """Give a figure of this process, such as VmSize."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def starve(more_mb: int) -> None:
    """Let this process take so much more address space, and no more."""
    has_mb = memory_mb("VmSize")
    print(f"begins with {has_mb:.0f} MB", flush=True)
    if more_mb:
        limit = int((has_mb + more_mb) * 1024 * 1024)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(data: str, weights: str, folder: str, more_mb: str, batch_size: str, side: str) -> None:
    """Train for one epoch."""
    from training.ranks import train

    config = TrainConfig(
        weights=Path(weights),
        hyp=Hyp(lr0=0.002),
        epochs=1,
        batch_size=int(batch_size),
        nominal_batch=int(batch_size),
        img_size=int(side),
        workers=0,
        device="cpu",
        precision="fp32",
        autoanchor=False,
    )
    root = Path(folder)
    job = TrainJob(
        config=config,
        open_data=partial(yolo_training_data, Path(data)),
        folders=TrainFolders(root, root / "weights", root),
        draws=False,
        on_begin=partial(starve, int(more_mb)),
    )
    train(job, Hooks())
    print(f"needed up to {memory_mb('VmPeak'):.0f} MB", flush=True)


def return_memory_at_once() -> None:
    """Let glibc give back what is freed: address space that a process keeps for later would count as taken here, which
    no real lack of memory does."""
    ctypes.CDLL(None).mallopt(-3, 128 << 10)  # M_MMAP_THRESHOLD


if __name__ == "__main__":
    prepare_process("%(message)s")
    return_memory_at_once()
    leave(exit_code(lambda: main(*sys.argv[1:])))
