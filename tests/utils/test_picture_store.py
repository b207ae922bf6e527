"""Stored pictures: their size, the two caches, and pictures that can't be read."""

from __future__ import annotations

import logging
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from utils.label_scan import scan_labels
from utils.label_table import LabelTable
from utils.labelled import yolo_set
from utils.picture_store import PictureStore, StoreSettings, free_memory_bytes, resized_hw
from utils.pictures import read_picture
from utils.progress import Progress
from utils.settings import PictureSettings

NAMES = [str(class_id) for class_id in range(80)]
PICTURES = PictureSettings()
SIDE = 96


def table_of(images: list[Path]) -> LabelTable:
    return scan_labels(yolo_set(NAMES, images), PICTURES, 2, None, "yolo", Progress()).table


def make_store(table: LabelTable, side: int = SIDE, **more: Any) -> PictureStore:
    return PictureStore(table, StoreSettings(side, PICTURES, **more))


def all_of(store: PictureStore) -> list[Any]:
    return [store.read(index) for index in range(len(store))]


def assert_same(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other)
    for first, second in zip(one, other):
        np.testing.assert_array_equal(first, second)


@pytest.fixture
def images(tmp_path: Path, coco_images: list[Path]) -> list[Path]:
    """Copies of six real pictures."""
    (tmp_path / "images").mkdir()
    return [Path(shutil.copy(path, tmp_path / "images")) for path in coco_images[:6]]


def break_off(image: Path, share: float = 0.5) -> None:
    content = image.read_bytes()
    image.write_bytes(content[: int(len(content) * share)])


def make_unreadable(folder: Path) -> Path:
    """A PNG whose header is fine and whose data break off."""
    path = folder / "images" / "broken.png"
    Image.effect_noise((60, 40), 90).convert("RGB").save(path)
    break_off(path)
    return path


# ---- size ----


@given(height=st.integers(1, 5000), width=st.integers(1, 5000), side=st.integers(1, 1280))
def test_the_longer_side_fits_and_the_other_is_rounded_up(height: int, width: int, side: int) -> None:
    hw = resized_hw((height, width), side)
    assert max(hw) == side and min(hw) >= 1
    longer = max(height, width)
    for got, own in zip(hw, (height, width)):
        assert (got - 1) * longer < own * side <= got * longer


def test_sizes_of_the_real_pictures_differ_from_truncation_as_known(coco_images: list[Path]) -> None:
    """facts/yolov5.md: 11 of coco128's 18 resized pictures."""
    table = table_of(coco_images)
    store = make_store(table, 640)
    resized = [index for index in range(len(table)) if table.sizes_hw[index].max() != 640]
    truncated = [(int(h * 640 / max(h, w)), int(w * 640 / max(h, w))) for h, w in table.sizes_hw.tolist()]
    assert len(resized) == 18
    assert sum(store.hw(index) != truncated[index] for index in resized) == 11


def test_a_picture_is_decoded_and_resized_bilinearly(coco_images: list[Path]) -> None:
    store = make_store(table_of(coco_images[:3]))
    for index, path in enumerate(coco_images[:3]):
        rgb = read_picture(path, PICTURES).rgb
        height, width = store.hw(index)
        assert height == math.ceil(SIDE * rgb.shape[0] / 640)
        np.testing.assert_array_equal(store.read(index), cv2.resize(rgb, (width, height)))


