"""The scan of a set's labels: four formats, what is left out, and a cache that isn't believed."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from utils.annotations import WRITERS
from utils.batches import Shot
from utils.errors import DatasetError
from utils.label_scan import Scan, content_key, scan_labels
from utils.label_table import CROWD, LabelTable, TableBuilder
from utils.labelled import LabelledSet, yolo_set
from utils.labels import NO_ENTRY, READERS, UNKNOWN_CLASS, Labels, LabelSource, PictureFile, read_yolo, yolo_label_path
from utils.pictures import read_picture_hw
from utils.progress import Progress
from utils.settings import PictureSettings

NAMES = tuple(f"class {class_id}" for class_id in range(80))
PICTURES = PictureSettings()
ARRAYS = ("sizes_hw", "starts", "class_ids", "boxes_px", "points_px", "point_starts")


def scan(labelled: LabelledSet, cache: Any = None, key: str = "yolo", workers: int = 2) -> Scan:
    return scan_labels(labelled, PICTURES, workers, cache, key, Progress())


def assert_equal(one: LabelTable, other: LabelTable) -> None:
    assert one.names == other.names and one.shots == other.shots
    for name in ARRAYS:
        first, second = getattr(one, name), getattr(other, name)
        assert first.dtype == second.dtype and first.shape == second.shape, name
        np.testing.assert_array_equal(first, second)


@pytest.fixture
def folder(tmp_path: Path, coco_images: list[Path]) -> Path:
    """A YOLO data set of six real pictures, one polygon among its labels."""
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    for path in coco_images[:6]:
        (tmp_path / "images" / path.name).symlink_to(path)
        (tmp_path / "labels" / f"{path.stem}.txt").write_bytes(yolo_label_path(path).read_bytes())
    with (tmp_path / "labels" / f"{coco_images[1].stem}.txt").open("a") as file:
        file.write("7 0.1 0.1 0.5 0.2 0.4 0.8 0.1 0.6\n")
    return tmp_path


def labelled_of(folder: Path) -> LabelledSet:
    return yolo_set(NAMES, sorted((folder / "images").iterdir()))


# ---- formats ----


def whole_pixel_labels(coco_images: list[Path]) -> list[tuple[PictureFile, Labels]]:
    """The real labels with their corners on whole pixels, where every format can say them."""
    found = []
    for path in coco_images:
        picture = PictureFile(path, read_picture_hw(path, PICTURES))
        labels = read_yolo(yolo_label_path(path), picture, LabelSource(NAMES))
        first = np.floor(labels.boxes_px[:, :2])
        boxes = np.concatenate([first, np.maximum(np.ceil(labels.boxes_px[:, 2:]), first + 1)], axis=1)
        found.append((picture, dataclasses.replace(labels, boxes_px=boxes, faults=())))
    return found


def set_in_format(name: str, folder: Path, pictures: list[tuple[PictureFile, Labels]]) -> LabelledSet:
    """Write the labels in a format, and give the set that reads them."""
    folder.mkdir()
    if name == "yolo":
        paths = {}
        for picture, labels in pictures:
            (height, width), lines = picture.hw, []
            for class_id, (x1, y1, x2, y2) in zip(labels.class_ids.tolist(), labels.boxes_px.tolist()):
                numbers = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
                lines.append(f"{class_id} " + " ".join(f"{number:.15f}" for number in numbers))
            paths[picture.path] = folder / f"{picture.path.stem}.txt"
            paths[picture.path].write_text("\n".join(lines))
    else:
        writer = WRITERS[name](folder, NAMES)
        paths = {picture.path: folder / writer.add(picture.path.name, picture, labels) for picture, labels in pictures}
        writer.finish()
    source = LabelSource(NAMES)
    shots = tuple(Shot(index, picture.path) for index, (picture, _) in enumerate(pictures))
    return LabelledSet(
        NAMES,
        shots,
        lambda shot, hw: READERS[name](paths[shot.path], PictureFile(shot.path, hw), source),
        lambda shot: paths[shot.path],
    )


def test_all_formats_give_the_same_arrays(tmp_path: Path, coco_images: list[Path]) -> None:
    pictures = whole_pixel_labels(coco_images)
    tables = {name: scan(set_in_format(name, tmp_path / name, pictures), key=name).table for name in READERS}
    assert len(tables["ark"].class_ids) == sum(len(labels) for _, labels in pictures) > 900
    for name in ("voc", "coco"):
        assert_equal(tables["ark"], tables[name])
    for name in ARRAYS:  # shares of a picture are rounded: 1e-15 of it
        np.testing.assert_allclose(getattr(tables["yolo"], name), getattr(tables["ark"], name), atol=1e-4)


# ---- what is left out ----


def test_the_table_holds_what_the_reader_gives(folder: Path) -> None:
    labelled, found = labelled_of(folder), scan(labelled_of(folder))
    assert found.table.inconsistency() is None
    for index, shot in enumerate(labelled.shots):
        labels = labelled.labels_of(shot, tuple(found.table.sizes_hw[index].tolist()))
        class_ids, boxes_px = found.table.labels(index)
        assert class_ids.tolist() == labels.class_ids.tolist()
        np.testing.assert_array_equal(boxes_px, labels.boxes_px.astype(np.float32))
        for row, polygon in zip(range(found.table.starts[index], found.table.starts[index + 1]), labels.polygons_px):
            expected = np.empty((0, 2)) if polygon is None else polygon
            np.testing.assert_allclose(found.table.polygon(row), expected, rtol=1e-6)
    assert len(found.table.points_px) == 4


def test_unreadable_pictures_and_bad_rows_are_left_out_and_told(folder: Path) -> None:
    (folder / "images" / "zz.jpg").write_text("no picture")
    os.mkfifo(folder / "images" / "zy.jpg")
    label = sorted((folder / "labels").iterdir())[0]
    label.write_text(label.read_text() + "99 0.5 0.5 0.1 0.1\n")
    sorted((folder / "labels").iterdir())[2].unlink()
    found = scan(labelled_of(folder))
    assert len(found.table) == 6 and [shot.index for shot in found.table.shots] == list(range(6))
    assert found.unreadable.count == 2 and "zy.jpg" in found.unreadable.examples[0]
    assert {fault.kind: fault.count for fault in found.faults} == {UNKNOWN_CLASS: 1, NO_ENTRY: 1}
    assert len(found.lines()) == 4


def test_a_refused_picture_is_not_opened(coco_images: list[Path]) -> None:
    shots = (Shot(0, coco_images[0], "points out of the folder"), Shot(1, coco_images[1]))
    found = scan(dataclasses.replace(yolo_set(NAMES, []), shots=shots))
    assert [shot.path for shot in found.table.shots] == [coco_images[1]]
    assert found.unreadable.examples == ["points out of the folder"]


def test_boxes_of_crowds_and_boxes_that_vanish_are_left_out() -> None:
    builder = TableBuilder(NAMES)
    boxes = np.array([[0, 0, 5, 5], [1, 1, 4, 4], [500, 1, 500 + 1e-9, 9]], np.float64)
    labels = Labels(np.array([3, 4, 5]), boxes, np.array([True, False, False]), (None,) * 3)
    faults = builder.add(Path("a.jpg"), (600, 600), labels)
    assert [(fault.kind == CROWD, fault.count) for fault in faults] == [(True, 1), (False, 1)]
    assert builder.table().class_ids.tolist() == [4]


def test_a_label_file_that_cannot_be_read_is_an_error(folder: Path) -> None:
    label = sorted((folder / "labels").iterdir())[0]
    label.unlink()
    label.mkdir()
    with pytest.raises(DatasetError, match="is not a regular file"):
        scan(labelled_of(folder))


def test_an_empty_set_is_an_empty_table(tmp_path: Path) -> None:
    for expected in (False, True):
        found = scan(yolo_set(NAMES, []), tmp_path / "train.cache")
        assert len(found.table) == 0 and found.table.inconsistency() is None
        assert found.from_cache is expected


def test_progress_is_reported_and_never_runs_back(folder: Path, tmp_path: Path) -> None:
    seen: list[float] = []
    scan_labels(labelled_of(folder), PICTURES, 2, tmp_path / "c", "", Progress(seen.append))
    assert seen == sorted(seen) and seen[-1] == 1
    scan_labels(labelled_of(folder), PICTURES, 2, tmp_path / "c", "", Progress(seen.append))
    assert seen[-1] == 1


# ---- the cache ----


def test_the_second_scan_comes_from_the_cache_and_is_equal(folder: Path, tmp_path: Path) -> None:
    (folder / "images" / "zz.jpg").write_text("no picture")
    sorted((folder / "labels").iterdir())[2].unlink()
    first = scan(labelled_of(folder), tmp_path / "train.cache")
    second = scan(labelled_of(folder), tmp_path / "train.cache")
    assert (first.from_cache, second.from_cache) == (False, True)
    assert_equal(first.table, second.table)
    assert list(first.faults) == list(second.faults)
    assert first.unreadable == second.unreadable
    assert second.lines()[1:] == first.lines()[1:]


def touched(path: Path, content: bytes) -> None:
    """Write a file and let its time of change differ, however coarse the file system's clock is."""
    path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def change_label(folder: Path) -> None:
    label = sorted((folder / "labels").iterdir())[1]
    touched(label, label.read_bytes().replace(b"0.1", b"0.2"))


