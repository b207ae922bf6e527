"""The public peer beside us, same pictures, same weights: detecting and validating, per picture and as whole commands.

python -m benchmarks.against_peer [--what detect onnx val large]

The peer detects with --nosave: drawing pictures, which it does by default, is not counted against it.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.peer import Kind, peer_command, peer_environment
from benchmarks.rounds import ROOT, ROUNDS, SHARED, interleave, machine, many_pictures, ratio, run_quietly, slope
from make_task import TaskOptions, make_task

WEIGHTS = SHARED / "weights/yolov5n.pt"
FRESH = itertools.count()


def run_peer(kind: Kind, options: dict[str, object], scratch: Path, weights: Path = WEIGHTS) -> None:
    """Run the peer once, its results in a folder of their own."""
    out = scratch / f"peer-{next(FRESH)}x"
    run_quietly(peer_command(kind, weights, options, out), peer_environment())  # type: ignore[arg-type]  # values are plain
    shutil.rmtree(out, ignore_errors=True)


def detect_variants(scratch: Path, count: int, peers: Path = WEIGHTS) -> dict[str, Callable[[], None]]:
    """Detect in `count` pictures: start.py infer with the backend that auto picks, and the peer's detect."""
    folder = many_pictures(scratch / f"detect{count}", count)
    task = make_task(folder, scratch / f"task{count}", "infer", TaskOptions(weights=(WEIGHTS,)))
    ours = [sys.executable, str(ROOT / "start.py"), f"--in={task.in_dir}", f"--out={task.out_dir}"]
    options = {"source": folder, "img": 640, "nosave": True}
    return {
        f"ours {count}": functools.partial(run_quietly, ours),
        f"peer {count}": functools.partial(run_peer, "detect", options, scratch, peers),
    }


def onnx_variants(scratch: Path, count: int) -> dict[str, Callable[[], None]]:
    """Detect as above, the peer with the .onnx file that it exported itself, run by onnxruntime."""
    copy = scratch / "exported" / WEIGHTS.name
    if not copy.exists():
        copy.parent.mkdir()
        shutil.copy(WEIGHTS, copy)
        run_quietly(peer_command("export", copy, {"imgsz": [640, 640], "include": ["onnx"]}), peer_environment())
    return detect_variants(scratch, count, copy.with_suffix(".onnx"))


def val_variants(scratch: Path, count: int) -> dict[str, Callable[[], None]]:
    """Validate on `count` pictures, batch 16: val.py and the peer's val, both with their own plots."""
    images = many_pictures(scratch / f"val{count}/images", count)
    labels = scratch / f"val{count}/labels"
    labels.mkdir()
    for link in images.iterdir():
        label = SHARED / "data/coco128/labels/train2017" / f"{link.resolve().stem}.txt"
        (labels / f"{link.stem}.txt").write_text(label.read_text() if label.is_file() else "")
    data = scratch / f"val{count}/data.yaml"
    names = (SHARED / "data/coco128/coco128.yaml").read_text().split("names:", 1)[1]
    data.write_text(f"path: {data.parent}\ntrain: images\nval: images\nnames:{names}")
    ours = [sys.executable, str(ROOT / "val.py"), "--data", str(data), "--weights", str(WEIGHTS), "--batch-size", "16"]
    ours += ["--project", str(scratch / "ours"), "--exist-ok", "--workers", "2"]
    options = {"data": data, "img": 640, "batch_size": 16, "workers": 2}
    return {
        f"ours {count}": functools.partial(run_quietly, ours),
        f"peer {count}": functools.partial(run_peer, "val", options, scratch),
    }


def large_variants(scratch: Path, count: int) -> dict[str, Callable[[], None]]:
    """Detect in pictures of 12 MP, decoded exactly."""
    from benchmarks.pictures import enlarged

    folder = scratch / f"large{count}"
    folder.mkdir()
    for path in sorted((SHARED / "data/coco128/images/train2017").glob("*.jpg"))[:count]:
        enlarged(path, 12, folder / path.name)
    task = make_task(folder, scratch / f"largetask{count}", "infer", TaskOptions(weights=(WEIGHTS,)))
    ours = [sys.executable, str(ROOT / "start.py"), f"--in={task.in_dir}", f"--out={task.out_dir}"]
    options = {"source": folder, "img": 640, "nosave": True}
    return {
        f"ours {count}": functools.partial(run_quietly, ours),
        f"peer {count}": functools.partial(run_peer, "detect", options, scratch),
    }


KINDS = {
    "detect": (detect_variants, 32, 512),
    "onnx": (onnx_variants, 32, 256),
    "val": (val_variants, 32, 512),
    "large": (large_variants, 8, 56),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--many", type=int, default=0, help="pictures of the longer commands, 0: as the table has it")
    options = parser.parse_args()
    for what in options.what:
        make, few, many = KINDS[what]
        many = options.many or many
        with tempfile.TemporaryDirectory() as scratch:
            variants = {**make(Path(scratch), few), **make(Path(scratch), many)}
            times = interleave(variants, options.rounds, [f"ours {few}", f"peer {few}"])
        ours, peer = (slope(times[f"{who} {many}"], times[f"{who} {few}"], many - few) for who in ("ours", "peer"))
        print(f"{what}, yolov5n, 640 px, {few} and {many} pictures; {machine()}")
        print(f"  per picture: {ratio(peer, ours)} x as fast as the peer, {1000 * sorted(ours)[len(ours) // 2]:.1f} ms")
        for count in (few, many):
            print(
                f"  whole command, {count} pictures: {ratio(times[f'peer {count}'], times[f'ours {count}'])} x",
                flush=True,
            )


if __name__ == "__main__":
    main()