def test_very_long_and_very_small_pictures_can_be_stored(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    sizes = [(1000, 1), (1, 1000), (1, 1)]
    paths = [tmp_path / "images" / f"{place}.png" for place in range(3)]
    for path, size in zip(paths, sizes):
        Image.new("RGB", size, (10, 20, 30)).save(path)
    pictures = all_of(make_store(table_of(paths)))
    assert [picture.shape for picture in pictures] == [(1, SIDE, 3), (SIDE, 1, 3), (SIDE, SIDE, 3)]
    assert all((picture == [10, 20, 30]).all() for picture in pictures)


# ---- caches ----


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_a_cache_gives_the_same_without_reading_the_pictures_again(
    tmp_path: Path, images: list[Path], cache: str
) -> None:
    table = table_of(images)
    expected = all_of(make_store(table))
    store = make_store(table, cache=cache, folder=tmp_path / "cache")
    seen: list[float] = []
    store.fill(2, Progress(seen.append))
    assert seen == sorted(seen) and seen[-1] == 1
    for path in images:
        path.unlink()
    assert_same(all_of(store), expected)
    assert store.unreadable.count == 0


def test_without_a_cache_nothing_is_kept(images: list[Path]) -> None:
    store = make_store(table_of(images))
    store.fill(2)
    images[0].unlink()
    assert store.read(0) is None


def test_ram_keeps_to_its_limit_and_says_so(images: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    table = table_of(images)
    expected = all_of(make_store(table))
    store = make_store(table, cache="ram", limit_bytes=sum(picture.nbytes for picture in expected[:4]))
    store.fill(2)
    assert "4 of 6 pictures fit" in caplog.text
    assert_same(all_of(store), expected)
    for path in images:
        path.unlink()
    assert [picture is not None for picture in all_of(store)] == [True] * 4 + [False] * 2


def test_kept_pictures_cannot_be_written_to(images: list[Path]) -> None:
    store = make_store(table_of(images), cache="ram")
    store.fill(1)
    picture = store.read(0)
    assert picture is not None and not picture.flags.writeable


def test_there_is_free_memory_and_no_more_than_all() -> None:
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert 0 < free_memory_bytes() <= int(total.split()[1]) * 1024


def stored_files(folder: Path) -> list[Path]:
    return sorted((folder / "cache").rglob("*.npy"))


def cut(file: Path) -> None:
    break_off(file, 0.9)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def turned(file: Path) -> None:
    np.save(file, np.zeros((7, 5, 3), np.uint8))


def of_objects(file: Path) -> None:
    np.save(file, np.array([{}, {}], object), allow_pickle=True)


def of_huge_shape(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content.replace(b"(72, 96, 3)", b"(9**9,96,3)"))


@pytest.mark.parametrize("damage", [cut, empty, turned, of_objects, of_huge_shape])
def test_a_damaged_file_on_disk_is_decoded_and_written_anew(
    tmp_path: Path, images: list[Path], damage: Callable[[Path], None]
) -> None:
    table = table_of(images)
    expected = all_of(make_store(table))
    store = make_store(table, cache="disk", folder=tmp_path / "cache")
    store.fill(2)
    first = stored_files(tmp_path)[0]
    whole = first.read_bytes()
    damage(first)
    assert first.read_bytes() != whole
    assert_same(all_of(store), expected)
    store.fill(2)
    assert first.read_bytes() == whole


def test_a_second_run_takes_what_is_on_disk_and_only_that_of_the_same_pictures(
    tmp_path: Path, images: list[Path]
) -> None:
    table = table_of(images)
    make_store(table, cache="disk", folder=tmp_path / "cache").fill(2)
    times = [file.stat().st_mtime_ns for file in stored_files(tmp_path)]
    make_store(table, cache="disk", folder=tmp_path / "cache").fill(2)
    assert [file.stat().st_mtime_ns for file in stored_files(tmp_path)] == times and len(times) == 6
    shutil.copy(images[1], images[0])
    table = table_of(images)
    store = make_store(table, cache="disk", folder=tmp_path / "cache")
    store.fill(2)
    assert_same(all_of(store), all_of(make_store(table)))
    make_store(table, 64, cache="disk", folder=tmp_path / "cache").fill(2)
    assert len(stored_files(tmp_path)) == 18


def test_a_disk_that_takes_nothing_is_one_warning(
    tmp_path: Path, images: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    table = table_of(images)
    store = make_store(table, cache="disk", folder=tmp_path / "cache")
    store.fill(2)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "decoded anew" in caplog.text
    assert_same(all_of(store), all_of(make_store(table)))


# ---- what can't be read ----


@pytest.mark.parametrize("cache", ["", "ram", "disk"])
def test_an_unreadable_picture_is_told_once_however_often_it_is_read(
    tmp_path: Path, images: list[Path], cache: str
) -> None:
    broken = make_unreadable(tmp_path)
    store = make_store(table_of([*images[:2], broken]), cache=cache, folder=tmp_path / "cache")
    store.fill(2)
    with ThreadPoolExecutor(4) as pool:
        assert all(picture is None for picture in pool.map(store.read, [2] * 20))
    assert store.read(0) is not None
    assert store.unreadable.count == 1 and str(broken) in store.unreadable.examples[0]


def test_a_picture_that_breaks_off_is_used_as_far_as_it_goes(images: list[Path]) -> None:
    table = table_of(images)
    whole = make_store(table).read(0)
    break_off(images[0], 0.6)
    store = make_store(table)
    for _ in range(3):
        picture = store.read(0)
    assert picture is not None and whole is not None
    np.testing.assert_array_equal(picture[:20], whole[:20])
    assert (picture[-10:] != whole[-10:]).any()
    assert store.damaged.count == 1 and store.unreadable.count == 0


def test_threads_may_share_a_store(images: list[Path]) -> None:
    store = make_store(table_of(images), cache="ram")
    expected = all_of(store)
    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(all_of, store) for _ in range(8)]
        store.fill(2)
        for read in reads:
            assert_same(read.result(), expected)


def test_disk_needs_a_folder() -> None:
    with pytest.raises(ValueError, match="folder"):
        StoreSettings(64, PICTURES, "disk")
