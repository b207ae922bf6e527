"""Whole inference and entropy mining, files -> results, against the forward pass alone at the same precision.

python -m benchmarks.inference [--pictures 128]

In one process, so that start-up is apart: per round the forward pass over pictures that lie decoded in memory, then
everything from the files on.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

from utils.process import prepare_process

prepare_process()

from benchmarks.rounds import ROUNDS, SHARED, interleave, machine, many_pictures, ratio  # noqa: E402
from mining.mining_entropy import score_entropy  # noqa: E402
from mining.runner import looks  # noqa: E402
from models.checkpoint import read_checkpoint  # noqa: E402
from models.detector import Detector, make_detector  # noqa: E402
from utils.batches import Batch, BatchReader, Placing  # noqa: E402
from utils.errors import ImageError  # noqa: E402
from utils.passes import cpu_pass  # noqa: E402
from utils.settings import EngineSettings, LoaderSettings, MiningConfig, NmsSettings  # noqa: E402
from ymir.index import Candidate  # noqa: E402
from ymir.results import InferResultWriter  # noqa: E402


def refuse(item: Candidate, error: ImageError) -> None:
    """There are no unreadable pictures here."""
    raise error


def read(items: Sequence[Candidate], letterbox: str, workers: int) -> BatchReader[Candidate]:
    """Begin to read ahead."""
    loader = LoaderSettings(letterbox=letterbox, batch_size=16, workers=workers)
    return BatchReader(items, Placing(letterbox, 640, 32), loader, refuse)


def forward(detector: Detector, batches: Sequence[Batch[Candidate]]) -> None:
    """Run decoded pictures through the network, and nothing else."""
    for batch in batches:
        for _ in detector.maps(batch):
            pass


def infer(detector: Detector, items: Sequence[Candidate], workers: int, result: Path) -> None:
    """Detect in files and write infer-result.json, as start.py does."""
    with InferResultWriter(result, detector.names) as results:
        for batch in read(items, "minimal", workers):
            found = detector.detect(batch, NmsSettings())
            for item, letterbox, detections in zip(batch.items, batch.letterboxes, found):
                results.add(item.index, item.name, detections, letterbox.image_hw)
        results.finish()


def mine(detector: Detector, items: Sequence[Candidate], workers: int) -> None:
    """Score files by entropy."""
    config = MiningConfig(detector.names, algorithm="entropy")
    for batch in read(items, "square", workers):
        for look in looks(batch, detector):
            score_entropy(look, config)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--workers", type=int, nargs="+", default=[4], help="as num_workers_per_gpu, each measured")
    options = parser.parse_args()
    checkpoint = read_checkpoint(SHARED / "weights/yolov5n.pt")
    auto = make_detector(checkpoint, EngineSettings(), 16, cpu_pass(options.pictures))
    exact = make_detector(checkpoint, EngineSettings(precision="fp32"), 16)
    with tempfile.TemporaryDirectory() as scratch:
        folder = many_pictures(Path(scratch) / "pictures", options.pictures)
        items = [Candidate(k, str(path), path) for k, path in enumerate(sorted(folder.iterdir()))]
        minimal, square = list(read(items, "minimal", 2)), list(read(items, "square", 2))
        variants = {
            "forward minimal": functools.partial(forward, auto, minimal),
            "forward square": functools.partial(forward, exact, square),
        }
        for workers in options.workers:
            result = Path(scratch) / "result.json"
            variants[f"infer, {workers} workers"] = functools.partial(infer, auto, items, workers, result)
            variants[f"entropy, {workers} workers"] = functools.partial(mine, exact, items, workers)
        times = interleave(variants, options.rounds)
    print(f"files to results, yolov5n, {options.pictures} pictures of 0.3 MP, {auto.precision}; {machine()}")
    for name, seconds in times.items():
        alone = times["forward square" if name.startswith(("entropy", "forward square")) else "forward minimal"]
        each = 1000 * sorted(seconds)[len(seconds) // 2] / options.pictures
        print(f"  {name:<20} {ratio(seconds, alone)} x the forward pass alone, {each:.1f} ms a picture")


if __name__ == "__main__":
    main()
