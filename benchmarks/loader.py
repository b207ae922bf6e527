"""Training pictures a second: mosaics at 640, ours and the public peer's, and where a sample's time goes.

python -m benchmarks.loader [--ours]
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Optional

import cv2
import numpy as np

from benchmarks.peer import PEER, peer_environment
from benchmarks.rounds import ROUNDS, SHARED, interleave, machine, ratio
from utils.augment import shift_colours
from utils.hyp import Hyp, hyp_as_dict
from utils.label_scan import scan_labels
from utils.label_table import LabelTable
from utils.labelled import yolo_set
from utils.picture_store import PictureStore, Pixels, StoreSettings
from utils.pictures import read_picture
from utils.progress import Progress
from utils.settings import PictureSettings
from utils.stopwatch import Stopwatch
from utils.training_loader import TrainLoader, epoch_order
from utils.training_set import SampleSettings, TrainingSet, generator

SIDE = 640
BATCH = 16
CORES = os.cpu_count() or 1
PICTURES = PictureSettings(turn=True)

EPOCHS = 3  # of a turn
# Its processes work ahead, also while it isn't their turn: batches that were ready when a turn began are not timed.
PEER_AHEAD, PEER_SETTLES_S = 2 * CORES, 3.0

# Runs in the peer's environment: drives its public loader function, a turn for each line that it is sent.
PEER_SCRIPT = """
import json, sys, time
images, side, batch, workers, hyp, cache, epochs, ahead = json.loads(sys.argv[1])
out, sys.stdout = sys.stdout, sys.stderr
from yolov5.utils.dataloaders import create_dataloader
loader, _ = create_dataloader(
    images, side, batch, 32, hyp=hyp, augment=True, cache=cache or None, workers=workers, shuffle=True
)
for _ in sys.stdin:
    count, number = 0, 0
    for _ in range(epochs):
        for pixels, *_ in loader:
            number += 1
            if number > ahead:
                count += len(pixels)
            else:
                begin = time.perf_counter()
    print(json.dumps([count, time.perf_counter() - begin]), file=out, flush=True)
"""


class TimedStore(PictureStore):
    """A store that counts what reading from it takes."""

    def __init__(self, table: LabelTable, settings: StoreSettings, clock: Stopwatch) -> None:
        super().__init__(table, settings)
        self._clock = clock

    def read(self, index: int) -> Optional[Pixels]:
        """Give a picture."""
        with self._clock.timing("read"):
            return super().read(index)


def real_table() -> LabelTable:
    """The labels of the 128 real pictures."""
    images = sorted((SHARED / "data/coco128/images/train2017").glob("*.jpg"))
    names = [str(class_id) for class_id in range(80)]
    return scan_labels(yolo_set(names, images), PICTURES, CORES, None, "yolo", Progress()).table


def print_parts(table: LabelTable) -> None:
    """Measure one thread's milliseconds for each sample, part by part."""
    cv2.setNumThreads(0)
    clock = Stopwatch()
    store = TimedStore(table, StoreSettings(SIDE, PICTURES), clock)
    training_set = TrainingSet(table, store, Hyp(), SampleSettings(SIDE))
    canvas = np.empty((SIDE, SIDE, 3), np.uint8)
    count = len(table)
    for index in range(count):
        with clock.timing("sample"):
            training_set.sample(index, 0, canvas)
        with clock.timing("colours"):
            shift_colours(canvas, Hyp(), generator(index))
        with clock.timing("decode"):
            rgb = read_picture(table.shots[index].path, PICTURES).rgb
        height, width = store.hw(index)
        with clock.timing("resize"):
            if rgb.shape[:2] != (height, width):
                cv2.resize(rgb, (width, height))
    sample, read, colours = (clock.ms_each(part, count) for part in ("sample", "read", "colours"))
    decode, resize = clock.ms_each("decode", count), clock.ms_each("resize", count)
    print(f"a mosaic sample of {SIDE}, one thread, {count} of them: {sample:.1f} ms, of which")
    share = decode / (decode + resize)
    parts = {
        "read and decode": read * share,
        "resize": read * (1 - share),
        "draw, warp, labels, flips": sample - read - colours,
        "HSV": colours,
    }
    for name, milliseconds in parts.items():
        print(f"  {name:<26}{milliseconds:>7.2f} ms  {100 * milliseconds / sample:>4.0f} %")
    print(f"  (one picture: decode {decode:.2f} ms, resize {resize:.2f} ms)")


