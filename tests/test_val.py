"""val.py: YOLOv5's and COCO's figures over the whole of coco128 against golden ones, and its command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

import val
from models.candidates import detector_candidates
from models.checkpoint import read_checkpoint
from models.detector import Detector, make_detector
from tests.utils.picture_files import with_orientation
from utils.batches import BatchReader, Placing, Shot
from utils.coco_metrics import COCO_CATEGORY_IDS, CocoFigures, coco_figures
from utils.labelled import LabelledBatch, LabelledReader, LabelledSet, yolo_set
from utils.labels import Labels, LabelSource, PictureFile, read_yolo, yolo_label_path
from utils.metrics import Found, Metrics, Truth, compare, compute_metrics, join
from utils.settings import EngineSettings, LoaderSettings, NmsSettings, PictureSettings
from utils.watchers import Seen
from val import SaveSettings, Validation, ValSettings
from ymir.results import whole_boxes

ROOT = Path(__file__).resolve().parent.parent
SIDE = 160  # px, where the figures don't matter
FP32 = EngineSettings(precision="fp32", device="cpu")
TURNED = PictureSettings(turn=True)


# ---- the whole of coco128, each once a session -----------------------------------------------------------------------


@pytest.fixture(scope="session")
def coco128(shared: Path) -> Path:
    return shared / "data/coco128/coco128.yaml"


@pytest.fixture(scope="session")
def full_settings(coco128: Path, yolov5n_pt: Path) -> ValSettings:
    return ValSettings(coco128, yolov5n_pt, loader=LoaderSettings(batch_size=16, pictures=TURNED), engine=FP32)


@pytest.fixture(scope="session")
def square(full_settings: ValSettings) -> Validation:
    return val.validate(replace(full_settings, is_rect=False), SaveSettings(plots=False))


@pytest.fixture(scope="session")
def rect(full_settings: ValSettings, tmp_path_factory: pytest.TempPathFactory) -> Validation:
    """YOLOv5's default, with everything saved that can be."""
    project = tmp_path_factory.mktemp("rect")
    return val.validate(full_settings, SaveSettings(project, labels=True, scores=True, coco_json=True))


def means(metrics: Metrics) -> dict[str, float]:
    return {"P": metrics.p, "R": metrics.r, "mAP50": metrics.map50, "mAP": metrics.map}


def test_square_figures_are_the_golden_ones(square: Validation, golden: Callable[[str], Any]) -> None:
    expected = golden("upstream_val.json")["modes"]["square"]
    metrics = square.evaluation.metrics
    assert (metrics.images, metrics.instances) == (128, 929)
    assert means(metrics) == pytest.approx({name: expected[name] for name in means(metrics)}, abs=0.002)


def test_square_figures_of_each_class_are_the_golden_ones(square: Validation, golden: Callable[[str], Any]) -> None:
    rows = golden("upstream_val.json")["modes"]["square"]["per_class"]
    expected = {row["cls"]: [row["P"], row["R"], row["AP50"], row["AP"]] for row in rows}
    found = {one.class_id: [one.p, one.r, one.ap50, one.ap] for one in square.evaluation.metrics.classes}
    assert found.keys() == expected.keys()
    far = {
        key: (found[key], expected[key]) for key in found if np.abs(np.subtract(found[key], expected[key])).max() > 0.01
    }
    assert far == {}


def test_rect_figures_are_the_golden_ones(rect: Validation, golden: Callable[[str], Any]) -> None:
    expected = golden("upstream_val.json")["modes"]["rect"]
    metrics = rect.evaluation.metrics
    assert means(metrics) == pytest.approx({name: expected[name] for name in means(metrics)}, abs=0.004)


def test_coco_figures_are_those_of_upstreams_predictions(rect: Validation, golden: Callable[[str], Any]) -> None:
    expected = golden("infer_map.json")["upstream_val_predictions_rect_multilabel_300"]
    coco = rect.coco
    assert [coco.map, coco.map50, coco.map75, coco.ar100] == pytest.approx(
        [expected[name] for name in ("mAP", "mAP50", "mAP75", "AR100")], abs=0.003
    )
    assert coco.map_small is not None and coco.map_large is not None and coco.map_small < coco.map < coco.map_large


