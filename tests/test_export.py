"""export.py from outside: what it writes beside the weights, what it says, and every mistake in one line."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest

import export


@pytest.fixture
def weights(yolov5n_pt: Path, tmp_path: Path) -> Path:
    shutil.copy(yolov5n_pt, tmp_path / "best.pt")
    return tmp_path / "best.pt"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_yolov5s_defaults(weights: Path, capsys: pytest.CaptureFixture[str], caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    assert export.main(["--weights", str(weights), "--img", "64"]) == 0
    output = capsys.readouterr()
    assert output.out.splitlines() == [str(weights.with_suffix(suffix)) for suffix in (".torchscript", ".onnx")]
    assert "probabilities within" in caplog.text
    assert names(weights.parent) == {"best.pt", "best.onnx", "best.torchscript"}
    assert onnx.load(weights.with_suffix(".onnx")).opset_import[0].version == 12


def test_sides_are_rounded_up_and_may_differ(weights: Path, caplog: Any) -> None:
    options = [
        "--imgsz",
        "64",
        "90",
        "--include",
        "onnx",
        "--opset",
        "11",
        "--simplify",
        "--nms",
        "--rknn",
        "--inplace",
    ]
    assert export.main(["--weights", str(weights), *options]) == 0
    assert "--imgsz 64 90: rounded up to 64 96, multiples of 32" in caplog.text
    shape = onnx.load(weights.with_suffix(".onnx")).graph.input[0].type.tensor_type.shape.dim
    assert [one.dim_value for one in shape] == [1, 3, 64, 96]
    assert names(weights.parent) == {"best.pt", "best.onnx", "best-nms.onnx", "best-rknn.onnx", "RK_anchors.txt"}


def test_a_format_that_is_made_elsewhere_costs_only_itself(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main(["--weights", str(weights), "--img", "64", "--include", "engine", "onnx"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: engine: isn't written here")
    assert f"trtexec --onnx={weights.with_suffix('.onnx')}" in last
    assert names(weights.parent) == {"best.pt", "best.onnx"}


WRONG = [
    ("--include nothing", "--include: got 'nothing', need some of onnx, torchscript, openvino, engine"),
    ("--opset 8", "got '8', need a whole number from 9 to 20"),
    ("--opset 10 --nms", "--nms: needs --opset 11 or later"),
    ("--imgsz 1 2 3", "--imgsz: got 3 numbers, need one, or height and width"),
    ("--imgsz 0", "got '0', need a whole number from 1"),
    ("--imgsz big", "got 'big'"),
    ("--batch-size 0", "got '0'"),
    ("--half", "--half: fp16 is traced on a GPU"),
    ("--optimize --device 0", "--optimize"),
    ("--train --nms", "--train"),
    ("--device 99", "GPU 99 was asked for"),
    ("--conf-thres 2", "need a number from 0 to 1"),
    ("--weights none.pt", "none.pt: No such file"),
    ("--weights none.onnx", "none.onnx is no .pt file"),
    ("--int8 --include onnx", "--int8: needs --data with at least 100 pictures to calibrate by, none is given"),
    ("--data none.yaml", "none.yaml"),
    ("--workspace 4", "--workspace: is for TensorRT"),
    ("--colour", "unrecognized arguments"),
]


@pytest.mark.parametrize(("options", "says"), WRONG)
def test_a_mistake_is_one_line(options: str, says: str, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = options.split() if "--weights" in options else ["--weights", str(weights), *options.split()]
    assert export.main(given) == 1
    output = capsys.readouterr()
    last = output.err.splitlines()[-1]
    assert last.startswith("error: ") and says in last and output.out == ""
    assert names(weights.parent) == {"best.pt"}


def test_a_folder_that_cannot_be_written(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (weights.parent / "best.onnx").mkdir()
    (weights.parent / "best.onnx/x").write_text("")
    assert export.main(["--weights", str(weights), "--img", "64", "--include", "onnx"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: onnx: {weights.parent}")
    assert names(weights.parent) == {"best.pt", "best.onnx"}


@pytest.mark.slow
def test_int8_keeps_what_it_finds(weights: Path, shared: Path, caplog: Any, tmp_path: Path) -> None:
    caplog.set_level(logging.INFO)
    shutil.copytree(shared / "data/coco128/images", tmp_path / "d/images")
    shutil.copytree(shared / "data/coco128/labels", tmp_path / "d/labels")
    text = (shared / "data/coco128/coco128.yaml").read_text()
    (tmp_path / "d/data.yaml").write_text(f"train: images/train2017\nnames:{text.split('names:', 1)[1]}")
    options = ["--int8", "--include", "onnx", "--data", str(tmp_path / "d/data.yaml"), "--img", "320", "--opset", "11"]
    assert export.main(["--weights", str(weights), *options]) == 0
    told = caplog.text
    assert "int8 convolutions, opset 13, mAP" in told
    print([line for line in told.splitlines() if "mAP" in line])
    kinds = {node.op_type for node in onnx.load(weights.parent / "best-int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= kinds