def remove_label(folder: Path) -> None:
    sorted((folder / "labels").iterdir())[1].unlink()


def change_picture(folder: Path) -> None:
    first, second = sorted((folder / "images").iterdir())[:2]
    touched(first, second.read_bytes())


def add_picture(folder: Path) -> None:
    first = sorted((folder / "images").iterdir())[0]
    (folder / "images" / "zz.jpg").write_bytes(first.read_bytes())


@pytest.mark.parametrize("change", [change_label, remove_label, change_picture, add_picture])
def test_a_change_is_noticed(folder: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    scan(labelled_of(folder), tmp_path / "train.cache")
    change(folder)
    found = scan(labelled_of(folder), tmp_path / "train.cache")
    assert not found.from_cache
    assert_equal(found.table, scan(labelled_of(folder)).table)
    assert scan(labelled_of(folder), tmp_path / "train.cache").from_cache


def test_the_key_depends_on_names_format_and_settings(folder: Path) -> None:
    labelled = labelled_of(folder)
    keys = [
        content_key(labelled, PICTURES, 1, "yolo"),
        content_key(labelled, PICTURES, 1, "ark"),
        content_key(dataclasses.replace(labelled, names=NAMES[::-1]), PICTURES, 1, "yolo"),
        content_key(labelled, PictureSettings(turn=True), 1, "yolo"),
        content_key(labelled, PictureSettings(max_pixels=10), 1, "yolo"),
        content_key(dataclasses.replace(labelled, shots=labelled.shots[::-1]), PICTURES, 1, "yolo"),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == content_key(labelled, PICTURES, 2, "yolo")


def test_a_set_that_cannot_tell_its_annotations_is_not_cached(folder: Path, tmp_path: Path) -> None:
    labelled = dataclasses.replace(labelled_of(folder), annotation_of=None)
    scan(labelled, tmp_path / "train.cache")
    assert not (tmp_path / "train.cache").exists()


def test_a_torn_cache_is_scanned_anew(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = tmp_path / "train.cache"
    expected = scan(labelled_of(folder), cache).table
    content = cache.read_bytes()
    caplog.set_level(logging.INFO)
    for end in range(0, len(content), 97):
        cache.write_bytes(content[:end])
        caplog.clear()
        found = scan(labelled_of(folder), cache)
        assert not found.from_cache and len(caplog.records) == 1
        assert_equal(found.table, expected)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_does_no_harm(folder: Path, place: int, bit: int) -> None:
    """Arrays have no check sum, so a coordinate may change; what comes is consistent whatever happens."""
    cache = folder / "train.cache"
    scan(labelled_of(folder), cache)
    content = bytearray(cache.read_bytes())
    content[place % len(content)] ^= 1 << bit
    cache.write_bytes(content)
    found = scan(labelled_of(folder), cache)
    assert found.table.inconsistency() is None
    assert len(found.table) == 6


def set_to(name: str, place: tuple[int, ...], value: float) -> Callable[[dict[str, Any]], None]:
    def edit(arrays: dict[str, Any]) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name][place] = value

    return edit


def replaced(name: str, function: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def edit(arrays: dict[str, Any]) -> None:
        arrays[name] = np.ascontiguousarray(function(arrays[name]))

    return edit


def noted(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def edit(arrays: dict[str, Any]) -> None:
        notes = {**json.loads(arrays["notes"].tobytes()), **changes}
        arrays["notes"] = np.frombuffer(json.dumps(notes).encode(), np.uint8)

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        set_to("starts", (1,), 10**9),
        set_to("starts", (0,), 1),
        set_to("point_starts", (1,), -5),
        set_to("class_ids", (0,), 80),
        set_to("class_ids", (0,), -1),
        set_to("boxes_px", (0, 0), np.nan),
        set_to("boxes_px", (0, 2), 1e9),
        set_to("boxes_px", (0, 2), -1),
        set_to("points_px", (0, 0), np.inf),
        set_to("sizes_hw", (0, 0), 0),
        set_to("sizes_hw", (0, 0), 2**31 - 1),
        set_to("kept", (0,), 5),
        set_to("kept", (5,), 6),
        set_to("kept", (0,), -1),
        replaced("boxes_px", lambda array: array.astype(np.float64)),
        replaced("boxes_px", lambda array: array[:-1]),
        replaced("boxes_px", lambda array: array.reshape(-1)),
        replaced("starts", lambda array: array[:0]),
        replaced("kept", lambda array: array[:-1]),
        replaced("notes", lambda array: array[:-1]),
        replaced("notes", lambda array: np.frombuffer(b"[" * 100_000, np.uint8)),
        replaced("notes", lambda array: np.frombuffer(b"\xff\xfe", np.uint8)),
        replaced("notes", lambda array: np.zeros(1 << 21, np.uint8)),
        noted(version=2),
        noted(key="0"),
        noted(faults=7),
        noted(faults=[["a", -1, "b"]]),
        noted(faults=[[{}, 1, "b"]]),
        noted(faults=[["x" * 5000, 1, "b"]]),
        noted(unreadable=[1, "abc"]),
        noted(unreadable=None),
        lambda arrays: arrays.pop("kept"),
        lambda arrays: arrays.update(more=np.zeros(3)),
    ],
)
def test_an_edited_cache_is_scanned_anew(folder: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    cache = tmp_path / "train.cache"
    expected = scan(labelled_of(folder), cache).table
    arrays = safetensors.numpy.load(cache.read_bytes())
    edit(arrays)
    cache.write_bytes(safetensors.numpy.save(arrays))
    found = scan(labelled_of(folder), cache)
    assert not found.from_cache
    assert_equal(found.table, expected)


def test_texts_of_a_cache_cannot_write_to_the_terminal(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "train.cache"
    scan(labelled_of(folder), cache)
    arrays = safetensors.numpy.load(cache.read_bytes())
    noted(faults=[["kind\n\x1b[2J", 1, "b"]])(arrays)
    cache.write_bytes(safetensors.numpy.save(arrays))
    assert next(iter(scan(labelled_of(folder), cache).faults)).kind == "kind??[2J"


def test_a_cache_that_cannot_be_read_or_written_is_a_warning(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocks: tuple[Callable[[Path], None], ...] = (Path.mkdir, os.mkfifo)
    for number, block in enumerate(blocks):
        cache = tmp_path / f"{number}.cache"
        block(cache)
        if block is Path.mkdir:
            (cache / "something").touch()
        assert len(scan(labelled_of(folder), cache).table) == 6
    (tmp_path / "file").touch()
    assert len(scan(labelled_of(folder), tmp_path / "file" / "train.cache").table) == 6
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2 and all("labels will be scanned again" in text for text in warnings)


# ---- size ----


def test_a_million_rows_are_sliced_without_growing() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    builder = TableBuilder(NAMES)
    boxes = np.tile(np.array([[1.0, 2, 30, 40]]), (100, 1))
    labels = Labels(np.arange(100) % 80, boxes, np.zeros(100, np.bool_), (None,) * 100)
    for _ in range(10_000):
        builder.add(Path("a.jpg"), (64, 64), labels)
    table = builder.table()
    assert len(table.class_ids) == 1_000_000

    def epoch() -> int:
        return sum(len(table.labels(index)[0]) for index in range(len(table)))

    epoch()
    before = resident_bytes()
    for _ in range(5):
        assert epoch() == 1_000_000
    assert resident_bytes() - before < 2 << 20


def test_the_tables_own_set_gives_its_labels(folder: Path) -> None:
    table = scan(labelled_of(folder)).table
    again = scan(table.labelled_set()).table
    for name in ("sizes_hw", "starts", "class_ids", "boxes_px"):
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))


def test_all_boxes_may_become_one_class(folder: Path) -> None:
    table = scan(labelled_of(folder)).table
    single = table.as_one_class("item")
    assert single.names == ("item",) and single.inconsistency() is None
    assert len(set(table.class_ids.tolist())) > 1 and set(single.class_ids.tolist()) == {0}
    assert single.boxes_px is table.boxes_px


def test_arrays_are_read_only(folder: Path, tmp_path: Path) -> None:
    for _ in range(2):
        table = scan(labelled_of(folder), tmp_path / "train.cache").table
        with pytest.raises(ValueError, match="read-only"):
            table.boxes_px[0] = 0
