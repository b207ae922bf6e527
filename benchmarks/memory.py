"""Peak memory at 1,000 and 100,000 candidates (tiny pictures): flat but for path and score.

python -m benchmarks.memory [--algorithms random entropy infer]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import yaml

from benchmarks.rounds import ROOT, SHARED, machine
from make_task import TaskOptions, make_task

SCRIPT = (
    "import resource, sys, start; c = start.main(sys.argv[1:]); print(resource.getrusage(0).ru_maxrss); sys.exit(c)"
)


def peak_kb(scratch: Path, what: str, count: int) -> int:
    """Run one task over `count` links to one tiny picture, at 32 px; gives the peak resident memory."""
    pictures = scratch / f"{what}{count}"
    pictures.mkdir()
    cv2.imwrite(str(pictures / "0.png"), np.full((8, 8, 3), 90, np.uint8))
    settings = {"img_size": 32, "mining_algorithm": what if what != "infer" else "random"}
    options = TaskOptions(weights=(SHARED / "weights/yolov5n.pt",), settings=settings)
    task = make_task(pictures, scratch / f"task-{what}{count}", "infer" if what == "infer" else "mining", options)
    names = [f"/in/assets/links/{number:07d}.png" for number in range(count)]
    links = task.in_dir / "assets/links"
    links.mkdir()
    for name in names:
        (links / Path(name).name).symlink_to("../0.png")
    index = yaml.safe_load((task.in_dir / "env.yaml").read_text())["input"]["candidate_index_file"]
    (task.in_dir / Path(index).name).write_text("\n".join(names) + "\n")
    command = [sys.executable, "-c", SCRIPT, f"--in={task.in_dir}", f"--out={task.out_dir}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return int(done.stdout.split()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", nargs="+", default=["random", "entropy", "infer"])
    parser.add_argument("--counts", type=int, nargs=2, default=[1_000, 100_000])
    options = parser.parse_args()
    print(f"peak memory; {machine()}")
    for what in options.what:
        with tempfile.TemporaryDirectory() as scratch:
            few, many = (peak_kb(Path(scratch), what, count) for count in options.counts)
        each = 1024 * (many - few) / (options.counts[1] - options.counts[0])
        print(
            f"  {what:<8} {few / 1024:.0f} MB at {options.counts[0]}, {many / 1024:.0f} MB at {options.counts[1]}: "
            f"{each:.0f} bytes a candidate",
            flush=True,
        )


if __name__ == "__main__":
    main()
