"""Files from elsewhere: what they say of themselves is checked, and nothing of a hostile one happens here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from formats.agreement import sample_images
from formats.engines import make_engine
from formats.exported import Exported, choose_backend, open_weights
from formats.options import ExportOptions
from formats.writers import handed, write_onnx, write_openvino, write_torchscript
from models.checkpoint import Checkpoint, read_checkpoint
from models.detector import make_detector
from utils.batches import Batch
from utils.errors import ConfigError, WeightsError
from utils.letterbox import letterbox_onto
from utils.pictures import read_picture
from utils.settings import EngineSettings, NmsSettings, PictureSettings

HW = (128, 192)
FP32 = EngineSettings(precision="fp32")


@pytest.fixture(scope="module")
def checkpoint(yolov5n_pt: Path) -> Checkpoint:
    return read_checkpoint(yolov5n_pt)


@pytest.fixture(scope="module")
def files(checkpoint: Checkpoint, coco_images: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one network in many forms."""
    folder = tmp_path_factory.mktemp("forms")
    images = sample_images(coco_images, HW, 2)
    for stem, changes in (("any", {"dynamic": True}), ("fixed", {"batch": 2})):
        ours = handed(checkpoint, images, ExportOptions(input_hw=HW, opset=13, **changes))
        write_onnx(ours, folder / stem)
        write_openvino(ours, folder / stem)
    write_torchscript(ours, folder / "fixed")
    return folder


def batch_of(paths: list[Any], canvas_hw: tuple[int, int] = HW) -> Batch[Any]:
    canvases, letterboxes = [], []
    for path in paths:
        rgb = read_picture(path, PictureSettings()).rgb
        letterbox = letterbox_onto(canvas_hw, (rgb.shape[0], rgb.shape[1]))
        canvas = np.empty((*canvas_hw, 3), np.uint8)
        letterbox.draw(rgb, canvas)
        canvases.append(canvas)
        letterboxes.append(letterbox)
    return Batch(paths, canvases, letterboxes)


FORMS = ["any.onnx", "fixed.onnx", "any_openvino_model", "fixed_openvino_model", "fixed.torchscript"]


@pytest.mark.parametrize("name", FORMS)
def test_each_form_finds_what_the_pt_finds(
    name: str, files: Path, checkpoint: Checkpoint, coco_images: list[Path]
) -> None:
    weights = open_weights(files / name, may_run_programs=True)
    assert isinstance(weights, Exported)
    assert weights.names == checkpoint.names and weights.are_names_told
    assert (weights.strides, weights.anchors) == ((8, 16, 32), 3)
    assert (weights.fixed_hw, weights.fixed_batch) == ((HW, 2) if "fixed" in name else (None, None))
    ours = make_engine(weights, FP32, 4, cpu_chunk=3)
    theirs = make_detector(checkpoint, FP32, 4, cpu_chunk=3)
    batch, nms = batch_of(coco_images[:5]), NmsSettings(0.1, 0.45)
    for found, expected in zip(ours.detect(batch, nms), theirs.detect(batch, nms)):
        assert len(found) == len(expected)
        np.testing.assert_allclose(found.boxes_px, expected.boxes_px, atol=0.1)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    for maps, raw in zip(ours.maps(batch), theirs.maps(batch)):  # what miners take
        size = min(len(maps), len(raw))
        for place in range(size):
            for level, other in zip(maps[place].levels, raw[place].levels):
                difference = (level.sigmoid() - other.sigmoid())[..., 4:].abs().max()
                assert float(difference) < 1e-4
        assert float((maps.objectness()[:size] - raw.objectness()[:size]).abs().max()) < 1e-4
        break


def test_a_pt_is_run_by_any_engine(checkpoint: Checkpoint, coco_images: list[Path]) -> None:
    batch, nms = batch_of(coco_images[:2]), NmsSettings(0.1, 0.45)
    expected = make_engine(checkpoint, FP32, 4).detect(batch, nms)
    for backend in ("onnxruntime", "openvino"):
        found = make_engine(checkpoint, replace(FP32, backend=backend), 4).detect(batch, nms)
        assert [len(one) for one in found] == [len(one) for one in expected]
        np.testing.assert_allclose(found[0].boxes_px, expected[0].boxes_px, atol=0.1)


def test_a_fixed_file_is_refused_at_another_size(files: Path, coco_images: list[Path]) -> None:
    engine = make_engine(open_weights(files / "fixed.onnx"), FP32, 4)
    with pytest.raises(ConfigError, match=r"fixed\.onnx was exported for 128 x 192 px alone, not 128 x 128"):
        engine.detect(batch_of(coco_images[:1], (128, 128)), NmsSettings())


