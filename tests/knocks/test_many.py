"""A list of a hundred thousand pictures of which a third is broken: flat memory, and every good one scored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.conftest import ROOT
from tests.knocks.tasks import Task, tiny_task

SCRIPT = (
    "import resource, sys, start; code = start.main(sys.argv[1:]);"
    "print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
)
MOST_GROWTH_KB = 300_000  # 3 KB a line: names, scores, records' places; a decoded picture kept for each had 1.2 GB


def peak_kb(task: Task, kind: str, count: int) -> int:
    folder = task.folder / f"in/assets/many{count}"
    folder.mkdir()
    names = []
    for number in range(count):
        is_broken = number % 3 == 2
        name = f"{number:06d}.{'jpg' if is_broken else 'png'}"
        (folder / name).symlink_to(("../broken.jpg", "../missing.jpg")[number % 2] if is_broken else "../tiny.png")
        names.append(name)
    lines = [f"/in/assets/{folder.name}/{name}" for name in names]
    (task.folder / "in/candidate-index.tsv").write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *task.arguments], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    code, peak = done.stdout.split()[-2:]
    assert code == "0", done.stderr[-2000:]
    if kind == "mining":
        rows = [row.split("\t") for row in (task.out / "result.tsv").read_text().splitlines()]
        assert sorted(row[0] for row in rows) == sorted(lines)
        good = {row[0] for row in rows[: len(lines) - count // 3]}
        assert all(line.endswith(".png") for line in good), "a broken one before a good one"
    else:
        assert set(json.loads((task.out / "infer-result.json").read_text())["detection"]) == set(names)
    return int(peak)


@pytest.mark.parametrize(
    ("kind", "count"),
    [pytest.param("mining", 100_000, marks=pytest.mark.slow), pytest.param("infer", 100_000, marks=pytest.mark.slow)],
)
def test_a_long_list_with_broken_pictures(
    kind: str, count: int, coco_images: list[Path], yolov5n_pt: Path, tmp_path: Path
) -> None:
    settings = {"batch_size_per_gpu": 64, **({"mining_report": False} if kind == "mining" else {})}
    task = tiny_task(kind, coco_images, yolov5n_pt, tmp_path, **settings)
    cv2.imwrite(str(task.folder / "in/assets/tiny.png"), np.full((64, 64, 3), 90, np.uint8))
    (task.folder / "in/assets/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    few = peak_kb(task, kind, 300)
    many = peak_kb(task, kind, count)
    print(f"{kind}: {few} KB with 300 lines, {many} KB with {count}")
    assert many - few < MOST_GROWTH_KB
