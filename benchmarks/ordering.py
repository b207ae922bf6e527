"""Time and memory of mining's order at 10,000, 100,000 and 1,000,000 candidates with clustered random features.

python -m benchmarks.ordering [--counts 10000 100000] [--channels 256] [--classes 80] [--options likeness classes]

Features are drawn when they are asked for, so that the memory is the order's own; each figure is of a new process.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np

from benchmarks.rounds import ROOT, machine
from mining.ranking import OrderOptions, Pool, order_of
from utils.stats import FEATURE_UNIT

OPTIONS = {
    "plain": OrderOptions(),
    "likeness": OrderOptions(diversity=1.0, dedup=True),
    "diverse": OrderOptions(diverse=True),
    "classes": OrderOptions(class_balance=1.0),
    "all": OrderOptions(diversity=1.0, dedup=True, class_balance=1.0, explore=0.1),
    "cald": OrderOptions(cald_balance=True),
}
SCENES = 0.25  # of the candidates: on average four pictures of a scene
SPREAD = 0.25  # of a scene's pictures, beside a length of about 1


def drawn_features(count: int, channels: int) -> Callable[[Any], Any]:
    """Give what draws the features of some candidates; a scene has a kind, kinds are few."""
    random = np.random.default_rng(0)
    kinds, scenes, noise = (random.normal(size=(number, channels)).astype(np.float32) for number in (50, 997, 1009))
    scene_of = random.integers(0, max(int(count * SCENES), 1), count)

    def read(rows: Any) -> Any:
        rows = np.asarray(rows)
        scene = scene_of[rows]
        vectors = kinds[scene % len(kinds)] + scenes[scene % len(scenes)] + 0.5 * scenes[scene // 3 % len(scenes)]
        vectors = np.abs(vectors) + SPREAD * noise[rows % len(noise)]
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.round(FEATURE_UNIT * vectors / lengths).astype(np.int16)

    return read


def drawn_classes(count: int, classes: int) -> Callable[[Any], Any]:
    """Give what draws the classes' figures of some candidates: many small ones, few large ones."""
    table = np.random.default_rng(1).random((min(count, 9973), classes), np.float32) ** 8
    return lambda rows: table[np.asarray(rows) % len(table)]


def measure(name: str, count: int, channels: int, classes: int) -> str:
    """Put one pool into an order; gives the seconds and the megabytes it took."""
    random = np.random.default_rng(2)
    of_classes = drawn_classes(count, classes)
    pool = Pool(
        random.random(count).round(6),
        random.permutation(count).astype(np.int64),
        random.integers(0, 2**63, count).astype(np.uint64),
        drawn_features(count, channels),
        of_classes,
        of_classes,
    )
    before = memory_kb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # count the peak from here
    start = time.perf_counter()
    order = order_of(pool, OPTIONS[name])
    seconds = time.perf_counter() - start
    megabytes = (memory_kb("VmHWM") - before) / 1024
    return f"{seconds:8.2f} s {megabytes:6.0f} MB, {len(order.duplicates)} near-duplicates"


def memory_kb(name: str) -> int:
    """Give a line of what Linux says of this process's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument("--alone", action="store_true", help="measure in this process")
    options = parser.parse_args()
    if options.alone:
        print(measure(options.options[0], options.counts[0], options.channels, options.classes))
        return
    print(f"mining's order, {options.channels} channels, {options.classes} classes; {machine()}")
    shape = [f"--channels={options.channels}", f"--classes={options.classes}"]
    for name in options.options:
        for count in options.counts:
            command = [sys.executable, "-m", "benchmarks.ordering", "--alone", "--options", name, *shape]
            done = subprocess.run([*command, "--counts", str(count)], cwd=ROOT, capture_output=True, text=True)
            print(f"  {name:<8} {count:>9} candidates {done.stdout.strip() or done.stderr[-500:]}", flush=True)


if __name__ == "__main__":
    main()
