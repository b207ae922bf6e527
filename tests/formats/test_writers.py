"""Files for other engines: the opset that was asked for, equal figures, names that other tools read, no half files."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import yaml

from formats.agreement import sample_images
from formats.onnx_file import make_onnx, newest_opset
from formats.options import MOST_OPSET, ExportOptions
from formats.runners import Images
from formats.writers import WRITERS, Handed, handed, write_onnx, write_openvino, write_torchscript
from models.checkpoint import Checkpoint, read_checkpoint
from models.checkpoint_writer import SavedTraining, write_checkpoint, yaml_of
from models.detector import build_model
from models.yolo import make_model, read_spec
from utils.errors import ConfigError, ExecutorError
from utils.nms import select_boxes
from utils.settings import NmsSettings

ROOT = Path(__file__).resolve().parent.parent.parent
SIDE_HW = (192, 256)


@pytest.fixture(scope="module")
def checkpoint(yolov5n_pt: Path) -> Checkpoint:
    return read_checkpoint(yolov5n_pt)


@pytest.fixture(scope="module")
def images(coco_images: list[Path]) -> Images:
    return sample_images(coco_images, SIDE_HW)


def ready(checkpoint: Checkpoint, images: Images, **changes: Any) -> Handed:
    return handed(checkpoint, images, ExportOptions(input_hw=SIDE_HW, **changes), threads=1)


def run(path: Path, images: Images) -> list[Any]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"images": images}))


def plain_rows(checkpoint: Checkpoint, images: Images) -> Any:
    """The facts' formulas in numpy, from a network that was not folded."""
    with torch.inference_mode():
        levels = [level.numpy() for level in build_model(checkpoint)(torch.from_numpy(images))]
    rows = []
    for number, (level, stride) in enumerate(zip(levels, checkpoint.strides)):
        batch, _, height, width = level.shape
        s = 1 / (1 + np.exp(-level.reshape(batch, 3, -1, height, width).astype(np.float64)))
        y, x = np.mgrid[:height, :width]
        anchors = checkpoint.anchors_px[number]
        s[:, :, 0] = (2 * s[:, :, 0] - 0.5 + x) * stride
        s[:, :, 1] = (2 * s[:, :, 1] - 0.5 + y) * stride
        s[:, :, 2] = (2 * s[:, :, 2]) ** 2 * anchors[:, 0].reshape(1, 3, 1, 1)
        s[:, :, 3] = (2 * s[:, :, 3]) ** 2 * anchors[:, 1].reshape(1, 3, 1, 1)
        rows.append(s.transpose(0, 1, 3, 4, 2).reshape(batch, -1, s.shape[2]))
    return np.concatenate(rows, 1)


def assert_equal_rows(found: Any, expected: Any) -> None:
    assert found.shape == expected.shape
    assert np.abs(found[..., :4] - expected[..., :4]).max() < 1e-4 * max(SIDE_HW)
    assert np.abs(found[..., 4:] - expected[..., 4:]).max() < 1e-4