def test_engines_that_cannot_run_a_form(files: Path, checkpoint: Checkpoint) -> None:
    onnx_file, folder = open_weights(files / "any.onnx"), open_weights(files / "any_openvino_model")
    assert [choose_backend(one, "auto") for one in (checkpoint, onnx_file, folder)] == [
        "torch", "onnxruntime", "openvino"
    ]  # fmt: skip
    for weights, backend in ((onnx_file, "torch"), (folder, "torch"), (folder, "onnxruntime")):
        with pytest.raises(ConfigError, match=f"backend: {backend} can't run .*; use auto or"):
            choose_backend(weights, backend)
    with pytest.raises(ConfigError, match="precision: onnxruntime computes in fp32 here, not bf16"):
        make_engine(onnx_file, replace(FP32, precision="bf16"), 4)


def test_a_program_is_only_run_where_a_user_names_it(files: Path) -> None:
    with pytest.raises(WeightsError, match="TorchScript is a program"):
        open_weights(files / "fixed.torchscript")


def test_a_file_without_metadata_has_its_levels_found_out(files: Path, tmp_path: Path) -> None:
    """YOLOv5 v6.1 writes none."""
    for name, strides in (("any.onnx", (8, 16, 32)), ("fixed.onnx", (8, 16, 32))):
        model = onnx.load(files / name)
        del model.metadata_props[:]
        onnx.save(model, tmp_path / name)
        weights = open_weights(tmp_path / name)
        assert isinstance(weights, Exported)
        assert (weights.strides, weights.anchors, weights.nc) == (strides, 3, 80)
        assert weights.names[:2] == ("class0", "class1") and not weights.are_names_told


# ---- what is refused -------------------------------------------------------------------------------------------------


def tiny(shape: Any = (1, 3, 64, 64), rows: int = 252, channels: int = 6) -> Any:
    """A graph that gives constant rows, whatever it sees."""
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
    out = helper.make_tensor_value_info("output0", TensorProto.FLOAT, (1, rows, channels))
    values = numpy_helper.from_array(np.full((1, rows, channels), 0.5, np.float32), "rows")
    zero = numpy_helper.from_array(np.zeros((), np.float32), "zero")
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["rows", "nothing"], ["output0"]),
    ]
    graph = helper.make_graph(nodes, "tiny", [image], [out], [values, zero])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)


def test_the_tiny_one_is_taken(tmp_path: Path) -> None:
    onnx.save(tiny(), tmp_path / "a.onnx")
    weights = open_weights(tmp_path / "a.onnx")
    assert isinstance(weights, Exported) and (weights.nc, weights.anchors, weights.strides) == (1, 3, (8, 16, 32))


def outside(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"


def outside_in_a_branch(model: Any) -> None:
    inner = tiny()
    outside(inner)
    model.graph.node.append(helper.make_node("If", ["zero"], ["x"], then_branch=inner.graph, else_branch=inner.graph))


def foreign(model: Any) -> None:
    model.graph.node.append(helper.make_node("Evil", ["images"], ["x"], domain="com.evil"))


def foreign_in_lines(model: Any) -> None:
    model.graph.node[0].domain, model.graph.node[0].op_type = "com\nerror 0\n", "Evil\x1b[2J"


def with_function(model: Any) -> None:
    nodes = [helper.make_node("Identity", ["a"], ["b"])]
    model.functions.append(helper.make_function("own", "F", ["a"], ["b"], nodes, [helper.make_opsetid("", 13)]))


def deep(model: Any) -> None:
    graph = tiny().graph
    for _ in range(12):
        outer = tiny().graph
        outer.node.append(helper.make_node("If", ["zero"], ["x"], then_branch=graph, else_branch=graph))
        graph = outer
    model.graph.CopyFrom(graph)


def two_inputs(model: Any) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, (1,)))


