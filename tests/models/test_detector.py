"""The detection path against golden figures: raw outputs, boxes of the official and of users' weights."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch

from models.checkpoint import Checkpoint, read_checkpoint
from models.decode import RawMaps
from models.detector import (
    Detector,
    _why_none,
    build_model,
    choose_device,
    choose_precision,
    cpu_has_bf16,
    make_detector,
)
from models.fuse import fold_batch_norms, pack_for_cpu
from utils.batches import BatchReader, Placing, Shot, input_side
from utils.detections import Detections
from utils.errors import ConfigError, NoDeviceError
from utils.settings import EngineSettings, LoaderSettings, NmsSettings


@pytest.fixture(scope="module")
def checkpoint(yolov5n_pt: Path) -> Checkpoint:
    return read_checkpoint(yolov5n_pt)


@pytest.fixture(scope="module")
def detector(checkpoint: Checkpoint) -> Detector:
    return make_detector(checkpoint, EngineSettings(precision="fp32"), 16)


def run(
    detector: Detector,
    images: list[Path],
    letterbox: str = "minimal",
    nms: NmsSettings = NmsSettings(),  # noqa: B008  # frozen
    batch_size: int = 16,
    workers: int = 2,
    side: int = 640,
) -> dict[str, Detections]:
    unreadable: list[Shot] = []
    reader = BatchReader(
        [Shot(index, path) for index, path in enumerate(images)],
        Placing(letterbox, input_side(side, detector.stride), detector.stride),
        LoaderSettings(letterbox=letterbox, batch_size=batch_size, workers=workers),
        lambda item, error: unreadable.append(item),
    )
    found = {}
    for batch in reader:
        for item, detections in zip(batch.items, detector.detect(batch, nms)):
            found[item.path.name] = detections
    assert not unreadable
    return found


def input_by_formula(height: int, width: int) -> torch.Tensor:
    x = np.linspace(0, 1, 3 * height * width).reshape(1, 3, height, width)
    return torch.from_numpy(((7 * x) % 1.0).astype(np.float32))


@pytest.mark.parametrize("size", ["64x64", "320x256", "640x640"])
@pytest.mark.parametrize("form", ["unfused", "fused", "packed"])
def test_raw_outputs_are_goldens(size: str, form: str, checkpoint: Checkpoint, golden: Callable[[str], Any]) -> None:
    figures = golden("raw_forward.json")["sizes"][size]["unfused" if form == "unfused" else "fused"]
    model: Any = build_model(checkpoint)
    images = input_by_formula(*(int(side) for side in size.split("x")))
    if form != "unfused":
        fold_batch_norms(model)
    if form == "packed":
        if not pack_for_cpu(model, torch.float32):
            pytest.skip("this torch can't pack convolutions")
        images = images.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        maps = model(images)
        levels = [m.permute(0, 2, 3, 1).unflatten(3, (3, -1)) for m in maps]
        rows = RawMaps(levels, checkpoint.strides, torch.tensor(checkpoint.anchors_px)).rows().double()
    assert list(rows.shape) == figures["shape"]
    largest = figures["abs_max"]
    assert float(rows.abs().max()) == pytest.approx(largest, rel=1e-4)
    assert float(rows.sum()) == pytest.approx(figures["sum"], rel=1e-4)
    assert float(rows[..., 4].sum()) == pytest.approx(figures["sum_obj"], rel=1e-4)
    assert float(rows[..., 5:].sum()) == pytest.approx(figures["sum_cls"], rel=1e-4)
    for level, expected in zip(maps, figures["logits"]):
        assert float(level.double().sum()) == pytest.approx(expected["sum"], rel=1e-4)
        assert float(level.double().std()) == pytest.approx(expected["std"], rel=1e-4)
    for key, found in (("rows_first10_cols_first8", rows[0, :10, :8]), ("rows_last5_cols_first8", rows[0, -5:, :8])):
        if key not in figures:  # given once for each size, since fusing changes nothing that is printed
            continue
        assert np.abs(found[:, :4].numpy() - np.array(figures[key])[:, :4]).max() <= 1e-3
        assert np.abs(found[:, 4:].numpy() - np.array(figures[key])[:, 4:]).max() <= 1e-5


def assert_same_boxes(
    found: Detections, expected: np.ndarray, tolerance_px: float, threshold: float, score_tolerance: float = 1e-3
) -> None:
    """Each box has its twin: same class, score and corners; only boxes at the threshold may come or go.

    expected: (N, 6) class, score, x1, y1, x2, y2.
    """
    free = set(range(len(found)))
    for class_id, score, *corners in expected:
        near = [
            k
            for k in free
            if found.class_ids[k] == class_id
            and abs(found.scores[k] - score) <= score_tolerance
            and np.abs(found.boxes_px[k] - corners).max() <= tolerance_px
        ]
        if near:
            free.remove(near[0])
        else:
            assert abs(score - threshold) <= 1e-3, f"no twin for {class_id} {score} {corners}"
    assert all(abs(found.scores[k] - threshold) <= 1e-3 for k in free), "a box that golden hasn't"


def test_minimal_letterbox_detects_as_upstream(
    detector: Detector, coco_images: list[Path], golden: Callable[[str], Any]
) -> None:
    expected = golden("upstream_detect_conf025.json")["images"]
    found = run(detector, coco_images[:24], "minimal", NmsSettings(max_det=1000))
    assert set(found) == set(expected)
    for name, rows in expected.items():
        scale = 640 / max(read_hw(coco_images[0].parent / name))
        assert_same_boxes(found[name], np.array(rows).reshape(-1, 6), 0.51 / scale, 0.25)


def test_square_letterbox_detects_as_the_original(
    detector: Detector, coco_images: list[Path], golden: Callable[[str], Any]
) -> None:
    from ymir.results import whole_boxes

    expected = golden("infer.json")["images"]
    found = run(detector, coco_images[:24], "square", NmsSettings(max_det=100))
    assert set(found) == set(expected)
    for name, rows in expected.items():
        detections = found[name]
        whole = whole_boxes(detections.boxes_px, read_hw(coco_images[0].parent / name)).astype(np.float32)
        rounded = Detections(whole, detections.scores, detections.class_ids)
        golden_rows = [[detector.names.index(row[0]), *row[1:]] for row in rows]
        assert_same_boxes(rounded, np.array(golden_rows).reshape(-1, 6), 1.01, 0.25)


@pytest.mark.parametrize("weights", ["users_face_yolov5n", "users_helmet_vest_yolov5n"])
def test_users_checkpoints_detect_as_the_peer(
    weights: str, shared: Path, coco_images: list[Path], golden: Callable[[str], Any]
) -> None:
    expected = golden("users_detect_conf025.json")[weights]
    own = make_detector(read_checkpoint(shared / f"weights/{weights}.pt"), EngineSettings(precision="fp32"), 16)
    assert list(own.names) == expected["names"]
    found = run(own, coco_images)
    for path in coco_images:
        height, width = read_hw(path)
        rows = np.array(expected["images"].get(path.name, [])).reshape(-1, 6)
        centre, half = rows[:, 2:4] * [width, height], rows[:, 4:6] * [width, height] / 2
        corners = np.concatenate((rows[:, :2], centre - half, centre + half), 1)
        assert_same_boxes(found[path.name], corners, 0.5 * max(height, width) / 640 + 0.51, 0.25)


def read_hw(path: Path) -> tuple[int, int]:
    import cv2

    image: Any = cv2.imread(str(path))
    return int(image.shape[0]), int(image.shape[1])


def test_a_result_depends_on_nothing_but_its_picture(detector: Detector, coco_images: list[Path]) -> None:
    images = coco_images[:12]
    whole = run(detector, images, side=320)
    for other in (
        run(detector, images[::-1], side=320, batch_size=5, workers=0),
        run(detector, images[3:4], side=320, batch_size=1),
        run(detector, images[2:9], side=320, batch_size=2, workers=1),
    ):
        for name, detections in other.items():
            assert np.array_equal(detections.boxes_px, whole[name].boxes_px)
            assert np.array_equal(detections.scores, whole[name].scores)
            assert np.array_equal(detections.class_ids, whole[name].class_ids)


def test_chunks_filled_up_change_nothing(detector: Detector, coco_images: list[Path]) -> None:
    from dataclasses import replace

    one_by_one = run(detector, coco_images[:5], "square", side=320)
    by_fours = run(replace(detector, chunk=4), coco_images[:5], "square", side=320)
    alone = run(replace(detector, chunk=4), coco_images[4:5], "square", side=320)
    for name, detections in by_fours.items():
        assert np.abs(detections.scores - one_by_one[name].scores).max(initial=0) < 1e-5
    name = coco_images[4].name
    assert np.array_equal(alone[name].scores, by_fours[name].scores)


def test_bf16_finds_the_same_things(checkpoint: Checkpoint, detector: Detector, coco_images: list[Path]) -> None:
    rough = make_detector(checkpoint, EngineSettings(precision="bf16"), 16)
    exact, close = (run(one, coco_images[:4], side=320) for one in (detector, rough))
    for name, detections in exact.items():
        sure = detections.scores > 0.35
        assert set(detections.class_ids[sure]) <= set(close[name].class_ids)


def test_every_anchor_is_decoded_alike_by_both_ways(detector: Detector, coco_images: list[Path]) -> None:
    reader = BatchReader(
        [Shot(0, coco_images[0])], Placing("square", 320, 32), LoaderSettings(workers=0), lambda item, error: None
    )
    for batch in reader:
        for raw in detector.maps(batch):
            rows = raw.rows()
            assert rows.shape == (1, 3 * (40 * 40 + 20 * 20 + 10 * 10), 85)
            # Not equal in the last bit: a vectorised sigmoid differs from the one of a remainder.
            assert torch.allclose(raw.objectness(), rows[..., 4], rtol=1e-6)
            (some,) = raw.rows_above(0.1)
            assert len(some) and torch.allclose(some, rows[0][rows[0, :, 4] > 0.1], rtol=1e-6)


def test_torch_is_asked_once_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def init() -> None:
        asked.append(1)
        raise RuntimeError("Found no NVIDIA driver")

    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _why_none.cache_clear()
    for _ in range(2):  # on Debian 11 torch 1.12's second call would never come back
        with pytest.raises(NoDeviceError, match="Found no NVIDIA driver"):
            choose_device("7")
    _why_none.cache_clear()
    assert len(asked) == 1


def test_a_gpu_that_is_not_there_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert choose_device("").type == choose_device("cpu").type == "cpu"
    with pytest.raises(
        NoDeviceError,
        match=r"GPU 3 was asked for, 0 are visible to this process \([^)]*(driver|CUDA)[^)]*\); to run on",
    ):
        choose_device("3,4")
    with pytest.raises(ConfigError):
        choose_device("abc")


def test_precision_follows_the_hardware() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_precision("auto", cpu) == ("bf16" if cpu_has_bf16() else "fp32")
    assert choose_precision("auto", cuda) == "fp16"
    assert choose_precision("fp32", cuda) == "fp32"
    with pytest.raises(ConfigError):
        choose_precision("fp16", cpu)


@pytest.mark.parametrize(
    "name", ["yolov5s-LeakyReLU", "yolov5s-ghost", "yolov5s-transformer", "yolov3-tiny", "yolov5n6"]
)
def test_packing_keeps_every_kind_of_layer(name: str) -> None:
    from models.yolo import DetectionModel, read_spec

    torch.manual_seed(0)
    model: Any = DetectionModel(
        read_spec(Path(__file__).resolve().parents[2] / f"models/{name}.yaml", classes=2)
    ).eval()
    images = torch.rand(1, 3, 128, 192).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        before = model(images)
        fold_batch_norms(model)
        pack_for_cpu(model, torch.float32)
        after = model(images)
    for one, other in zip(before, after):
        assert float((one - other).abs().max()) < 1e-4


@pytest.mark.parametrize(
    "change",
    [
        {"width_multiple": 20.0},
        {"depth_multiple": 10.0},
        {"backbone": [[-1, 1, "Conv", [16_000, 64, 2, 2]]] * 10},
        {"backbone": [[-1, 90, "C3", [16_000]]]},
        {"head": [[[0, 1, 2], 1, "Detect", ["nc", "anchors"]]]},
    ],
)
def test_a_description_that_does_not_fit_its_weights_is_refused_before_it_is_built(
    change: dict[str, Any], checkpoint: Checkpoint
) -> None:
    from dataclasses import replace

    from utils.errors import WeightsError

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match="yolov5n"):
        build_model(replace(checkpoint, yaml={**checkpoint.yaml, **change}))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 500_000, "KB more than before"
