"""detect.py: real pictures and weights, mostly through main(argv)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import detect as detect_module
from detect import DetectSettings, Fitting, detect, main
from models.augment import augmented_rows
from models.checkpoint import read_checkpoint
from models.detector import make_detector
from utils import passes, result_files
from utils.batches import Batch, BatchReader, Placing, Shot
from utils.boxes import ious, to_xyxy
from utils.errors import ConfigError, DatasetError, ImageError
from utils.letterbox import Letterbox, letterbox_minimal
from utils.media import find_sources
from utils.nms import select_boxes
from utils.result_files import Found, SaveSettings, safe_folders
from utils.settings import EngineSettings, LoaderSettings, NmsSettings, PictureSettings

ROOT = Path(__file__).resolve().parent.parent
Rows = npt.NDArray[np.float64]  # (N, 5 or 6): class, cx, cy, w, h in 0..1, score


@pytest.fixture
def run(tmp_path: Path, yolov5n_pt: Path) -> Callable[..., Path]:
    """run(source, *options) detects on the CPU at 160 px, expects success, and gives the folder of results."""

    def run_main(source: object, *options: object, size: int = 160, weights: Path = yolov5n_pt) -> Path:
        before = set((tmp_path / "runs").glob("*"))
        # `=`: a source may begin with a dash.
        argv = ["--weights", weights, f"--source={source}", "--imgsz", size, "--device", "cpu", "--precision", "fp32"]
        assert main([str(part) for part in [*argv, "--project", tmp_path / "runs", *options]]) == 0
        made = set((tmp_path / "runs").glob("*")) - before
        return made.pop() if made else tmp_path / "runs/exp"

    return run_main


def read_rows(path: Path) -> Rows:
    """A label file; none means no boxes."""
    return np.loadtxt(path, ndmin=2) if path.exists() else np.zeros((0, 6))


def load(path: Path) -> Any:
    """A picture's (h, w, 3) BGR pixels."""
    return cv2.imread(str(path))


def picture_hw(path: Path) -> tuple[int, int]:
    height, width = load(path).shape[:2]
    return height, width


