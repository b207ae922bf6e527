"""cald (paper mode, fp32) against the forward pass alone, both from decoded pictures on: each has four copies.

python -m benchmarks.mining_cald [--pictures 32]
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

from utils.process import prepare_process

prepare_process()

from benchmarks.inference import forward, refuse  # noqa: E402
from benchmarks.rounds import ROUNDS, SHARED, interleave, machine, many_pictures, ratio  # noqa: E402
from mining.mining_cald import score_cald  # noqa: E402
from mining.runner import looks  # noqa: E402
from models.checkpoint import read_checkpoint  # noqa: E402
from models.detector import Detector, make_detector  # noqa: E402
from utils.batches import Batch, BatchReader, Placing, load_whole  # noqa: E402
from utils.passes import CPU_PASS  # noqa: E402
from utils.settings import LoaderSettings, MiningConfig  # noqa: E402
from ymir.index import Candidate  # noqa: E402


def mine(detector: Detector, batches: Sequence[Batch[Candidate]], config: MiningConfig) -> list[float]:
    """Score decoded pictures; the scores."""
    scores = []
    for batch in batches:
        for look in looks(batch, detector):
            scores += [scored.score for scored in score_cald(look, config)]
    return scores


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--side", type=int, default=640)
    options = parser.parse_args()
    config = MiningConfig((), algorithm="cald")
    # As mine.py makes it: eight pictures a pass.
    detector = make_detector(read_checkpoint(SHARED / "weights/yolov5n.pt"), config.engine, 16, CPU_PASS)
    with tempfile.TemporaryDirectory() as scratch:
        folder = many_pictures(Path(scratch) / "pictures", options.pictures)
        items = [Candidate(k, str(path), path) for k, path in enumerate(sorted(folder.iterdir()))]
        loader = LoaderSettings(options.side, "square", batch_size=16, workers=2)
        batches = list(BatchReader(items, Placing("square", options.side, 32), loader, refuse, loading=load_whole))
    empty = sum(score > 0 for score in mine(detector, batches, config))
    variants: dict[str, Callable[[], object]] = {
        "forward": functools.partial(forward, detector, batches),
        "cald": functools.partial(mine, detector, batches, config),
    }
    times = interleave(variants, options.rounds, warm=["forward"])  # cald is warm from counting
    print(f"cald, paper mode, yolov5n fp32, {options.pictures} pictures at {options.side}, {empty} without boxes")
    print(f"  {machine()}")
    for name, seconds in times.items():
        each = 1000 * sorted(seconds)[len(seconds) // 2] / options.pictures
        print(f"  {name:<8} {ratio(seconds, times['forward'])} x the forward pass alone, {each:.1f} ms a picture")


if __name__ == "__main__":
    main()
