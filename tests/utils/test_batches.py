"""Reading ahead: every picture once, in batches of one shape, unreadable ones set aside, nothing without bound."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils import batches
from utils.batches import Batch, BatchReader, Placing, Shot, Tally, check, input_side
from utils.errors import ImageError
from utils.machine import usable_cpus
from utils.progress import Progress
from utils.settings import LoaderSettings

MINIMAL = Placing("minimal", 160, 32)


@pytest.fixture(scope="module")
def shots(coco_images: list[Path]) -> list[Shot]:
    return [Shot(index, path) for index, path in enumerate(coco_images[:20])]


def read(shots: list[Shot], workers: int = 2, batch_size: int = 4) -> tuple[list[Batch[Shot]], list[int]]:
    aside: list[int] = []
    settings = LoaderSettings(batch_size=batch_size, workers=workers)
    reader = BatchReader(shots, MINIMAL, settings, lambda shot, error: aside.append(shot.index))
    return list(reader), aside


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_picture_comes_once_in_groups_of_one_shape(workers: int, shots: list[Shot]) -> None:
    found, aside = read(shots, workers)
    assert sorted(shot.index for batch in found for shot in batch.items) == list(range(20)) and not aside
    for batch in found:
        assert 1 <= len(batch) <= 4 and len(batch.items) == len(batch.canvases) == len(batch.letterboxes)
        assert {canvas.shape for canvas in batch.canvases} == {(*batch.canvas_hw, 3)}
        assert all(canvas.dtype == np.uint8 for canvas in batch.canvases)


def test_batches_are_the_same_whatever_the_number_of_threads(shots: list[Shot]) -> None:
    one, other = read(shots, 0)[0], read(shots, 3)[0]
    assert [[shot.index for shot in batch.items] for batch in one] == [[s.index for s in b.items] for b in other]
    assert all(np.array_equal(a, b) for x, y in zip(one, other) for a, b in zip(x.canvases, y.canvases))


def test_unreadable_pictures_are_set_aside_in_order(shots: list[Shot], tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("words")
    bad = [Shot(100, tmp_path / "text.jpg"), Shot(101, tmp_path / "none.jpg"), Shot(102, shots[0].path, "not allowed")]
    found, aside = read([bad[0], *shots[:5], bad[1], bad[2]])
    assert aside == [100, 101, 102]
    assert sum(len(batch) for batch in found) == 5


def test_progress_reaches_the_end_and_counts_what_was_worked_on(shots: list[Shot]) -> None:
    reports: list[float] = []
    reader = BatchReader(
        shots, MINIMAL, LoaderSettings(batch_size=4), lambda s, e: None, Progress(reports.append), total=20
    )
    for number, batch in enumerate(reader):
        assert sum(reports[-1:]) <= 1 - len(batch) / 20 + 1e-9, "a batch counted before it was worked on"
        if number == 0:
            assert not reports
    assert reports == sorted(reports) and reports[-1] == pytest.approx(1)


def test_groups_are_cut_when_too_much_waits(shots: list[Shot], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MOST_WAITING_BYTES", 3 * 160 * 160 * 3)
    found, _ = read(shots, batch_size=16)
    assert max(batch.bytes for batch in found) <= 4 * 160 * 160 * 3
    assert sum(len(batch) for batch in found) == 20


def test_no_more_is_read_ahead_than_allowed(shots: list[Shot]) -> None:
    taken = 0

    def counted() -> Iterator[Shot]:
        nonlocal taken
        for shot in shots * 5:
            taken += 1
            yield shot

    reader = BatchReader(counted(), MINIMAL, LoaderSettings(batch_size=2, workers=1), lambda s, e: None)
    assert taken <= 2 + 2 * 1
    next(iter(reader))
    assert taken <= 40, "a group of two took more pictures than there are shapes"
    reader.close()


def test_decoded_pictures_wait_within_a_bound(shots: list[Shot], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pictures kept whole only so many are decoded ahead; all come, in the order of the files."""
    size = 640 * 640 * 3
    monkeypatch.setattr(batches, "MOST_AHEAD_BYTES", 3 * size)
    lock, begun, taken, most = threading.Lock(), 0, 0, 0

    def slow(shot: Shot, place: batches.Place[Shot], settings: LoaderSettings) -> batches.Loaded:
        nonlocal begun, most
        with lock:
            begun += 1
            most = max(most, begun - taken)
        time.sleep(0.002 * (shot.index % 3))
        return replace(batches.load(shot, place, settings), picture=np.zeros((640, 640, 3), np.uint8))

    settings = LoaderSettings(batch_size=16, workers=2)
    reader = BatchReader(shots * 3, MINIMAL, settings, lambda s, e: None, loading=slow)
    found: list[int] = []
    for item, _ in reader._loaded():
        with lock:
            taken += 1
        found.append(item.index)
    reader.close()
    assert found == [shot.index for shot in shots] * 3
    assert most <= 3 + min(2, usable_cpus()) + 1, "more was decoded than may wait"


