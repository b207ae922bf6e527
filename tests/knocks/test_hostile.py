"""Hostile files and texts through start.py's whole way: each ends in words or does no harm, and none leaves a trace."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import start
from tests.conftest import ROOT
from tests.knocks.tasks import QUICK, Task, missing_of, result_of, tiny_task
from utils.errors import ImageError
from utils.pictures import read_picture
from utils.settings import PictureSettings

Make = Callable[..., Task]


@pytest.fixture
def make(coco_images: list[Path], yolov5n_pt: Path, tmp_path: Path) -> Make:
    return lambda kind, **settings: tiny_task(kind, coco_images, yolov5n_pt, tmp_path / kind, **settings)


class Touch:
    """Pickled, it makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_records_and_statistics_that_are_pickles_do_nothing(make: Make, tmp_path: Path, protocol: int) -> None:
    task = make("mining")
    assert start.main(task.arguments) == 0
    expected = result_of(task, "mining")
    trace = tmp_path / "trace"
    hostile = pickle.dumps(Touch(trace), protocol)
    pickle.loads(hostile)
    assert trace.exists(), "the attack is none"
    trace.unlink()
    (task.out / "mining.0-of-1.records").write_bytes(hostile)
    weights = next((task.folder / "in/models").rglob("*.pt"))
    weights.with_name("mining_stats.safetensors").write_bytes(hostile)
    task.configure(class_balance=0.0001)  # or nobody would read the statistics
    assert start.main(task.arguments) == 0
    assert not trace.exists() and missing_of(task, "mining") == []
    assert sorted(result_of(task, "mining").split()[::2]) == sorted(expected.split()[::2])


@pytest.mark.parametrize(
    "text", ["; touch {0}", "$(touch {0})", "`touch {0}`", "| touch {0}", "--cfg $(touch${{IFS}}{0})"]
)
def test_options_are_never_run_by_a_shell(
    make: Make, tmp_path: Path, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace"
    task = make("train", args_options=f"{QUICK} {text.format(trace)}")
    assert start.main(task.arguments) == 1
    assert capfd.readouterr().err.splitlines()[-1].startswith("error 300001: ")
    assert task.monitor()[3:5] == ["4", "300001"] and not trace.exists()


def png(side: int) -> bytes:
    """A PNG of one colour, a thousandth of its pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    row = b"\0" * (side + 1)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)) + chunk(
        b"IDAT", pixels
    ) + chunk(b"IEND", b"")  # fmt: skip


def by_opencv(suffix: str, side: int) -> bytes:
    return cv2.imencode(suffix, np.zeros((side, side), np.uint8))[1].tobytes()


def lying_tiff(side: int) -> bytes:
    """A small TIFF whose header tells of `side` squared pixels."""
    content = bytearray(by_opencv(".tiff", 16))
    (place,) = struct.unpack_from("<I", content, 4)
    for number in range(struct.unpack_from("<H", content, place)[0]):
        tag, kind = struct.unpack_from("<HH", content, place + 2 + 12 * number)
        if tag in (256, 257):
            struct.pack_into("<H" if kind == 3 else "<I", content, place + 10 + 12 * number, side)
    return bytes(content)


BOMBS = {
    "png": lambda: png(16_000),
    "jpeg": lambda: by_opencv(".jpg", 16_000),
    "webp": lambda: by_opencv(".webp", 16_000),
    "tiff": lambda: lying_tiff(60_000),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_and_costs_no_memory(kind: str, tmp_path: Path) -> None:
    """256 million pixels, 768 MB as colours: more than max_pixels."""
    path = tmp_path / f"bomb.{kind}"
    path.write_bytes(BOMBS[kind]())
    with pytest.raises(ImageError):
        read_picture(path, PictureSettings())
    code = (
        "import sys, resource\nfrom pathlib import Path\nfrom utils.pictures import read_picture\n"
        "from utils.settings import PictureSettings\nfrom utils.errors import ImageError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    read_picture(Path(sys.argv[1]), PictureSettings())\nexcept ImageError:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) < 50_000, f"{done.stdout} KB {done.stderr}"
