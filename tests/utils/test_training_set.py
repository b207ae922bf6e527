"""Training samples: golden's rows, boxes on their pixels through the whole pipeline, and pictures of all kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np
import pytest
from PIL import Image

from utils.hyp import Hyp
from utils.label_scan import scan_labels
from utils.label_table import LabelTable
from utils.labelled import yolo_set
from utils.picture_store import PictureStore, StoreSettings
from utils.progress import Progress
from utils.rect import plan_canvases
from utils.settings import PictureSettings
from utils.training_set import Sample, SampleSettings, TrainingSet

NAMES = [str(class_id) for class_id in range(80)]
PICTURES = PictureSettings()
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]
STILL = {"hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0}
EVERYTHING = Hyp(
    degrees=10, shear=5, perspective=0.0005, flipud=0.5, mixup=0.5, copy_paste=0.5, hsv_h=0.1, translate=0.2, scale=0.9
)


def table_of(images: list[Path]) -> LabelTable:
    return scan_labels(yolo_set(NAMES, images), PICTURES, 2, None, "yolo", Progress()).table


def make_set(table: LabelTable, hyp: Hyp, side: int = 96, **more: Any) -> TrainingSet:
    store = PictureStore(table, StoreSettings(side, PICTURES))
    return TrainingSet(table, store, hyp, SampleSettings(side, **more))


@pytest.fixture
def painted(tmp_path: Path) -> list[Path]:
    """Black pictures of different shapes, with a rectangle of a class's colour each, and a black one without labels."""
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    sizes_hw = [(96, 96), (96, 60), (60, 96), (200, 120), (30, 48), (96, 80)]
    paths = []
    for class_id, ((height, width), colour) in enumerate(zip(sizes_hw, COLOURS)):
        canvas = np.zeros((height, width, 3), np.uint8)
        left, top, right, bottom = width // 6, height // 4, width // 6 * 5, height // 4 * 3
        canvas[top:bottom, left:right] = colour
        paths.append(tmp_path / "images" / f"{class_id}.png")
        Image.fromarray(canvas).save(paths[-1])
        cx, cy = (left + right) / 2 / width, (top + bottom) / 2 / height
        line = f"{class_id} {cx:.9f} {cy:.9f} {(right - left) / width:.9f} {(bottom - top) / height:.9f}\n"
        (tmp_path / "labels" / f"{class_id}.txt").write_text(line)
    paths.append(tmp_path / "images" / "background.png")
    Image.new("RGB", (96, 70)).save(paths[-1])
    return paths