def test_the_coco_file_gives_the_same_figures(rect: Validation, coco128: Path, golden: Callable[[str], Any]) -> None:
    assert rect.folder is not None
    rows = json.loads((rect.folder / "yolov5n_predictions.json").read_text())
    expected = golden("infer_map.json")["upstream_val_predictions_rect_multilabel_300"]["detections"]
    assert len(rows) == pytest.approx(expected, rel=0.01)
    truths = labels_of_coco128(coco128)
    class_ids = {category: class_id for class_id, category in enumerate(COCO_CATEGORY_IDS)}
    found = {}
    for image_id in {row["image_id"] for row in rows}:
        mine = [row for row in rows if row["image_id"] == image_id]
        assert len(mine) <= 300
        boxes = np.array([row["bbox"] for row in mine])
        boxes[:, 2:] += boxes[:, :2]
        scores = np.array([row["score"] for row in mine])
        found[f"{image_id:012d}"] = Found(boxes, scores, np.array([class_ids[row["category_id"]] for row in mine]))
    nothing = Found(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    figures = coco_figures(list(truths.values()), [found.get(stem, nothing) for stem in truths], 80)
    assert (figures.map, figures.map50) == pytest.approx((rect.coco.map, rect.coco.map50), abs=1e-4)


def labels_of_coco128(coco128: Path) -> dict[str, Truth]:
    images = sorted((coco128.parent / "images/train2017").glob("*.jpg"))
    source = LabelSource([str(class_id) for class_id in range(80)])
    truths = {}
    for path in images:
        with Image.open(path) as image:
            width, height = image.size
        labels = read_yolo(yolo_label_path(path), PictureFile(path, (height, width)), source)
        truths[path.stem] = Truth(labels.boxes_px, labels.class_ids)
    return truths


def test_label_files_hold_what_the_coco_file_holds(rect: Validation, coco128: Path) -> None:
    assert rect.folder is not None
    rows = json.loads((rect.folder / "yolov5n_predictions.json").read_text())
    texts = {path.stem: path.read_text().splitlines() for path in (rect.folder / "labels").iterdir()}
    assert sum(map(len, texts.values())) == len(rows)
    stem = "000000000034"
    with Image.open(coco128.parent / f"images/train2017/{stem}.jpg") as image:
        width, height = image.size
    first = next(row for row in rows if row["image_id"] == int(stem))
    class_id, cx, cy, w, h, score = map(float, texts[stem][0].split())
    x, y, box_width, box_height = first["bbox"]
    assert COCO_CATEGORY_IDS[int(class_id)] == first["category_id"]
    assert [cx * width, cy * height] == pytest.approx([x + box_width / 2, y + box_height / 2], abs=0.01)
    assert [w * width, h * height, score] == pytest.approx([box_width, box_height, first["score"]], abs=0.01)


def test_pictures_and_curves_are_drawn(rect: Validation) -> None:
    assert rect.folder is not None
    drawn = {path.name for path in rect.folder.iterdir() if path.suffix in (".jpg", ".png")}
    batches = {f"val_batch{number}_{what}.jpg" for number in range(3) for what in ("labels", "pred")}
    assert drawn == batches | {"PR_curve.png", "F1_curve.png", "P_curve.png", "R_curve.png", "confusion_matrix.png"}
    for name in drawn:
        with Image.open(rect.folder / name) as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 20, name


class LastSeen(nn.Module):
    """A network that, asked twice in a row about the same pictures, computes once."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen = torch.zeros(0)
        self.answer: Any = None

    def forward(self, images: Tensor) -> Any:
        if not torch.equal(images, self.seen):
            self.seen, self.answer = images, self.model(images)
        return self.answer


EXECUTOR_NMS = {
    "original_executor_conf0.001_iou0.6": NmsSettings(0.001, 0.6, max_det=100),
    "original_executor_conf0.25_iou0.45": NmsSettings(0.25, 0.45, max_det=100),
}


@pytest.fixture(scope="session")
def executor(coco128: Path, coco_images: list[Path], yolov5n_pt: Path) -> dict[str, CocoFigures]:
    """COCO's figures of whole-pixel boxes, as infer-result.json has them, at two settings."""
    detector = make_detector(read_checkpoint(yolov5n_pt), FP32, 8)
    detector = replace(detector, model=LastSeen(detector.model))
    shots = [Shot(index, path) for index, path in enumerate(coco_images)]
    loader = LoaderSettings(letterbox="square", batch_size=detector.chunk, workers=2)
    found: dict[str, list[Found]] = {name: [] for name in EXECUTOR_NMS}
    for batch in BatchReader(shots, Placing("square", 640, 32), loader, lambda shot, error: pytest.fail(str(error))):
        for name, nms in EXECUTOR_NMS.items():
            for letterbox, detections in zip(batch.letterboxes, detector.detect(batch, nms)):
                boxes = whole_boxes(detections.boxes_px, letterbox.image_hw)
                boxes[:, 2:] += boxes[:, :2]
                found[name].append(Found(boxes.astype(np.float64), detections.scores, detections.class_ids))
    truths = list(labels_of_coco128(coco128).values())
    return {name: coco_figures(truths, one, 80) for name, one in found.items()}


@pytest.mark.parametrize("setting", list(EXECUTOR_NMS))
def test_whole_pixel_boxes_are_no_worse_than_the_originals(
    setting: str, executor: dict[str, CocoFigures], golden: Callable[[str], Any]
) -> None:
    expected = golden("infer_map.json")[setting]
    assert executor[setting].map >= expected["mAP"] - 0.003
    assert executor[setting].map50 >= expected["mAP50"] - 0.003


# ---- a few pictures, small -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory, coco_images: list[Path], coco128: Path) -> Path:
    """A data set of eight pictures of several shapes."""
    folder = tmp_path_factory.mktemp("few")
    make_data(folder, coco_images[:8], yaml.safe_load(coco128.read_text())["names"])
    return folder / "data.yaml"


def make_data(folder: Path, images: Sequence[Path], names: Any) -> None:
    for kind in ("images", "labels"):
        (folder / kind / "val").mkdir(parents=True)
    for path in images:
        shutil.copy(path, folder / "images/val")
        if yolo_label_path(path).exists():
            shutil.copy(yolo_label_path(path), folder / "labels/val")
    (folder / "data.yaml").write_text(yaml.safe_dump({"val": "images/val", "names": names}))


@pytest.fixture
def copy(few: Path, tmp_path: Path) -> Path:
    """The same data set, to be changed."""
    shutil.copytree(few.parent, tmp_path / "data")
    return tmp_path / "data/data.yaml"


@pytest.fixture
def settings(few: Path, yolov5n_pt: Path) -> ValSettings:
    return ValSettings(few, yolov5n_pt, loader=LoaderSettings(SIDE, batch_size=4, pictures=TURNED), engine=FP32)


NOTHING = SaveSettings(plots=False)


def run(data: Path, weights: Path, project: Path, *options: str) -> int:
    given = ["--data", data, "--weights", weights, "--project", project, "--imgsz", SIDE, "--device", "cpu"]
    return val.main([*map(str, given), *options])


def test_the_table_has_a_row_for_all_and_for_each_class(
    few: Path, yolov5n_pt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(few, yolov5n_pt, tmp_path / "runs", "--noplots", "--verbose") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["Class", "Images", "Instances", "P", "R", "mAP50", "mAP50-95"]
    assert lines[1].split()[:3] == ["all", "8", "30"]
    assert any(line.split()[:3] == ["bowl", "1", "3"] for line in lines)
    assert [line.partition(" ")[0] for line in lines[-3:]] == ["COCO:", "", "Speed:"]
    assert not (tmp_path / "runs").exists()


def test_runs_get_folders_of_their_own(few: Path, yolov5n_pt: Path, tmp_path: Path, capsys: Any) -> None:
    for _ in range(2):
        assert run(few, yolov5n_pt, tmp_path, "--noplots", "--save-txt") == 0
    assert run(few, yolov5n_pt, tmp_path, "--noplots", "--save-txt", "--exist-ok") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"exp", "exp2"}
    assert capsys.readouterr().out.splitlines()[-1] == f"Results saved to {tmp_path / 'exp'}"
    line = (tmp_path / "exp/labels/000000000034.txt").read_text().splitlines()[0]
    assert len(line.split()) == 5


def test_one_class_is_class_blind_suppression(settings: ValSettings) -> None:
    """Against the same thing by another way: NMS that knows no classes, then all classes made one."""
    found = val.validate(replace(settings, single_cls=True), NOTHING).evaluation.metrics
    assert [(one.name, one.instances) for one in found.classes] == [("item", 30)]
    seen = all_seen(settings, replace(settings.nms, agnostic=True))
    parts = []
    for one in seen:
        boxes, nothing = one.detections.boxes_px.astype(np.float64), np.zeros(len(one.detections), np.int64)
        parts.append(
            compare(
                Found(boxes, one.detections.scores, nothing),
                Truth(one.labels.boxes_px, np.zeros(len(one.labels), np.int64)),
            )
        )
    expected = compute_metrics(join(parts), ["item"])
    assert means(found) == pytest.approx(means(expected), abs=0.02)  # compared in picture pixels here


def all_seen(settings: ValSettings, nms: NmsSettings) -> list[Seen]:
    detector = make_detector(read_checkpoint(settings.weights), FP32, 4)
    data = yaml.safe_load(settings.data.read_text())
    images = sorted((settings.data.parent / data["val"]).iterdir())
    reader = LabelledReader(yolo_set(list(data["names"].values()), images), settings.loader, 32)
    seen: list[Seen] = []
    val.evaluate(detector_candidates(detector), reader, nms, [seen.extend])
    return seen


def test_labels_that_join_are_all_found(settings: ValSettings) -> None:
    plain = val.validate(settings, NOTHING).evaluation.metrics
    joined = val.validate(replace(settings, joins_labels=True), NOTHING).evaluation.metrics
    assert joined.map50 > 0.9 > plain.map50


def test_three_views_find_what_one_finds(settings: ValSettings) -> None:
    plain = val.validate(settings, NOTHING).evaluation.metrics
    augmented = val.validate(replace(settings, augment=True), NOTHING).evaluation.metrics
    assert augmented.instances == plain.instances
    assert augmented.map50 != plain.map50
    assert augmented.map50 == pytest.approx(plain.map50, abs=0.2)


def test_figures_do_not_depend_on_batches_where_the_canvas_does_not(settings: ValSettings) -> None:
    whole = replace(settings, is_rect=False)
    alone = replace(whole, loader=replace(whole.loader, batch_size=1, workers=0))
    found = [val.validate(one, NOTHING).evaluation.metrics for one in (whole, alone)]
    assert means(found[0]) == pytest.approx(means(found[1]), abs=1e-3)


def test_figures_are_equal_where_passes_are_equally_large(
    tmp_path: Path, coco_images: list[Path], coco128: Path, yolov5n_pt: Path
) -> None:
    make_data(tmp_path, coco_images[:14], yaml.safe_load(coco128.read_text())["names"])

    def validated(batch_size: int) -> val.Evaluation:  # 12 are two passes of 6 pictures
        loader = LoaderSettings(SIDE, batch_size=batch_size, pictures=TURNED)
        return val.validate(
            ValSettings(tmp_path / "data.yaml", yolov5n_pt, loader=loader, engine=FP32, is_rect=False), NOTHING
        ).evaluation

    first, second = validated(12), validated(6)
    assert first.metrics.instances > 30 and first.metrics.map50 > 0.2
    assert means(first.metrics) == means(second.metrics)
    assert [(one.ap, one.ap50, one.p, one.r) for one in first.metrics.classes] == [
        (one.ap, one.ap50, one.p, one.r) for one in second.metrics.classes
    ]
    assert np.array_equal(first.confusion, second.confusion)


def test_the_defaults_are_yolov5s() -> None:
    settings = val.read_arguments(val._parser().parse_args([]), "yolov5s.pt")
    assert (settings.data, settings.weights) == (Path("data/coco128.yaml"), ROOT / "weights/yolov5s.pt")
    assert settings.nms == NmsSettings(0.001, 0.6, max_det=300, multi_label=True)
    assert settings.loader == LoaderSettings(640, batch_size=32, workers=8, pictures=TURNED)
    assert settings.engine == EngineSettings(device="", precision="fp32")
    assert settings == ValSettings(settings.data, settings.weights)
    assert val.read_saving(val._parser().parse_args([])) == SaveSettings(Path("runs/val"), "exp")


def test_detections_end_where_their_picture_does(tmp_path: Path) -> None:
    """Worked by hand: a picture of 100 x 60 px on a square of 128, its label the left half.

    The canvas has 128 x 77 px of it and 25.5 px of border (25 drawn) above. A box that begins far outside covers the
    left half, too: of what is inside the IoU is 1, of the whole it is 0.45.
    """
    (tmp_path / "images").mkdir()
    Image.new("RGB", (100, 60)).save(tmp_path / "images/a.png")

    def labels_of(shot: Shot, image_hw: tuple[int, int]) -> Labels:
        assert image_hw == (60, 100)
        return Labels(np.array([0]), np.array([[0.0, 0.0, 50.0, 60.0]]), np.array([False]), (None,))

    def candidates(batch: LabelledBatch, least_objectness: float) -> Iterator[Tensor]:
        assert least_objectness == 0.25
        top, bottom = -20.0, 25.5 + 77 + 25.5 + 20
        yield torch.tensor([[32.0, (top + bottom) / 2, 64.0, bottom - top, 0.9, 1.0]])

    shots = (Shot(0, tmp_path / "images/a.png"),)
    reader = LabelledReader(LabelledSet(("a",), shots, labels_of), LoaderSettings(128), 32, is_rect=False)
    found = val.evaluate(candidates, reader, NmsSettings())
    assert found.metrics.map == pytest.approx(0.995, abs=0.001)
    assert found.confusion.tolist() == [[1, 0], [0, 0]]


def test_half_on_a_cpu_is_fp32(few: Path, yolov5n_pt: Path, tmp_path: Path, capsys: Any, caplog: Any) -> None:
    outputs = []
    for options in ([], ["--half"]):
        assert run(few, yolov5n_pt, tmp_path, "--noplots", *options) == 0
        outputs.append(capsys.readouterr().out.partition("Speed")[0])
    assert outputs[0] == outputs[1]
    assert "fp16 needs a GPU" in caplog.text


def test_speed_takes_its_own_thresholds(few: Path, yolov5n_pt: Path, tmp_path: Path, capsys: Any) -> None:
    parser = val._parser()
    given = ["--data", str(few), "--weights", str(yolov5n_pt), "--task", "speed", "--conf-thres", "0.5", "--save-json"]
    settings = val.read_arguments(parser.parse_args(given), str(yolov5n_pt))
    assert (settings.nms.conf_thres, settings.nms.iou_thres, settings.is_rect) == (0.25, 0.45, False)
    assert settings.engine.precision == "auto"
    assert run(few, yolov5n_pt, tmp_path / "runs", "--task", "speed", "--batch-size", "2") == 0
    assert "ms inference" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_a_study_is_a_table_and_a_picture(
    few: Path, yolov5n_pt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(val, "STUDY_SIDES", (64, 128))
    assert run(few, yolov5n_pt, tmp_path, "--task", "study") == 0
    rows = (tmp_path / "exp/study_data_yolov5n.txt").read_text().splitlines()
    assert [row.split()[0] for row in rows] == ["img_size", "64", "128"]
    assert len({len(row.split()) for row in rows}) == 1
    with Image.open(tmp_path / "exp/study.png") as image:
        assert image.size == (1600, 1200)


def test_pictures_that_cannot_be_read_are_left_out(
    copy: Path, settings: ValSettings, caplog: pytest.LogCaptureFixture
) -> None:
    expected = val.validate(settings, NOTHING)
    pictures = copy.parent / "images/val"
    (pictures / "aaa.jpg").write_text("no picture")
    os.mkfifo(pictures / "pipe.png")
    content = next(pictures.glob("*9.jpg")).read_bytes()
    (pictures / "zzz.jpg").write_bytes(content[:600])  # has a header, and no pixels
    (copy.parent / "labels/val/zzz.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    square = replace(settings, is_rect=False)
    found = val.validate(replace(square, data=copy), NOTHING).evaluation.metrics
    assert means(found) == means(val.validate(square, NOTHING).evaluation.metrics)
    assert found.images == expected.evaluation.metrics.images == 8
    assert "3 pictures can't be read" in caplog.text


def test_turned_pictures_are_seen_upright(copy: Path, settings: ValSettings) -> None:
    """A picture stored on its side, with an EXIF tag that says so, and labels for the upright one."""
    names = sorted((copy.parent / "images/val").glob("*.jpg"))
    upright, turned = copy.parent / "upright", copy.parent / "turned"
    for folder in (upright, turned):
        make_data(folder, [], yaml.safe_load(copy.read_text())["names"])
    for path in names:
        with Image.open(path) as image:
            image.save(upright / f"images/val/{path.stem}.png")
            side = image.transpose(Image.Transpose.ROTATE_90)  # orientation 6 asks to turn it clockwise
            side.save(turned / f"images/val/{path.stem}.png", exif=with_orientation(6))
        for folder in (upright, turned):
            shutil.copy(yolo_label_path(path), folder / "labels/val")
    found = [val.validate(replace(settings, data=at / "data.yaml"), NOTHING) for at in (upright, turned)]
    assert means(found[0].evaluation.metrics) == means(found[1].evaluation.metrics)


def test_a_set_without_labels_says_so(copy: Path, settings: ValSettings, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(copy.parent / "labels")
    found = val.validate(replace(settings, data=copy), NOTHING)
    assert found.evaluation.metrics.map == found.coco.map == 0
    assert "not one label" in caplog.text


def test_faults_of_labels_are_told(copy: Path, settings: ValSettings, caplog: pytest.LogCaptureFixture) -> None:
    label = next((copy.parent / "labels/val").iterdir())
    label.write_text("99 0.5 0.5 0.1 0.1\n1 nan 0.5 0.1 0.1\n0 0.5\n")
    val.validate(replace(settings, data=copy), NOTHING)
    assert "not of the task's classes: 1" in caplog.text
    assert f"malformed: 1; first: {label}" in caplog.text


def test_other_names_are_a_warning(copy: Path, settings: ValSettings, caplog: pytest.LogCaptureFixture) -> None:
    content = yaml.safe_load(copy.read_text())
    content["names"][0] = "somebody"
    copy.write_text(yaml.safe_dump(content))
    found = val.validate(replace(settings, data=copy), NOTHING)
    assert "person / somebody" in caplog.text
    assert any(one.name == "somebody" for one in found.evaluation.metrics.classes)


def test_crowds_are_no_labels_and_no_mistakes(settings: ValSettings) -> None:
    """With every label a crowd, YOLOv5's metric has none; with none a crowd, nothing changes."""

    def figures(are_crowds: bool) -> Metrics:
        plain = yolo_set(
            [str(class_id) for class_id in range(80)], sorted((settings.data.parent / "images/val").iterdir())
        )

        def labels_of(shot: Shot, image_hw: tuple[int, int]) -> Labels:
            labels = plain.labels_of(shot, image_hw)
            return replace(labels, is_crowd=np.full(len(labels), are_crowds))

        reader = LabelledReader(LabelledSet(plain.names, plain.shots, labels_of), settings.loader, 32)
        detector: Detector = make_detector(read_checkpoint(settings.weights), FP32, 4)
        return val.evaluate(detector_candidates(detector), reader, settings.nms).metrics

    assert figures(True).instances == 0
    assert means(figures(False)) == means(val.validate(settings, NOTHING).evaluation.metrics)


# ---- what can be wrong -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wrong:
    """A command line (DATA, PT and HERE stand for paths) and what its last line says."""

    options: str
    says: str


WRONG = [
    Wrong("--data HERE/none.yaml --weights PT", "none.yaml"),
    Wrong("--data DATA --weights HERE/none.pt", "none.pt"),
    Wrong("--data DATA --weights HERE/net.onnx", "net.onnx: is no ONNX file"),
    Wrong("--data DATA --weights HERE/net.h5", "need a .pt, .onnx"),
    Wrong("--data DATA --weights HERE/text.pt", "text.pt"),
    Wrong("--data DATA --weights PT PT", "ensembles are not supported"),
    Wrong("--data DATA --weights PT --task test", "test: missing"),
    Wrong("--data DATA --weights PT --task best", "invalid choice"),
    Wrong("--data DATA --weights PT --imgsz 0", "img_size"),
    Wrong("--data DATA --weights PT --imgsz 99999", "--imgsz"),
    Wrong("--data DATA --weights PT --imgsz big", "invalid int value"),
    Wrong("--data DATA --weights PT --batch-size 0", "batch_size"),
    Wrong("--data DATA --weights PT --conf-thres 1.5", "conf_thres"),
    Wrong("--data DATA --weights PT --iou-thres nan", "iou_thres"),
    Wrong("--data DATA --weights PT --max-det 0", "max_det"),
    Wrong("--data DATA --weights PT --workers -1", "workers"),
    Wrong("--data DATA --weights PT --device tpu", "--device"),
    Wrong("--data DATA --weights PT --precision int8", "invalid choice"),
    Wrong("--data DATA --weights PT --half --precision bf16", "--half"),
    Wrong("--data DATA --weights PT --dnn", "not offered"),
    Wrong("--data DATA --weights PT --colour", "unrecognized arguments"),
    Wrong("--data HERE/two.yaml --weights PT", "has 80 classes"),
    Wrong("--data HERE/broken.yaml --weights PT", "broken.yaml"),
    Wrong("--data HERE/empty.yaml --weights PT", "no pictures"),
]


@pytest.mark.parametrize(
    "wrong", WRONG, ids=[wrong.options.replace("--data DATA --weights PT ", "") for wrong in WRONG]
)
def test_a_mistake_is_one_line(
    wrong: Wrong, few: Path, yolov5n_pt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "net.onnx").write_text("")
    (tmp_path / "two.yaml").write_text(f"val: {few.parent / 'images/val'}\nnames: [a, b]\n")
    (tmp_path / "broken.yaml").write_text("a: [b\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.yaml").write_text("val: empty\nnames: [a]\n")
    places = {"DATA": few, "PT": yolov5n_pt}
    given = [str(places.get(word, word)).replace("HERE", str(tmp_path)) for word in wrong.options.split()]
    assert val.main([*given, "--project", str(tmp_path / "runs")]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    last = output.err.splitlines()[-1]
    assert last.startswith("error: ") and wrong.says in last
    assert not (tmp_path / "runs").exists()


def test_not_one_readable_picture_is_an_error(copy: Path, settings: ValSettings, capsys: Any, tmp_path: Path) -> None:
    for path in (copy.parent / "images/val").iterdir():
        path.write_text("no picture")
    assert run(copy, settings.weights, tmp_path / "runs") == 1
    assert "not one of 8 pictures can be read" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("options", ["--weights none.pt", "--weights PT --dnn", "--weights PT --data none.yaml"])
def test_mistakes_are_told_before_torch_loads(options: str, few: Path, yolov5n_pt: Path) -> None:
    given = ["--data", str(few), *options.replace("PT", str(yolov5n_pt)).split()]
    code = f"import sys, val; assert val.main({given!r}) == 1; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


def test_the_command_line_ends_with_the_folder(few: Path, yolov5n_pt: Path, tmp_path: Path) -> None:
    given = ["--data", few, "--weights", yolov5n_pt, "--imgsz", SIDE, "--project", tmp_path / "runs", "--save-json"]
    ended = subprocess.run(
        [sys.executable, str(ROOT / "val.py"), *map(str, given)], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == f"Results saved to {tmp_path / 'runs/exp'}"
    assert (tmp_path / "runs/exp/yolov5n_predictions.json").stat().st_size > 1000