def run_epoch(table: LabelTable, store: PictureStore, workers: int) -> int:
    """Take an epoch's batches and let them go; gives how many pictures there were."""
    loader = TrainLoader(TrainingSet(table, store, Hyp(), SampleSettings(SIDE)), BATCH, workers)
    return sum(len(batch.pixels) for batch in loader.batches(epoch_order(len(table), 0, 0, shuffle=True), 0))


def print_rates(table: LabelTable) -> None:
    """Measure pictures a second with no cache and with all in memory."""
    for cache in ("", "ram"):
        store = PictureStore(table, StoreSettings(SIDE, PICTURES, cache))
        store.fill(CORES)
        variants = {f"{workers}": functools.partial(run_epoch, table, store, workers) for workers in sorted({1, CORES})}
        for workers, seconds in interleave(variants, rounds=3).items():
            rate = len(table) / statistics.median(seconds)
            print(f"  cache {cache or 'none':<5} workers {workers:>2}: {rate:>7.1f} pictures/s")


class PeerLoader:
    """The peer's loader in a process of its own; `rate` takes a turn's batches there."""

    def __init__(self, images: Path, workers: int, cache: str) -> None:
        told = json.dumps([str(images), SIDE, BATCH, workers, hyp_as_dict(Hyp()), cache, EPOCHS, PEER_AHEAD])
        self._process = subprocess.Popen(
            [str(PEER / "bin/python"), "-c", PEER_SCRIPT, told],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=peer_environment(),
            cwd=images.parent,
        )

    def rate(self) -> float:
        """Let it make a turn's batches; gives pictures a second."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("the peer's loader ended; run its script by hand to see why")
        count, seconds = json.loads(answer)
        return float(count / seconds)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def print_against_peer(table: LabelTable, scratch: Path) -> None:
    """Compare epochs in turns; the peer gets copies of the data, since it writes caches beside them."""
    for part in ("images", "labels"):
        shutil.copytree(SHARED / "data/coco128" / part / "train2017", scratch / part / "train2017")
    workers = CORES
    for cache in ("", "ram"):
        store = PictureStore(table, StoreSettings(SIDE, PICTURES, cache))
        store.fill(workers)
        peer = PeerLoader(scratch / "images/train2017", workers, cache)
        ours, theirs = [], []
        try:
            for _ in range(ROUNDS):
                time.sleep(PEER_SETTLES_S)
                begin = time.perf_counter()
                count = sum(run_epoch(table, store, workers) for _ in range(EPOCHS))
                ours.append(count / (time.perf_counter() - begin))
                theirs.append(peer.rate())
        finally:
            peer.close()
        print(
            f"  cache {cache or 'none':<5} ours {statistics.median(ours):.1f}, peer {statistics.median(theirs):.1f} "
            f"pictures/s; ours over the peer {ratio(ours, theirs)}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--ours", action="store_true", help="leave the peer's loader out")
    arguments = parser.parse_args()
    table = real_table()
    print(f"{machine()}; batches of {BATCH}, {ROUNDS} rounds against the peer")
    print_parts(table)
    print_rates(table)
    if not arguments.ours and (PEER / "made").is_file():
        with tempfile.TemporaryDirectory() as scratch:
            print_against_peer(table, Path(scratch))


if __name__ == "__main__":
    begin = time.perf_counter()
    main()
    print(f"took {time.perf_counter() - begin:.0f} s")