def test_leaving_early_ends_the_threads(shots: list[Shot]) -> None:
    before = threading.active_count()
    for _ in BatchReader(shots * 10, MINIMAL, LoaderSettings(batch_size=2, workers=2), lambda s, e: None):
        break
    for thread in threading.enumerate():
        if thread.name.startswith("decode"):
            thread.join(timeout=10)
    assert threading.active_count() <= before


def test_a_damaged_picture_is_used_and_told_of(coco_images: list[Path], tmp_path: Path) -> None:
    content = coco_images[0].read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) * 2 // 3])
    reader = BatchReader([Shot(0, tmp_path / "cut.jpg")], MINIMAL, LoaderSettings(workers=0), lambda s, e: None)
    assert [len(batch) for batch in reader] == [1]
    assert reader.damaged.count == 1 and "cut.jpg" in reader.damaged.summary("damaged")


def test_checking_reads_no_pixels(coco_images: list[Path], tmp_path: Path) -> None:
    content = coco_images[0].read_bytes()
    (tmp_path / "half.jpg").write_bytes(content[: len(content) // 2])
    shutil.copy(coco_images[1], tmp_path / "whole.jpg")
    (tmp_path / "text.jpg").write_text("words")
    shots = [Shot(k, tmp_path / name) for k, name in enumerate(("half.jpg", "whole.jpg", "text.jpg"))]
    aside: list[int] = []
    reader = BatchReader(shots, MINIMAL, LoaderSettings(), lambda shot, error: aside.append(shot.index), loading=check)
    found = [shot.index for batch in reader for shot in batch.items]
    assert found == [0, 1] and aside == [2]


def test_fast_decoding_lands_on_the_same_canvas(tmp_path: Path, coco_images: list[Path]) -> None:
    from utils.settings import PictureSettings

    large = cv2.resize(cv2.imread(str(coco_images[3])), None, fx=4, fy=4)
    cv2.imwrite(str(tmp_path / "large.jpg"), large)
    canvases = []
    for decode in ("exact", "fast"):
        settings = LoaderSettings(workers=0, pictures=PictureSettings(decode=decode))
        (batch,) = BatchReader([Shot(0, tmp_path / "large.jpg")], MINIMAL, settings, lambda s, e: None)
        assert batch.letterboxes[0].image_hw == large.shape[:2]
        canvases.append(batch.canvases[0].astype(int))
    assert canvases[0].shape == canvases[1].shape
    assert abs(canvases[0] - canvases[1]).mean() < 12


def test_a_tally_keeps_a_few_names() -> None:
    tally = Tally(keep=2)
    for name in "abcd":
        tally.add(name)
    assert tally.summary("things") == "4 things: a; b; and 2 more"
    assert Tally().summary("things") == "0 things: "


def test_img_size_is_rounded_up_to_the_stride(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert input_side(640, 32) == 640 and not caplog.text
        assert input_side(33, 64) == 64 and "33 is rounded up to 64" in caplog.text


def test_reading_needs_no_error_handler_for_what_is_no_image_error() -> None:
    def broken(item: Shot, image_hw: tuple[int, int]) -> None:
        raise ValueError("a defect of ours")

    with pytest.raises((ValueError, ImageError)):
        list(BatchReader([Shot(0, Path(__file__))], broken, LoaderSettings(), _raise))  # type: ignore[arg-type]


def _raise(item: Shot, error: ImageError) -> None:
    raise error
