"""aldd against the detector's own fp32 forward pass, which it includes; what pruning gives; memory over classes.

python -m benchmarks.mining_aldd [--pictures 8] [--rounds 5]
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, Callable

from utils.process import prepare_process

prepare_process()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.inference import forward, refuse  # noqa: E402
from benchmarks.mining import score  # noqa: E402
from benchmarks.rounds import ROOT, ROUNDS, SHARED, interleave, machine, ratio  # noqa: E402
from mining.mining_aldd import UnitSums, torch_figures  # noqa: E402
from mining.runner import looks  # noqa: E402
from models.checkpoint import read_checkpoint  # noqa: E402
from models.decode import HeadMaps, RawMaps  # noqa: E402
from models.detector import Detector, make_detector  # noqa: E402
from utils.batches import Batch, BatchReader, Placing  # noqa: E402
from utils.passes import CPU_PASS  # noqa: E402
from utils.settings import EngineSettings, LoaderSettings, MiningConfig  # noqa: E402
from ymir.index import Candidate  # noqa: E402

SIDE, FEW, STRIDES = 640, 3, (8, 16, 32)
Batches = Sequence[Batch[Any]]
# In a process of its own: what scoring adds to the peak of one that has compiled and holds the maps. Not ru_maxrss,
# which a process inherits from the one that starts it.
PEAK = """
from pathlib import Path
from mining.mining_aldd import class_figures
from benchmarks.mining_aldd import SIDE, np, random_maps
def peak_kb():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
class_figures(random_maps(1, 64), (64, 64), np.ones(1))
raw = random_maps({classes}, SIDE)
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
before = peak_kb()
class_figures(raw, (SIDE, SIDE), np.ones({classes}))
print(before, peak_kb())
"""
FIRST_CALL = """
import time
from mining.mining_aldd import class_figures
from benchmarks.mining_aldd import np, random_maps
raw = random_maps(2, 64)
begin = time.perf_counter()
class_figures(raw, (64, 64), np.ones(2))
print(time.perf_counter() - begin)
"""


def random_maps(classes: int, side: int) -> RawMaps:
    """Give maps of one picture as a network with little in sight gives them: most p are tiny."""
    random = torch.Generator().manual_seed(0)
    levels = [torch.empty(1, side // s, side // s, 3, 5 + classes).normal_(-6, 2, generator=random) for s in STRIDES]
    return RawMaps(levels, STRIDES, torch.ones(3, 3, 2))


def sums(detector: Detector, batches: Batches, compute: Callable[[HeadMaps], object]) -> None:
    """Run the network, and another way of computing all classes' figures."""
    for batch in batches:
        for look in looks(batch, detector):
            assert look.raw is not None
            for place in range(len(look)):
                compute(look.raw[place])


def whole(raw: HeadMaps) -> object:
    """Compute all classes with nothing left out."""
    classes = raw.levels[0].shape[-1] - 5
    return UnitSums(raw, (SIDE, SIDE), np.arange(classes)).figures(np.ones(classes), prunes=False)


def without_numba(raw: HeadMaps) -> object:
    """Compute all classes by torch."""
    classes = raw.levels[0].shape[-1] - 5
    return torch_figures(raw, (SIDE, SIDE), np.arange(classes), np.ones(classes))


def print_compiling() -> None:
    """Print how long the first picture of a machine waits for the compiler, and of a later process for its cache."""
    with tempfile.TemporaryDirectory() as cache:
        first, later = (float(answer(FIRST_CALL, NUMBA_CACHE_DIR=cache)) for _ in range(2))
    print(f"  compiling: {first:.1f} s at first, {later:.2f} s from the cache", flush=True)


def answer(code: str, **environment: str) -> str:
    """Run Python code in a process of its own; gives what it printed."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment})
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return done.stdout


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=CPU_PASS, help=f"a multiple of {CPU_PASS}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--slow", action="store_true", help="torch's way too, which takes a minute a picture")
    options = parser.parse_args()
    detector = make_detector(
        read_checkpoint(SHARED / "weights/yolov5n.pt"), EngineSettings(precision="fp32"), CPU_PASS, CPU_PASS
    )
    images = sorted((SHARED / "data/coco128/images/train2017").glob("*.jpg"))[: options.pictures]
    items = [Candidate(number, path.name, path) for number, path in enumerate(images)]
    # Whole passes: one that is not full costs the same, and would make the scorer look cheap.
    loader = LoaderSettings(SIDE, "square", CPU_PASS)
    batches = list(BatchReader(items, Placing("square", SIDE, 32), loader, refuse))
    assert all(len(batch) == CPU_PASS for batch in batches)
    many = len(detector.names)

    def aldd(classes: int) -> MiningConfig:
        return MiningConfig(detector.names[:classes], algorithm="aldd")

    variants: dict[str, Callable[[], object]] = {
        "forward": functools.partial(forward, detector, batches),
        f"aldd, {many} classes": functools.partial(score, detector, batches, aldd(many), many),
        f"aldd, {FEW} classes": functools.partial(score, detector, batches, aldd(FEW), FEW),
        f"{many} classes, nothing left out": functools.partial(sums, detector, batches, whole),
    }
    if options.slow:
        variants[f"{many} classes, without numba"] = functools.partial(sums, detector, batches, without_numba)
    print(f"aldd, yolov5n, {SIDE} px, {len(items)} pictures, {torch.get_num_threads()} threads; {machine()}")
    times = interleave(variants, options.rounds)
    for name, seconds in times.items():
        each = 1000 * sorted(seconds)[len(seconds) // 2] / len(items)
        print(
            f"  {name:<30} {ratio(seconds, times['forward'])} x the forward pass, {each:.0f} ms a picture", flush=True
        )
    print_compiling()
    for classes in (1, many, 1000):
        before, after = (int(number) / 1024 for number in answer(PEAK.format(classes=classes)).split())
        maps_mb = sum((SIDE // s) ** 2 * 3 * (5 + classes) * 4 for s in STRIDES) / 1e6
        print(
            f"  peak at {classes} classes: {after:.0f} MB, {after - before:.0f} of them aldd's; maps {maps_mb:.0f} MB"
        )


if __name__ == "__main__":
    main()