def copy_all(paths: Sequence[Path], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        shutil.copy(path, folder)
    return folder


def assert_same(ours: Rows, theirs: Rows, hw: tuple[int, int], tolerance_px: float, score: float, conf: float) -> None:
    """Match (class, cx, cy, w, h in 0..1, score) rows one to one; those near the threshold may come or go."""
    height, width = hw
    left = list(range(len(theirs)))
    for row in ours:
        off_px = np.abs(to_xyxy(row[None, 1:5]) - to_xyxy(theirs[left, 1:5])) * [width, height, width, height]
        fits = (off_px.max(1, initial=0) <= tolerance_px) & (np.abs(theirs[left, 5] - row[5]) <= score)
        fits &= theirs[left, 0] == row[0]
        assert fits.any() or row[5] < conf + score, f"{row} is not among {theirs}"
        if fits.any():
            left.pop(int(fits.argmax()))
    assert all(theirs[place, 5] < conf + score for place in left), f"{theirs[left]} are not among {ours}"


# ---- what is found ---------------------------------------------------------------------------------------------------


def test_boxes_are_yolov5s(
    run: Callable[..., Path], coco_images: list[Path], golden: Callable[[str], Any], tmp_path: Path
) -> None:
    pictures = coco_images[0:24:4]
    expected = golden("upstream_detect_conf025.json")["images"]
    folder = run(copy_all(pictures, tmp_path / "in"), "--save-txt", "--save-conf", "--nosave", size=640)
    compared = 0
    for picture in pictures:
        height, width = picture_hw(picture)
        theirs = np.array(expected.get(picture.name, []), dtype=float).reshape(-1, 6)  # class, score, xyxy in px
        x1, y1, x2, y2 = theirs[:, 2:].T / np.array([[width], [height], [width], [height]])
        rows = np.stack([theirs[:, 0], (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, theirs[:, 1]], 1)
        ours = read_rows(folder / f"labels/{picture.stem}.txt")
        half_input_px = 0.51 * max(height, width) / 640
        assert_same(ours, rows, (height, width), half_input_px, 1e-3, 0.25)
        compared += len(ours)
    assert compared >= 10


@pytest.mark.parametrize("name", ["users_face_yolov5n", "users_helmet_vest_yolov5n"])
def test_users_weights_find_what_they_do_in_yolov5(
    run: Callable[..., Path],
    shared: Path,
    coco_images: list[Path],
    golden: Callable[[str], Any],
    tmp_path: Path,
    name: str,
) -> None:
    expected = golden("users_detect_conf025.json")[name]["images"]
    pictures = [picture for picture in coco_images if picture.name in expected][:5] + coco_images[:1]
    source = copy_all(pictures, tmp_path / "in")
    folder = run(source, "--save-txt", "--save-conf", "--nosave", size=640, weights=shared / f"weights/{name}.pt")
    for picture in pictures:
        height, width = picture_hw(picture)
        rows = np.array(expected.get(picture.name, []), dtype=float).reshape(-1, 6)[:, [0, 2, 3, 4, 5, 1]]
        tolerance_px = 0.5 * max(height, width) / 640 + 0.5  # golden's corners are rounded to picture pixels
        ours = read_rows(folder / f"labels/{picture.stem}.txt")
        assert_same(ours, rows, (height, width), tolerance_px + 0.02, 1e-3, 0.25)


# YOLOv5 7.0.14's own `detect --img 640 --augment` (fp32, CPU) on the first six pictures: class, cx, cy, w, h, score;
# corners rounded to picture pixels.
AUGMENTED = {
    "000000000009": [
        (45, 0.492188, 0.684375, 0.946875, 0.614583, 0.309201),
        (45, 0.723437, 0.241667, 0.53125, 0.483333, 0.729094),
        (50, 0.648438, 0.74375, 0.484375, 0.491667, 0.447138),
        (60, 0.5, 0.5, 1, 1, 0.25984),
    ],
    "000000000025": [
        (23, 0.180469, 0.901408, 0.207813, 0.150235, 0.542076),
        (23, 0.755469, 0.497653, 0.348437, 0.699531, 0.837266),
    ],
    "000000000030": [
        (75, 0.507812, 0.453271, 0.359375, 0.785047, 0.254081),
        (75, 0.507812, 0.587617, 0.253125, 0.474299, 0.750518),
    ],
    "000000000034": [(22, 0.355469, 0.489412, 0.679688, 0.898823, 0.943322)],
    "000000000036": [
        (0, 0.653846, 0.628906, 0.609148, 0.742188, 0.791667),
        (25, 0.47921, 0.397656, 0.95842, 0.682813, 0.824075),
    ],
    "000000000042": [(77, 0.622656, 0.376569, 0.548437, 0.58159, 0.275754)],
}


def test_augmented_boxes_are_yolov5s(run: Callable[..., Path], coco_images: list[Path], tmp_path: Path) -> None:
    source = copy_all(coco_images[:6], tmp_path / "in")
    folder = run(source, "--augment", "--save-txt", "--save-conf", "--nosave", size=640)
    for picture in coco_images[:6]:
        ours, theirs = read_rows(folder / f"labels/{picture.stem}.txt"), np.array(AUGMENTED[picture.stem])
        # We scale pictures in whole levels of 0..255, YOLOv5 in fractions of them.
        assert_same(ours, theirs, picture_hw(picture), 1.5, 6e-3, 0.25)


def test_batches_find_what_single_pictures_do(
    run: Callable[..., Path], coco_images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = copy_all(coco_images[:9], tmp_path / "in")
    make_video(source / "v.avi", coco_images[3:10], "MJPG")
    for module in (passes, detect_module):
        monkeypatch.setattr(module, "CPU_PASS", 1)
    single = run(source, "--save-txt", "--save-conf")
    for module in (passes, detect_module):
        monkeypatch.setattr(module, "CPU_PASS", 4)
    monkeypatch.setattr(passes, "MANY_PICTURES", 9)
    batched = run(source, "--save-txt", "--save-conf")
    labels = sorted(path.name for path in (single / "labels").iterdir())
    assert len(labels) > 8
    assert sorted(path.name for path in (batched / "labels").iterdir()) == labels
    for name in labels:
        assert np.abs(read_rows(single / "labels" / name) - read_rows(batched / "labels" / name)).max() < 2e-5
    assert len(read_frames(batched / "v.mp4")) == 7


@pytest.mark.parametrize("chunk", [1, 3])
def test_augmented_rows_are_each_views_own(coco_images: list[Path], yolov5n_pt: Path, chunk: int) -> None:
    detector = make_detector(read_checkpoint(yolov5n_pt), EngineSettings(precision="fp32"), 4)
    settings = LoaderSettings(img_size=256, letterbox="square", batch_size=4)
    items = [Shot(index, path) for index, path in enumerate(coco_images[5:9])]
    (batch,) = BatchReader(items, Placing("square", 256, 32), settings, lambda item, error: None)
    nms = NmsSettings()
    seen_rows = augmented_rows(replace(detector, chunk=chunk), batch, nms.conf_thres)
    found = [select_boxes(rows, nms) for rows in seen_rows]
    assert len(found) == 4 and sum(len(scores) for _, scores, _ in found) > 5
    for canvas, (boxes, scores, class_ids) in zip(batch.canvases, found):
        # By hand: the picture at three sizes, each detected alone, brought back and suppressed together.
        rows = []
        for scale, is_mirrored, levels in ((1, False, (0, 1)), (0.83, True, (0, 1, 2)), (0.67, False, (1, 2))):
            side = int(256 * scale)
            seen = cv2.resize(canvas[:, ::-1] if is_mirrored else canvas, (side, side))
            padded = np.full((-(-side // 32) * 32, -(-side // 32) * 32, 3), 114, np.uint8)
            padded[:side, :side] = seen
            letterbox = Letterbox((side, side), (side, side), padded.shape[:2], 1.0, 0, 0)
            (raw,) = detector.maps(Batch(items[:1], [padded], [letterbox]))
            every = raw.rows()[0]  # by level, then anchor and cell
            sizes = [3 * (len(padded) // stride) ** 2 for stride in (8, 16, 32)]
            part = torch.cat([torch.split(every, sizes)[level] for level in levels])
            part[:, :4] /= scale
            if is_mirrored:
                part[:, 0] = 256 - part[:, 0]
            rows.append(part)
        expected_boxes, expected_scores, expected_ids = select_boxes(torch.cat(rows), nms)
        assert class_ids.tolist() == expected_ids.tolist()
        torch.testing.assert_close(scores, expected_scores, atol=1e-4, rtol=0)
        torch.testing.assert_close(boxes, expected_boxes, atol=1e-2, rtol=0)


def test_only_the_classes_asked_for_are_found(run: Callable[..., Path], coco_images: list[Path]) -> None:
    picture = coco_images[0]  # bowls, an orange or broccoli, a table
    options = ("--conf-thres", 0.05, "--save-txt", "--nosave")
    rows = read_rows(run(picture, *options, size=320) / f"labels/{picture.stem}.txt")
    wanted = sorted(set(rows[:, 0]))[:2]
    assert len(set(rows[:, 0])) > 2
    few = read_rows(run(picture, *options, "--classes", *map(int, wanted), size=320) / f"labels/{picture.stem}.txt")
    assert np.array_equal(few, rows[np.isin(rows[:, 0], wanted)])  # classes don't suppress each other


def test_agnostic_boxes_suppress_those_of_other_classes(run: Callable[..., Path], coco_images: list[Path]) -> None:
    picture = coco_images[0]
    options = ("--conf-thres", 0.01, "--iou-thres", 0.45, "--save-txt", "--save-conf", "--nosave")
    rows = read_rows(run(picture, *options, size=320) / f"labels/{picture.stem}.txt")
    fewer = read_rows(run(picture, *options, "--agnostic-nms", size=320) / f"labels/{picture.stem}.txt")

    def highest_overlap(rows: Rows) -> float:
        boxes = to_xyxy(rows[:, 1:5])
        return float((ious(boxes, boxes) - np.eye(len(boxes))).max())

    assert highest_overlap(rows) > 0.7  # there is something to suppress
    assert highest_overlap(fewer) < 0.5  # 0.45 before boxes are clipped to the picture
    assert len(fewer) < len(rows)


def test_at_most_max_det_boxes_are_kept_the_best_ones(run: Callable[..., Path], coco_images: list[Path]) -> None:
    picture = coco_images[0]
    options = ("--conf-thres", 0.01, "--save-txt", "--save-conf", "--nosave")
    every = read_rows(run(picture, *options) / f"labels/{picture.stem}.txt")
    best = read_rows(run(picture, *options, "--max-det", 3) / f"labels/{picture.stem}.txt")
    assert len(every) > 3
    assert np.array_equal(best, every[:3])
    assert list(every[:, 5]) == sorted(every[:, 5], reverse=True)


def test_a_turned_picture_gives_the_boxes_of_the_upright_one(
    run: Callable[..., Path], coco_images: list[Path], tmp_path: Path
) -> None:
    upright = load(coco_images[3])
    cv2.imwrite(str(tmp_path / "upright.jpg"), upright)
    _, jpeg = cv2.imencode(".jpg", cv2.rotate(upright, cv2.ROTATE_90_COUNTERCLOCKWISE))
    # EXIF with one entry, orientation 6: turn by 90 degrees clockwise to see it upright.
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    (tmp_path / "turned.jpg").write_bytes(jpeg.tobytes()[:2] + segment + jpeg.tobytes()[2:])
    folder = run(tmp_path / "*.jpg", "--save-txt", size=320)
    rows, turned = (read_rows(folder / f"labels/{name}.txt") for name in ("upright", "turned"))
    assert len(rows) and np.abs(rows - turned).max() < 0.02
    assert picture_hw(folder / "turned.jpg") == picture_hw(folder / "upright.jpg")


@given(
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.sampled_from([32, 64]),
    st.integers(1, 20),
)
def test_a_square_fitting_is_the_minimal_letterbox(image_hw: tuple[int, int], stride: int, strides: int) -> None:
    side = stride * strides
    source = find_sources(__file__)[0]
    assert Fitting((side, side), stride)(source, image_hw) == letterbox_minimal(image_hw, side, stride)


def test_an_oblong_fitting_uses_both_sides() -> None:
    source = find_sources(__file__)[0]
    fitted = Fitting((320, 640), 32)(source, (480, 640))  # limited by the height: 2/3
    assert fitted.resized_hw == (320, 427)
    assert fitted.canvas_hw == (320, 448)
    assert (fitted.pad_top, fitted.pad_left) == (0, 10)  # 21 columns are missing


def test_imgsz_takes_height_and_width(run: Callable[..., Path], coco_images: list[Path]) -> None:
    picture = coco_images[3]
    one = run(picture, "--save-txt", "--nosave", "--imgsz", 256)
    two = run(picture, "--save-txt", "--nosave", "--imgsz", 256, 256)
    oblong = run(picture, "--save-txt", "--nosave", "--imgsz", 128, 256)
    labels = f"labels/{picture.stem}.txt"
    assert (one / labels).read_text() == (two / labels).read_text() != (oblong / labels).read_text()


# ---- what is written -------------------------------------------------------------------------------------------------


def test_drawn_pictures_have_the_sources_names_types_and_sizes(
    run: Callable[..., Path], coco_images: list[Path], tmp_path: Path
) -> None:
    pixels = load(coco_images[3])  # one zebra
    source = tmp_path / "in"
    source.mkdir()
    names = {"a.png", "b.BMP", "c.tif", "d.webp", "e.jpeg"}
    for name in names:
        cv2.imwrite(str(source / name), pixels)
    folder = run(source, "--save-txt", "--hide-labels", size=320)
    assert {path.name for path in folder.iterdir()} == names | {"labels"}
    for name in ("a.png", "b.BMP", "c.tif"):  # lossless: away from the boxes nothing changed
        drawn = load(folder / name)
        changed = np.argwhere((drawn != pixels).any(2))
        (row,) = read_rows(folder / f"labels/{Path(name).stem}.txt")
        height, width = pixels.shape[:2]
        x1, y1, x2, y2 = to_xyxy(row[None, 1:5])[0] * [width, height, width, height]
        assert np.abs(changed.min(0) - [max(y1, 0), max(x1, 0)]).max() <= 4
        assert np.abs(changed.max(0) - [min(y2, height - 1), min(x2, width - 1)]).max() <= 4
    for name in names:
        assert picture_hw(folder / name) == pixels.shape[:2]
        assert detect_kind(folder / name) == detect_kind(source / name)


def detect_kind(path: Path) -> bytes:
    return path.read_bytes()[:2]


def test_names_and_scores_are_drawn_unless_hidden(
    run: Callable[..., Path], coco_images: list[Path], tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), load(coco_images[3]))
    plain = run(tmp_path / "a.png", "--hide-labels", size=320)
    named = run(tmp_path / "a.png", "--hide-conf", size=320)
    scored = run(tmp_path / "a.png", size=320)
    thick = run(tmp_path / "a.png", "--hide-labels", "--line-thickness", 9, size=320)
    drawn = [load(folder / "a.png").astype(int) for folder in (plain, named, scored, thick)]
    original = load(tmp_path / "a.png").astype(int)
    changed = [int((picture != original).any(2).sum()) for picture in drawn]
    assert changed[0] < changed[1] < changed[2]
    assert changed[0] < changed[3]


def test_pictures_that_are_decoded_again_are_drawn_the_same(
    run: Callable[..., Path], coco_images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = copy_all(coco_images[:5], tmp_path / "in")
    kept = run(source, "--save-crop")
    monkeypatch.setattr(detect_module, "KEPT_BYTES", 0)
    again = run(source, "--save-crop")
    files = sorted(path.relative_to(kept) for path in kept.rglob("*.jpg"))
    assert len(files) > 5
    assert all((kept / name).read_bytes() == (again / name).read_bytes() for name in files)


def test_crops_are_a_little_larger_than_the_boxes(
    run: Callable[..., Path], coco_images: list[Path], shared: Path
) -> None:
    picture = coco_images[6]  # 49: horses and people
    folder = run(picture, "--save-crop", "--save-txt", "--nosave", size=640)
    pixels = load(picture).astype(float)
    height, width = pixels.shape[:2]
    rows = read_rows(folder / f"labels/{picture.stem}.txt")
    names = {0: "person", 17: "horse"}
    numbers = dict.fromkeys(names, 0)
    for class_id, cx, cy, w, h in rows.tolist():
        numbers[int(class_id)] += 1
        number = numbers[int(class_id)]
        path = folder / f"crops/{names[int(class_id)]}/{picture.stem}{number if number > 1 else ''}.jpg"
        crop = load(path).astype(float)
        half_w, half_h = (w * width * 1.02 + 10) / 2, (h * height * 1.02 + 10) / 2
        x1, x2 = max(int(cx * width - half_w + 1e-3), 0), min(int(cx * width + half_w + 1e-3), width)
        y1, y2 = max(int(cy * height - half_h + 1e-3), 0), min(int(cy * height + half_h + 1e-3), height)
        assert crop.shape[:2] == (y2 - y1, x2 - x1)
        assert np.abs(crop - pixels[y1:y2, x1:x2]).mean() < 10  # no box is drawn on it
    assert numbers[0] > 1 and numbers[17] > 1
    assert len(list(folder.rglob("*.jpg"))) == len(rows)


def test_nosave_writes_labels_alone_and_decodes_nothing_twice(
    run: Callable[..., Path], coco_images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("decoded for nothing")

    monkeypatch.setattr(result_files, "read_picture", refuse)
    folder = run(coco_images[3], "--nosave", "--save-txt")
    assert [path.name for path in folder.rglob("*")] == ["labels", f"{coco_images[3].stem}.txt"]


def test_nothing_to_write_makes_no_folder(run: Callable[..., Path], coco_images: list[Path], tmp_path: Path) -> None:
    run(coco_images[3], "--nosave")
    assert not (tmp_path / "runs").exists()


def test_each_run_gets_a_folder_of_its_own(run: Callable[..., Path], coco_images: list[Path], tmp_path: Path) -> None:
    names = [run(coco_images[3], "--nosave", "--save-txt").name for _ in range(3)]
    assert names == ["exp", "exp2", "exp3"]
    assert run(coco_images[3], "--name", "猫 x").name == "猫 x"


def test_exist_ok_replaces_what_an_earlier_run_wrote(
    run: Callable[..., Path], coco_images: list[Path], tmp_path: Path
) -> None:
    picture = coco_images[3]
    options = ("--exist-ok", "--save-txt")
    labels = tmp_path / f"runs/exp/labels/{picture.stem}.txt"
    run(picture, *options)
    before = labels.read_text()
    run(picture, *options)
    assert labels.read_text() == before != ""
    run(picture, *options, "--conf-thres", 1)  # nothing is found: an old file would tell otherwise
    assert not labels.exists()


def test_results_never_overwrite_their_sources(
    coco_images: list[Path], yolov5n_pt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = copy_all(coco_images[:1], tmp_path / "in")
    argv = ["--source", str(source), "--project", str(tmp_path), "--name", "in", "--exist-ok", "--device", "cpu"]
    assert main(["--weights", str(yolov5n_pt), *argv]) == 1
    assert "would overwrite them" in capsys.readouterr().err
    assert (source / coco_images[0].name).read_bytes() == coco_images[0].read_bytes()


def test_a_link_in_the_folder_of_results_is_replaced_not_followed(
    run: Callable[..., Path], coco_images: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "runs/exp").mkdir(parents=True)
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "runs/exp" / coco_images[0].name).symlink_to(tmp_path / "precious")
    run(coco_images[0], "--exist-ok")
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (tmp_path / "runs/exp" / coco_images[0].name).is_symlink()


def test_sources_of_one_name_all_keep_their_results(
    run: Callable[..., Path], coco_images: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for letter, picture in zip("abc", coco_images[3:6]):
        (tmp_path / letter).mkdir()
        shutil.copy(picture, tmp_path / letter / "1.jpg")
    cv2.imwrite(str(tmp_path / "c/1.png"), load(coco_images[6]))
    shutil.copy(coco_images[7], tmp_path / "c/1_2.jpg")
    with caplog.at_level("INFO"):
        folder = run(tmp_path / "?/*", "--save-txt", "--conf-thres", 0.1, size=320)
    assert {path.name for path in folder.iterdir()} == {"1.jpg", "1_2.jpg", "1_3.jpg", "1_4.jpg", "1_5.png", "labels"}
    assert picture_hw(folder / "1_2.jpg") == picture_hw(coco_images[7])  # a name of one's own comes first
    assert picture_hw(folder / "1_5.png") == picture_hw(coco_images[6])
    assert len(list((folder / "labels").iterdir())) == 5
    assert "3 sources have a name that is too long or taken" in caplog.text


def test_class_names_become_folders_that_lead_nowhere_else() -> None:
    names = (
        "cat",
        "../../etc",
        "a/b",
        "a_b",
        "",
        "..",
        ".",
        "a",
        "a",
        "a_2",
        "no\nlf",
        "猫",
        "x" * 300,
        "x" * 301,
        "c\\d",
        "a_b",
    )
    folders = safe_folders(names)
    assert folders[0] == "cat" and folders[11] == "猫"
    assert len(set(folders)) == len(names)
    for folder in folders:
        assert folder.isprintable() and folder.strip(".") and not set(folder) & set("/\\")
        assert len(os.fsencode(folder)) < 250


def test_what_cant_be_written_is_one_line(
    coco_images: list[Path], yolov5n_pt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_the_way = tmp_path / "runs/exp" / coco_images[0].name
    in_the_way.mkdir(parents=True)
    argv = ["--source", coco_images[0], "--project", tmp_path / "runs", "--exist-ok", "--device", "cpu", "--img", 64]
    assert main(["--weights", str(yolov5n_pt), *map(str, argv)]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {in_the_way}: can't be written (")


def test_names_come_from_data_yaml(
    run: Callable[..., Path], coco_images: list[Path], shared: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.yaml"
    data.write_text(json.dumps({"names": ["人脸"]}))
    weights = shared / "weights/users_face_yolov5n.pt"
    folder = run(coco_images[6], "--data", data, "--save-crop", size=640, weights=weights)
    assert [path.name for path in (folder / "crops").iterdir()] == ["人脸"]


# ---- sources ---------------------------------------------------------------------------------------------------------


def test_results_of_a_list_stay_in_the_folder(
    run: Callable[..., Path], coco_images: list[Path], tmp_path: Path
) -> None:
    copy_all(coco_images[3:5], tmp_path / "elsewhere")
    names = [f"../elsewhere/{picture.name}" for picture in coco_images[3:5]] + ["/etc/passwd", "..", "../../x.jpg"]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/l.txt").write_text("\n".join(names))
    folder = run(tmp_path / "lists/l.txt", "--save-txt")
    assert {path.name for path in folder.iterdir()} == {*(picture.name for picture in coco_images[3:5]), "labels"}
    outside = {path.name for path in tmp_path.rglob("*")} - {path.name for path in folder.rglob("*")}
    assert outside == {"elsewhere", "lists", "l.txt", "runs", "exp"}


ODD_NAMES = [
    "猫 と 犬.jpg",
    "-rf.jpg",
    "two\nlines.jpg",
    "a'b\"c$(d).jpg",
    "%d.jpg",
    "no-utf8-\udce9.jpg",
    "x" * 245 + ".jpg",
]


def test_odd_names_are_read_and_written(run: Callable[..., Path], coco_images: list[Path], tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name in ODD_NAMES:
        shutil.copy(coco_images[3], source / name)
    folder = run(source, "--save-txt", "--save-crop", size=320)
    stems = {Path(name).stem if len(name) < 200 else "x" * 220 for name in ODD_NAMES}
    assert {path.stem for path in folder.glob("*.jpg")} == stems
    assert {path.stem for path in folder.glob("labels/*.txt")} == stems
    assert {path.stem for path in folder.glob("crops/zebra/*.jpg")} == stems


def test_a_source_may_begin_with_a_dash(
    run: Callable[..., Path], coco_images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(coco_images[3], "-rf.jpg")
    assert (run("-rf.jpg") / "-rf.jpg").is_file()


def test_unreadable_files_are_named_and_the_others_read(
    run: Callable[..., Path], coco_images: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = copy_all(coco_images[3:5], tmp_path / "in")
    (source / "secret.jpg").write_text("password: 1234")
    (source / "playlist.mp4").write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n")
    (source / "folder.jpg").mkdir()
    os.mkfifo(source / "pipe.jpg")
    os.mkfifo(source / "pipe.mp4")
    (source / "device.jpg").symlink_to("/dev/zero")
    (source / "cut.jpg").write_bytes(coco_images[5].read_bytes()[:-5000])
    with caplog.at_level("INFO"):
        folder = run(source)
    assert {path.name for path in folder.iterdir()} == {*(picture.name for picture in coco_images[3:5]), "cut.jpg"}
    assert "6 sources can't be read" in caplog.text
    assert "1 pictures or videos are damaged and used as far as they go: " in caplog.text
    assert "password" not in caplog.text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--source", "/none/of/it.jpg"], "--source /none/of/it.jpg: no such file or folder"),
        (["--source", "EMPTY"], "the folder holds no pictures (.bmp"),
        (["--source", "EMPTY/*.jpg"], "the pattern matches no pictures (.bmp"),
        (["--source", "0"], "--source 0: cameras and streams are not supported; give a picture or video file"),
        (["--source", "rtsp://10.0.0.1/live"], "cameras and streams are not supported"),
        (["--source", "all.streams"], "cameras and streams are not supported"),
        (["--source", "EMPTY", "--imgsz", "1", "2", "3"], "--imgsz: got 3 numbers, need one, or height and width"),
        (["--imgsz", "0"], "--imgsz: got 0 x 0, need 1 to 16384"),
        (["--imgsz", "big"], "argument --imgsz/--img/--img-size: invalid int value: 'big' (--help lists the options)"),
        (["--bogus"], "unrecognized arguments: --bogus (--help lists the options)"),
        (["--conf-thres", "1.5"], "conf_thres: got 1.5, need a number from 0 to 1"),
        (["--iou-thres", "nan"], "iou_thres: got nan, need a number from 0 to 1"),
        (["--max-det", "0"], "max_det: got 0, need at least 1"),
        (["--vid-stride", "0"], "--vid-stride: got 0, need at least 1"),
        (["--line-thickness", "0"], "--line-thickness: got 0, need at least 1"),
        (["--weights", "a.pt", "b.pt"], "--weights: got 2 files, need one; ensembles are not supported"),
        (["--weights", "a.h5"], "--weights: got a.h5, need a .pt, .onnx or .torchscript file"),
        (["--weights", "/none.pt", "--source", __file__], "/none.pt: No such file or directory"),
        (["--device", "gpu"], "--device: got 'gpu', need cpu, or GPU indices such as 0 or 0,1"),
        (["--device", "0" * 60 + "x"], "--device: got "),
        (["--half", "--device", "cpu"], "--half: needs a GPU; leave it out on a CPU"),
        (["--half", "--precision", "fp32"], "--half: means --precision fp16, but --precision fp32 is given"),
    ],
)
def test_a_wrong_option_is_one_line(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [part.replace("EMPTY", str(tmp_path)) for part in argv]
    assert main(argv) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ") and message in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "80"], "--classes: got 80, "),
        (["--classes", "0", "-1"], "--classes: got -1, "),
        (["--data", "DATA"], "names 1 classes, "),
        (["--data", "/none.yaml"], "/none.yaml: No such file or directory"),
    ],
)
def test_what_the_weights_contradict_is_one_line(
    options: list[str],
    message: str,
    coco_images: list[Path],
    yolov5n_pt: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "data.yaml").write_text("names: [one]")
    options = [part.replace("DATA", str(tmp_path / "data.yaml")) for part in options]
    assert main(["--weights", str(yolov5n_pt), "--source", str(coco_images[0]), *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


@pytest.mark.parametrize("option", ["--view-img", "--visualize", "--update", "--dnn"])
def test_what_is_not_offered_is_said_and_the_rest_done(
    run: Callable[..., Path], coco_images: list[Path], caplog: pytest.LogCaptureFixture, option: str
) -> None:
    assert (run(coco_images[0], option) / coco_images[0].name).is_file()
    assert len([record for record in caplog.records if record.getMessage().startswith(f"{option}: ")]) == 1


def test_verbose_gives_a_line_a_picture(
    run: Callable[..., Path], coco_images: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = copy_all([coco_images[3], coco_images[6]], tmp_path / "in")
    cv2.imwrite(str(source / "zero.png"), np.zeros((9, 9, 3), np.uint8))
    run(source, "--verbose", "--nosave", size=640)
    lines = [
        record.getMessage() for record in caplog.records if record.levelname == "DEBUG" and record.name == "detect"
    ]
    assert lines == [
        f"image 1/3 {source}/{coco_images[3].name}: 1 zebra",
        f"image 2/3 {source}/{coco_images[6].name}: 5 persons, 2 horses",
        f"image 3/3 {source}/zero.png: (no detections)",
    ]


# ---- videos ----------------------------------------------------------------------------------------------------------


def make_video(path: Path, pictures: Sequence[Path], codec: str = "mp4v", fps: float = 10.0) -> Path:
    """Write a video of 320 x 240 px, one frame a picture."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), fps, (320, 240))
    assert writer.isOpened()
    for picture in pictures:
        writer.write(cv2.resize(load(picture), (320, 240)))
    writer.release()
    return path


def read_frames(path: Path) -> list[Any]:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    frames: list[Any] = []
    while True:
        is_there, frame = capture.read()
        if not is_there:
            return frames
        frames.append(frame)


def test_a_videos_frames_are_detected_as_pictures_are(
    run: Callable[..., Path], coco_images: list[Path], tmp_path: Path
) -> None:
    video = make_video(tmp_path / "v.avi", coco_images[3:10], "MJPG")
    frames = tmp_path / "frames"
    frames.mkdir()
    for number, frame in enumerate(read_frames(video), start=1):
        cv2.imwrite(str(frames / f"v_{number}.png"), frame)
    of_video = run(video, "--save-txt", "--save-conf", size=320)
    of_pictures = run(frames, "--save-txt", "--save-conf", "--nosave", size=320)
    labels = sorted(path.name for path in (of_pictures / "labels").iterdir())
    assert len(labels) >= 4
    assert sorted(path.name for path in (of_video / "labels").iterdir()) == labels
    for name in labels:
        assert np.abs(read_rows(of_video / "labels" / name) - read_rows(of_pictures / "labels" / name)).max() < 2e-5
    drawn, plain = read_frames(of_video / "v.mp4"), read_frames(video)
    assert len(drawn) == len(plain) == 7
    assert {path.name for path in of_video.iterdir()} == {"v.mp4", "labels"}
    # In their order: each drawn frame is like the one that it was.
    off = np.array([[np.abs(a.astype(int) - b).mean() for b in plain] for a in drawn])
    assert off.argmin(1).tolist() == list(range(7))


def test_every_third_frame_keeps_its_number_and_the_video_its_duration(
    run: Callable[..., Path], coco_images: list[Path], tmp_path: Path
) -> None:
    video = make_video(tmp_path / "v.mp4", [coco_images[3]] * 8, fps=12)
    folder = run(video, "--save-txt", "--save-crop", "--vid-stride", 3, size=320)
    assert {path.name for path in (folder / "labels").iterdir()} == {"v_1.txt", "v_4.txt", "v_7.txt"}
    assert {path.name for path in (folder / "crops/zebra").iterdir()} == {"v_1.jpg", "v_4.jpg", "v_7.jpg"}
    capture = cv2.VideoCapture(str(folder / "v.mp4"), cv2.CAP_FFMPEG)
    assert (capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)) == (3, 4)


def test_pictures_and_videos_of_one_folder_keep_apart(
    run: Callable[..., Path], coco_images: list[Path], tmp_path: Path
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    zebra = coco_images[3]
    make_video(source / "v.mp4", [zebra] * 2)
    make_video(source / "v.avi", [zebra] * 2, "MJPG")
    make_video(source / "no-utf8.avi", [zebra], "MJPG").rename(source / "no-utf8-\udce9 猫%d.avi")
    shutil.copy(zebra, source / "v_1.jpg")  # as the first frame's labels would be called
    (source / "broken.mp4").write_bytes((source / "v.mp4").read_bytes()[:100])
    folder = run(source, "--save-txt", size=320)
    videos = {"no-utf8-\udce9 猫%d.mp4", "v_2.mp4", "v_3.mp4"}
    assert {path.name for path in folder.iterdir()} == videos | {"v_1.jpg", "labels"}
    labels = {f"{Path(name).stem}_1.txt" for name in videos} | {"v_1.txt", "v_2_2.txt", "v_3_2.txt"}
    assert {path.name for path in (folder / "labels").iterdir()} == labels


def test_a_video_is_written_into_a_folder_of_any_name(
    run: Callable[..., Path], coco_images: list[Path], tmp_path: Path
) -> None:
    name = "no-utf8-\udce9 %d"  # given such a path, OpenCV would end the process
    folder = run(make_video(tmp_path / "v.mp4", coco_images[:2]), "--name", name)
    assert folder.name == name
    assert [path.name for path in folder.iterdir()] == ["v.mp4"]


def test_a_video_is_told_by_its_first_bytes(tmp_path: Path, yolov5n_pt: Path, coco_images: list[Path]) -> None:
    make_video(tmp_path / "v.mp4", coco_images[:2])
    shutil.copy(coco_images[0], tmp_path / "picture.mp4")
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path}/v.mp4\n")
    for name in ("picture.mp4", "list.mp4"):
        with pytest.raises(ImageError, match="is no video of a known type"):
            detect(DetectSettings(yolov5n_pt, str(tmp_path / name), device="cpu", folder=tmp_path / "exp"))


def test_every_kind_of_video_is_read(run: Callable[..., Path], coco_images: list[Path], tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    kinds = "avi:MJPG m4v:mp4v mkv:mp4v mov:mp4v mp4:mp4v mpg:mpg1 ts:mp4v webm:VP80 wmv:WMV2"
    for kind in kinds.split():
        suffix, _, codec = kind.partition(":")
        make_video(source / f"of-{suffix}.{suffix}", [coco_images[3]] * 2, codec, fps=25)
    folder = run(source, "--save-txt", "--nosave", size=320)
    assert len(list((folder / "labels").glob("*_1.txt"))) == len(kinds.split())
    assert len(list((folder / "labels").glob("*_2.txt"))) == len(kinds.split())


def test_frames_that_no_mp4_holds_keep_their_labels(
    run: Callable[..., Path], coco_images: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 10, (9000, 3000))
    writer.write(cv2.resize(load(coco_images[3]), (9000, 3000)))
    writer.release()
    folder = run(tmp_path / "v.avi", "--save-txt", size=320)
    assert [path.name for path in folder.rglob("*")] == ["labels", "v_1.txt"]
    assert "v.avi: is not drawn: 9000 x 3000 pixels don't fit into an MP4 file" in caplog.text


def test_pictures_are_shown_by_one_thread(
    run: Callable[..., Path], coco_images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[int, tuple[int, ...]]] = []
    monkeypatch.setattr(detect_module, "can_show", lambda: True)
    monkeypatch.setattr(cv2, "imshow", lambda name, bgr: shown.append((threading.get_ident(), bgr.shape)))
    monkeypatch.setattr(cv2, "waitKey", lambda milliseconds: -1)
    run(copy_all(coco_images[:4], tmp_path / "in"), "--view-img", "--nosave")
    assert [shape for _, shape in shown] == [load(picture).shape for picture in coco_images[:4]]
    assert len({thread for thread, _ in shown}) == 1
    assert not (tmp_path / "runs").exists()


def test_a_video_that_breaks_off_is_used_as_far_as_it_goes(
    run: Callable[..., Path], coco_images: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    video = make_video(tmp_path / "v.avi", coco_images[:10], "MJPG")
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    with caplog.at_level("INFO"):
        folder = run(video)
    assert 3 <= len(read_frames(folder / "v.mp4")) <= 7
    assert "1 pictures or videos are damaged" in caplog.text and "breaks off after frame" in caplog.text


def test_a_video_larger_than_allowed_is_refused(tmp_path: Path, yolov5n_pt: Path, coco_images: list[Path]) -> None:
    video = make_video(tmp_path / "v.mp4", coco_images[:2])
    limits = PictureSettings(turn=True, max_pixels=1000)
    with pytest.raises(ImageError, match="is 320 x 240 pixels, more than max_pixels: 1000"):
        detect(DetectSettings(yolov5n_pt, str(video), device="cpu", pictures=limits, folder=tmp_path / "exp"))


# ---- from Python, and as a process -----------------------------------------------------------------------------------


def test_a_listener_is_told_of_everything(yolov5n_pt: Path, coco_images: list[Path], tmp_path: Path) -> None:
    source = copy_all(coco_images[:3], tmp_path / "in")
    make_video(source / "v.mp4", coco_images[3:5])
    told: list[Found] = []
    settings = DetectSettings(
        yolov5n_pt, str(source), device="cpu", precision="fp32", img_hw=(160, 160), saving=SaveSettings(pictures=False)
    )
    summary = detect(settings, told.append)
    assert [found.source.result_stem for found in told] == [picture.stem for picture in coco_images[:3]] + [
        "v_1",
        "v_2",
    ]
    assert [found.image_hw for found in told[3:]] == [(240, 320)] * 2
    assert (summary.folder, summary.pictures, summary.videos, summary.frames) == (None, 3, 1, 2)
    assert summary.boxes == sum(len(found.detections) for found in told)


def test_batches_are_those_that_a_cpu_is_fastest_with() -> None:
    assert (passes.CPU_PASS, passes.MANY_PICTURES) == (8, 256)  # measured: docs/performance.md
    assert detect_module.guess_batch_size("cpu") == passes.CPU_PASS
    assert make_detector.__defaults__ == (passes.CPU_PASS, 1)


def test_settings_are_checked_when_they_are_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--vid-stride"):
        DetectSettings(tmp_path / "a.pt", "x", vid_stride=0)
    with pytest.raises(ConfigError, match="max_det"):
        DetectSettings(tmp_path / "a.pt", "x", nms=NmsSettings(max_det=0))
    with pytest.raises(DatasetError):
        find_sources(str(tmp_path))


def run_process(*argv: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "detect.py", *argv]
    return subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)


def test_a_process_writes_below_where_it_runs(yolov5n_pt: Path, coco_images: list[Path], tmp_path: Path) -> None:
    source = copy_all(coco_images[3:5], tmp_path / "in")
    (source / "bad\nname.jpg").write_text("no picture")
    done = run_process("--weights", yolov5n_pt, "--source", "in", "--img", 160, "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == ""
    assert {path.name for path in (tmp_path / "runs/detect/exp").iterdir()} == {p.name for p in coco_images[3:5]}
    lines = done.stderr.splitlines()
    assert any(line.startswith("1 sources can't be read: in/bad name.jpg: ") for line in lines)
    assert lines[-1] == "results in runs/detect/exp"


def test_a_process_that_reads_nothing_fails_with_its_cause(yolov5n_pt: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no picture")
    done = run_process("--weights", yolov5n_pt, "--source", "a.jpg", "--img", 160, "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: not one of 1 sources can be read, such as a.jpg: ")


@pytest.mark.parametrize("argv", [["--conf-thres", "2"], ["--source", "/none"], ["--half", "--device", "cpu"]])
def test_a_wrong_option_is_told_before_torch_is_loaded(argv: list[str]) -> None:
    code = "import sys, detect; assert detect.main(sys.argv[1:]) == 1; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True).returncode == 0