# ---- ONNX ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [9, 11, 13, 17])
@pytest.mark.parametrize("dynamic", [False, True])
def test_an_onnx_file_finds_what_torch_finds(
    opset: int, dynamic: bool, checkpoint: Checkpoint, images: Images, tmp_path: Path
) -> None:
    opset = min(opset, newest_opset())
    ours = ready(checkpoint, images, opset=opset, dynamic=dynamic, batch=2, simplify=opset > 13)
    (path,) = write_onnx(ours, tmp_path / "best")
    model = onnx.load(path)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", opset)]
    assert [one.name for one in model.graph.input] == ["images"] and model.graph.output[0].name == "output0"
    told = {one.key: one.value for one in model.metadata_props}
    assert told["stride"] == "32" and ast.literal_eval(told["names"])[0] == "person"
    assert_equal_rows(run(path, images[:2])[0], plain_rows(checkpoint, images[:2]))
    shape = [one.dim_param or one.dim_value for one in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == (["batch", 3, "height", "width"] if dynamic else [2, 3, *SIDE_HW])
    if dynamic:
        other = np.ascontiguousarray(images[:3, :, :128, :192])
        assert_equal_rows(run(path, other)[0], plain_rows(checkpoint, other))
    else:
        with pytest.raises(Exception, match="Got invalid dimensions"):
            run(path, images[:3])


@pytest.mark.skipif(newest_opset() >= MOST_OPSET, reason="this torch writes all that can be asked for")
def test_an_opset_that_this_torch_does_not_write_is_told() -> None:
    newest = newest_opset()
    with pytest.raises(ConfigError, match=rf"opset {newest + 1}: this torch .*; what it writes is 7 to {newest}$"):
        make_onnx(torch.nn.Conv2d(3, 3, 1).eval(), torch.zeros(1, 3, 32, 32), newest + 1)


def test_an_end_to_end_file_gives_inferences_boxes(checkpoint: Checkpoint, images: Images, tmp_path: Path) -> None:
    for opset, dynamic, agnostic in ((11, False, False), (13, True, True), (18, False, True)):
        opset = min(opset, newest_opset())
        options = {"opset": opset, "dynamic": dynamic, "agnostic_nms": agnostic, "nms": True, "batch": 4}
        ours = ready(checkpoint, images, topk_all=50, **options)
        _, path = write_onnx(ours, tmp_path / "best")
        assert path.name == "best-nms.onnx"
        assert [one.name for one in onnx.load(path).graph.output] == [
            "num_dets",
            "det_boxes",
            "det_scores",
            "det_classes",
        ]
        counts, boxes, scores, class_ids = run(path, images)
        rows = torch.from_numpy(ours.rows(images))
        nms = NmsSettings(0.25, 0.45, max_det=50, agnostic=agnostic)
        for place in range(len(images)):
            expected = [part.numpy() for part in select_boxes(rows[place][rows[place][:, 4] > 0.25], nms)]
            count = int(counts[place, 0])
            assert count == len(expected[0]) > 0
            assert np.abs(boxes[place, :count] - expected[0]).max() < 0.02
            assert np.abs(scores[place, :count] - expected[1]).max() < 1e-4
            assert (class_ids[place, :count] == expected[2]).all()
            assert not boxes[place, count:].any() and not scores[place, count:].any()


def test_what_rockchips_demos_read(checkpoint: Checkpoint, images: Images, tmp_path: Path) -> None:
    _, path, anchors = write_onnx(ready(checkpoint, images, rknn=True, opset=12), tmp_path / "best")
    found = run(path, images[:1])
    assert [one.shape for one in found] == [(1, 255, 24, 32), (1, 255, 12, 16), (1, 255, 6, 8)]
    with torch.inference_mode():
        expected = build_model(checkpoint)(torch.from_numpy(images[:1]))
    for one, level in zip(found, expected):
        assert np.abs(one - level.sigmoid().numpy()).max() < 1e-4
    assert {node.op_type for node in onnx.load(path).graph.node} <= {
        "Conv", "Sigmoid", "Mul", "Add", "Concat", "MaxPool", "Resize"
    }  # fmt: skip
    numbers = [float(line) for line in anchors.read_text().splitlines()]
    assert numbers == checkpoint.anchors_px.flatten().tolist()


def test_large_pools_become_chains_of_small_ones(images: Images, tmp_path: Path) -> None:
    from formats.network import RknnLevels
    from models.common import SPP

    torch.manual_seed(0)
    pool = SPP(8, 8).eval()
    maps = torch.randn(1, 8, 20, 20)
    with torch.inference_mode():
        expected = pool(maps)
        RknnLevels(_Holding(pool))  # type: ignore[arg-type]
        assert torch.equal(pool(maps), expected)
    assert all(one.kernel_size == 5 for one in pool.modules() if isinstance(one, torch.nn.MaxPool2d))


class _Holding(torch.nn.Module):
    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer


def test_raw_maps_for_training_elsewhere(checkpoint: Checkpoint, images: Images, tmp_path: Path) -> None:
    (path,) = write_onnx(ready(checkpoint, images, train=True, opset=13), tmp_path / "best")
    assert [one.shape for one in run(path, images[:1])] == [(1, 3, 24, 32, 85), (1, 3, 12, 16, 85), (1, 3, 6, 8, 85)]
    assert "BatchNormalization" in {node.op_type for node in onnx.load(path).graph.node}


# ---- the others ------------------------------------------------------------------------------------------------------


def test_a_torchscript_file_as_yolov5_reads_it(checkpoint: Checkpoint, images: Images, tmp_path: Path) -> None:
    (path,) = write_torchscript(ready(checkpoint, images, batch=2), tmp_path / "best")
    extra = {"config.txt": ""}
    script = torch.jit.load(str(path), _extra_files=extra)  # type: ignore[no-untyped-call]
    config = json.loads(extra["config.txt"])
    assert config["shape"] == [2, 3, *SIDE_HW] and config["stride"] == 32 and config["names"]["0"] == "person"
    found = script(torch.from_numpy(images[:2]))
    assert isinstance(found, tuple) and len(found) == 1
    assert_equal_rows(found[0].numpy(), plain_rows(checkpoint, images[:2]))


def test_an_openvino_folder(checkpoint: Checkpoint, images: Images, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    (folder,) = write_openvino(ready(checkpoint, images), tmp_path / "best")
    assert folder.name == "best_openvino_model"
    assert {path.name for path in folder.iterdir()} == {"best.xml", "best.bin", "best.yaml"}
    about = yaml.safe_load((folder / "best.yaml").read_text())
    assert about["stride"] == 32 and about["names"][0] == "person"
    before = (folder / "best.xml").stat().st_mtime_ns
    write_openvino(ready(checkpoint, images), tmp_path / "best")  # over the old one
    assert (folder / "best.xml").stat().st_mtime_ns > before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "opset"), [("yolov5s-LeakyReLU", 10), ("yolov5n6", 11), ("yolov5s-ghost", 11), ("yolov5s-transformer", 14)]
)
def test_other_networks(name: str, opset: int, tmp_path: Path) -> None:
    """Random weights of other heads, layers and activations."""
    assert_network_is_handed_over(read_spec(ROOT / f"models/{name}.yaml", 3), tmp_path, opset)


