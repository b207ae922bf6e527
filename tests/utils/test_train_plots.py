"""Pictures of what a network is trained on: boxes where the rows say, and figures of any number of labels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.conftest import ROOT
from utils.plots import class_colour
from utils.train_plots import draw_train_batch, write_labels

NAMES = ("ant", "bee", "cat")


def read_rgb(path: Path) -> Any:
    bgr: Any = cv2.imread(str(path))  # None for what is no picture: then the next line fails
    return bgr[:, :, ::-1].astype(int)


def count_near(picture: Any, colour: tuple[int, int, int]) -> int:
    """Count the pixels of about a colour; JPEG keeps none exactly."""
    return int((np.abs(picture - np.array(colour)).max(axis=2) < 25).sum())


def coco_labels(shared: Path) -> Any:
    files = sorted((shared / "data/coco128/labels/train2017").glob("*.txt"))
    return np.concatenate([np.loadtxt(file, ndmin=2).reshape(-1, 5) for file in files])


# ---- train_batch0.jpg ------------------------------------------------------------------------------------------------


def test_each_picture_has_its_own_boxes_at_their_pixels() -> None:
    pixels = np.full((4, 100, 120, 3), 128, np.uint8)
    rows = np.array([[1, 2, 0.5, 0.6, 0.5, 0.4], [3, 0, 0.5, 0.5, 0.2, 0.2]], np.float32)
    mosaic = draw_train_batch(pixels, rows, NAMES)
    assert mosaic.shape == (200, 240, 3)
    tile = mosaic[:100, 120:]  # 1: x 30 to 90, y 40 to 80
    edge = np.all(tile == class_colour(2), axis=2)
    assert edge[41:80, 30].all() and edge[41:80, 90].all() and edge[80, 30:91].all()
    assert not edge[45:75, 35:85].any()
    for bare in (mosaic[1:99, 1:119], mosaic[101:199, 1:119]):
        assert np.all(bare == 128)
    assert np.all(mosaic[101:199, 121:239] == class_colour(0), axis=2).any()


def test_more_than_16_pictures_are_cut_off_with_their_boxes() -> None:
    pixels = np.full((20, 32, 32, 3), 128, np.uint8)
    rows = np.array([[place, 0, 0.5, 0.5, 0.5, 0.5] for place in range(20)], np.float32)
    assert draw_train_batch(pixels, rows, NAMES).shape == (128, 128, 3)


def test_captions_stand_below_and_change_nothing_above(coco_images: list[Path]) -> None:
    picture: Any = cv2.resize(cv2.imread(str(coco_images[0])), (160, 160))[None]
    none = np.zeros((0, 6), np.float32)
    bare, captioned = (draw_train_batch(picture, none, NAMES, captions) for captions in ((), ("a picture.jpg",)))
    np.testing.assert_array_equal(bare[:135], captioned[:135])
    assert not np.array_equal(bare[135:], captioned[135:])


def test_the_batch_is_left_alone() -> None:
    pixels, rows = np.full((1, 64, 64, 3), 9, np.uint8), np.array([[0, 1, 0.5, 0.5, 0.5, 0.5]], np.float32)
    for array in (pixels, rows):
        array.flags.writeable = False
    draw_train_batch(pixels, rows, NAMES)
    assert np.all(pixels == 9)


# ---- labels.jpg ------------------------------------------------------------------------------------------------------


def test_figures_of_real_labels_are_pictures(shared: Path, tmp_path: Path) -> None:
    labels = coco_labels(shared)
    written = write_labels(labels[:, 0].astype(int), labels[:, 1:], [f"name {n}" for n in range(80)], tmp_path)
    assert [path.name for path in written] == ["labels.jpg", "labels_correlogram.jpg"]
    for path in written:
        assert path.read_bytes()[:2] == b"\xff\xd8"
        assert read_rgb(path).shape == (1500, 1500, 3)


@pytest.mark.parametrize(
    ("count", "names"),
    [(0, 0), (0, 3), (1, 1), (5, 40), (5, 41), (1000, 99), (200_000, 2000)],
    ids=lambda value: str(value),
)
def test_any_number_of_labels_and_classes_is_drawn(count: int, names: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(count)
    class_ids = rng.integers(0, max(names, 1), count, np.int32)
    boxes = rng.random((count, 4), np.float32)
    for path in write_labels(class_ids, boxes, [f"n{n}" for n in range(names)], tmp_path):
        assert read_rgb(path).min() < 60  # the axes at least


def test_classes_have_bars_and_boxes_in_their_colours_as_high_as_their_counts(tmp_path: Path) -> None:
    """Twice as many boxes make twice as much of a bar's colour; a class without has neither bar nor box."""
    class_ids = np.array([0] * 100 + [1] * 50)
    path, _ = write_labels(class_ids, np.full((150, 4), 0.4), NAMES, tmp_path)
    bars, boxes = read_rgb(path)[:720, 150:720], read_rgb(path)[:720, 800:]
    first, second = (count_near(bars, class_colour(class_id)) for class_id in (0, 1))
    assert first == pytest.approx(2 * second, rel=0.1)
    assert second > 1000
    assert count_near(bars, class_colour(2)) == count_near(boxes, class_colour(2)) == 0


def test_places_and_sizes_are_shaded_where_the_boxes_are(tmp_path: Path) -> None:
    """All boxes at the upper left, wide and flat: one dark square in each lower panel."""
    path, _ = write_labels(np.zeros(9, int), np.tile([0.1, 0.2, 0.9, 0.3], (9, 1)), NAMES, tmp_path)
    dark = read_rgb(path)[:, :, 0] < 60
    panel_hw, tops, lefts = (600, 600), 790, (130, 800)
    places = dark[tops + 20 : tops + panel_hw[0] - 20, lefts[0] : lefts[0] + panel_hw[1]]
    sizes = dark[tops + 20 : tops + panel_hw[0] - 20, lefts[1] + 80 : 1460]
    (place_y, place_x), (size_y, size_x) = (np.argwhere(part).mean(axis=0) / part.shape for part in (places, sizes))
    assert place_x < 0.2 and place_y < 0.3
    assert size_x > 0.8 and size_y > 0.6


@pytest.mark.parametrize("name", ["自行车", "$x_1$ {", "_hidden", "", "a\nb", "\U00013000", "x" * 500])
def test_any_name_of_a_class_is_drawn(name: str, tmp_path: Path) -> None:
    for path in write_labels(np.array([0]), np.full((1, 4), 0.5), [name], tmp_path):
        assert read_rgb(path).size


def test_no_window_and_no_list_of_figures_is_used(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from pathlib import Path; from utils.train_plots import write_labels\n"
        "write_labels(np.zeros(0, int), np.zeros((0, 4)), ['a'], Path(sys.argv[1]))\n"
        "sys.exit(bool({'torch', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT).returncode == 0