def half_input(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def meta(key: str, value: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value

    return change


def replaced(**arguments: Any) -> Callable[[Any], None]:
    return lambda model: model.CopyFrom(tiny(**arguments))


def huge(model: Any) -> None:
    """Asks for 4 TB when it runs."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([10**12], np.int64), "size"))
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["size"], ["much"]))
    model.graph.node.insert(1, helper.make_node("ReduceMean", ["much"], ["m"], keepdims=0))
    model.graph.node[3].input[1] = "m"


def unknown_operator(model: Any) -> None:
    model.graph.node[0].op_type = "NoSuchOperator"


REFUSED: dict[str, tuple[Callable[[Any], None], str]] = {
    "weights in another file": (outside, "keeps weights in another file"),
    "weights in another file, of a branch": (outside_in_a_branch, "keeps weights in another file"),
    "a foreign operator": (foreign, "operator com.evil.Evil is not of ONNX's own domain"),
    "a foreign operator of several lines": (foreign_in_lines, "operator com?error 0?.Evil?[2J is not of ONNX's own"),
    "functions": (with_function, "defines functions of its own"),
    "graphs in graphs": (deep, "deep"),
    "two inputs": (two_inputs, "has 2 inputs"),
    "half precision": (half_input, "its input is not float32"),
    "one channel": (replaced(shape=(1, 1, 64, 64)), "its input is 1 x 1 x 64 x 64, need N x 3 x height x width"),
    "three axes": (replaced(shape=(3, 64, 64)), "need N x 3"),
    "one free side": (replaced(shape=(1, 3, "h", 64)), "need both sides fixed, or none"),
    "a giant input": (replaced(shape=(1, 3, 10**6, 10**6)), "need N x 3"),
    "rows of no head": (replaced(rows=250), "gives 250 rows for a picture of 64 x 64, which no YOLOv5 head does"),
    "rows too short": (replaced(channels=5), "gives rows of 5 numbers"),
    "names of another number": (meta("names", "{0: 'a', 1: 'b'}"), "names 2 classes, but finds 1"),
    "names that are code": (meta("names", "__import__('os').system('touch /tmp/was-here')"), "metadata"),
    "names without end": (meta("names", "[" * 100_000), "metadata"),
    "names that are a sum without end": (meta("names", "1" + "+1" * 400_000), "metadata"),
    "strides of nothing": (meta("strides", "[0]"), "metadata"),
    "memory without end": (huge, "memory ran out"),
    "an unknown operator": (unknown_operator, "onnxruntime refuses it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_strange_onnx_is_one_line_that_names_it(case: str, tmp_path: Path) -> None:
    change, says = REFUSED[case]
    model = tiny()
    change(model)
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(WeightsError) as caught:
        open_weights(tmp_path / "a.onnx")
    told = str(caught.value)
    assert told.startswith(f"{tmp_path / 'a.onnx'}: ") and says in told and "\n" not in told
    assert not Path("/tmp/was-here").exists()


@pytest.mark.parametrize("content", [b"", b"\x08", b"\xff" * 1000, b"PK\x03\x04", b"\x3a\xff\xff\xff\xff\x0f"])
def test_what_is_no_onnx(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(WeightsError, match=r"a\.onnx: is no ONNX file, or a damaged one"):
        open_weights(tmp_path / "a.onnx")


def test_bytes_of_a_real_one_turned_over(files: Path, tmp_path: Path) -> None:
    """Whatever comes of it, it is a file or an error in words."""
    content = bytearray((files / "fixed.onnx").read_bytes())
    random = np.random.default_rng(0)
    for _ in range(4):
        damaged = bytearray(content)
        for place in random.integers(0, 20_000, 30):
            damaged[place] ^= 0xFF
        (tmp_path / "a.onnx").write_bytes(damaged)
        try:
            open_weights(tmp_path / "a.onnx")
        except WeightsError as error:
            assert "a.onnx" in str(error)


def test_a_strange_openvino_folder(files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder = tmp_path / "a_openvino_model"
    folder.mkdir()
    with pytest.raises(WeightsError, match=r"need one \.xml and the \.bin of its name, found 0"):
        open_weights(folder)
    (folder / "a.xml").write_text("<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><net>&a;</net>")
    (folder / "a.bin").write_bytes(b"")
    with pytest.raises(WeightsError, match="a_openvino_model"):
        open_weights(folder)
    (folder / "a.xml").write_bytes((files / "fixed_openvino_model/fixed.xml").read_bytes())
    with pytest.raises(WeightsError, match="a_openvino_model"):  # its weights are missing
        open_weights(folder)


def test_a_strange_torchscript(tmp_path: Path) -> None:
    path = tmp_path / "a.torchscript"
    path.write_bytes(b"no zip")
    with pytest.raises(WeightsError, match="is no TorchScript file of YOLOv5's"):
        open_weights(path, may_run_programs=True)
    script: Any = torch.jit.script(torch.nn.Identity())
    script.save(str(path))
    with pytest.raises(WeightsError, match="is no TorchScript file of YOLOv5's"):
        open_weights(path, may_run_programs=True)
