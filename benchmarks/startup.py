"""Start-up: until the first batch is through, against `import torch`; and a wrong configuration, which needs none.

python -m benchmarks.startup
"""

from __future__ import annotations

import functools
import sys
import tempfile
from pathlib import Path

from benchmarks.rounds import ROOT, SHARED, interleave, machine, many_pictures, ratio, run_quietly
from make_task import TaskOptions, make_task

# Ends the process when the first batch is scored, which is before anything is written.
FIRST_BATCH = """
import os, sys, start
from utils import batches
finish = batches.BatchReader._finish
def first(self, count):
    os._exit(0)
batches.BatchReader._finish = first
start.main(sys.argv[1:])
raise SystemExit("no batch came through")
"""


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = many_pictures(Path(scratch) / "pictures", 1)
        weights = (SHARED / "weights/yolov5n.pt",)
        task = make_task(folder, Path(scratch) / "good", "infer", TaskOptions(weights=weights))
        wrong = make_task(
            folder, Path(scratch) / "bad", "infer", TaskOptions(weights=weights, settings={"conf_thres": "x"})
        )
        arguments = [f"--in={task.in_dir}", f"--out={task.out_dir}"]
        slips = [f"--in={wrong.in_dir}", f"--out={wrong.out_dir}"]
        variants = {
            "import torch": functools.partial(run_quietly, [sys.executable, "-c", "import torch"]),
            "import torchvision": functools.partial(run_quietly, [sys.executable, "-c", "import torchvision"]),
            "first batch": functools.partial(run_quietly, [sys.executable, "-c", FIRST_BATCH, *arguments]),
            "whole task, one picture": functools.partial(
                run_quietly, [sys.executable, str(ROOT / "start.py"), *arguments]
            ),
            "wrong configuration": functools.partial(
                run_quietly, [sys.executable, str(ROOT / "start.py"), *slips], code=1
            ),
        }
        times = interleave(variants)
    print(f"start-up, infer with one picture; {machine()}")
    for name, seconds in times.items():
        median_s = sorted(seconds)[len(seconds) // 2]
        print(f"  {name:<24} {ratio(seconds, times['import torch'])} x import torch, {median_s:.2f} s")


if __name__ == "__main__":
    main()
