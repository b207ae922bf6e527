"""Sizes: long lists with many broken pictures, and pictures that unpack to gigabytes. Memory is measured."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
from PIL import Image

from tests.knocks.bombs import lossless, png, webp, zeros
from tests.knocks.few import pictures_task
from tests.training.started import ROOT

# The most resident memory that a process had, in KB, behind all that it says itself. Not getrusage's: that counts what
# the test's own process had when it started this one.
SCRIPT = (
    "import re, sys, start; c = start.main(sys.argv[1:]);"
    "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]); sys.exit(c)"
)


def peak_kb(task: Path) -> int:
    """Run a task; gives its peak."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, f"--in={task}/in", f"--out={task}/out"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1])


# --- long lists -------------------------------------------------------------------------------------------------------

BROKEN = {
    "missing": b"",
    "text": b"no picture\n",
    "torn": b"\xff\xd8\xff\xe0\x00\x10JFIF",
}


def long_list(task: Path, count: int) -> set[str]:
    """Name `count` links, each third broken in one of three ways; gives the lines of the good ones."""
    folder = task / "in/assets/links"
    folder.mkdir()
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(folder / "good.png")
    for name, content in BROKEN.items():
        if content:
            (folder / name).write_bytes(content)
    good, lines = set(), []
    for number in range(count):
        line = f"/in/assets/links/{number:06d}.png"
        is_good = number % 3 != 1
        target = "good.png" if is_good else list(BROKEN)[number // 3 % len(BROKEN)]
        (folder / Path(line).name).symlink_to(target)
        lines.append(line)
        if is_good:
            good.add(line)
    (task / "in/candidate-index.tsv").write_text("\n".join(lines) + "\n")
    return good


def check_long_list(task: Path, few: int, many: int) -> float:
    """Mine in a short list and a long one; gives the bytes that a candidate more costs."""
    peaks = []
    for count in (few, many):
        shutil.rmtree(task / "in/assets/links", ignore_errors=True)
        good = long_list(task, count)
        peaks.append(peak_kb(task))
        rows = [row.split("\t") for row in (task / "out/result.tsv").read_text().splitlines()]
        assert len(rows) == count and {line for line, _ in rows[: len(good)]} == good
        last_good = float(rows[len(good) - 1][1])
        assert all(float(score) <= last_good - 1 + 1e-6 for _, score in rows[len(good) :])
    each = 1024 * (peaks[1] - peaks[0]) / (many - few)
    print(f"{peaks[0] // 1024} MB at {few}, {peaks[1] // 1024} MB at {many}: {each:.0f} bytes a candidate")
    return each


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "many"), [("random", 100_000), ("entropy", 12_000)])
def test_a_third_of_a_long_list_is_broken(
    algorithm: str, many: int, coco_images: list[Path], yolov5n_pt: Path, tmp_path: Path
) -> None:
    settings = {"mining_algorithm": algorithm, "img_size": 32, "batch_size_per_gpu": 16}
    task = pictures_task(coco_images[:1], yolov5n_pt, tmp_path, "mining", **settings)
    assert check_long_list(task, 2_000, many) < 1200


# --- bombs ------------------------------------------------------------------------------------------------------------


def saved(kind: str, side: int, **more: object) -> bytes:
    file = io.BytesIO()
    Image.new("L", (side, side)).save(file, kind, **more)
    return file.getvalue()


@dataclass(frozen=True)
class Bomb:
    """A file whose pixels need far more memory than it has bytes."""

    suffix: str
    make: Callable[[], bytes]
    unpacked_mb: int  # as RGB


BOMBS = {
    "PNG": Bomb("png", lambda: png(20_000, zeros(20_000 * 20_001)), 1144),
    "JPEG": Bomb("jpg", lambda: saved("JPEG", 20_000, quality=1), 1144),
    "progressive JPEG": Bomb("jpg", lambda: saved("JPEG", 20_000, quality=1, progressive=True), 1144),
    "WebP": Bomb("webp", lambda: webp(lossless(16_384)), 768),  # Pillow's libwebp makes no such large lossy ones
    "TIFF": Bomb("tiff", lambda: saved("TIFF", 20_000, compression="tiff_adobe_deflate"), 1144),
}


@pytest.fixture(scope="module")
def quiet_kb(tmp_path_factory: pytest.TempPathFactory, coco_images: list[Path], yolov5n_pt: Path) -> int:
    """Give the peak of an inference in one picture."""
    return peak_kb(pictures_task(coco_images[:1], yolov5n_pt, tmp_path_factory.mktemp("quiet"), "infer"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_costs_no_memory(
    kind: str, quiet_kb: int, coco_images: list[Path], yolov5n_pt: Path, tmp_path: Path
) -> None:
    """A whole, valid file of more than max_pixels, eight times in the list: it is named, and never unpacked."""
    bomb = BOMBS[kind]
    task = pictures_task(coco_images[:1], yolov5n_pt, tmp_path, "infer")
    first = (task / "in/candidate-index.tsv").read_text()
    content = bomb.make()
    for number in range(8):
        (task / f"in/assets/bomb{number}.{bomb.suffix}").write_bytes(content)
        first += f"/in/assets/bomb{number}.{bomb.suffix}\n"
    (task / "in/candidate-index.tsv").write_text(first)
    more_mb = (peak_kb(task) - quiet_kb) / 1024
    print(f"{kind}: {len(content) / 1e6:.1f} MB of file, {bomb.unpacked_mb} MB unpacked: {more_mb:.0f} MB more")
    assert more_mb < 40 + 9 * len(content) / 2**20 and more_mb < bomb.unpacked_mb / 4


THREADS = """
import re, sys
from concurrent.futures import ThreadPoolExecutor
from tests.knocks.bombs import lossless, webp
from utils.pictures import decode_picture
from utils.settings import PictureSettings
content, count = webp(lossless(11_400)), int(sys.argv[1])
decode = lambda number: decode_picture(content, str(number), PictureSettings()).full_hw
with ThreadPoolExecutor(count) as pool:
    assert list(pool.map(decode, range(count))) == [(11_400, 11_400)] * count
print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])
"""


def peak_of_threads_mb(count: int) -> int:
    """So many threads each decode a WebP of 36 bytes and 130 megapixels at once; gives the peak."""
    command = [sys.executable, "-c", THREADS, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout) // 1024


@pytest.mark.slow
def test_threads_unpack_the_largest_pictures_one_at_a_time() -> None:
    """Within max_pixels a picture is decoded, however small its file; but never one for each thread at once."""
    one, three = peak_of_threads_mb(1), peak_of_threads_mb(3)
    print(f"{one} MB with one thread, {three} MB with three")
    assert one > 500 and three < 1.3 * one
