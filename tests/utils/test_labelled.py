"""Reading labelled pictures ahead: order, batches, labels, and what is left out."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import numpy as np
import pytest

from utils.batches import Shot
from utils.errors import DatasetError
from utils.labelled import LabelledReader, LabelledSet, yolo_set
from utils.labels import Labels, yolo_label_path
from utils.settings import LoaderSettings

NAMES = [str(class_id) for class_id in range(80)]


@pytest.fixture
def labelled(coco_images: list[Path]) -> LabelledSet:
    return yolo_set(NAMES, coco_images[:10])


def settings(batch_size: int = 4, workers: int = 2) -> LoaderSettings:
    return LoaderSettings(64, batch_size=batch_size, workers=workers)


def test_rectangles_come_sorted_by_shape_and_path(coco_images: list[Path]) -> None:
    backwards = yolo_set(NAMES, coco_images[40::-1])
    reader = LabelledReader(backwards, settings(3, 0), 32)
    seen = [
        (box.image_hw, shot.path) for one in reader for shot, box in zip(one.pictures.items, one.pictures.letterboxes)
    ]
    assert len(seen) == 41 > len({hw for hw, _ in seen})
    assert seen == sorted(seen, key=lambda pair: (pair[0][0] / pair[0][1], pair[1]))


def test_the_whole_square_keeps_the_order(labelled: LabelledSet) -> None:
    batches = list(LabelledReader(labelled, settings(), 32, is_rect=False))
    assert [shot.index for one in batches for shot in one.pictures.items] == list(range(10))
    assert {one.pictures.canvas_hw for one in batches} == {(64, 64)}
    assert [len(one.labels) for one in batches] == [4, 4, 2]


def test_each_picture_comes_with_its_labels(labelled: LabelledSet) -> None:
    for one in LabelledReader(labelled, settings(), 32):
        for shot, box, labels in zip(one.pictures.items, one.pictures.letterboxes, one.labels):
            lines = yolo_label_path(shot.path).read_text().splitlines()
            assert labels.class_ids.tolist() == [int(line.split()[0]) for line in lines]
            height, width = box.image_hw
            assert (labels.boxes_px <= [width, height, width, height]).all()


def test_what_cannot_be_read_is_counted(tmp_path: Path, coco_images: list[Path]) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    os.mkfifo(tmp_path / "pipe.jpg")
    reader = LabelledReader(yolo_set(NAMES, [bad, coco_images[0], tmp_path / "pipe.jpg"]), settings(), 32)
    assert [shot.path for one in reader for shot in one.pictures.items] == [coco_images[0]]
    assert reader.unreadable.count == 2


def test_a_refused_picture_is_not_opened(coco_images: list[Path]) -> None:
    shots = (Shot(0, coco_images[0], "points out of the folder"), Shot(1, coco_images[1]))
    labelled = LabelledSet(("a",), shots, yolo_set(NAMES, []).labels_of)
    for is_rect in (True, False):
        reader = LabelledReader(labelled, settings(), 32, is_rect)
        assert [shot.index for one in reader for shot in one.pictures.items] == [1]
        assert reader.unreadable.examples == ["points out of the folder"]


def test_faults_are_added_up(tmp_path: Path, coco_images: list[Path]) -> None:
    (tmp_path / "images").mkdir()
    images = [tmp_path / "images" / f"{number}.jpg" for number in range(3)]
    for path in images:
        path.symlink_to(coco_images[0])
    reader = LabelledReader(yolo_set(NAMES, images), settings(), 32)
    assert next(iter(reader)).labels[0].class_ids.size == 0
    assert [line.partition(";")[0] for line in reader.faults.lines()] == ["pictures without labels, taken as empty: 3"]


def test_a_label_that_is_no_file_is_an_error(tmp_path: Path, coco_images: list[Path]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels/0.txt").mkdir(parents=True)
    (tmp_path / "images/0.jpg").symlink_to(coco_images[0])
    with pytest.raises(DatasetError, match=r"0\.txt: is not a regular file"):
        list(LabelledReader(yolo_set(NAMES, [tmp_path / "images/0.jpg"]), settings(), 32))


def test_labels_of_read_ahead_pictures_are_not_kept(coco_images: list[Path]) -> None:
    """At no moment there are labels of more pictures than are under way."""
    made: list[weakref.ref[Labels]] = []
    plain = yolo_set(NAMES, coco_images[:60])

    def labels_of(shot: Shot, image_hw: tuple[int, int]) -> Labels:
        labels = plain.labels_of(shot, image_hw)
        made.append(weakref.ref(labels))
        return labels

    most = 0
    for _ in LabelledReader(LabelledSet(plain.names, plain.shots, labels_of), settings(2, 2), 32, is_rect=False):
        most = max(most, sum(reference() is not None for reference in made))
    assert len(made) == 60
    assert most <= 12  # two batches ahead, the threads, and the batch in hand


def test_an_empty_set_gives_nothing() -> None:
    assert list(LabelledReader(yolo_set(NAMES, []), settings(), 32)) == []


def test_boxes_are_in_the_pictures_own_pixels(coco_images: list[Path]) -> None:
    one = next(iter(LabelledReader(yolo_set(NAMES, coco_images[:1]), settings(), 32)))
    first = yolo_label_path(coco_images[0]).read_text().split("\n")[0].split()
    cx, cy, w, h = map(float, first[1:])
    height, width = one.pictures.letterboxes[0].image_hw
    expected = [(cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height]
    np.testing.assert_allclose(one.labels[0].boxes_px[0], expected, atol=0.01)


def test_ranks_share_the_pictures_on_the_canvases_of_one(coco_images: list[Path]) -> None:
    whole = yolo_set(NAMES, coco_images[:13])

    def canvases(batch_size: int, share: tuple[int, int]) -> dict[int, tuple[int, int]]:
        reader = LabelledReader(whole, settings(batch_size, 0), 32, share=share)
        return {shot.index: one.pictures.canvas_hw for one in reader for shot in one.pictures.items}

    parts = [canvases(2, (rank, 3)) for rank in range(3)]
    assert [len(part) for part in parts] == [5, 4, 4]
    assert {index: hw for part in parts for index, hw in part.items()} == canvases(6, (0, 1))