def boxes_of(sample: Sample) -> list[tuple[int, list[float]]]:
    """Class and xyxy in px of each row."""
    height, width = sample.canvas.shape[:2]
    found = []
    for class_id, cx, cy, w, h in sample.rows.tolist():
        box = [(cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height]
        found.append((int(class_id), box))
    return found


def is_coloured(canvas: Any, class_id: int) -> Any:
    """The pixels more like a class's colour than black or grey."""
    bright = canvas > 170
    return (bright == (np.array(COLOURS[class_id]) > 0)).all(axis=2)


# ---- golden ----


def test_the_golden_rows_and_pixels_come_without_augmentation(
    golden: Callable[[str], Any], coco_images: list[Path]
) -> None:
    expected = golden("training_loss.json")
    images = [path for path in coco_images if path.name in {image["image"] for image in expected["images"]}]
    training_set = make_set(table_of(images), Hyp(), 640, augment=False)
    rows, total = [], 0
    for index in range(4):
        sample = training_set.sample(index, 0)
        rows += [[index, *row] for row in sample.rows.tolist()]
        total += int(sample.canvas.sum(dtype=np.int64))
    np.testing.assert_allclose(rows, expected["targets_rows"], rtol=0, atol=1e-6)  # six decimals are given
    assert total / 255 == pytest.approx(expected["input_sum"], rel=1e-7)  # summed up in float32


# ---- boxes and pixels ----


@pytest.mark.parametrize(
    ("hyp", "more"),
    [
        (Hyp(**STILL), {}),
        (Hyp(flipud=0.5, **STILL), {}),
        (Hyp(scale=0.9, translate=0.4, **STILL), {}),
        (Hyp(mosaic=0, **STILL), {}),
        (Hyp(**STILL), {"mosaic_tiles": 9}),
        (Hyp(**STILL), {"rect": True, "batch_size": 2}),
        (Hyp(**STILL), {"augment": False}),
    ],
)
def test_every_box_lies_on_its_pixels_and_no_large_object_lacks_one(
    painted: list[Path], hyp: Hyp, more: dict[str, Any]
) -> None:
    training_set = make_set(table_of(painted), hyp, **more)
    objects = 0
    for epoch in range(6):
        for index in range(len(training_set)):
            sample = training_set.sample(index, epoch)
            boxes = boxes_of(sample)
            for class_id, (left, top, right, bottom) in boxes:
                inside = is_coloured(sample.canvas, class_id)[round(top) : round(bottom), round(left) : round(right)]
                core = inside[1:-1, 1:-1]
                assert core.size == 0 or core.mean() > 0.99
                objects += 1
            for class_id in range(len(COLOURS)):
                rest = is_coloured(sample.canvas, class_id).astype(np.uint8)
                for other, (left, top, right, bottom) in boxes:
                    if other == class_id:
                        edge = 2
                        rest[
                            max(round(top) - edge, 0) : round(bottom) + edge,
                            max(round(left) - edge, 0) : round(right) + edge,
                        ] = 0
                # A tenth of an object enlarged 1.9 times, or less than that.
                assert rest.sum() < 0.1 * 1.9**2 * 96 * 96 / 3
    assert objects > 30


def test_turned_and_bent_boxes_hold_their_pixels(painted: list[Path]) -> None:
    hyp = Hyp(degrees=30, shear=10, perspective=0.0005, flipud=0.5, mosaic=0.5, **STILL)
    training_set = make_set(table_of(painted), hyp)
    for index in range(60):
        sample = training_set.sample(index % 6, index)
        for class_id, (left, top, right, bottom) in boxes_of(sample):
            region = is_coloured(sample.canvas, class_id)[round(top) : round(bottom), round(left) : round(right)]
            assert region.mean() > 0.1


def test_with_mixup_both_pictures_labels_are_there(painted: list[Path]) -> None:
    table = table_of(painted)
    plain = make_set(table, Hyp(**STILL))
    mixed = make_set(table, Hyp(mixup=1.0, **STILL))
    counts = [
        sum(len(one.sample(index, epoch).rows) for epoch in range(4) for index in range(6)) for one in (plain, mixed)
    ]
    assert 1.5 * counts[0] < counts[1] < 2.7 * counts[0]


def test_pasted_objects_have_labels(tmp_path: Path, painted: list[Path]) -> None:
    for label in (tmp_path / "labels").iterdir():
        class_id, cx, cy, w, h = map(float, label.read_text().split())
        x1, y1, x2, y2 = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
        label.write_text(f"{int(class_id)} {x1} {y1} {x2} {y1} {x2} {y2} {x1} {y2}\n")
    table = table_of(painted)
    assert len(table.points_px) == 24
    plain = make_set(table, Hyp(**STILL))
    pasting = make_set(table, Hyp(copy_paste=1.0, **STILL))
    counts, shares = [0, 0], []
    for index in range(40):
        for place, one in enumerate((plain, pasting)):
            sample = one.sample(index % 6, index)
            counts[place] += len(sample.rows)
            for class_id, (left, top, right, bottom) in boxes_of(sample):
                region = is_coloured(sample.canvas, class_id)[round(top) : round(bottom), round(left) : round(right)]
                shares += [region.mean()] * bool(region.size)
    assert counts[1] > 1.2 * counts[0]
    assert np.mean(shares) > 0.9  # a pasted object may hide a part of another


# ---- a function of seed, epoch and index ----


def assert_same(one: Sample, other: Sample) -> None:
    np.testing.assert_array_equal(one.canvas, other.canvas)
    np.testing.assert_array_equal(one.rows, other.rows)


def test_a_sample_depends_on_seed_epoch_and_index_alone(coco_images: list[Path]) -> None:
    table = table_of(coco_images[:6])
    one, other = make_set(table, EVERYTHING), make_set(table, EVERYTHING)
    for index in range(6):
        other.sample(index, 7)
    for index in (3, 1):
        assert_same(one.sample(index, 2), other.sample(index, 2))
    seen = [one.sample(0, 0), one.sample(0, 1), one.sample(1, 0), make_set(table, EVERYTHING, seed=1).sample(0, 0)]
    assert len({sample.canvas.tobytes() for sample in seen}) == 4
    assert len({make_set(table, EVERYTHING, seed=seed).sample(0, 0).canvas.tobytes() for seed in (-1, 1, 2**70)}) == 3


def test_a_sample_is_drawn_into_the_memory_that_is_given(coco_images: list[Path]) -> None:
    table = table_of(coco_images[:6])
    hyps = (EVERYTHING, Hyp(), Hyp(mosaic=0), Hyp(scale=0, translate=0, **STILL))
    for hyp in hyps:
        training_set = make_set(table, hyp)
        memory = np.full((2, 96, 96, 3), 7, np.uint8)
        for index in range(6):
            sample = training_set.sample(index, 0, memory[1])
            assert sample.canvas is not None and np.shares_memory(sample.canvas, memory)
            assert_same(sample, training_set.sample(index, 0))
        assert (memory[0] == 7).all()


# ---- pictures of all kinds ----


@pytest.mark.parametrize("more", [{}, {"mosaic_tiles": 9}, {"rect": True}, {"augment": False}])
@pytest.mark.parametrize("hyp", [Hyp(), EVERYTHING, Hyp(mosaic=0, degrees=45)])
def test_pictures_of_any_shape_without_labels_and_alone_work(tmp_path: Path, hyp: Hyp, more: dict[str, Any]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    sizes: list[tuple[int, int]] = [(1000, 1), (1, 1000), (1, 1), (97, 31)]
    for size in sizes:
        path = tmp_path / "images" / f"{size[0]}x{size[1]}.png"
        Image.new("RGB", size, (200, 0, 0)).save(path)
        (tmp_path / "labels" / f"{size[0]}x{size[1]}.txt").write_text("0 0.5 0.5 1 1\n" if size[0] != 97 else "")
        alone = make_set(table_of([path]), hyp, **more)
        assert len(alone) == 1
        for epoch in range(4):
            sample = alone.sample(0, epoch)
            assert sample.canvas.dtype == np.uint8 and sample.canvas.flags.c_contiguous
            assert sample.rows.shape[1] == 5 and sample.rows.dtype == np.float32
    everything = make_set(table_of(sorted((tmp_path / "images").iterdir())), hyp, **more)
    for index in range(4):
        rows = everything.sample(index, 9).rows
        corners = np.concatenate([rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2])
        assert (corners > -1e-6).all() and (corners < 1 + 1e-6).all()


def test_a_picture_that_cannot_be_read_is_grey_and_has_no_labels(painted: list[Path]) -> None:
    table = table_of(painted[:2])
    painted[0].write_bytes(painted[0].read_bytes()[:60])
    for hyp, more in ((Hyp(), {"augment": False}), (Hyp(mosaic=0, **STILL), {})):
        store = PictureStore(table, StoreSettings(96, PICTURES))
        training_set = TrainingSet(table, store, hyp, SampleSettings(96, **more))
        sample = training_set.sample(0, 0)
        assert (sample.canvas == 114).all() and len(sample.rows) == 0
        assert len(training_set.sample(1, 0).rows) == 1
        assert store.unreadable.count == 1
    mosaics = make_set(table, Hyp(**STILL))
    for epoch in range(10):
        sample = mosaics.sample(0, epoch)
        assert {class_id for class_id, _ in boxes_of(sample)} <= {1}
        assert not is_coloured(sample.canvas, 0).any()


# ---- rectangles ----


def test_rectangles_are_planned_as_for_a_validation_without_its_border(coco_images: list[Path]) -> None:
    table = table_of(coco_images[:20])
    training_set = make_set(table, Hyp(), 128, rect=True, batch_size=4)
    order = training_set.base_order.tolist()
    assert sorted(order) == list(range(20))
    sizes_hw = [tuple(table.sizes_hw[index].tolist()) for index in order]
    ratios = [height / width for height, width in sizes_hw]
    assert ratios == sorted(ratios)
    expected = plan_canvases(sizes_hw, 4, 128, 32, border=0)
    assert [training_set.canvas_hw(index) for index in order] == expected
    assert len(set(expected)) > 1
    assert [training_set.sample(index, 0).canvas.shape[:2] for index in order] == expected


def test_without_augmentation_a_rectangle_holds_the_resized_picture(coco_images: list[Path]) -> None:
    training_set = make_set(table_of(coco_images[:4]), Hyp(), 640, rect=True, batch_size=1, augment=False)
    bgr = cv2.imread(str(coco_images[1]))
    assert bgr is not None and bgr.shape == (426, 640, 3)
    sample = training_set.sample(1, 0)
    assert sample.canvas.shape == (448, 640, 3)
    assert np.abs(sample.canvas[11:-11].astype(int) - bgr[..., ::-1]).mean() < 1  # two decoders
    assert (sample.canvas[:11] == 114).all() and (sample.canvas[-11:] == 114).all()
