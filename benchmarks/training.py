"""Training beside the public peer: pictures a second of an epoch without its validation, whole commands, and quality.

python -m benchmarks.training [--rounds 5] [--precision fp32 bf16]
python -m benchmarks.training --quality 2     # mAP after three epochs at YOLOv5's defaults, so many seeds

The peer can't train without validating (facts, tools/peer.md), so an epoch's time is read off each one's own account:
its progress bar, our line of the epoch.
"""

from __future__ import annotations

import argparse
import csv
import functools
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Callable, Optional

from benchmarks.peer import Value, peer_command, peer_environment
from benchmarks.rounds import ROOT, ROUNDS, SHARED, machine, ratio

WEIGHTS = SHARED / "weights/yolov5n.pt"
PICTURES = 128
# The bar of the last batch: `0/0  0G  0.046 ...: 100%|####| 8/8 [00:50<00:00, 6.27s/it]`.
PEER_BAR = re.compile(r"(\d+)/\1 \[(?:(\d+):)?(\d+):(\d+)<")
OUR_LINE = re.compile(r"epoch \d+ of \d+: .*?([\d.]+) pictures/s, ([\d.]+) GB")


def make_data(folder: Path) -> Path:
    """Copy coco128 into a folder, since the peer writes beside its pictures; give its data.yaml."""
    shutil.copytree(SHARED / "data/coco128/images", folder / "images")
    shutil.copytree(SHARED / "data/coco128/labels", folder / "labels")
    names = (SHARED / "data/coco128/coco128.yaml").read_text().split("names:", 1)[1]
    data = folder / "data.yaml"
    data.write_text(f"path: {folder}\ntrain: images/train2017\nval: images/train2017\nnames:{names}")
    return data


def output_of(command: Sequence[str], environment: Optional[Mapping[str, str]] = None) -> tuple[str, float]:
    """Run a command to its end; give all that it says, and the seconds that it took."""
    begin = time.perf_counter()
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT
    )
    if done.returncode:
        sys.stderr.write(done.stdout[-3000:])
        raise SystemExit(f"{' '.join(command)[:200]} failed")
    return done.stdout, time.perf_counter() - begin


def our_command(data: Path, folder: Path, epochs: int, more: Sequence[str]) -> list[str]:
    """Give our command line."""
    command = [sys.executable, str(ROOT / "train.py"), "--data", str(data), "--weights", str(WEIGHTS)]
    command += ["--epochs", str(epochs), "--batch-size", "16", "--img", "640", "--device", "cpu", "--workers", "2"]
    return [*command, "--project", str(folder.parent), "--name", folder.name, "--exist-ok", *more]


def run_ours(data: Path, scratch: Path, precision: str) -> tuple[float, float]:
    """Train an epoch; give its pictures a second and the seconds of the whole command."""
    text, seconds = output_of(our_command(data, scratch / "ours", 1, ["--precision", precision, "--noplots"]))
    shutil.rmtree(scratch / "ours", ignore_errors=True)
    found = OUR_LINE.search(text)
    if found is None:
        raise SystemExit(f"no epoch in what train.py said: {text[-500:]}")
    return float(found[1]), seconds


def run_peer(data: Path, scratch: Path) -> tuple[float, float]:
    """The same for the peer."""
    options: dict[str, Value] = {"data": data, "epochs": 1, "batch_size": 16, "img": 640, "workers": 2, "noplots": True}
    text, seconds = output_of(peer_command("train", WEIGHTS, options, scratch / "peerx"), peer_environment())
    shutil.rmtree(scratch / "peerx", ignore_errors=True)
    bars = [match for match in PEER_BAR.finditer(text) if match[1] == str(PICTURES // 16)]
    if not bars:
        raise SystemExit(f"no epoch in what the peer said: {text[-500:]}")
    hours, minutes, rest = (int(part or 0) for part in bars[0].groups()[1:])
    return PICTURES / max(3600 * hours + 60 * minutes + rest, 1), seconds


def measure_speed(rounds: int, precisions: Sequence[str]) -> None:
    """Print how many times as fast an epoch and a whole command are."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        data = make_data(scratch / "data")
        variants: dict[str, Callable[[], tuple[float, float]]] = {
            f"ours {name}": functools.partial(run_ours, data, scratch, name) for name in precisions
        }
        variants["peer"] = functools.partial(run_peer, data, scratch)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
        for _ in range(rounds):
            for name, run in variants.items():
                found[name].append(run())
                print(f"  {name}: {found[name][-1][0]:.2f} pictures/s, {found[name][-1][1]:.0f} s in all", flush=True)
    print(f"training yolov5n, 640 px, batch 16, 128 pictures, 2 workers; {machine()}")
    peer = found.pop("peer")
    for name, runs in found.items():
        print(f"  {name}: an epoch {ratio([one[0] for one in runs], [one[0] for one in peer])} x the peer's pictures/s")
        print(f"  {name}: whole command {ratio([one[1] for one in peer], [one[1] for one in runs])} x as fast")


def last_map(results: Path, column: str) -> list[float]:
    """Give a column of results.csv."""
    rows = list(csv.reader(results.read_text().splitlines()))
    names = [name.strip() for name in rows[0]]
    return [float(row[names.index(column)]) for row in rows[1:]]


def measure_quality(seeds: int, precisions: Sequence[str]) -> None:
    """Print mAP after each of three epochs at YOLOv5's defaults."""
    column = "metrics/mAP_0.5:0.95"
    finals: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        data = make_data(scratch / "data")
        for seed in range(seeds):
            for precision in precisions:
                out = scratch / f"ours-{precision}-{seed}x"
                more = ["--precision", precision, "--noplots", "--seed", str(seed)]
                output_of(our_command(data, out, 3, more))
                maps = last_map(out / "results.csv", column)
                finals.setdefault(f"ours {precision}", []).append(maps[-1])
                print(f"  ours {precision}, seed {seed}: {' '.join(f'{value:.4f}' for value in maps)}", flush=True)
            out = scratch / f"peer-{seed}x"
            options: dict[str, Value] = {"data": data, "epochs": 3, "batch_size": 16, "img": 640, "workers": 2}
            output_of(
                peer_command("train", WEIGHTS, {**options, "seed": seed, "noplots": True}, out), peer_environment()
            )
            maps = last_map(out / "results.csv", column)
            finals.setdefault("peer", []).append(maps[-1])
            print(f"  peer, seed {seed}: {' '.join(f'{value:.4f}' for value in maps)}", flush=True)
    for name, values in finals.items():
        print(f"{name}: mean mAP after three epochs {statistics.mean(values):.4f} of {seeds} seeds")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--precision", nargs="+", default=["fp32"])
    parser.add_argument("--quality", type=int, default=0, metavar="SEEDS", help="measure quality instead of speed")
    options = parser.parse_args()
    if options.quality:
        measure_quality(options.quality, options.precision)
    else:
        measure_speed(options.rounds, options.precision)


if __name__ == "__main__":
    main()
