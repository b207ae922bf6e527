"""A task's index files and annotations -> TrainingData: four formats, told or found, give the same labels."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from make_task import TaskOptions, make_task
from tests.test_start import edit
from utils.errors import ConfigError, DatasetError, ImageError
from utils.label_scan import scan_labels
from utils.label_table import LabelTable
from utils.labelled import LabelledSet
from utils.labels import LabelSource as Source
from utils.labels import PictureFile, read_yolo
from utils.pictures import read_picture_hw
from utils.progress import Progress
from utils.settings import PictureSettings
from ymir.config import TaskConfig, read_task
from ymir.training_data import ymir_training_data

PICTURES = 4
FORMATS = ("ark", "voc", "coco", "yolo")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, coco_images: list[Path]) -> Path:
    """The data.yaml of four real pictures, native YOLOv5."""
    folder = tmp_path_factory.mktemp("source")
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for image in coco_images[:PICTURES]:
        shutil.copy(image, folder / "images")
        shutil.copy(image.parents[2] / "labels/train2017" / f"{image.stem}.txt", folder / "labels")
    names = [f"class {number}" for number in range(80)]
    (folder / "data.yaml").write_text(yaml.safe_dump({"train": "images", "val": "images", "names": names}))
    return folder / "data.yaml"


def make(source: Path, place: Path, kind: str) -> Path:
    """Make a task with annotations of one format; give its /in."""
    options = TaskOptions(label_format=kind if kind != "yolo" else "ark", placing="copy")
    in_dir = make_task(source, place, "train", options).in_dir
    if kind == "yolo":
        for path in (in_dir / "annotations").rglob("*.txt"):
            shutil.copy(source.parent / "labels" / path.name, path)
        edit(in_dir / "config.yaml", export_format="yolo:raw")
    return in_dir


def read(in_dir: Path) -> TaskConfig:
    return read_task(in_dir, in_dir.parent / "out")


def scanned(labelled: LabelledSet) -> LabelTable:
    return scan_labels(labelled, PictureSettings(), 1, None, "", Progress()).table


@pytest.mark.parametrize("is_told", [True, False])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_boxes_that_people_drew(kind: str, is_told: bool, source: Path, tmp_path: Path) -> None:
    in_dir = make(source, tmp_path, kind)
    if not is_told:
        edit(in_dir / "config.yaml", export_format=None)
    data = ymir_training_data(read(in_dir))
    assert data.names[:2] == ("class 0", "class 1") and len(data.names) == 80
    for labelled in (data.train, data.val):
        table = scanned(labelled)
        assert len(table) == PICTURES
        for index, shot in enumerate(table.shots):
            hw = read_picture_hw(shot.path, PictureSettings())
            drawn = read_yolo(
                source.parent / "labels" / f"{shot.path.stem}.txt", PictureFile(shot.path, hw), Source(data.names)
            )
            class_ids, boxes_px = table.labels(index)
            assert class_ids.tolist() == drawn.class_ids.tolist()
            assert np.abs(boxes_px - drawn.boxes_px).max(initial=0) <= (0.51 if kind in ("ark", "voc") else 0.01)


def test_one_annotation_that_is_missing_leaves_out_one_picture(source: Path, tmp_path: Path) -> None:
    in_dir = make(source, tmp_path, "ark")
    first = sorted((in_dir / "annotations").rglob("*.txt"))[0]
    first.unlink()
    scan = scan_labels(ymir_training_data(read(in_dir)).train, PictureSettings(), 1, None, "", Progress())
    assert len(scan.table) == PICTURES - 1
    assert scan.unreadable.count == 1 and first.name in scan.unreadable.examples[0]


def test_a_line_without_annotation_is_left_out_and_named(source: Path, tmp_path: Path) -> None:
    in_dir = make(source, tmp_path, "voc")
    index = in_dir / "train-index.tsv"
    rows = index.read_text().splitlines()
    index.write_text("\n".join([rows[0].split("\t")[0], *rows[1:]]) + "\n")
    scan = scan_labels(ymir_training_data(read(in_dir)).train, PictureSettings(), 1, None, "", Progress())
    assert len(scan.table) == PICTURES - 1
    assert "train-index.tsv names no annotation" in scan.unreadable.examples[0]


def test_a_damaged_coco_file_is_an_error_for_all(source: Path, tmp_path: Path) -> None:
    in_dir = make(source, tmp_path, "coco")
    next((in_dir / "annotations").rglob("*.json")).write_text("{")
    with pytest.raises(DatasetError, match=r"coco-annotations\.json"):
        scanned(ymir_training_data(read(in_dir)).train)


def test_a_damaged_voc_file_leaves_out_one_picture(source: Path, tmp_path: Path) -> None:
    in_dir = make(source, tmp_path, "voc")
    file = sorted((in_dir / "annotations").rglob("*.xml"))[0]
    file.write_text("<annotation>")
    data = ymir_training_data(read(in_dir))
    with pytest.raises(ImageError, match=re.escape(file.name)):
        for shot in data.train.shots:
            data.train.labels_of(shot, (480, 640))
    assert len(scanned(data.train)) == PICTURES - 1


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"export_format": "voc:raw"}, DatasetError, r"export_format is voc:raw, whose files end in \.xml"),
        ({"export_format": "labelme:raw"}, ConfigError, r"export_format: got 'labelme:raw', need one of ark:raw"),
    ],
)
def test_another_format_than_told_is_an_error(
    change: dict[str, Any], error: type[Exception], words: str, source: Path, tmp_path: Path
) -> None:
    in_dir = make(source, tmp_path, "ark")
    edit(in_dir / "config.yaml", **change)
    with pytest.raises(error, match=words):
        ymir_training_data(read(in_dir))


def test_an_empty_training_index_is_an_error_and_an_empty_validation_index_none(source: Path, tmp_path: Path) -> None:
    in_dir = make(source, tmp_path, "ark")
    (in_dir / "val-index.tsv").write_text("\n")
    assert ymir_training_data(read(in_dir)).val.shots == ()
    (in_dir / "train-index.tsv").write_bytes(b"\r\n\n")
    with pytest.raises(DatasetError, match=r"train-index\.tsv: is empty, need at least one line"):
        ymir_training_data(read(in_dir))


def test_blanks_unicode_and_repeated_pictures(source: Path, tmp_path: Path) -> None:
    in_dir = make(source, tmp_path, "ark")
    index = in_dir / "train-index.tsv"
    image, label = index.read_text().splitlines()[0].split("\t")
    for old, new in ((image, "/in/assets/图片 一.JPG"), (label, "/in/annotations/标 注.txt")):
        shutil.copy(in_dir / old.removeprefix("/in/"), in_dir / new.removeprefix("/in/"))
    line = "/in/assets/图片 一.JPG\t/in/annotations/标 注.txt"
    index.write_bytes(f"{line}\r\n\r\n{line}\r\n".encode())
    table = scanned(ymir_training_data(read(in_dir)).train)
    assert [shot.path.name for shot in table.shots] == ["图片 一.JPG"] * 2
    assert np.array_equal(table.labels(0)[1], table.labels(1)[1]) and len(table.labels(0)[0])
