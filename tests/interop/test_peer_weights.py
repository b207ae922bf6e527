"""Weights that the public peer trained and saved are read, and find what the peer finds with them; and ours there.

Slow, and skipped where the peer isn't made: `make interop` makes it and runs these.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

import detect
from benchmarks.peer import PEER, Value, peer_command, peer_environment
from tests.conftest import ROOT
from tests.labelled import labelled_folder
from utils.boxes import ious, to_xyxy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (PEER / "made").is_file(), reason="the peer is not made: make interop"),
]
SIDE, CONF = 320, 0.05


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, coco_images: list[Path], yolov5n_pt: Path) -> Path:
    """A folder of pictures and, in weights/, what one epoch of the peer's training leaves."""
    folder = tmp_path_factory.mktemp("peer")
    data = labelled_folder(coco_images[:48], yolov5n_pt, folder)
    options: dict[str, Value] = {
        "data": data,
        "epochs": 1,
        "batch_size": 16,
        "img": 160,
        "workers": 1,
        "save_period": 1,
    }
    run(peer_command("train", yolov5n_pt, options, folder / "runs"))
    shutil.copytree(folder / "runs/weights", folder / "weights")
    return folder


def run(command: list[str]) -> None:
    environment = {**peer_environment(), "OMP_NUM_THREADS": str(os.cpu_count())}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]


def read(path: Path) -> np.ndarray:
    """(N, 6): class, cx, cy, w, h in 0..1, score."""
    return np.loadtxt(path, ndmin=2) if path.is_file() else np.zeros((0, 6))


@dataclass(frozen=True, eq=False)
class Alone:
    """A box that only one of two found. row: class, cx, cy, w, h, score."""

    row: np.ndarray
    is_close_call: bool


def assert_both_find_the_same(weights: Path, trained: Path, tmp_path: Path) -> None:
    """Let the peer and detect.py look at the same pictures with the same file, and compare their texts."""
    options: dict[str, Value] = {"source": trained / "images", "data": trained / "data.yaml", "img": SIDE}
    options.update(conf_thres=CONF, save_txt=True, save_conf=True, nosave=True)
    run(peer_command("detect", weights, options, tmp_path / "theirs"))
    arguments = ["--source", str(trained / "images"), "--weights", str(weights), "--img", str(SIDE), "--save-txt"]
    arguments += ["--save-conf", "--conf-thres", str(CONF), "--nosave", "--precision", "fp32", "--device", "cpu"]
    assert detect.main([*arguments, "--project", str(tmp_path), "--name", "ours"]) == 0
    compared = odd = 0
    for picture in sorted((trained / "images").glob("*.jpg")):
        ours, theirs = (read(tmp_path / who / f"labels/{picture.stem}.txt") for who in ("ours", "theirs"))
        alone = [*without_partner(ours, theirs, picture), *without_partner(theirs, ours, picture)]
        compared, odd = compared + len(ours) + len(theirs), odd + len(alone)
        unexplained = not_by_a_close_call(alone)
        assert not unexplained, f"{picture.name}: {unexplained[0]}"
    assert compared > 100 and odd < 0.01 * compared


def without_partner(one: np.ndarray, others: np.ndarray, picture: Path) -> Iterator[Alone]:
    """Give the boxes of `one` that no box of the others equals, but for rounding."""
    pixels = cv2.imread(str(picture))
    assert pixels is not None
    height, width = pixels.shape[:2]
    tolerance_px = 0.5 * max(height, width) / SIDE + 1.01  # half an input pixel, and corners rounded to whole ones
    for row in one[one[:, 5] > CONF + 0.002]:
        same = others[others[:, 0] == row[0]]
        near = same[abs(same[:, 5] - row[5]) < 2e-3]
        gaps = abs(near[:, 1:5] - row[1:5]) * [width, height, width, height]
        if not (gaps.max(1, initial=0) <= 2 * tolerance_px).any() or not len(near):
            overlaps = overlaps_of(row, same[same[:, 5] > row[5]])
            yield Alone(row, bool((abs(overlaps - 0.45) < 0.05).any()))


def not_by_a_close_call(alone: list[Alone]) -> list[Alone]:
    """Give those that no close call explains.

    The peer moves classes apart by adding 7680 px each in fp32, which rounds corners to 1/32 px: a box that overlaps a
    better one by just .45 (.05 more or less, for whole pixels) may come or go, and with it those that it suppresses.
    """
    known = [one for one in alone if one.is_close_call]
    rest = [one for one in alone if not one.is_close_call]
    for _ in range(len(rest)):
        rows = np.array([one.row for one in known]).reshape(-1, 6)
        more = [one for one in rest if (overlaps_of(one.row, rows[rows[:, 0] == one.row[0]]) > 0.4).any()]
        known += more
        rest = [one for one in rest if one not in more]
    return rest


def overlaps_of(row: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The IoU of a box with each of the others."""
    shares: np.ndarray = ious(to_xyxy(row[None, 1:5]), to_xyxy(others[:, 1:5]))[0]
    return shares


@pytest.mark.parametrize("file", ["best.pt", "last.pt", "epoch0.pt"])
def test_the_peers_weights_find_what_the_peer_finds(file: str, trained: Path, tmp_path: Path) -> None:
    assert_both_find_the_same(trained / "weights" / file, trained, tmp_path)


@pytest.fixture(scope="module")
def ours(trained: Path, yolov5n_pt: Path) -> Path:
    """The weights folder of an epoch of our own training on the same pictures."""
    arguments = [
        "--data",
        str(trained / "data.yaml"),
        "--weights",
        str(yolov5n_pt),
        "--epochs",
        "1",
        "--img",
        str(SIDE),
    ]
    arguments += ["--batch-size", "16", "--workers", "1", "--device", "cpu"]
    command = [sys.executable, "train.py", *arguments, "--project", str(trained), "--name", "ours"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    return trained / "ours/weights"


@pytest.mark.parametrize("file", ["best.pt", "last.pt"])
def test_the_peer_finds_with_what_we_trained_what_we_find(file: str, ours: Path, trained: Path, tmp_path: Path) -> None:
    assert_both_find_the_same(ours / file, trained, tmp_path)
