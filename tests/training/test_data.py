"""The labels of a training's pictures: scanned once, told of once, and refused where there is nothing to learn."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.conftest import PICTURES, Making
from training.data import scan_sets
from utils.errors import DatasetError
from utils.progress import Progress


def test_both_sets_are_scanned_and_found_in_the_caches_again(making: Making, tmp_path: Path) -> None:
    job = making.job(tmp_path)
    seen: list[float] = []
    first = scan_sets(job, Progress(seen.append))
    assert (len(first.train.table), len(first.val.table)) == (PICTURES, PICTURES)
    assert not first.train.from_cache and seen == sorted(seen) and seen[-1] == pytest.approx(1)
    again = scan_sets(job, Progress())
    assert again.train.from_cache and again.val.from_cache
    assert again.train.table.boxes_px.tolist() == first.train.table.boxes_px.tolist()
    assert {path.name for path in tmp_path.iterdir()} == {"train.cache", "val.cache"}


def test_one_class_is_made_of_the_cache_of_many(making: Making, tmp_path: Path) -> None:
    many = scan_sets(making.job(tmp_path), Progress())
    one = scan_sets(making.job(tmp_path, single_cls=True), Progress())
    assert one.train.table.names == ("item",) and set(one.train.table.class_ids.tolist()) == {0}
    assert len(one.train.table.class_ids) == len(many.train.table.class_ids)


def test_a_cache_of_another_format_is_not_taken(making: Making, tmp_path: Path) -> None:
    scan_sets(making.job(tmp_path), Progress())
    data = making.job(tmp_path).open_data()
    other = replace(data, train=replace(data.train, kind="ark"))
    scans = scan_sets(replace(making.job(tmp_path), open_data=lambda: other), Progress())
    assert not scans.train.from_cache and scans.val.from_cache


def test_what_there_is_is_told_by_one_of_several(
    making: Making, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    scan_sets(making.job(tmp_path), Progress(), tells=False)
    assert not caplog.records
    scan_sets(making.job(tmp_path), Progress())
    assert [record.getMessage() for record in caplog.records] == [
        f"{name}: {PICTURES} pictures, 54 boxes, from the cache" for name in ("train", "val")
    ]


def few(making: Making, tmp_path: Path, **labels: str) -> Making:
    """Copy two of the pictures; labels: texts of their label files, by name."""
    pictures = sorted((making.data.parent / "images").iterdir())[:2]
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    for picture, text in zip(pictures, labels.values()):
        shutil.copy(picture, tmp_path / "images")
        (tmp_path / "labels" / f"{picture.stem}.txt").write_text(text)
    content = making.data.read_text().replace("val: images", "val: []")
    (tmp_path / "data.yaml").write_text(content)
    return replace(making, data=tmp_path / "data.yaml")


def test_pictures_without_one_box_are_an_error(making: Making, tmp_path: Path) -> None:
    other = few(making, tmp_path, first="", second="99 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DatasetError, match=r"2 pictures without one box.*not of the task's classes.*line 1") as caught:
        scan_sets(other.job(tmp_path / "run"), Progress())
    assert caught.value.code == 300002 and "\n" not in str(caught.value)


def test_pictures_of_which_none_can_be_read_are_an_error(making: Making, tmp_path: Path) -> None:
    other = few(making, tmp_path, first="", second="")
    for path in (tmp_path / "images").iterdir():
        path.write_text("no picture")
    with pytest.raises(DatasetError, match=r"not one picture can be used: .*2 pictures left out, unreadable"):
        scan_sets(other.job(tmp_path / "run"), Progress())


def test_nothing_to_validate_on_is_told(making: Making, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = few(making, tmp_path, first="0 0.5 0.5 0.1 0.1\n", second="")
    scans = scan_sets(other.job(tmp_path / "run"), Progress())
    assert len(scans.val.table) == 0 and len(scans.train.table.class_ids) == 1
    assert "no picture to validate on" in caplog.text