def test_a_network_that_an_opset_has_no_operators_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="opset 11: has no attention, which this network needs; use 14 or later"):
        assert_network_is_handed_over(read_spec(ROOT / "models/yolov5s-transformer.yaml", 3), tmp_path)
    assert capfd.readouterr() == ("", "")  # and no page of graph


@pytest.mark.parametrize("activation", ["ReLU", "Hardswish", "LeakyReLU"])
def test_activations_that_chips_want(activation: str, tmp_path: Path) -> None:
    assert_network_is_handed_over(read_spec(ROOT / "models/yolov5n.yaml", 3, activation), tmp_path)


def assert_network_is_handed_over(spec: Any, folder: Path, opset: int = 11) -> None:
    torch.manual_seed(0)
    narrow = replace(spec, width_multiple=min(spec.width_multiple, 0.125), depth_multiple=0.33)
    model = make_model(narrow).eval()
    names = tuple(f"class {number}" for number in range(spec.classes))
    saved = SavedTraining(model, None, names, yaml_of(narrow), -1, None, None, None, "2026-11-25T01:02:03", {})
    write_checkpoint(folder / "net.pt", saved)
    options = ExportOptions(input_hw=(128, 128), opset=opset, dynamic=True)
    ours = handed(read_checkpoint(folder / "net.pt"), sample_images([], (128, 128), 2), options)
    for write in (write_onnx, write_torchscript):
        write(ours, folder / "net")  # compares with torch itself


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_a_file_that_differs_is_not_kept(checkpoint: Checkpoint, images: Images, tmp_path: Path) -> None:
    ours = ready(checkpoint, images, opset=13)
    write_onnx(ours, tmp_path / "best")

    class Off(Handed):
        def rows(self, images: Images) -> Images:
            rows = super().rows(images)
            rows[..., 4] += 0.01
            return rows

    kept = (tmp_path / "best.onnx").read_bytes()
    for write in WRITERS.values():
        with pytest.raises(ExecutorError, match="differs too much"):
            write(Off(**vars(ours)), tmp_path / "best")
    assert (tmp_path / "best.onnx").read_bytes() == kept
    assert [path.name for path in tmp_path.iterdir()] == ["best.onnx"]


def test_an_opset_that_torch_cannot_write(checkpoint: Checkpoint, images: Images, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--opset: got 21, need 9 to 20"):
        ExportOptions(opset=21)
    with pytest.raises(ConfigError, match="onnx"):
        ExportOptions(include=("onnx", "nothing"))
