"""The forward pass alone: ours against the plain one (fp32, contiguous, eager; batch norm folded on both sides).

python -m benchmarks.forward [--batch 16] [--side 640]
"""

from __future__ import annotations

import argparse
import functools
import resource
from dataclasses import replace
from typing import Callable

from utils.process import prepare_process

prepare_process()  # before torch: it settles the number of threads

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.plain import PlainProcess  # noqa: E402
from benchmarks.rounds import ROUNDS, SHARED, interleave, machine, ratio  # noqa: E402
from models.checkpoint import read_checkpoint  # noqa: E402
from models.detector import Detector, choose_precision, make_detector  # noqa: E402
from utils.batches import Batch, Shot  # noqa: E402
from utils.letterbox import letterbox_square  # noqa: E402
from utils.settings import EngineSettings  # noqa: E402


def run_ours(detector: Detector, batch: Batch[Shot]) -> None:
    """Run a batch through the network, from uint8 pictures on."""
    for _ in detector.maps(batch):
        pass


def make_batch(count: int, side: int) -> Batch[Shot]:
    """Make pictures of noise, as the reader would give them."""
    draw = np.random.default_rng(0)
    canvases = [draw.integers(0, 255, (side, side, 3), np.uint8) for _ in range(count)]
    letterbox = letterbox_square((side, side), side, 32)
    return Batch([], canvases, [letterbox] * count)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 2, 4, 16], help="pictures a pass, each measured")
    options = parser.parse_args()
    checkpoint = read_checkpoint(SHARED / "weights/yolov5n.pt")
    batch = make_batch(options.batch, options.side)
    batch.items.extend(Shot(k, SHARED) for k in range(options.batch))
    variants: dict[str, Callable[[], object]] = {}
    for precision in sorted({"fp32", choose_precision("auto", torch.device("cpu"))}):
        detector = make_detector(checkpoint, EngineSettings(precision=precision), options.batch)
        for chunk in options.chunks:
            variants[f"{precision} by {chunk}"] = functools.partial(run_ours, replace(detector, chunk=chunk), batch)
    with PlainProcess(options.batch, options.side) as plain:
        times = interleave({"plain": plain, **variants}, options.rounds)
    print(f"forward pass, yolov5n, batch {options.batch}, {options.side} px; {machine()}")
    for name, seconds in times.items():
        each = 1000 * sorted(seconds)[len(seconds) // 2] / options.batch
        print(f"  {name:<12} {ratio(times['plain'], seconds)} x as fast as plain, {each:.1f} ms a picture")
    print(f"  peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB, ours together")


if __name__ == "__main__":
    main()
